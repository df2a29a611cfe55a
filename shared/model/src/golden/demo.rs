//! The demo model against golden data made with transformers. Needs its GGUF file, which
//! `./ops/test` fetches and names in `TANDEM_DEMO_MODEL`.

use super::support::{assert_close, engine, engine_with, golden_path, tokens};
use crate::WeightFormat;
use crate::equal::{Agreement, judge_margins, near_tie};
use crate::reference::{Ask, generate};
use serde::Deserialize;
use shared::kv::KvDtype;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub id: String,
    pub prompt_ids: Vec<u32>,
    pub output_ids: Vec<u32>,
    pub margin: Vec<f32>,
    top5_logprobs: Vec<Vec<(u32, f32)>>,
}

pub fn demo_model() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "the test script hands the file over this way")]
    let path = std::env::var("TANDEM_DEMO_MODEL");
    PathBuf::from(path.expect("set TANDEM_DEMO_MODEL to the demo GGUF file; ./ops/test does"))
}

pub fn demo_cases() -> Vec<Case> {
    let text = std::fs::read_to_string(golden_path("smollm2-135m.json")).unwrap();
    serde_json::from_str::<Golden>(&text).unwrap().cases
}

#[test]
fn greedy_tokens_and_logprobs_of_the_demo_model() {
    let mut engine = engine(&demo_model(), KvDtype::F32, 160);
    for case in demo_cases() {
        let prompt = tokens(&case.prompt_ids);
        let expected: Vec<_> = tokens(&case.output_ids).into_iter().zip(case.margin).collect();
        let ask = Ask { logprobs: Some(5), ..Ask::greedy(&prompt, expected.len() as u32) };
        let drawn = generate(&mut engine, &ask).unwrap();
        let found: Vec<_> = drawn.iter().map(|drawn| drawn.token.id).collect();
        let verdict = judge_margins(&expected, &found, 1e-3);
        assert!(verdict.is_ok(), "{}: {verdict:?}", case.id);
        for (step, (drawn, top)) in drawn.iter().zip(&case.top5_logprobs).enumerate() {
            if found[..step] != tokens(&case.output_ids)[..step] {
                break;
            }
            let what = format!("{} step {step}", case.id);
            let logprobs = |top: &[(u32, f32)]| top.iter().map(|(_, p)| *p).collect::<Vec<_>>();
            let ours: Vec<_> = drawn.token.top.iter().map(|(id, p)| (id.get(), *p)).collect();
            assert_close(&what, &logprobs(&ours), &logprobs(top), 2e-3);
            for (id, expected) in top {
                if let Some((_, found)) = ours.iter().find(|(other, _)| other == id) {
                    assert_close(&what, &[*found], &[*expected], 2e-3);
                }
            }
        }
    }
}

/// The golden data is of weights rounded to bf16, these are not rounded: logits differ by what the
/// rounding of a weight makes of them, as between two bf16 engines.
#[test]
fn greedy_tokens_of_the_demo_model_as_stored() {
    let mut engine = engine_with(&demo_model(), KvDtype::F32, WeightFormat::Auto, 160);
    let mut same = 0;
    for case in demo_cases() {
        let prompt = tokens(&case.prompt_ids);
        let expected: Vec<_> = tokens(&case.output_ids).into_iter().zip(case.margin).collect();
        let drawn = generate(&mut engine, &Ask::greedy(&prompt, expected.len() as u32)).unwrap();
        let found: Vec<_> = drawn.iter().map(|drawn| drawn.token.id).collect();
        let verdict = judge_margins(&expected, &found, near_tie(KvDtype::Bf16));
        assert!(verdict.is_ok(), "{}: {verdict:?}", case.id);
        same += usize::from(verdict == Ok(Agreement::Same));
    }
    assert!(same >= 6, "only {same} of 8 are the golden tokens to the end");
}
