//! From a fresh clone to the first answer, and the second start.
//!
//! The clone is of this checkout's HEAD, with an empty target folder and an empty model cache.
//! Sources of dependencies that cargo has downloaded before are used again, and so are system
//! packages.

use crate::numbers::short;
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use anyhow::{Context, ensure};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

pub const GROUP: Group = Group {
    name: "build",
    title: "A clean release build and the first `./ops/up --check`",
    rows: &[
        Row {
            name: "build-first-up",
            what: "clean release build, model, start, one answer, stop",
            unit: "s",
            bar: Bar::AtMost(480.0),
        },
        Row { name: "build-second-up", what: "the same again", unit: "s", bar: Bar::AtMost(10.0) },
    ],
    measure,
    slow: true,
};

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let folder = tempfile::tempdir()?;
    let clone = folder.path().join("tandem");
    let git = Command::new("git").arg("clone").arg("--quiet").args([place.root(), &clone]).status();
    ensure!(git.context("run git")?.success(), "git clone failed");
    let cache = folder.path().join("cache");
    let first = up(&clone, &cache)?;
    let second = up(&clone, &cache)?;
    let mut found = Findings::default();
    found.note(format!("first {} s, second {} s", short(first), short(second)));
    found.set("build-first-up", first);
    found.set("build-second-up", second);
    Ok(found)
}

/// Seconds of one `./ops/up --check`.
fn up(clone: &Path, cache: &Path) -> anyhow::Result<f64> {
    let start = Instant::now();
    let status = Command::new(clone.join("ops/up"))
        .args(["--check", "--port", "0"])
        .current_dir(clone)
        .env("XDG_CACHE_HOME", cache)
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("TANDEM_DEMO_MODEL")
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .context("run ops/up")?;
    ensure!(status.success(), "ops/up --check: {status}");
    Ok(start.elapsed().as_secs_f64())
}
