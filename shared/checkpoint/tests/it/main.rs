//! Checkpoints opened from files: golden models, files written by the tests, hostile ones.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows test functions, not the functions they share"
)]

mod demo;
mod gguf_writer;
mod hostile;
mod refused;
mod same_model;
mod tokenizer;
mod values;

use std::path::PathBuf;

/// A folder or file of golden data.
fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}
