//! `tandem model convert`: the same weights in another form make the same tokens.

use crate::ask::Ask;
use crate::plan::{Plan, demo_model, golden_path};
use crate::process::program_folder;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Greedy tokens of the golden prompts by a ring of `model`, one prompt at a time.
fn tokens(model: &Path, weights: &str) -> Vec<Vec<u32>> {
    let golden = std::fs::read(golden_path("smollm2-135m.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let asks = golden["cases"].as_array().unwrap().iter().map(|case| {
        let ids: Vec<u32> = serde_json::from_value(case["prompt_ids"].clone()).unwrap();
        Ask::greedy(&ids, 32)
    });
    let ring = Plan::new(model.into()).servers("weights", weights).start();
    let outcomes = ring.generate_all(&asks.collect::<Vec<_>>(), 1);
    ring.wait_settled();
    outcomes.iter().for_each(|outcome| outcome.assert_done());
    outcomes.into_iter().map(|outcome| outcome.ids).collect()
}

#[test]
fn a_gguf_file_and_the_folder_made_of_it_answer_alike() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("demo");
    let convert = Command::new(program_folder().join("tandem"))
        .args(["model", "convert"])
        .args([&demo_model(), &folder])
        .output()
        .unwrap();
    assert!(convert.status.success(), "{}", String::from_utf8_lossy(&convert.stderr));
    // Both hold the weights in bf16, rounded once from the same numbers: no tie is excused.
    let (file, converted) = (tokens(&demo_model(), "bf16"), tokens(&folder, "auto"));
    assert!(file.len() >= 8 && file.iter().all(|ids| ids.len() > 1));
    assert_eq!(file, converted);
}
