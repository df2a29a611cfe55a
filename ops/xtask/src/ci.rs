//! What CI runs before the tests: our own checks first, since they take a second, then rustfmt
//! and Clippy. Every check runs whatever the others found, so that one run tells all.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Context;

use crate::finding::Finding;
use crate::{arrows, features, sources, tidy, walk};

/// # Errors
/// Where a check cannot be run at all; what a check finds is in the exit code.
pub fn run(root: &Path) -> anyhow::Result<ExitCode> {
    let sources = sources::load(root)?;
    let clippy: &[&str] = &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    let passed = [
        own("tidy", &tidy::check(&sources)),
        own("arrows", &arrows::check(&arrows::metadata(root)?)?),
        own("features", &features::check(root)?),
        own("walk", &walk::check(root, &sources)?.findings),
        cargo(root, "rustfmt", &["fmt", "--all", "--check"])?,
        cargo(root, "clippy", clippy)?,
    ];
    Ok(if passed.iter().all(|passed| *passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn own(name: &str, findings: &[Finding]) -> bool {
    for finding in findings {
        eprintln!("{finding}");
    }
    verdict(name, findings.is_empty(), "")
}

fn cargo(root: &Path, name: &str, arguments: &[&str]) -> anyhow::Result<bool> {
    let start = Instant::now();
    let status = Command::new(env!("CARGO")).args(arguments).current_dir(root).status();
    let status = status.with_context(|| format!("cargo {}", arguments.join(" ")))?;
    Ok(verdict(name, status.success(), &format!(" ({} s)", start.elapsed().as_secs())))
}

fn verdict(name: &str, passed: bool, detail: &str) -> bool {
    eprintln!("{} {name}{detail}", if passed { "ok    " } else { "FAILED" });
    passed
}
