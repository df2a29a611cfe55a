//! Words that must not stay in the tree: notes to oneself, macros of work in progress, and paths
//! that exist on one machine only.

use crate::finding::Finding;
use crate::mask::{is_word, line_of, words};
use crate::sources::Source;

// Spelled in two halves, so that this file does not find itself.
const NOTES: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
const UNFINISHED: &[&str] = &["todo!", "dbg!", "unimplemented!"];
const MACHINE_PATHS: &[&str] =
    &[concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/Us", "ers/")];

pub fn check(source: &Source) -> Vec<Finding> {
    if is_data(&source.path) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut report = |text: &str, at: usize, what: String| {
        findings.push(Finding::line(&source.path, line_of(text, at), what));
    };
    for path in MACHINE_PATHS {
        let text = source.text.as_str();
        for (at, _) in text.match_indices(path).filter(|(at, _)| starts_path(text, *at)) {
            report(text, at, format!("`{path}` is a path of one machine"));
        }
    }
    if source.is_rust() && !source.is_generated() {
        for note in NOTES {
            for at in words(&source.text, note) {
                report(&source.text, at, format!("{note}: do it or file an issue"));
            }
        }
        for unfinished in UNFINISHED {
            let name = unfinished.trim_end_matches('!');
            for at in words(&source.masked, name) {
                if source.masked[at + name.len()..].starts_with('!') {
                    report(&source.masked, at, format!("{unfinished} must not be committed"));
                }
            }
        }
    }
    findings
}

/// Golden data, lock files and recorded runs hold what others wrote.
fn is_data(path: &str) -> bool {
    path.starts_with("tests/golden/") || path.ends_with(".lock") || path.ends_with(".jsonl")
}

/// Not the middle of a longer path or of an address: `$HOME/x`, `https://host/home/x`.
fn starts_path(text: &str, at: usize) -> bool {
    let before = text[..at].bytes().next_back();
    !before.is_some_and(|byte| is_word(byte) || matches!(byte, b'.' | b'-' | b'}' | b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        check(&Source::new(path, text)).len()
    }

    #[test]
    fn notes_and_unfinished_macros_are_found() {
        assert_eq!(found("a.rs", &format!("// {}: later\n", NOTES[0])), 1);
        assert_eq!(found("a.rs", "fn a() { todo!() }"), 1);
        assert_eq!(found("a.rs", "// the todo!() macro\nfn todos() {}"), 0);
        assert_eq!(found("a.md", &format!("{} is a word here", NOTES[0])), 0);
    }

    #[test]
    fn paths_of_one_machine_are_found_in_any_text() {
        let path = format!("see {}x\n", MACHINE_PATHS[0]);
        assert_eq!(found("a.md", &path), 1);
        assert_eq!(found("tests/golden/a.json", &path), 0);
        assert_eq!(found("a.md", &format!("https://host{}x\n", MACHINE_PATHS[2])), 0);
        assert_eq!(found("ops/up", &format!("$x{}y\n", MACHINE_PATHS[1])), 0);
    }
}
