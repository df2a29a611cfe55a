//! Which model is meant: from what the user says to a path that a checkpoint can be opened at.

use std::path::PathBuf;

use anyhow::ensure;

/// The path of the model that `spec` names.
///
/// # Errors
/// Where nothing is at that path.
pub fn resolve(spec: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(spec);
    ensure!(path.exists(), "--model {spec}: no such folder or file; give the path of one");
    Ok(path)
}
