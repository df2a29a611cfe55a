//! The bars of what a GPU does and a client sees of it, and their place in a record's `bars.json`,
//! one row a line.

use crate::numbers::short;
use crate::row::Bar::{self, AtLeast, AtMost};
use anyhow::Context;
use serde::Serialize;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A figure that one run of the ring gives.
struct Row {
    name: &'static str,
    /// Absent where only the figure is asked for.
    bar: Option<Bar>,
    stretch: f64,
    unit: &'static str,
    /// Where alone the bar holds, if not everywhere.
    of: Option<Scope>,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A ring in one process.
    One,
    /// A ring of three processes on one GPU.
    Three,
    /// The same under the Multi-Process Service.
    Mps,
    /// A server that ran already.
    Elsewhere,
    /// Two processes without a ring, on one GPU.
    OneGpu,
    /// Prefill on one GPU and decode on another.
    TwoGpus,
}

impl Scope {
    /// Tells rows and files apart.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::One => "-one-process",
            Self::Three => "-three-processes",
            Self::Mps => "-three-processes-mps",
            Self::Elsewhere => "-elsewhere",
            Self::OneGpu => "-one-gpu",
            Self::TwoGpus => "-two-gpus",
        }
    }
}

const fn row(name: &'static str, bar: Option<Bar>, stretch: f64, unit: &'static str) -> Row {
    Row { name, bar, stretch, unit, of: None }
}

const fn of(
    scope: Scope,
    name: &'static str,
    (bar, stretch): (Bar, f64),
    unit: &'static str,
) -> Row {
    Row { name, bar: Some(bar), stretch, unit, of: Some(scope) }
}

const fn of_one(name: &'static str, bar: Bar, stretch: f64, unit: &'static str) -> Row {
    of(Scope::One, name, (bar, stretch), unit)
}

/// Two GPUs of one host, linked by NVLink.
const TWO_GPUS: &[Row] = &[
    of(Scope::TwoGpus, "exposed-handoff-4096", (AtMost(0.5), 0.3), "ms"),
    of(Scope::TwoGpus, "itl-p99-under-long-prompts", (AtMost(1.25), 1.1), "ratio"),
    of(Scope::TwoGpus, "ship-4096-qwen3-0.6b", (AtLeast(0.85), 0.95), "of the link's rate"),
    of(Scope::TwoGpus, "ship-4096-qwen3-8b", (AtLeast(0.85), 0.95), "of the link's rate"),
];

/// One H100, the geometry of Qwen3-0.6B in bf16; a bar is what the best of its peers does there.
const ROWS: &[Row] = &[
    row("decode-1-itl", Some(AtMost(1.3)), 0.75, "ms"),
    row("ttft-512", Some(AtMost(8.0)), 5.0, "ms"),
    of_one("seed-1-requests", AtLeast(240.0), 400.0, "requests/s"),
    of_one("seed-1-ttft-p50", AtMost(57.0), 30.0, "ms"),
    of_one("seed-1-itl-p99", AtMost(4.0), 3.0, "ms"),
    of_one("serving-512-128-c64", AtLeast(15_000.0), 20_000.0, "tokens/s"),
    row("exposed-handoff-4096", Some(AtMost(1.0)), 0.3, "ms"),
    row("ready", Some(AtMost(5.0)), 2.0, "s"),
    row("itl-p99-under-long-prompts", None, 1.5, "ratio"),
];

/// One entry of `bars.json`.
#[derive(Serialize)]
struct Entry<'r> {
    row: String,
    bar: Option<f64>,
    stretch: f64,
    value: Option<f64>,
    unit: &'r str,
    command: &'r str,
    /// The bar, or, where there is none, the stretch.
    holds: bool,
}

/// What was measured of one ring.
pub struct Bars {
    scope: Scope,
    command: String,
    /// Whether all rounds were run, on a GPU: a trial holds no bar.
    whole: bool,
    values: Vec<(&'static str, f64)>,
}

impl Bars {
    /// Of such a ring; `command` measures it again.
    pub fn new(scope: Scope, command: String, whole: bool) -> Self {
        Self { scope, command, whole, values: vec![] }
    }

    pub fn set(&mut self, row: &'static str, value: f64) {
        self.values.push((row, value));
    }

    /// What measures these again.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Tells the rings' rows and files apart.
    pub fn suffix(&self) -> &'static str {
        self.scope.suffix()
    }

    /// The row of this name that is of this ring.
    fn row(&self, name: &str) -> Option<&'static Row> {
        let special = TWO_GPUS.iter().filter(|_| self.scope == Scope::TwoGpus);
        special.chain(ROWS).find(|row| row.name == name)
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let suffix = self.suffix();
        self.values.iter().filter_map(move |&(name, value)| {
            let row = self.row(name)?;
            // NaN is no JSON, and nothing that was measured.
            let value = Some(value).filter(|value| value.is_finite()).map(rounded);
            let bar = row.bar.filter(|_| row.of.is_none_or(|scope| scope == self.scope));
            let stretch = match row.bar {
                Some(AtLeast(_)) => AtLeast(row.stretch),
                Some(AtMost(_)) | None => AtMost(row.stretch),
            };
            let holds = value.is_some_and(|v| bar.unwrap_or(stretch).holds(v));
            Some(Entry {
                row: format!("{name}{suffix}"),
                bar: bar.map(Bar::limit),
                stretch: row.stretch,
                value,
                unit: row.unit,
                command: &self.command,
                holds: self.whole && holds,
            })
        })
    }

    /// A line a row.
    pub fn print(&self) {
        for Entry { row, bar, stretch, value, unit, holds, .. } in self.entries() {
            let value = value.map_or_else(|| "not measured".to_owned(), short);
            let bar = bar.map_or_else(|| "none".to_owned(), short);
            let holds = match (self.whole, holds) {
                (false, _) => "a trial",
                (true, true) => "holds",
                (true, false) => "DOES NOT HOLD",
            };
            println!("{row}: {value} {unit} (bar {bar}, stretch {}): {holds}", short(stretch));
        }
    }

    /// Puts the rows into `bars.json` of this folder, in place of their earlier values.
    ///
    /// # Errors
    /// The file cannot be read or written, or is no list of rows.
    pub fn file(&self, folder: &Path) -> anyhow::Result<()> {
        let path = folder.join("bars.json");
        let mut rows: Vec<Value> = match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => vec![],
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        for entry in self.entries() {
            let new = serde_json::to_value(entry)?;
            match rows.iter_mut().find(|old| old["row"] == new["row"]) {
                Some(old) => *old = new,
                None => rows.push(new),
            }
        }
        let lines: Vec<String> = rows.iter().map(|row| format!("  {}", spaced(row))).collect();
        fs::write(&path, format!("[\n{}\n]\n", lines.join(",\n")))
            .with_context(|| path.display().to_string())
    }
}

/// Four significant digits.
fn rounded(value: f64) -> f64 {
    let digits = 3 - value.abs().max(1e-9).log10().floor() as i32;
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// A row as people write one: on a line, with spaces.
fn spaced(row: &Value) -> String {
    let Some(fields) = row.as_object() else { return row.to_string() };
    let fields: Vec<String> =
        fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{{}}}", fields.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_four_digits() {
        let check = |value, expect| assert_eq!(rounded(value), expect);
        check(18_291.095_797, 18_290.0);
        check(0.745_405, 0.7454);
        check(1.543_926, 1.544);
        check(0.0, 0.0);
    }

    #[test]
    fn two_gpus_have_bars_of_their_own() {
        let check = |scope, bar, holds| {
            let mut bars = Bars::new(scope, "again".into(), true);
            bars.set("exposed-handoff-4096", 0.7);
            let entry = bars.entries().next().unwrap();
            assert_eq!((entry.bar, entry.holds), (Some(bar), holds));
            assert!(entry.row.ends_with(scope.suffix()));
        };
        check(Scope::Three, 1.0, true);
        check(Scope::TwoGpus, 0.5, false);
    }

    #[test]
    fn rows_take_the_place_of_their_earlier_values_and_leave_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bars.json");
        fs::write(&path, r#"[{"row": "other", "value": 1}]"#).unwrap();
        for (value, whole, holds) in [(1.2, true, true), (1.4, true, false), (1.2, false, false)] {
            let mut bars = Bars::new(Scope::One, "again".into(), whole);
            bars.set("decode-1-itl", value);
            bars.file(folder.path()).unwrap();
            let rows: Vec<Value> =
                serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(rows.len(), 2);
            assert_eq!(rows[1]["row"], "decode-1-itl-one-process");
            assert_eq!((&rows[1]["value"], &rows[1]["holds"]), (&value.into(), &holds.into()));
        }
    }
}
