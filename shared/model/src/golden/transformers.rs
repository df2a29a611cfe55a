//! The demo model's logits in bf16 against those of transformers on the same GPU.

use super::cuda::{engine, norm_error};
use super::demo::{demo_cases, demo_model};
use super::logits_after;
use crate::engine::Engine;
use std::path::{Path, PathBuf};

/// A case's logits as `bench/gpu/reference_logits.py` wrote them, `[step][vocab]`.
fn reference(folder: &Path, case: &str, dtype: &str, vocab: usize) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(folder.join(format!("{case}.{dtype}"))).unwrap();
    let floats: Vec<_> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    floats.chunks_exact(vocab).map(<[f32]>::to_vec).collect()
}

/// After the prompt and after each of the next golden tokens, which a prefill step and then decode
/// steps compute: what bf16 costs here against what it costs transformers on the same GPU.
#[test]
#[ignore = "needs a GPU, and logits of bench/gpu/reference_logits.py in TANDEM_REFERENCE_LOGITS"]
fn transformers_logits_of_the_demo_model() {
    let folder = std::env::var_os("TANDEM_REFERENCE_LOGITS").map(PathBuf::from);
    let folder = folder.expect("TANDEM_REFERENCE_LOGITS names the folder of reference logits");
    let mut engine = engine(&demo_model(), 160);
    println!("mean relative error of logits: ours, transformers' in bf16, ours against those");
    for case in demo_cases() {
        let of = |dtype| reference(&folder, &case.id, dtype, engine.vocab() as usize);
        let (exact, theirs) = (of("f32"), of("bf16"));
        let mut sequence = case.prompt_ids.clone();
        let mut sums = [0.0_f32; 3];
        for (step, (exact, theirs)) in exact.iter().zip(&theirs).enumerate() {
            let start = if step == 0 { 0 } else { sequence.len() - 1 };
            let ours = logits_after(&mut engine, &sequence, start);
            let pairs = [(&ours, exact), (theirs, exact), (&ours, theirs)];
            sums = std::array::from_fn(|i| sums[i] + norm_error(pairs[i].0, pairs[i].1));
            sequence.push(case.output_ids[step]);
        }
        let [ours, theirs, apart] = sums.map(|sum| sum / exact.len() as f32);
        println!("{}: {ours:.2e} {theirs:.2e} {apart:.2e}", case.id);
        assert!(ours <= 1.5 * theirs, "{}: further from f32 than transformers", case.id);
    }
}
