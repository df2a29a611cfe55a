//! What only tests use asks no more of a crate than the programs do.
//!
//! Cargo joins the features that everybody asks of a crate. Where tests ask for more, `cargo build`
//! and `cargo test` build that crate, and all that stand on it, once each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::finding::Finding;

/// Crates by name and version, with their features.
type Features = BTreeMap<String, BTreeSet<String>>;

/// Crates of which tests ask for more.
///
/// # Errors
/// Where `cargo tree` fails.
pub fn check(root: &Path) -> anyhow::Result<Vec<Finding>> {
    Ok(grown(&tree(root, "normal,build")?, &tree(root, "normal,build,dev")?))
}

fn grown(programs: &Features, tests: &Features) -> Vec<Finding> {
    let more = |(name, features): (&String, &BTreeSet<String>)| {
        let missing: Vec<_> = tests.get(name)?.difference(features).map(String::as_str).collect();
        let what = format!(
            "{name} has {} in tests alone, so that it and what stands on it are built twice; ask for \
             it in [workspace.dependencies]",
            missing.join(", ")
        );
        (!missing.is_empty()).then(|| Finding::file("Cargo.toml", what))
    };
    programs.iter().filter_map(more).collect()
}

fn tree(root: &Path, edges: &str) -> anyhow::Result<Features> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--workspace", "--no-dedupe", "--prefix", "none"])
        .args(["--format", "{p}\t{f}", "--edges", edges])
        .current_dir(root)
        .output()
        .context("cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    Ok(read(&String::from_utf8_lossy(&output.stdout)))
}

/// Lines of a crate, a tab, and its features with commas between.
fn read(text: &str) -> Features {
    let mut crates = Features::new();
    for (name, features) in text.lines().filter_map(|line| line.split_once('\t')) {
        let features = features.split(',').filter(|feature| !feature.is_empty());
        crates.entry(name.to_owned()).or_default().extend(features.map(str::to_owned));
    }
    crates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_tests_ask_for_is_found() {
        let programs = read("clap v4.6.9\tderive,std\nrand v0.9.0\t\n");
        let tests = read("clap v4.6.9\tderive,std,wrap_help\nrand v0.9.0\t\ndivan v0.1.0\thelp\n");
        assert_eq!(grown(&programs, &programs), []);
        let [finding] = &grown(&programs, &tests)[..] else { panic!("one crate") };
        assert!(finding.what.starts_with("clap v4.6.9 has wrap_help in tests alone"), "{finding}");
    }
}
