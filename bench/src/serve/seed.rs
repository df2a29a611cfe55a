//! The seed report's first three experiments and its cache tests, beside what was measured here.
//!
//! Its figures are of SGLang with Qwen3-0.6B in bf16 on one A100. They stand there for people:
//! another machine holds no bar.

use super::experiments::Experiment;
use super::report::Summary;
use crate::numbers::short;

/// What `tandem-bench experiments` runs.
pub const EXPERIMENTS: [Experiment; 3] =
    [Experiment::Burst, Experiment::Latency, Experiment::Cache];

/// A line of a table: what it says, what the report has, where ours is and what of it.
struct Line {
    what: &'static str,
    theirs: &'static str,
    run: &'static str,
    of: fn(&Summary) -> f64,
}

const fn line(
    what: &'static str,
    theirs: &'static str,
    run: &'static str,
    of: fn(&Summary) -> f64,
) -> Line {
    Line { what, theirs, run, of }
}

const BURST: &str = "burst of 50, 1";
const ONE: &str = "one, 256 in, 64 out";
const EIGHT: &str = "eight at once";

const TABLES: [(&str, &[Line]); 3] = [
    (
        "1: 50 prompts at once, up to 256 tokens in and 64 out",
        &[
            line("requests/s", "8.84", BURST, |run| run.requests_a_second),
            line("input tokens/s", "2500", BURST, |run| run.input_tokens as f64 / run.seconds),
            line("output tokens/s", "2085", BURST, |run| run.output_tokens_a_second),
            line("E2E, mean, ms", "1886", BURST, |run| run.e2e.mean),
            line("E2E, p50, ms", "1641", BURST, |run| run.e2e.p50),
            line("TTFT, p50, ms", "600", BURST, |run| run.ttft.p50),
            line("ITL, p50, ms", "3.06", BURST, |run| run.itl.p50),
            line("ITL, p99, ms", "8.90", BURST, |run| run.itl.p99),
        ],
    ),
    (
        "2: one request, eight at once, and longer prompts; 64 tokens out",
        &[
            line("one request, ms", "298", ONE, |run| run.seconds * 1e3),
            line("eight at once, all, ms", "240", EIGHT, |run| run.seconds * 1e3),
            line("eight at once, each, ms", "30", EIGHT, |run| run.seconds * 1e3 / 8.0),
            line("64 tokens in, ms", "160", "64 in, 64 out", |run| run.e2e.p50),
            line("128 tokens in, ms", "164", "128 in, 64 out", |run| run.e2e.p50),
            line("256 tokens in, ms", "176", "256 in, 64 out", |run| run.e2e.p50),
            line("512 tokens in, ms", "182", "512 in, 64 out", |run| run.e2e.p50),
        ],
    ),
    (
        "3: the prefix cache; 103 tokens shared of 107, 64 tokens out",
        &[
            line("cold, ms", "162", "103 shared, cold", |run| run.e2e.p50),
            line("warm, mean, ms", "163", "103 shared, warm", |run| run.e2e.mean),
            line("cold, TTFT, ms", "not said", "103 shared, cold", |run| run.ttft.p50),
            line("warm, TTFT, mean, ms", "not said", "103 shared, warm", |run| run.ttft.mean),
            line("eight one by one, ms", "734", "103 shared, warm", |run| run.seconds * 1e3),
            line("eight at once, ms", "142", "103 shared, at once", |run| run.seconds * 1e3),
            line("cached of 8 x 107, 1 by 1", "8 x 4", "103 shared, warm", cached),
            line("cached of 8 x 107, at once", "203", "103 shared, at once", cached),
            line("cached after 50 others", "survived", "after 50 others", cached),
        ],
    ),
];

fn cached(run: &Summary) -> f64 {
    run.cached_tokens as f64
}

/// The tables, as far as their runs are among these.
pub fn tables(runs: &[Summary]) -> String {
    let mut text = String::new();
    for (title, lines) in TABLES {
        text += &format!("\nexperiment {title}\n{:<28}{:>12}{:>12}\n", "", "seed report", "here");
        for Line { what, theirs, run, of } in lines {
            let found = runs.iter().find(|summary| summary.what == *run);
            let ours = found.map_or_else(|| "not run".to_owned(), |summary| short(of(summary)));
            text += &format!("{what:<28}{theirs:>12}{ours:>12}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_a_run_say_so() {
        let text = tables(&[]);
        assert_eq!(text.matches("not run").count(), 8 + 7 + 9);
        assert!(text.contains("2085"), "{text}");
    }
}
