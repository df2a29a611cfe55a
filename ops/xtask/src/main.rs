//! `cargo xtask <check>`: the rules of this repository that the compiler does not hold.
//!
//! Each check is a pure function from text to a list of findings, so that a test can show it
//! failing; this file only gathers the text, prints what was found and sets the exit code.
#![forbid(unsafe_code)]

mod arrows;
mod ci;
mod features;
mod finding;
mod mask;
mod sources;
mod tidy;
mod walk;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Checks of the Tandem repository")]
struct Arguments {
    #[command(subcommand)]
    check: Check,
}

#[derive(Subcommand)]
enum Check {
    /// Everything below, then rustfmt and Clippy: what CI runs before the tests.
    Ci,
    /// Sizes, names, fences of `unsafe`, module order, words that must not stay.
    Tidy,
    /// The dependency arrows between our crates.
    Arrows,
    /// Features of dependencies that only tests ask for, which build them twice.
    Features,
    /// The walk of one request in ARCHITECTURE.md against the files it names; prints it.
    Walk,
}

fn main() -> anyhow::Result<ExitCode> {
    let root = sources::repository_root()?;
    let findings = match Arguments::parse().check {
        Check::Ci => return ci::run(&root),
        Check::Tidy => tidy::check(&sources::load(&root)?),
        Check::Arrows => arrows::check(&arrows::metadata(&root)?)?,
        Check::Features => features::check(&root)?,
        Check::Walk => {
            let report = walk::check(&root, &sources::load(&root)?)?;
            print!("{}", report.listing);
            report.findings
        }
    };
    Ok(finding::report(&findings))
}
