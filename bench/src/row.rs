//! A row is one figure and its bar; a group is rows that one measurement gives.

use crate::place::Place;
use std::fmt;

/// Where a figure must lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    pub const fn limit(self) -> f64 {
        match self {
            Self::AtLeast(limit) | Self::AtMost(limit) => limit,
        }
    }

    /// NaN holds no bar.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(limit) => value >= limit,
            Self::AtMost(limit) => value <= limit,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
        }
    }
}

/// One figure that Tandem is held to.
#[derive(Debug)]
pub struct Row {
    /// What `tandem-bench row` takes.
    pub name: &'static str,
    /// What the figure is, in a sentence.
    pub what: &'static str,
    pub unit: &'static str,
    pub bar: Bar,
}

impl Row {
    /// What measures this row alone, in a fresh clone.
    pub fn command(&self) -> String {
        format!("cargo run --release -p tandem-bench -- row {}", self.name)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bar = self.bar.to_string();
        write!(f, "{:<20} {bar:>8} {:<10} {}", self.name, self.unit, self.what)
    }
}

/// Rows that are measured together.
pub struct Group {
    /// Names the files of raw data.
    pub name: &'static str,
    pub title: &'static str,
    pub rows: &'static [Row],
    pub measure: fn(&Place) -> anyhow::Result<Findings>,
    /// Takes many minutes: only when asked for.
    pub slow: bool,
}

/// What a measurement found.
#[derive(Debug, Default)]
pub struct Findings {
    values: Vec<(&'static str, f64)>,
    /// What stands beside the figures: floors, peers, counts; a line each.
    pub notes: Vec<String>,
    /// The single observations, as CSV with a header line; may be empty.
    pub raw: Vec<String>,
}

impl Findings {
    /// Starts with the header of the raw data.
    pub fn new(header: &str) -> Self {
        Self { raw: vec![header.to_owned()], ..Self::default() }
    }

    pub fn set(&mut self, row: &'static str, value: f64) {
        self.values.push((row, value));
    }

    pub fn note(&mut self, line: impl Into<String>) {
        self.notes.push(line.into());
    }

    pub fn value(&self, row: &str) -> Option<f64> {
        self.values.iter().find(|(name, _)| *name == row).map(|&(_, value)| value)
    }
}

/// A row and what was measured; no value where the measurement failed.
#[derive(Debug)]
pub struct Verdict<'r> {
    pub row: &'r Row,
    pub value: Option<f64>,
}

impl<'r> Verdict<'r> {
    pub fn new(row: &'r Row, value: Option<f64>) -> Self {
        Self { row, value }
    }

    pub fn holds(&self) -> bool {
        self.value.is_some_and(|value| self.row.bar.holds(value))
    }
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { name, unit, bar, .. } = self.row;
        let holds = if self.holds() { "holds" } else { "DOES NOT HOLD" };
        match self.value {
            Some(value) => {
                write!(f, "{name}: {} {unit} (bar {bar}): {holds}", crate::numbers::short(value))
            }
            None => write!(f, "{name}: not measured (bar {bar}): {holds}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_hold_at_their_limit_and_on_one_side_of_it() {
        let check = |bar: Bar, value: f64, expect: bool| {
            assert_eq!(bar.holds(value), expect, "{bar:?} {value}");
        };
        check(Bar::AtLeast(0.6), 0.6, true);
        check(Bar::AtLeast(0.6), 0.59, false);
        check(Bar::AtMost(2.0), 2.0, true);
        check(Bar::AtMost(2.0), 2.1, false);
        check(Bar::AtMost(2.0), f64::NAN, false);
        check(Bar::AtLeast(2.0), f64::NAN, false);
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        let row = Row { name: "x", what: "", unit: "s", bar: Bar::AtMost(1.0) };
        assert!(!Verdict::new(&row, None).holds());
        assert!(Verdict::new(&row, Some(0.0)).holds());
    }
}
