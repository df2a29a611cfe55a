//! One request's way through the ring, from what its processes say at `story=debug`.
//!
//! 1. [`StoryOptions::send`] sends requests one by one; each has a name that the gateway logs
//!    beside the id that the servers know it by.
//! 2. [`tell`] gathers each request's events from all logs; their times are of one host's clock.
//! 3. [`Told`] prints the request of the median time to the first token, the medians of all spans,
//!    and makes a trace that Perfetto and Chrome open.
//!
//! `kernels ended` is the device's clock, brought to the host's; `computed` is when prefill's
//! engine thread holds the first token, after its wake-up and the copy of what was made. The
//! exposed handoff counts from the former, on a CPU from the latter.

use super::client::{Ask, Client, Sample};
use super::log::{Line, clock_us, lines};
use super::ring::Logged;
use crate::bars::Bars;
use crate::numbers::{Random, median};
use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

/// Which requests are followed.
#[derive(Args)]
pub struct StoryOptions {
    /// How many, one after the other.
    #[arg(long, default_value_t = 20)]
    requests: usize,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 4096)]
    input: usize,
    /// Tokens that each makes.
    #[arg(long, default_value_t = 8)]
    output: usize,
    /// Prompts are of ids below this, which the model must have.
    #[arg(long, default_value_t = 32_000)]
    vocab: u32,
}

/// Sent before those that are followed.
const WARM_UP: usize = 3;
const FIRST_ID: u32 = 100;

/// Who says what: an event's name in the logs, and whose it is.
const EVENTS: &[(&str, &str)] = &[
    ("submitted", "gateway"),
    ("ticket asked", "gateway"),
    ("ticket granted", "gateway"),
    ("sent to prefill", "gateway"),
    ("first token heard", "gateway"),
    ("queued", "prefill"),
    ("admitted", "prefill"),
    ("launched", "prefill"),
    ("kernels ended", "prefill"),
    ("computed", "prefill"),
    ("pages named", "prefill"),
    ("pages queued", "prefill"),
    ("flush queued", "prefill"),
    ("flushed", "prefill"),
    ("handed over", "prefill"),
    ("granted", "decode"),
    ("opened", "decode"),
    ("landed", "decode"),
    ("first step launched", "decode"),
    ("first step done", "decode"),
];

/// What the client and the arithmetic add to them.
const SENT: &str = "sent";
const ARRIVED: &str = "headers read";
const FIRST: &str = "first token read";
const ENDED: &str = "answer read";

/// Track, name, from the first event of one name to the first of another.
const SPANS: &[(&str, &str, &str, &str)] = &[
    ("client", "to the first token", SENT, FIRST),
    ("client", "the rest", FIRST, ENDED),
    ("gateway", "read, check, route", ARRIVED, "ticket asked"),
    ("gateway", "ticket", "ticket asked", "ticket granted"),
    ("gateway", "until prefill has it", "sent to prefill", "queued"),
    ("prefill", "queue", "queued", "admitted"),
    ("prefill", "compute", "launched", "kernels ended"),
    ("prefill", "until the host knows", "kernels ended", "computed"),
    ("prefill", "target pages asked", "admitted", "pages named"),
    ("prefill", "ship", "pages queued", "flushed"),
    ("prefill", "ship after the last chunk", "computed", "flushed"),
    ("decode", HANDOFF, "kernels ended", "landed"),
    ("decode", "until its first step", "landed", "first step launched"),
    ("decode", "first step", "first step launched", "first step done"),
    ("gateway", "first token, decode to gateway", "landed", "first token heard"),
    ("client", "first token, gateway to client", "first token heard", FIRST),
];

const HANDOFF: &str = "exposed handoff";

impl StoryOptions {
    /// Sends the requests; those of the warm-up are not returned.
    ///
    /// # Errors
    /// One failed.
    pub async fn send(&self, client: &Client) -> anyhow::Result<Vec<Sample>> {
        let mut random = Random::new(clock_us(std::time::SystemTime::now()));
        let mut samples = vec![];
        for number in 0..WARM_UP + self.requests {
            let ids = random.ids(self.input, FIRST_ID, self.vocab - FIRST_ID);
            let name = format!("story-{number}");
            let ask = Ask::new(name, &json!(ids), self.output, client.model());
            let sample = client.ask(&ask).await;
            if let Some(failure) = &sample.failure {
                bail!("request {number}: {failure}");
            }
            samples.push(sample);
        }
        Ok(samples.split_off(WARM_UP))
    }
}

/// Something that happened to a request.
#[derive(Clone, Debug)]
struct Event {
    at_us: u64,
    track: &'static str,
    name: &'static str,
    /// The line's fields.
    detail: String,
}

/// A request with its events in order.
struct Followed {
    name: String,
    events: Vec<Event>,
}

/// All requests that were followed.
pub struct Told {
    requests: Vec<Followed>,
    /// Tokens of each prompt, as the server counts.
    prompt_tokens: usize,
}

/// Prompts of the row's requests.
const ROW_TOKENS: usize = 4096;

/// Gathers what the logs say of these requests.
///
/// # Errors
/// A request that the gateway does not name, or that has no handoff.
pub fn tell(samples: &[Sample], processes: &[Logged]) -> anyhow::Result<Told> {
    ensure!(!processes.is_empty(), "a story needs a ring that is started here: without --url");
    let mut said: Vec<Line<'_>> = vec![];
    for process in processes {
        said.extend(lines(&process.log).filter(|line| line.target == "story"));
    }
    let mut by_request: BTreeMap<&str, Vec<Line<'_>>> = BTreeMap::new();
    for line in said {
        let request = line.field("request").unwrap_or("").split('/').next().unwrap_or("");
        by_request.entry(request).or_default().push(line);
    }
    let told = samples.iter().map(|sample| follow(sample, &by_request));
    let prompt_tokens = samples.first().map_or(0, |sample| sample.prompt_tokens);
    Ok(Told { requests: told.collect::<anyhow::Result<_>>()?, prompt_tokens })
}

fn follow(sample: &Sample, by_request: &BTreeMap<&str, Vec<Line<'_>>>) -> anyhow::Result<Followed> {
    let submitted = |line: &&Line<'_>| line.field("name") == Some(sample.name.as_str());
    let found = by_request.values().find_map(|lines| Some((lines, lines.iter().find(submitted)?)));
    let (lines, submitted) = found.with_context(|| format!("no log names {}", sample.name))?;
    let mut events: Vec<Event> = lines.iter().filter_map(event).collect();
    let mut add = |name, at_us, track| {
        events.push(Event { at_us, track, name, detail: String::new() });
    };
    let sent = clock_us(sample.sent_clock);
    let since = |at: Instant| sent + (at - sample.sent).as_micros() as u64;
    add(SENT, sent, "client");
    let waited = submitted.number("arrived_us").unwrap_or(0);
    add(ARRIVED, submitted.at_us - waited, "gateway");
    let first = sample.chunks.first().context("an answer without a token")?;
    add(FIRST, since(first.at), "client");
    add(ENDED, since(sample.end), "client");
    events.sort_by_key(|event| event.at_us);
    let told = Followed { name: sample.name.clone(), events };
    ensure!(
        told.span("kernels ended", "landed").is_some(),
        "no handoff of {} is logged",
        told.name
    );
    Ok(told)
}

fn event(line: &Line<'_>) -> Option<Event> {
    let said = line.message();
    let &(name, track) = EVENTS.iter().find(|(name, _)| *name == said)?;
    let fields = line.text[said.len()..].split(' ');
    let known = |field: &&str| !field.starts_with("request=") && !field.starts_with("name=");
    let detail = fields.filter(known).collect::<Vec<_>>().join(" ");
    let at_us = line.at_us - line.number("ago_us").unwrap_or(0);
    Some(Event { at_us, track, name, detail: detail.trim().to_owned() })
}

impl Followed {
    /// From the first event of one name to the first of another, µs since 1970.
    fn span(&self, from: &str, to: &str) -> Option<(u64, u64)> {
        let first = |name| Some(self.events.iter().find(|event| event.name == name)?.at_us);
        Some((first(from)?, first(to)?))
    }

    /// The length of a span, ms; below 0 where its end came first.
    fn ms(&self, from: &str, to: &str) -> Option<f64> {
        let (from, to) = self.span(from, to)?;
        Some((to as f64 - from as f64) / 1e3)
    }

    fn start_us(&self) -> u64 {
        self.events.first().map_or(0, |event| event.at_us)
    }
}

impl Told {
    /// The request whose first token took the median time.
    fn typical(&self) -> Option<&Followed> {
        let mut by_time: Vec<&Followed> = self.requests.iter().collect();
        let ttft = |told: &Followed| told.ms(SENT, FIRST).unwrap_or(f64::NAN);
        by_time.sort_by(|a, b| ttft(a).total_cmp(&ttft(b)));
        by_time.get(by_time.len() / 2).copied()
    }

    /// The typical request, and the medians over all.
    pub fn print(&self, bars: &mut Bars) {
        if let Some(told) = self.typical() {
            println!("{}, of the median time to the first token:", told.name);
            for Event { at_us, track, name, detail } in &told.events {
                let ms = (at_us - told.start_us()) as f64 / 1e3;
                println!("  {ms:>9.3} ms  {track:<8} {name} {detail}");
            }
        }
        println!("medians of {} requests:", self.requests.len());
        for (track, name, ms) in self.medians() {
            println!("  {ms:>9.3} ms  {track:<8} {name}");
            if name == HANDOFF && self.prompt_tokens == ROW_TOKENS {
                bars.set("exposed-handoff-4096", ms);
            }
        }
    }

    fn medians(&self) -> impl Iterator<Item = (&'static str, &'static str, f64)> {
        SPANS.iter().map(|&(track, name, from, to)| {
            let all = self.requests.iter().filter_map(|told| told.ms(from, to));
            (track, name, median(all.collect()))
        })
    }

    /// Medians of all spans, ms, and every request's events, µs since it was sent.
    pub fn record(&self) -> Value {
        let medians = self.medians().map(|(track, name, ms)| {
            json!({"track": track, "span": name, "ms": Some(ms).filter(|ms| ms.is_finite())})
        });
        let requests = self.requests.iter().map(|told| {
            let events = told.events.iter().map(|event| {
                let us = event.at_us - told.start_us();
                json!([us, event.track, event.name, event.detail])
            });
            json!({"request": told.name, "events": events.collect::<Vec<_>>()})
        });
        json!({"medians": medians.collect::<Vec<_>>(), "requests": requests.collect::<Vec<_>>()})
    }

    /// All requests in the trace event format.
    pub fn trace(&self) -> Value {
        const TRACKS: [&str; 4] = ["client", "gateway", "prefill", "decode"];
        let pid = |track: &str| TRACKS.iter().position(|known| *known == track).unwrap_or(0) + 1;
        let mut events: Vec<Value> =
            TRACKS.iter().map(|track| named("process_name", pid(track), 0, track)).collect();
        for (row, &(track, name, ..)) in SPANS.iter().enumerate() {
            events.push(named("thread_name", pid(track), row + 1, name));
        }
        for told in &self.requests {
            for (row, &(track, name, from, to)) in SPANS.iter().enumerate() {
                let Some((from, to)) = told.span(from, to) else { continue };
                events.push(json!({
                    "ph": "X", "name": name, "pid": pid(track), "tid": row + 1, "ts": from,
                    "dur": to.saturating_sub(from), "args": {"request": told.name},
                }));
            }
            for Event { at_us, track, name, detail } in &told.events {
                events.push(json!({
                    "ph": "i", "s": "t", "name": name, "pid": pid(track), "tid": 0, "ts": at_us,
                    "args": {"request": told.name, "detail": detail},
                }));
            }
        }
        json!({"displayTimeUnit": "ms", "traceEvents": events})
    }
}

/// Names a track or a row of it.
fn named(kind: &str, pid: usize, tid: usize, name: &str) -> Value {
    json!({"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::client::Chunk;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    #[test]
    fn a_request_is_followed_through_all_logs_by_its_id() {
        let line =
            |us: u32, text: &str| format!("1970-01-01T00:00:01.{us:06}Z DEBUG story: {text}");
        let log = |name: &str, lines: &[String]| Logged {
            name: name.into(),
            started_us: 0,
            log: lines.join("\n"),
        };
        let processes = [
            log("gateway", &[line(300, "submitted request=ab-1 name=\"s\" arrived_us=150")]),
            log(
                "prefill-0",
                &[
                    line(1000, "computed request=ab-1/a0"),
                    line(900, "computed request=ab-2/a0"),
                    line(1100, "pages queued request=ab-1/a0 pages=3"),
                    line(1200, "kernels ended request=ab-1/a0 ago_us=250"),
                ],
            ),
            log("decode-0", &[line(1750, "landed request=ab-1/a0")]),
        ];
        let sent = Instant::now();
        let sample = Sample {
            name: "s".into(),
            due: None,
            sent,
            sent_clock: UNIX_EPOCH + Duration::from_micros(1_000_100),
            chunks: vec![Chunk { at: sent + Duration::from_micros(2000), tokens: 1 }],
            end: sent + Duration::from_micros(3000),
            prompt_tokens: 1,
            cached_tokens: 0,
            failure: None,
        };
        let told = tell(&[sample], &processes).unwrap();
        let names: Vec<_> = told.requests[0].events.iter().map(|event| event.name).collect();
        let prefill = ["kernels ended", "computed", "pages queued"];
        assert_eq!(names[..3], [SENT, ARRIVED, "submitted"]);
        assert_eq!((&names[3..6], &names[6..]), (&prefill[..], &["landed", FIRST, ENDED][..]));
        assert_eq!(told.requests[0].events[5].detail, "pages=3");
        assert_eq!(told.requests[0].ms("kernels ended", "landed"), Some(0.8));
        assert!(told.trace()["traceEvents"].as_array().unwrap().len() > SPANS.len());
        let lost = Sample { name: "t".into(), sent_clock: SystemTime::now(), ..told_sample(sent) };
        assert!(tell(&[lost], &processes).is_err());
    }

    fn told_sample(sent: Instant) -> Sample {
        Sample {
            name: String::new(),
            due: None,
            sent,
            sent_clock: UNIX_EPOCH,
            chunks: vec![],
            end: sent,
            prompt_tokens: 0,
            cached_tokens: 0,
            failure: None,
        }
    }
}
