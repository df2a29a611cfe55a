//! How long an engine's steps take: what `tandem-bench steps` measures, what the `sim` engine waits
//! by, and what the simulation counts with. One JSON file an engine.
//!
//! A step is known by its new tokens and by its *context*: how many tokens a new token looks back
//! at, in the mean. Between measured points times go in straight lines; beyond the last two they
//! go on as between them. A line with a single context borrows the others' slope, which is the
//! price of a pair of tokens.

use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file cannot be read.
    #[error("cannot read the table {path}: {error}")]
    Unreadable {
        /// Which.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// It is not what a table is.
    #[error("the table {path}: {error}")]
    Syntax {
        /// Which.
        path: String,
        /// What is wrong where.
        error: serde_json::Error,
    },
    /// A value that does not fit.
    #[error("the table's {field} is {value}; want {want}")]
    Value {
        /// Which.
        field: &'static str,
        /// What it is.
        value: String,
        /// What would do.
        want: &'static str,
    },
}

/// A step that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// New tokens of the step; of a decode step that is its rows.
    pub tokens: u32,
    /// Tokens that each new token looks back at, in the mean.
    pub context: f64,
    /// How long it took, ms.
    pub ms: f64,
}

/// What a request pays beside its steps and its waiting.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handoff {
    /// Tokens of the prompt.
    pub tokens: u32,
    /// From the client and back to it through gateway, ticket and transfer, less the steps, ms.
    pub ms: f64,
}

/// Shape of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steps {
    /// Model, device, and where the figures come from.
    pub about: String,
    /// Whether the engine takes a decode step before the one before has ended.
    pub overlaps: bool,
    /// Tokens that one device's page pool holds.
    pub pool_tokens: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Most prompt tokens of a prefill step.
    pub chunk_tokens: u32,
    /// Most rows of a decode step.
    pub rows_max: u32,
    /// Steps of prompts.
    pub prefill: Vec<Point>,
    /// Steps of one token a row.
    pub decode: Vec<Point>,
    /// At some lengths, at least one.
    pub handoff: Vec<Handoff>,
}

/// A table that can be asked.
#[derive(Clone, Debug)]
pub struct StepTable {
    steps: Steps,
    prefill: Surface,
    decode: Surface,
}

impl StepTable {
    /// Reads a file.
    ///
    /// # Errors
    /// [`TableError`], by name.
    pub fn read(path: &Path) -> Result<Self, TableError> {
        let shown = || path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| TableError::Unreadable { path: shown(), error })?;
        let steps = serde_json::from_str(&text)
            .map_err(|error| TableError::Syntax { path: shown(), error })?;
        Self::new(steps)
    }

    /// Of figures that make a table.
    ///
    /// # Errors
    /// [`TableError::Value`].
    pub fn new(mut steps: Steps) -> Result<Self, TableError> {
        let above = |field, value: u32| match value {
            0 => Err(TableError::Value { field, value: "0".to_owned(), want: "at least 1" }),
            _ => Ok(()),
        };
        above("pool_tokens", steps.pool_tokens)?;
        above("page_tokens", steps.page_tokens)?;
        above("chunk_tokens", steps.chunk_tokens)?;
        above("rows_max", steps.rows_max)?;
        let decode = Surface::new("decode", &steps.decode, None)?;
        let prefill = Surface::new("prefill", &steps.prefill, Some(&decode))?;
        steps.handoff.sort_by_key(|handoff| handoff.tokens);
        if steps.handoff.is_empty() || steps.handoff.iter().any(|h| !is_time(h.ms)) {
            let value = format!("{:?}", steps.handoff);
            let want = "at least one length, each with a time of 0 ms or more";
            return Err(TableError::Value { field: "handoff", value, want });
        }
        Ok(Self { steps, prefill, decode })
    }

    /// What it was made of.
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// How long a step over these rows takes, each (tokens before, new tokens); none for no rows.
    /// A step of one new token a row is a decode step, whoever makes it.
    pub fn step(&self, rows: impl Iterator<Item = (u32, u32)>) -> Duration {
        let (mut tokens, mut pairs, mut longest) = (0_u64, 0.0, 0);
        for (start, new) in rows {
            tokens += u64::from(new);
            pairs += f64::from(new) * (f64::from(start) + f64::from(new - new.min(1)) / 2.0);
            longest = longest.max(new);
        }
        if tokens == 0 {
            return Duration::ZERO;
        }
        let surface = if longest == 1 { &self.decode } else { &self.prefill };
        ms(surface.at(tokens as f64, pairs / tokens as f64))
    }

    /// What a request with a prompt of so many tokens pays beside its steps.
    pub fn handoff(&self, tokens: u32) -> Duration {
        let points = self.steps.handoff.iter().map(|h| (f64::from(h.tokens), h.ms));
        ms(along(&points.collect::<Vec<_>>(), f64::from(tokens), 0.0))
    }

    /// The same engine, every step of it `times` as long; handoffs stay.
    #[must_use]
    pub fn slowed(&self, times: f64) -> Self {
        let slow = |points: &[Point]| {
            points.iter().map(|point| Point { ms: point.ms * times, ..*point }).collect()
        };
        let mut slow = Steps {
            prefill: slow(&self.steps.prefill),
            decode: slow(&self.steps.decode),
            ..self.steps.clone()
        };
        slow.about = format!("{} times as slow: {}", times, self.steps.about);
        Self { prefill: self.prefill.slowed(times), decode: self.decode.slowed(times), steps: slow }
    }
}

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms.max(0.0) / 1e3)
}

fn is_time(ms: f64) -> bool {
    ms.is_finite() && (0.0..1e9).contains(&ms)
}

/// Times over (tokens, context).
#[derive(Clone, Debug)]
struct Surface {
    /// By ascending tokens, at least one.
    lines: Vec<Line>,
    /// ms that a token pays for each token that it looks back at, where a line does not say.
    pair_ms: f64,
}

#[derive(Clone, Debug)]
struct Line {
    tokens: f64,
    /// (context, ms), contexts ascending, at least one.
    points: Vec<(f64, f64)>,
}

impl Surface {
    /// A surface of `points`; the least step of it, if `below` is given, is one of that.
    fn new(
        field: &'static str,
        points: &[Point],
        below: Option<&Self>,
    ) -> Result<Self, TableError> {
        let fits = |p: &Point| p.tokens > 0 && is_time(p.ms) && p.ms > 0.0 && p.context >= 0.0;
        if let Some(bad) = points.iter().find(|point| !fits(point)) {
            let want = "tokens and ms above 0, context 0 or more";
            return Err(TableError::Value { field, value: format!("{bad:?}"), want });
        }
        let mut points = points.to_vec();
        points.sort_by(|a, b| a.tokens.cmp(&b.tokens).then(a.context.total_cmp(&b.context)));
        points.dedup_by(|a, b| a.tokens == b.tokens && a.context == b.context);
        let mut lines: Vec<Line> = vec![];
        for Point { tokens, context, ms } in points {
            let tokens = f64::from(tokens);
            match lines.last_mut().filter(|line| line.tokens == tokens) {
                Some(line) => line.points.push((context, ms)),
                None => lines.push(Line { tokens, points: vec![(context, ms)] }),
            }
        }
        let Some(first) = lines.first() else {
            let want = "at least one point";
            return Err(TableError::Value { field, value: "empty".to_owned(), want });
        };
        let slopes = lines.iter().filter_map(Line::pair_ms).reduce(f64::max);
        let pair_ms = slopes.or(below.map(|below| below.pair_ms)).unwrap_or(0.0);
        if let Some(least) = below.and_then(|below| below.lines.first())
            && least.tokens < first.tokens
        {
            lines.insert(0, least.clone());
        }
        Ok(Self { lines, pair_ms })
    }

    fn at(&self, tokens: f64, context: f64) -> f64 {
        let least = self.lines[0].tokens;
        let after = self.lines.partition_point(|line| line.tokens <= tokens);
        let value = |line: &Line| along(&line.points, context, self.pair_ms * line.tokens);
        match (after, self.lines.len()) {
            (0, _) => value(&self.lines[0]),
            (_, 1) => value(&self.lines[0]) * tokens / least,
            (after, count) => {
                let (low, high) = match after < count {
                    true => (&self.lines[after - 1], &self.lines[after]),
                    false => (&self.lines[count - 2], &self.lines[count - 1]),
                };
                let share = (tokens - low.tokens) / (high.tokens - low.tokens);
                let (from, to) = (value(low), value(high));
                from + share * (to - from)
            }
        }
    }

    fn slowed(&self, times: f64) -> Self {
        let line = |line: &Line| Line {
            tokens: line.tokens,
            points: line.points.iter().map(|&(context, ms)| (context, ms * times)).collect(),
        };
        Self { lines: self.lines.iter().map(line).collect(), pair_ms: self.pair_ms * times }
    }
}

impl Line {
    fn pair_ms(&self) -> Option<f64> {
        let (&(low, from), &(high, to)) = (self.points.first()?, self.points.last()?);
        (high > low).then(|| (to - from) / (high - low) / self.tokens)
    }
}

/// The value at `x` along these points; a single one is the start of a line with this slope.
fn along(points: &[(f64, f64)], x: f64, slope: f64) -> f64 {
    let after = points.partition_point(|point| point.0 <= x);
    let (from, to) = match (after, points.len()) {
        (_, 0) => return 0.0,
        (_, 1) => return (points[0].1 + slope * (x - points[0].0)).max(0.0),
        // Below the least nothing gets faster than it.
        (0, _) => return points[0].1,
        (after, count) if after == count => (points[count - 2], points[count - 1]),
        (after, _) => (points[after - 1], points[after]),
    };
    from.1 + (x - from.0) / (to.0 - from.0) * (to.1 - from.1)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn steps() -> Steps {
        let point = |tokens, context, ms| Point { tokens, context, ms };
        Steps {
            about: "made up".to_owned(),
            overlaps: false,
            pool_tokens: 64_000,
            page_tokens: 16,
            chunk_tokens: 512,
            rows_max: 64,
            prefill: vec![point(100, 50.0, 10.0), point(500, 250.0, 50.0)],
            decode: vec![point(1, 100.0, 2.0), point(1, 1100.0, 2.01), point(11, 100.0, 7.0)],
            handoff: vec![Handoff { tokens: 0, ms: 1.0 }, Handoff { tokens: 1000, ms: 2.0 }],
        }
    }

    fn us(duration: Duration) -> u128 {
        (duration + Duration::from_nanos(500)).as_micros()
    }

    #[test]
    fn times_lie_on_lines_between_points_and_beyond_them() {
        let table = StepTable::new(steps()).unwrap();
        let decode = |rows: usize, context| us(table.step((0..rows).map(|_| (context, 1))));
        assert_eq!((decode(1, 100), decode(1, 600), decode(1, 2100)), (2000, 2005, 2020));
        assert_eq!((decode(11, 100), decode(6, 100), decode(21, 100)), (7000, 4500, 12_000));
        // A line of one point borrows 10 ns a pair.
        assert_eq!(decode(11, 1100), 7110);
        assert_eq!((us(table.handoff(500)), us(table.handoff(2000))), (1500, 3000));
        let prefill = |start, new| us(table.step([(start, new)].into_iter()));
        assert!((9_900..=10_000).contains(&prefill(0, 100)), "{}", prefill(0, 100));
        assert_eq!(prefill(400, 100), 10_400, "100 tokens look back at 400 more");
        assert_eq!(table.step([].into_iter()), Duration::ZERO);
        assert_eq!(us(table.slowed(3.0).step([(100, 1)].into_iter())), 6000);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let check = |change: fn(&mut Steps), words: &str| {
            let mut steps = steps();
            change(&mut steps);
            let error = StepTable::new(steps).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        check(|steps| steps.page_tokens = 0, "page_tokens is 0");
        check(|steps| steps.decode.clear(), "decode is empty");
        check(|steps| steps.prefill[0].ms = f64::NAN, "prefill");
        check(|steps| steps.handoff.clear(), "handoff");
        let missing = StepTable::read(Path::new("no-such-table.json")).unwrap_err();
        assert!(missing.to_string().contains("no-such-table.json"));
    }
}
