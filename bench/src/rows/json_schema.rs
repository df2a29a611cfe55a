//! Outputs that follow a JSON schema: whether they do, and what it costs the batch.
//!
//! Validity is looked at here, by what the schema says; the ratio is of the time between tokens of
//! eight streams at once, constrained and not, in turns.

use crate::fleet::client::Streamed;
use crate::fleet::{Fleet, Plan};
use crate::numbers::{median, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

pub const GROUP: Group = Group {
    name: "json-schema",
    title: "JSON schemas, demo model, bf16, through the ring",
    rows: &[
        Row {
            name: "json-schema-valid",
            what: "of the answers that end by stop, those that the schema describes, 500 requests",
            unit: "share",
            bar: Bar::AtLeast(1.0),
        },
        Row {
            name: "json-schema-step",
            what: "time between tokens, 8 streams that follow a schema / 8 that follow none",
            unit: "ratio",
            bar: Bar::AtMost(1.05),
        },
    ],
    measure,
    slow: false,
};

const WIDTH: usize = 8;
const REQUESTS: usize = 500;
/// Tokens of each stream whose steps are timed.
const TOKENS: u32 = 96;
const NAME_MAX: usize = 12;
const TAGS_MAX: usize = 3;

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let fleet = Fleet::start(place, &Plan::new(place.demo()?, "bf16"))?;
    let mut found = Findings::new("kind,value");
    let requests = place.rounds(REQUESTS) as u64;
    let (whole, valid) = validity(&fleet, requests)?;
    ensure!(whole > 0, "none of {requests} answers ended by stop");
    found.note(format!("{valid} valid of {whole} that ended by stop, of {requests}"));
    found.set("json-schema-valid", valid as f64 / whole as f64);
    steps(&fleet, false)?;
    steps(&fleet, true)?; // touches everything for the first time
    let (mut free, mut bound) = (Vec::new(), Vec::new());
    for _ in 0..place.rounds(9) {
        free.push(steps(&fleet, false)?);
        bound.push(steps(&fleet, true)?);
    }
    found.raw.extend(free.iter().map(|step| format!("free_s,{step:.6}")));
    found.raw.extend(bound.iter().map(|step| format!("schema_s,{step:.6}")));
    let ratio = median(free.iter().zip(&bound).map(|(free, bound)| bound / free).collect());
    let (free, bound) = (median(free), median(bound));
    found.note(format!("a step: {} ms free, {} ms bound", short(free * 1e3), short(bound * 1e3)));
    found.set("json-schema-step", ratio);
    Ok(found)
}

/// Answers that ended by stop, and those of them that are valid.
fn validity(fleet: &Fleet, requests: u64) -> anyhow::Result<(u64, u64)> {
    let (next, whole, valid) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let work = || -> anyhow::Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= requests {
                return Ok(());
            }
            let sampling = json!({
                "temperature": 1, "sampling_seed": seed, "max_new_tokens": 160,
                "json_schema": schema(),
            });
            let body = json!({"text": "A person, as JSON:", "sampling_params": sampling});
            let answer = fleet.client.generate(&body)?;
            if answer["meta_info"]["finish_reason"]["type"] == "stop" {
                whole.fetch_add(1, Ordering::Relaxed);
                let text = answer["text"].as_str().context("text")?;
                valid.fetch_add(u64::from(is_valid(text)), Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WIDTH).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(join)
    })?;
    Ok((whole.into_inner(), valid.into_inner()))
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn schema() -> Value {
    let tag = json!({"type": "string", "maxLength": NAME_MAX});
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": NAME_MAX},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["friend", "colleague"]},
            "tags": {"type": "array", "items": tag, "maxItems": TAGS_MAX},
        },
        "required": ["name", "age", "kind", "tags"], "additionalProperties": false,
    })
}

/// Whether [`schema`] describes the text.
fn is_valid(text: &str) -> bool {
    let Ok(Value::Object(person)) = serde_json::from_str(text) else { return false };
    let is_short =
        |value: &Value| value.as_str().is_some_and(|text| text.chars().count() <= NAME_MAX);
    let fits = |name: &str, check: &dyn Fn(&Value) -> bool| person.get(name).is_some_and(check);
    let tags = |value: &Value| {
        let tags = value.as_array().filter(|tags| tags.len() <= TAGS_MAX);
        tags.is_some_and(|tags| tags.iter().all(is_short))
    };
    person.len() == 4
        && fits("name", &is_short)
        && fits("age", &|age| age.as_u64().is_some_and(|age| age <= 150))
        && fits("kind", &|kind| kind == "friend" || kind == "colleague")
        && fits("tags", &tags)
}

/// Seconds between tokens of [`WIDTH`] streams at once, median of the streams.
fn steps(fleet: &Fleet, bound: bool) -> anyhow::Result<f64> {
    let stream = |seed: usize| -> anyhow::Result<f64> {
        let mut sampling = json!({
            "temperature": 1, "sampling_seed": seed, "max_new_tokens": TOKENS, "ignore_eos": true,
        });
        if bound {
            // Longer than the stream: every token is inside.
            let item = json!({"type": "string", "minLength": 8, "maxLength": 40});
            sampling["json_schema"] = json!({"type": "array", "items": item, "minItems": 200});
        }
        let body = json!({"text": "A list of words:", "sampling_params": sampling});
        let Streamed { rest, tokens_first, answer, .. } = fleet.client.stream(&body)?;
        let all = answer["meta_info"]["completion_tokens"].as_u64().context("tokens")?;
        ensure!(all == u64::from(TOKENS), "{all} tokens came: {answer}");
        Ok(rest.as_secs_f64() / (all - tokens_first) as f64)
    };
    let times = thread::scope(|scope| {
        let streams: Vec<_> = (0..WIDTH).map(|seed| scope.spawn(move || stream(seed))).collect();
        streams.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
    })?;
    Ok(median(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_schema_describes_is_valid() {
        let check = |text: &str, expected: bool| assert_eq!(is_valid(text), expected, "{text}");
        check(r#"{"name": "A", "age": 3, "kind": "friend", "tags": ["x"]}"#, true);
        check(r#"{"name": "A", "age": 151, "kind": "friend", "tags": []}"#, false);
        check(r#"{"name": "A", "age": 3, "kind": "foe", "tags": []}"#, false);
        check(r#"{"name": "A name too long", "age": 3, "kind": "friend", "tags": []}"#, false);
        check(r#"{"name": "A", "age": 3, "kind": "friend", "tags": [], "more": 1}"#, false);
        check(r#"{"name": "A", "age": 3, "kind": "#, false);
    }
}
