//! The newcomer's walk: one request through the files, in order.
//!
//! ARCHITECTURE.md lists the stops under `## The walk` as numbered lines that name files in
//! backquotes; each of those files opens with `//! Walk n/12.`. The list and the files must say
//! the same, so that neither rots.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::finding::Finding;
use crate::sources::Source;

const DOCUMENT: &str = "ARCHITECTURE.md";
const HEADING: &str = "## The walk";
const STOPS: usize = 12;

/// A stop's number, counted from 1, and a file of it.
type Stop = (usize, String);

pub struct Report {
    /// The chain, one stop a line.
    pub listing: String,
    pub findings: Vec<Finding>,
}

/// # Errors
/// Where ARCHITECTURE.md cannot be read.
pub fn check(root: &Path, sources: &[Source]) -> anyhow::Result<Report> {
    let document = fs::read_to_string(root.join(DOCUMENT)).context("read ARCHITECTURE.md")?;
    let (listed, mut findings) = listed_stops(&document);
    let (opened, more) = opened_stops(sources);
    findings.extend(more);
    findings.extend(compare(&listed, &opened));
    let mut listing = String::new();
    for (number, file) in &opened {
        writeln!(listing, "{number:>2}/{STOPS} {file}").context("write the listing")?;
    }
    Ok(Report { listing, findings })
}

/// The numbered lines under the heading, with the Rust files that each names.
fn listed_stops(document: &str) -> (BTreeSet<Stop>, Vec<Finding>) {
    let mut stops = BTreeSet::new();
    let mut findings = Vec::new();
    let section = document.lines().enumerate().skip_while(|(_, line)| !line.starts_with(HEADING));
    let section = section.skip(1).take_while(|(_, line)| !line.starts_with("## "));
    let (mut current, mut expected) = (0, 1);
    for (index, line) in section {
        if let Some(number) = leading_number(line) {
            if number != expected {
                let what = format!("stop {number} stands where stop {expected} belongs");
                findings.push(Finding::line(DOCUMENT, index + 1, what));
            }
            (current, expected) = (number, number + 1);
        }
        let files = line.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs"));
        if current > 0 {
            stops.extend(files.map(|file| (current, file.to_owned())));
        }
    }
    if expected != STOPS + 1 {
        let what = format!("`{HEADING}` ends at stop {}, not {STOPS}", expected - 1);
        findings.push(Finding::file(DOCUMENT, what));
    }
    (stops, findings)
}

fn leading_number(line: &str) -> Option<usize> {
    line.split_once(". ")?.0.parse().ok()
}

/// The files that open with a walk header.
fn opened_stops(sources: &[Source]) -> (BTreeSet<Stop>, Vec<Finding>) {
    let mut stops = BTreeSet::new();
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let first = source.text.lines().next().unwrap_or_default();
        let Some(header) = first.strip_prefix("//! Walk ") else { continue };
        let number = header
            .split_once('/')
            .and_then(|(number, rest)| Some((number.parse().ok()?, rest)))
            .filter(|(number, rest)| {
                let after = rest.strip_prefix(&STOPS.to_string());
                (1..=STOPS).contains(number) && after.is_some_and(|x| x.starts_with(['.', ' ']))
            });
        match number {
            Some((number, _)) => {
                stops.insert((number, source.path.clone()));
            }
            None => {
                let what = format!("opens with `{first}`; wanted `//! Walk n/{STOPS}.`");
                findings.push(Finding::line(&source.path, 1, what));
            }
        }
    }
    (stops, findings)
}

fn compare(listed: &BTreeSet<Stop>, opened: &BTreeSet<Stop>) -> Vec<Finding> {
    let unopened = listed.difference(opened).map(|(number, file)| {
        let what = format!("does not open with `//! Walk {number}/{STOPS}.`, as {DOCUMENT} says");
        Finding::file(file, what)
    });
    let unlisted = opened.difference(listed).map(|(number, file)| {
        let what = format!("stop {number} does not name `{file}`, which opens as that stop");
        Finding::file(DOCUMENT, what)
    });
    let empty = (1..=STOPS).filter(|stop| !listed.iter().any(|(number, _)| number == stop));
    let empty = empty.map(|stop| Finding::file(DOCUMENT, format!("stop {stop} names no file")));
    unopened.chain(unlisted).chain(empty).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(numbers: impl Iterator<Item = usize>) -> String {
        let stops: String = numbers.map(|n| format!("{n}. stop: `s{n}.rs`\n")).collect();
        format!("# Title\n{HEADING}\n{stops}\n## Next\n13. not a stop `x.rs`\n")
    }

    fn files() -> Vec<Source> {
        (1..=STOPS)
            .map(|n| Source::new(&format!("s{n}.rs"), &format!("//! Walk {n}/12. Before: …\n")))
            .collect()
    }

    fn found(document: &str, files: &[Source]) -> Vec<String> {
        let (listed, mut findings) = listed_stops(document);
        let (opened, more) = opened_stops(files);
        findings.extend(more);
        findings.extend(compare(&listed, &opened));
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_complete_walk_passes() {
        assert_eq!(found(&document(1..=STOPS), &files()), Vec::<String>::new());
    }

    #[test]
    fn a_stop_may_have_two_files() {
        let two = document(1..=STOPS).replace("`s5.rs`", "`s5.rs` asks `t5.rs`");
        let mut files = files();
        files.push(Source::new("t5.rs", "//! Walk 5/12.\n"));
        assert_eq!(found(&two, &files), Vec::<String>::new());
    }

    #[test]
    fn a_gap_a_swap_and_a_stray_are_found() {
        assert!(!found(&document((1..=STOPS).filter(|n| *n != 7)), &files()).is_empty());
        assert!(!found(&document((1..=STOPS).rev()), &files()).is_empty());
        assert!(!found("no heading", &files()).is_empty());
        let mut strays = files();
        strays.push(Source::new("stray.rs", "//! Walk 3/12.\n"));
        assert_eq!(found(&document(1..=STOPS), &strays).len(), 1);
    }

    #[test]
    fn a_file_with_another_number_is_found() {
        let mut wrong = files();
        wrong[3] = Source::new("s4.rs", "//! Walk 5/12.\n");
        assert_eq!(found(&document(1..=STOPS), &wrong).len(), 2);
        wrong[3] = Source::new("s4.rs", "//! Walk four.\n");
        assert_eq!(found(&document(1..=STOPS), &wrong).len(), 2);
    }
}
