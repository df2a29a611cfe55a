//! Files of what others were asked: when, how long, and what prompts had in common.
//!
//! | format | fields |
//! |---|---|
//! | Mooncake, JSON lines | `timestamp` ms, `input_length`, `output_length`, `hash_ids` |
//! | Tandem's gateway's log, JSON lines | of a request's line: `timestamp`, and its `fields` |
//! | Azure, CSV | `TIMESTAMP`, `ContextTokens`, `GeneratedTokens` |
//! | ServeGen, CSV | `timestamp_s`, `input_length`, `output_length` |
//! | ShareGPT's lengths, JSON lines | `turns`: pairs of tokens, the user's and the assistant's |

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// From the trace's first request.
    pub at: Duration,
    /// Tokens of its prompt.
    pub input: usize,
    /// Tokens of its answer.
    pub output: usize,
    /// Names of the prompt's blocks, in order; equal names are equal tokens. May be empty.
    pub blocks: Vec<u64>,
}

#[derive(Deserialize)]
struct Mooncake {
    /// ms
    timestamp: f64,
    input_length: usize,
    output_length: usize,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

/// A line of a log. A request's comes at its end; its prompt is not in it.
#[derive(Deserialize)]
struct Logged {
    timestamp: String,
    fields: Fields,
}

#[derive(Deserialize)]
struct Fields {
    prompt_tokens: Option<usize>,
    output_tokens: Option<usize>,
    /// From its arrival.
    ms: Option<f64>,
}

impl Logged {
    /// The request that it tells of, if it made a token.
    fn request(self) -> anyhow::Result<Option<Timed>> {
        let Fields { prompt_tokens, output_tokens, ms } = self.fields;
        let (Some(input), Some(output @ 1..), Some(ms)) = (prompt_tokens, output_tokens, ms) else {
            return Ok(None);
        };
        let ended = seconds(self.timestamp.trim_end_matches('Z'))
            .with_context(|| format!("`timestamp` is {:?}, no date and time", self.timestamp))?;
        Ok(Some(timed(ended - ms / 1e3, input, output, vec![])))
    }
}

#[derive(Deserialize)]
struct Session {
    turns: Vec<(usize, usize)>,
}

/// Reads a trace, told by its first character; entries come in order of time.
///
/// # Errors
/// The file cannot be read, or a line of it: with its number.
pub fn read(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let text = text(path)?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> anyhow::Result<Vec<Entry>> {
    let timed = if text.starts_with('{') { json_lines(text)? } else { csv(text)? };
    ensure!(!timed.is_empty(), "no request in it");
    let first = timed.iter().map(|(at, _)| *at).fold(f64::INFINITY, f64::min);
    let mut entries: Vec<Entry> = timed
        .into_iter()
        .map(|(at, entry)| Entry { at: Duration::from_secs_f64(at - first), ..entry })
        .collect();
    entries.sort_by_key(|entry| entry.at);
    Ok(entries)
}

/// Seconds, and what was asked then.
type Timed = (f64, Entry);

fn json_lines(text: &str) -> anyhow::Result<Vec<Timed>> {
    let request = |line: &str| {
        let line: Value = serde_json::from_str(line)?;
        if line.get("fields").is_some() {
            return serde_json::from_value::<Logged>(line)?.request();
        }
        let said: Mooncake = serde_json::from_value(line)?;
        let Mooncake { timestamp, input_length, output_length, hash_ids } = said;
        Ok(Some(timed(timestamp / 1e3, input_length, output_length, hash_ids)))
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let line =
        |(number, line)| request(line).with_context(|| format!("line {}", number + 1)).transpose();
    lines.filter_map(line).collect()
}

fn csv(text: &str) -> anyhow::Result<Vec<Timed>> {
    let mut lines = text.lines().enumerate();
    let (_, header) = lines.next().context("an empty file")?;
    let names: Vec<&str> = header.split(',').map(str::trim).collect();
    let column = |wanted: [&str; 2]| {
        let found = names.iter().position(|name| wanted.contains(name));
        found.with_context(|| format!("no column {} or {} in {header:?}", wanted[0], wanted[1]))
    };
    let at = column(["TIMESTAMP", "timestamp_s"])?;
    let input = column(["ContextTokens", "input_length"])?;
    let output = column(["GeneratedTokens", "output_length"])?;
    let line = |(number, line): (usize, &str)| {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let read = || {
            let at = seconds(fields.get(at)?)?;
            let number = |column: usize| fields.get(column)?.parse().ok();
            Some(timed(at, number(input)?, number(output)?, vec![]))
        };
        read().with_context(|| format!("line {}: {line:?}", number + 1))
    };
    lines.filter(|(_, line)| !line.trim().is_empty()).map(line).collect()
}

fn timed(at: f64, input: usize, output: usize, blocks: Vec<u64>) -> Timed {
    (at, Entry { at: Duration::ZERO, input, output, blocks })
}

/// A number of seconds, or a date and time: `2023-11-16 18:15:46.6805900`.
fn seconds(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds.is_finite().then_some(seconds);
    }
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut date = date.split('-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut time = time.split(':').map(str::parse::<f64>);
    let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    Some(days(year, month, day) as f64 * 86_400.0 + hour * 3600.0 + minute * 60.0 + second)
}

/// Days since 1970 of a date of the Gregorian calendar, its years begun in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Lengths of first turns, as serving benchmarks take them of ShareGPT: none below 4 tokens, no
/// prompt above 1,024, no more than 2,048 together.
///
/// # Errors
/// The file cannot be read, a line of it, or no turn fits.
pub fn first_turns(path: &Path) -> anyhow::Result<Vec<(usize, usize)>> {
    let text = text(path)?;
    let mut lengths = vec![];
    for (number, line) in text.lines().enumerate() {
        let at = || format!("{}, line {}", path.display(), number + 1);
        let session: Session = serde_json::from_str(line).with_context(at)?;
        lengths.extend(session.turns.first().copied().filter(|&(input, output)| {
            input >= 4 && output >= 4 && input <= 1024 && input + output <= 2048
        }));
    }
    ensure!(!lengths.is_empty(), "{}: no first turn that fits", path.display());
    Ok(lengths)
}

fn text(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ms: u64, input: usize, output: usize, blocks: &[u64]) -> Entry {
        Entry { at: Duration::from_millis(ms), input, output, blocks: blocks.to_vec() }
    }

    #[test]
    fn all_formats_are_read_and_put_in_order() {
        let check = |text: &str, expect: &[Entry]| assert_eq!(parse(text).unwrap(), expect);
        check(
            r#"{"timestamp": 3000, "input_length": 700, "output_length": 5, "hash_ids": [0, 7]}
{"timestamp": 1000, "input_length": 500, "output_length": 2, "hash_ids": [0]}
"#,
            &[entry(0, 500, 2, &[0]), entry(2000, 700, 5, &[0, 7])],
        );
        check(
            "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
             2023-11-30 23:59:59.5000000,374,44\r\n2023-12-01 00:00:00.7500000,396,109\r\n",
            &[entry(0, 374, 44, &[]), entry(1250, 396, 109, &[])],
        );
        let said = |at: &str, fields: &str| {
            format!(
                r#"{{"timestamp":"2026-11-29T23:59:{at}Z","level":"INFO","fields":{fields},"target":"t"}}"#
            )
        };
        let log = [
            said("00.000000", r#"{"message":"listening"}"#),
            said(
                "02.500000",
                r#"{"message":"finished","prompt_tokens":9,"output_tokens":4,"ms":500.0}"#,
            ),
            said(
                "02.600000",
                r#"{"message":"failed","prompt_tokens":7,"output_tokens":0,"ms":1.0}"#,
            ),
            said(
                "03.250000",
                r#"{"message":"dropped","prompt_tokens":8,"output_tokens":2,"ms":2250.0}"#,
            ),
        ];
        check(&log.join("\n"), &[entry(0, 8, 2, &[]), entry(1000, 9, 4, &[])]);
        check(
            "timestamp_s,input_length,output_length,client\n0.500,246,453,23\n",
            &[entry(0, 246, 453, &[])],
        );
    }

    #[test]
    fn what_is_no_trace_is_refused_by_line() {
        let check = |text: &str, expect: &str| {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(expect), "{error}");
        };
        check("", "empty");
        check("a,b\n1,2\n", "no column TIMESTAMP");
        check("timestamp_s,input_length,output_length\n1,2,3\n1,x,3\n", "line 3");
        check("{\"timestamp\": 1}\n", "line 1");
        check(
            "{\"timestamp\":\"soon\",\"fields\":{\"prompt_tokens\":1,\"output_tokens\":1,\"ms\":1}}",
            "`timestamp` is \"soon\"",
        );
        check("{\"timestamp\":\"2026-11-29T00:00:00Z\",\"fields\":{}}", "no request");
        check("timestamp_s,input_length,output_length\n", "no request");
    }

    #[test]
    fn dates_are_days_since_1970() {
        let check = |(year, month, day), expect| assert_eq!(days(year, month, day), expect);
        check((1970, 1, 1), 0);
        check((2000, 2, 29), 11_016);
        check((2000, 3, 1), 11_017);
        check((2026, 11, 24), 20_781);
    }
}
