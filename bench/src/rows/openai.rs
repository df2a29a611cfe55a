//! The unmodified `openai` Python package against a ring.

use crate::fleet::{Fleet, Plan};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use anyhow::Context;
use std::process::Command;

pub const GROUP: Group = Group {
    name: "openai",
    title: "The `openai` Python package, unmodified",
    rows: &[Row {
        name: "openai-client",
        what: "checks of chat, completions, streaming and errors that fail (tests/clients/run)",
        unit: "checks",
        bar: Bar::AtMost(0.0),
    }],
    measure,
    slow: false,
};

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let fleet = Fleet::start(place, &Plan::new(place.demo()?, "bf16"))?;
    let script = place.root().join("tests/clients/run");
    let output = Command::new(&script)
        .env("TANDEM_URL", fleet.client.url())
        .output()
        .with_context(|| script.display().to_string())?;
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    let said = said.concat();
    let ran = number_after(&said, "Ran ").with_context(|| format!("no checks ran:\n{said}"))?;
    let bad =
        ["failures=", "errors=", "skipped="].map(|kind| number_after(&said, kind).unwrap_or(0));
    // A run that fails without saying how many fails at least once.
    let failed = bad.iter().sum::<u64>().max(u64::from(!output.status.success()));
    let mut found = Findings::default();
    found.note(format!("{ran} checks ran, {}", output.status));
    if failed > 0 {
        said.lines().filter(|line| line.contains("Error")).for_each(|line| found.note(line));
    }
    found.set("openai-client", failed as f64);
    Ok(found)
}

/// The last number that stands after `word`.
fn number_after(text: &str, word: &str) -> Option<u64> {
    let (_, after) = text.rsplit_once(word)?;
    let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    after[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_python_run_are_read() {
        let text = "Ran 17 tests in 3.1s\n\nFAILED (failures=2, errors=1)\n";
        let check = |word, expect| assert_eq!(number_after(text, word), expect, "{word}");
        check("Ran ", Some(17));
        check("failures=", Some(2));
        check("errors=", Some(1));
        check("skipped=", None);
    }
}
