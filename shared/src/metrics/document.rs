//! The page that people read: `ops/monitoring/metrics.md`, made from the list.

use super::compat::{ALIASES, Source};
use super::{ALL, Kind, Metric, Origin};
use std::fmt::Write;

/// The two tables, in Markdown: every metric, and what `--compat-metrics` adds.
pub fn table() -> String {
    let mut text =
        String::from("| metric | from | kind | labels | meaning |\n|---|---|---|---|---|\n");
    for Metric { name, from, kind, labels, help, .. } in ALL {
        let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
        let (from, kind) = (who(*from), kind_name(*kind));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| `{name}` | {from} | {kind} | {labels} | {help} |");
    }
    text.push_str("\n## Names of SGLang and vLLM\n\n| name | is |\n|---|---|\n");
    for alias in ALIASES {
        let is = match alias.source {
            Source::Same(name) => format!("`{name}`"),
            Source::Waiting => {
                "requests that wait: `tandem_queue_depth`, prefill's `tandem_waiting_requests`"
                    .into()
            }
            Source::Relabelled { name, from, to } => format!("`{name}`, its `{from}` as `{to}`"),
            Source::Labelled { name, label, value } => format!("`{name}{{{label}=\"{value}\"}}`"),
            Source::Usage => "pages that no new request could get, of all pages".to_owned(),
            Source::Rate(name) => format!("`{name}`, a second, since the last reading"),
            Source::HitRate => {
                "prompt tokens found in the cache, of those admitted since the last reading".into()
            }
        };
        let _ = writeln!(text, "| `{}` | {is} |", alias.name);
    }
    text
}

fn who(from: Origin) -> &'static str {
    match from {
        Origin::Gateway => "gateway",
        Origin::Prefill => "prefill",
        Origin::Decode => "decode",
        Origin::Servers => "prefill, decode",
        Origin::All => "all",
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_this_list() {
        let page = include_str!("../../../ops/monitoring/metrics.md");
        assert!(
            page.ends_with(&table()),
            "ops/monitoring/metrics.md is not this list; its end should be:\n{}",
            table()
        );
    }
}
