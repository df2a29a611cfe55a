//! The record of a run: `raw/` with every observation, `bars.json` for programs, `summary.md` for
//! people.
//!
//! Each group's outcome is one file in `raw/`, and the other two are made from all of them, so that
//! a group can be measured again without the rest.

use crate::machine;
use crate::numbers::short;
use crate::row::{Findings, Group, Row, Verdict};
use crate::rows::GROUPS;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

pub struct Record {
    folder: PathBuf,
    share: f64,
}

/// What `raw/<group>.json` holds.
#[derive(Serialize, Deserialize)]
struct Outcome {
    measured: String,
    commit: String,
    load_after: String,
    /// Part of the rounds that were run; below 1 nothing is held.
    #[serde(default = "whole")]
    share: f64,
    values: BTreeMap<String, Option<f64>>,
    notes: Vec<String>,
    error: Option<String>,
}

/// An outcome that names no share is of all rounds.
fn whole() -> f64 {
    1.0
}

/// One entry of `bars.json`.
#[derive(Serialize)]
struct Entry<'r> {
    row: &'r str,
    what: &'r str,
    bar: f64,
    bar_text: String,
    stretch: Option<f64>,
    value: Option<f64>,
    unit: &'r str,
    command: String,
    holds: bool,
}

impl Record {
    /// A record of runs with this share of their rounds.
    pub fn open(folder: &Path, share: f64) -> anyhow::Result<Self> {
        fs::create_dir_all(folder.join("raw")).with_context(|| folder.display().to_string())?;
        Ok(Self { folder: folder.to_owned(), share })
    }

    /// Writes a group's outcome and makes the summaries anew; returns the group's verdicts.
    pub fn file(
        &mut self,
        group: &'static Group,
        found: anyhow::Result<Findings>,
    ) -> anyhow::Result<Vec<Verdict<'static>>> {
        let (found, error) = match found {
            Ok(found) => (found, None),
            Err(error) => (Findings::default(), Some(format!("{error:#}"))),
        };
        let verdicts: Vec<_> =
            group.rows.iter().map(|row| Verdict::new(row, found.value(row.name))).collect();
        let values = verdicts.iter().map(|v| (v.row.name.to_owned(), v.value)).collect();
        let outcome = Outcome {
            measured: machine::now(),
            commit: machine::commit(),
            load_after: machine::load(),
            share: self.share,
            values,
            notes: found.notes,
            error,
        };
        self.write(&format!("raw/{}.json", group.name), &json(&outcome)?)?;
        if found.raw.len() > 1 {
            self.write(&format!("raw/{}.csv", group.name), &(found.raw.join("\n") + "\n"))?;
        }
        self.summarise()?;
        Ok(verdicts)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    fn outcome(&self, group: &Group) -> anyhow::Result<Option<Outcome>> {
        let path = self.folder.join(format!("raw/{}.json", group.name));
        match fs::read_to_string(&path) {
            Ok(text) => {
                Ok(Some(serde_json::from_str(&text).with_context(|| path.display().to_string())?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn summarise(&self) -> anyhow::Result<()> {
        let mut entries = Vec::new();
        let mut table =
            String::from("| row | bar | value | unit | holds |\n|---|---|---|---|---|\n");
        let mut details = String::new();
        for group in GROUPS {
            let outcome = self.outcome(group)?;
            for row in group.rows {
                let value = outcome.as_ref().and_then(|o| *o.values.get(row.name)?);
                let verdict = Verdict::new(row, value);
                let whole = outcome.as_ref().is_some_and(|o| o.share >= 1.0);
                let entry = entry(&verdict, whole);
                line(&mut table, &verdict, entry.holds);
                entries.push(entry);
            }
            detail(&mut details, group, outcome.as_ref());
        }
        let held = entries.iter().filter(|entry| entry.holds).count();
        let mut text = String::from("# Bars\n\n");
        machine::describe().iter().for_each(|line| text += &format!("- {line}\n"));
        let _ = write!(text, "\n{held} of {} rows hold.\n\n{table}{details}", entries.len());
        self.write("bars.json", &json(&entries)?)?;
        self.write("summary.md", &text)
    }
}

fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn entry<'r>(verdict: &Verdict<'r>, whole: bool) -> Entry<'r> {
    let row: &'r Row = verdict.row;
    Entry {
        row: row.name,
        what: row.what,
        bar: row.bar.limit(),
        bar_text: row.bar.to_string(),
        stretch: None,
        value: verdict.value,
        unit: row.unit,
        command: row.command(),
        holds: whole && verdict.holds(),
    }
}

fn line(table: &mut String, verdict: &Verdict<'_>, holds: bool) {
    let Row { name, bar, unit, .. } = verdict.row;
    let value = verdict.value.map_or("not measured".to_owned(), short);
    let holds = if holds { "yes" } else { "**no**" };
    let _ = writeln!(table, "| `{name}` | {bar} | {value} | {unit} | {holds} |");
}

fn detail(text: &mut String, group: &Group, outcome: Option<&Outcome>) {
    let _ = write!(text, "\n## {}\n\n", group.title);
    for row in group.rows {
        let _ = writeln!(text, "- `{}`: {}. `{}`", row.name, row.what, row.command());
    }
    let Some(outcome) = outcome else {
        *text += "\nNot run.\n";
        return;
    };
    let Outcome { measured, commit, load_after, share, notes, error, .. } = outcome;
    let _ = write!(text, "\n{measured} UTC, commit {commit}, load after it {load_after}.\n\n");
    if *share < 1.0 {
        let _ = write!(text, "**Only {share} of the rounds: a trial, which holds no bar.**\n\n");
    }
    notes.iter().for_each(|note| *text += &format!("    {note}\n"));
    if let Some(error) = error {
        let _ = writeln!(text, "\nNot measured: {error}");
    }
}
