//! The ring with its models on a GPU, pages through the host by TCP. Needs one, so these run only
//! where asked for: `./ops/test --gpu`.

use crate::ask::Ask;
use crate::plan::{Plan, demo_model, golden_path};
use crate::random::Random;
use crate::ring::Ring;
use checkpoint::Checkpoint;
use kernels::cuda::Device;
use model::cuda::{CudaConfig, CudaEngine, PoolSize};
use model::equal::Agreement;
use shared::kv::KvDtype;
use std::path::{Path, PathBuf};

fn on_gpu(model: PathBuf) -> Plan {
    Plan::new(model).servers("device", "cuda").servers("dtype", "bf16").servers("threads", 2)
}

fn bare(model: &Path) -> CudaEngine {
    let pool = PoolSize { fraction: 0.5, pages_max: Some(512) };
    let (page_tokens, threads) = (16, Some(2));
    let config = CudaConfig { pool, page_tokens, threads, decode_rows: 16, step_tokens: 512 };
    let checkpoint = Checkpoint::open(model).unwrap();
    CudaEngine::load(&Device::open(0).unwrap(), &checkpoint, &config, &mut |_, _| {}).unwrap()
}

/// Greedy requests of random prompts, at once and one by one, against the bare engine on the GPU.
#[track_caller]
fn check(ring: &Ring, model: &Path, vocab: u32) {
    let mut random = Random::new(31);
    let prompt = |random: &mut Random| {
        let length = 1 + random.below(300);
        (0..length).map(|_| random.below(vocab)).collect::<Vec<_>>()
    };
    let asks: Vec<_> = (0..16).map(|_| Ask::greedy(&prompt(&mut random), 24)).collect();
    let mut engine = bare(model);
    let expected: Vec<_> = asks.iter().map(|ask| ask.reference(&mut engine)).collect();
    for width in [16, 1] {
        let outcomes = ring.generate_all(&asks, width);
        let same = outcomes.iter().zip(&expected).filter(|(outcome, expected)| {
            outcome.assert_equal_in(expected, KvDtype::Bf16) == Agreement::Same
        });
        println!("{} of {} the same, {width} at a time", same.count(), asks.len());
    }
    ring.wait_settled();
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_three_processes() {
    check(&on_gpu(demo_model()).start(), &demo_model(), 49_152);
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_one_process() {
    check(&on_gpu(demo_model()).start_in_one_process(), &demo_model(), 49_152);
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_tiny_models() {
    for name in ["tiny-qwen3", "tiny-llama3", "tiny-qwen2"] {
        let ring = on_gpu(golden_path(name)).start();
        let ask = Ask::greedy(&[1, 2, 3, 4, 5], 40);
        let outcome = ring.generate(&ask);
        outcome.assert_done();
        assert_eq!(outcome.ids.len(), 40, "{name}");
        ring.wait_settled();
    }
}
