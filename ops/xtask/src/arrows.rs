//! The dependency arrows between our crates, left to right only.
//!
//! A crate may depend on those that its row names and on no other crate of ours; a crate without
//! a row is refused, so a new one is a decision. Development dependencies obey the same rows.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::finding::Finding;

/// Crate, then the crates of ours that it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("shared", &[]),
    ("checkpoint", &[]),
    ("kernels", &[]),
    ("ucx-sys", &[]),
    ("xtask", &[]),
    ("grammar", &["shared"]),
    ("link", &["shared"]),
    ("service", &["shared"]),
    ("kv-transfer", &["shared", "kernels", "ucx-sys"]),
    ("plan", &["shared"]),
    ("model", &["shared", "checkpoint", "kernels", "plan"]),
    ("gateway", &["shared", "checkpoint", "grammar", "link", "service"]),
    ("role", BELOW_ROLE),
    ("prefill-server", SERVER),
    ("decode-server", SERVER),
    ("tandem-bench", BENCH),
    ("tandem", EVERYTHING),
    ("tandem-tests", EVERYTHING),
];

const BENCH: &[&str] = &["shared", "checkpoint", "link", "model", "kernels", "kv-transfer", "plan"];

const BELOW_ROLE: &[&str] =
    &["shared", "checkpoint", "grammar", "link", "service", "model", "kernels", "kv-transfer"];

const SERVER: &[&str] = &[
    "shared",
    "checkpoint",
    "grammar",
    "link",
    "service",
    "model",
    "kernels",
    "kv-transfer",
    "role",
];

const EVERYTHING: &[&str] = &[
    "shared",
    "checkpoint",
    "grammar",
    "link",
    "service",
    "model",
    "kernels",
    "kv-transfer",
    "role",
    "gateway",
    "prefill-server",
    "decode-server",
    "plan",
    "tandem",
];

/// Crates of others that only these of ours may name. What is loaded at run time is loaded by the
/// crate that owns its maker's API: UCX's, and NVIDIA's, of whose libraries cudarc lacks NVML.
const SOLE_USERS: &[(&str, &[&str])] =
    &[("bincode", &["shared"]), ("libloading", &["ucx-sys", "kernels"])];

/// What `cargo metadata` says about the workspace.
///
/// # Errors
/// Where cargo fails or answers something that is not JSON.
pub fn metadata(root: &Path) -> anyhow::Result<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root)
        .output()
        .context("cargo metadata")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata failed: {stderr}");
    serde_json::from_slice(&output.stdout).context("cargo metadata's answer")
}

/// # Errors
/// Where the metadata has not the shape that cargo documents.
pub fn check(metadata: &Value) -> anyhow::Result<Vec<Finding>> {
    let packages = metadata["packages"].as_array().context("metadata without packages")?;
    let mut ours = Vec::new();
    for package in packages {
        ours.push(package["name"].as_str().context("a package without a name")?);
    }
    let mut findings = Vec::new();
    for (package, name) in packages.iter().zip(&ours) {
        let Some((_, allowed)) = ARROWS.iter().find(|(row, _)| row == name) else {
            findings.push(Finding::file(name, "no row in ARROWS of ops/xtask/src/arrows.rs"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().context("no dependencies")?;
        for dependency in dependencies {
            let target = dependency["name"].as_str().context("a nameless dependency")?;
            if ours.contains(&target) && !allowed.contains(&target) {
                let list = allowed.join(", ");
                let what = format!("depends on {target}; of ours it may use: [{list}]");
                findings.push(Finding::file(name, what));
            }
            let sole = SOLE_USERS.iter().find(|(theirs, _)| *theirs == target);
            if let Some((_, users)) = sole.filter(|(_, users)| !users.contains(name)) {
                let users = users.join(" and ");
                let what = format!("depends on {target}, which only {users} may name");
                findings.push(Finding::file(name, what));
            }
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn workspace(crates: &[(&str, &[&str])]) -> Value {
        let packages: Vec<Value> = crates
            .iter()
            .map(|(name, uses)| {
                let uses: Vec<Value> = uses.iter().map(|name| json!({ "name": name })).collect();
                json!({ "name": name, "dependencies": uses })
            })
            .collect();
        json!({ "packages": packages })
    }

    fn found(crates: &[(&str, &[&str])]) -> Vec<String> {
        check(&workspace(crates)).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_arrows_of_the_design_pass() {
        assert!(found(&[("shared", &["serde"]), ("gateway", &["shared", "axum"])]).is_empty());
    }

    #[test]
    fn an_arrow_to_the_left_is_found() {
        let findings = found(&[("shared", &["kernels"]), ("kernels", &[])]);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].starts_with("shared: depends on kernels"));
    }

    #[test]
    fn the_gateway_may_not_compile_a_backend() {
        assert_eq!(found(&[("gateway", &["kv-transfer"]), ("kv-transfer", &[])]).len(), 1);
    }

    #[test]
    fn a_crate_without_a_row_is_found() {
        assert_eq!(found(&[("newcomer", &[])]).len(), 1);
    }

    #[test]
    fn only_shared_names_bincode() {
        assert!(found(&[("shared", &["bincode"])]).is_empty());
        assert_eq!(found(&[("gateway", &["bincode"])]).len(), 1);
    }

    #[test]
    fn every_row_names_crates_that_have_a_row() {
        let rows: Vec<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
        for (name, uses) in ARROWS {
            assert!(uses.iter().all(|target| rows.contains(target)), "{name}");
        }
    }

    #[test]
    fn this_workspace_obeys() {
        let root = crate::sources::repository_root().unwrap();
        let findings = check(&metadata(&root).unwrap()).unwrap();
        assert!(findings.is_empty(), "{findings:?}");
    }
}
