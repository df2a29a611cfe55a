//! Things that only named places may do: `unsafe`, and naming bincode.

use crate::finding::Finding;
use crate::mask::{line_of, words};
use crate::sources::Source;

/// A file lies inside a fence when its path starts with one of these.
const UNSAFE_FENCES: &[&str] = &[
    "kernels/src/cuda",
    "kernels/src/cpu/arena",
    "kernels/src/cpu/memory",
    "kernels/src/cpu/pool",
    "kernels/src/cpu/simd",
    "kernels/src/cpu/tile",
    "kv-transfer/src/ucx/",
    "kv-transfer/ucx-sys/src/",
];

/// Crates without a fence say so to the compiler at their root.
const CRATES_WITH_FENCES: &[&str] = &["kernels/", "kv-transfer/"];

const BINCODE_USER: &str = "shared/src/wire/codec.rs";

pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let path = source.path.as_str();
    let mut report = |at: usize, what: &str| {
        findings.push(Finding::line(path, line_of(&source.masked, at), what));
    };
    if !UNSAFE_FENCES.iter().any(|fence| path.starts_with(fence)) {
        for at in words(&source.masked, "unsafe") {
            report(at, "`unsafe` outside the fences of ops/xtask/src/tidy/fences.rs");
        }
    }
    if path != BINCODE_USER {
        for at in words(&source.masked, "bincode") {
            report(at, "only shared/src/wire/codec.rs names bincode");
        }
    }
    if is_crate_root(path)
        && !CRATES_WITH_FENCES.iter().any(|name| path.starts_with(name))
        && !source.masked.contains("#![forbid(unsafe_code)]")
    {
        findings.push(Finding::file(path, "a crate without a fence says #![forbid(unsafe_code)]"));
    }
    findings
}

fn is_crate_root(path: &str) -> bool {
    path.ends_with("src/lib.rs") || path.ends_with("src/main.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        check(&Source::new(path, text)).len()
    }

    #[test]
    fn unsafe_stays_inside_its_fences() {
        let text = "fn a() { unsafe { b() } }";
        assert_eq!(found("shared/src/kv.rs", text), 1);
        assert_eq!(found("kv-transfer/src/ucx/worker.rs", text), 0);
        assert_eq!(found("kv-transfer/src/ucx_facts.rs", text), 1);
        assert_eq!(found("shared/src/kv.rs", "// unsafe\nlet a = \"unsafe\"; unsafe_code();"), 0);
    }

    #[test]
    fn roots_forbid_what_they_do_not_need() {
        assert_eq!(found("gateway/src/lib.rs", "pub mod a;"), 1);
        assert_eq!(found("gateway/src/lib.rs", "#![forbid(unsafe_code)]"), 0);
        assert_eq!(found("kernels/src/lib.rs", "pub mod a;"), 0);
    }

    #[test]
    fn one_file_names_bincode() {
        assert_eq!(found("shared/src/wire/frame.rs", "use bincode::encode;"), 1);
        assert_eq!(found("shared/src/wire/codec.rs", "use bincode::encode;"), 0);
    }
}
