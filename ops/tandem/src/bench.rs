//! `tandem bench`: measures, by the program `tandem-bench` that lies beside this one.
//!
//! It starts rings of the other programs and needs none of their code, so it is one of its own.

use anyhow::{Context, bail};
use clap::Args;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Measure a ring or a machine: runs tandem-bench.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct BenchCommand {
    /// What tandem-bench takes; --help lists it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

impl BenchCommand {
    /// Becomes that program.
    pub fn run(&self) -> anyhow::Result<()> {
        let program = beside(&std::env::current_exe().context("where this program lies")?)?;
        let error = Command::new(&program).args(&self.arguments).exec();
        Err(error).with_context(|| format!("cannot run {}", program.display()))
    }
}

fn beside(this: &Path) -> anyhow::Result<PathBuf> {
    let program = this.with_file_name("tandem-bench");
    if !program.is_file() {
        bail!(
            "{} is missing: it comes with the package, or by `cargo build --release -p tandem-bench`",
            program.display()
        );
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_beside_is_taken_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let this = folder.path().join("tandem");
        let error = beside(&this).unwrap_err().to_string();
        assert!(error.contains("tandem-bench is missing") && error.contains("cargo build"));
        std::fs::write(folder.path().join("tandem-bench"), "").unwrap();
        assert_eq!(beside(&this).unwrap(), folder.path().join("tandem-bench"));
    }
}
