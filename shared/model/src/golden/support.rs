//! What the golden tests share.

use crate::{CpuEngine, EngineConfig, WeightFormat};
use checkpoint::Checkpoint;
use shared::ids::TokenId;
use shared::kv::KvDtype;
use std::path::{Path, PathBuf};

pub fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

pub fn engine(path: &Path, dtype: KvDtype, pages: u32) -> CpuEngine {
    engine_with(path, dtype, WeightFormat::Bf16, pages)
}

pub fn engine_with(path: &Path, dtype: KvDtype, weights: WeightFormat, pages: u32) -> CpuEngine {
    let checkpoint = Checkpoint::open(path).unwrap();
    let (mut seen, mut total) = (0, 0);
    let config =
        EngineConfig { dtype, weights, pages, page_tokens: 16, threads: None, memory: None };
    let engine = CpuEngine::load(&checkpoint, config, &mut |done, of| {
        assert!(done > seen && done <= of, "progress {done} of {of} after {seen}");
        (seen, total) = (done, of);
    });
    assert_eq!(seen, total, "progress ends at the end");
    engine.unwrap()
}

pub fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().map(|&id| TokenId::new(id)).collect()
}

#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let near = (found - expected).abs() <= tolerance;
        assert!(near, "{what}: [{i}] is {found}, expected {expected}");
    }
}
