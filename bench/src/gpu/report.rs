//! Measured ops as rows of a table and of a file.

use super::Shape;
use super::floor::{Ceilings, Work};
use crate::numbers::short;
use anyhow::Context;
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// One op at one shape.
#[derive(Debug, Serialize)]
pub struct Row {
    pub model: &'static str,
    pub op: String,
    /// What computes it.
    pub path: &'static str,
    pub sequences: usize,
    pub tokens_before: usize,
    pub new_tokens: usize,
    /// A launch.
    pub us: f64,
    pub floor_us: f64,
    pub times_floor: f64,
    pub gb_s: f64,
    pub tflop_s: f64,
    /// Whether the floor is arithmetic's.
    arithmetic: bool,
}

impl Row {
    pub fn new(
        (model, op, path): (&'static str, String, &'static str),
        shape: &Shape,
        us: f64,
        (work, ceilings): (Work, &Ceilings),
    ) -> Self {
        let floor_us = work.floor_us(ceilings);
        Self {
            model,
            op,
            path,
            sequences: shape.sequences,
            tokens_before: shape.before,
            new_tokens: shape.new,
            us,
            floor_us,
            times_floor: us / floor_us,
            gb_s: work.bytes as f64 / us / 1e3,
            tflop_s: work.flops as f64 / us / 1e6,
            arithmetic: work.is_arithmetic(ceilings),
        }
    }

    /// Columns of the lines below it.
    pub fn heading() -> String {
        format!(
            "{:<22} {:<18} {:<21} {:>8} {:>8} {:>7}  {}",
            "op", "shape", "path", "µs", "floor", "× floor", "rate"
        )
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sequences, before, new) = (self.sequences, self.tokens_before, self.new_tokens);
        let shape = Shape { sequences, before, new };
        let rate = match self.arithmetic {
            true => format!("{:.0} TFLOP/s", self.tflop_s),
            false => format!("{:.0} GB/s", self.gb_s),
        };
        let (us, floor) = (short(self.us), short(self.floor_us));
        let Self { op, path, times_floor, .. } = self;
        write!(f, "{op:<22} {shape:<18} {path:<21} {us:>8} {floor:>8} {times_floor:>7.2}  {rate}")
    }
}

/// Writes `rows` as a JSON array, a row a line, if there is a file to write to.
pub fn write<R: Serialize>(file: Option<&Path>, rows: &[R]) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let lines: Vec<_> = rows.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    let text = format!("[\n{}\n]\n", lines.join(",\n"));
    std::fs::write(file, text).with_context(|| file.display().to_string())
}
