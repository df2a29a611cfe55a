//! The gateway's own metrics; names and help are in `shared::metrics`.

use crate::ring::FailureKind;
use crate::transcript::Usage;
use metrics::{Counter, Histogram, counter, gauge, histogram};
use shared::metrics as names;
use shared::request::Finish;
use std::collections::{BTreeMap, HashMap};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What ended an attempt that goes round again: a retraction, or a failure's class.
const RETRACTED: &str = "retracted";

/// Counters begin at 0, or what has not happened yet would look like what nobody counts.
/// `queue_limit`: requests that may wait.
pub fn begin(queue_limit: usize) {
    gauge!(names::QUEUE_LIMIT).set(queue_limit as f64);
    for name in [names::PROMPT_TOKENS, names::GENERATION_TOKENS, names::CACHED_TOKENS] {
        counter!(name).increment(0);
    }
    traces_dropped(0);
    for finish in [Finish::Stop, Finish::Length] {
        counter!(names::OUTPUTS, "finish" => finish_name(finish)).increment(0);
    }
    for kind in FailureKind::ALL {
        counter!(names::FAILURES, "reason" => kind.name()).increment(0);
        counter!(names::RETRIES, "reason" => kind.name()).increment(0);
    }
    counter!(names::RETRIES, "reason" => RETRACTED).increment(0);
}

/// Counts an HTTP answer.
pub fn answered(route: &str, code: u16) {
    let mut answered = ANSWERED.lock().unwrap_or_else(PoisonError::into_inner);
    let codes = match answered.get_mut(route) {
        Some(codes) => codes,
        None => answered.entry(route.to_owned()).or_default(),
    };
    let count = || {
        let labels = [("route", route.to_owned()), ("code", code.to_string())];
        counter!(names::GATEWAY_REQUESTS, &labels)
    };
    codes.entry(code).or_insert_with(count).increment(1);
}

/// What counts the answers of a route, by code.
static ANSWERED: LazyLock<Mutex<HashMap<String, BTreeMap<u16, Counter>>>> =
    LazyLock::new(Mutex::default);

/// What the gauges say now.
pub fn depths(calls: usize, queued: usize, ready: bool) {
    gauge!(names::GATEWAY_IN_FLIGHT).set(calls as f64);
    gauge!(names::QUEUE_DEPTH).set(queued as f64);
    gauge!(names::RING_READY).set(f64::from(ready));
}

/// A request ended without a result.
pub fn failed(kind: FailureKind) {
    counter!(names::FAILURES, "reason" => kind.name()).increment(1);
}

/// A request goes round again: after a retraction, or a failure.
pub fn retried(failure: Option<FailureKind>) {
    let reason = failure.map_or(RETRACTED, FailureKind::name);
    counter!(names::RETRIES, "reason" => reason).increment(1);
}

/// So many traces did not reach the collector.
pub fn traces_dropped(count: u64) {
    counter!(names::TRACES_DROPPED).increment(count);
}

/// A request waited so long for its turn and a pair, and then so long for its ticket.
pub fn admitted(queue: Duration, ticket: Duration) {
    METERS.queue.record(queue);
    METERS.ticket.record(ticket);
}

/// The first token came so long after the ticket.
pub fn first_token(after: Duration) {
    METERS.prefill.record(after);
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

/// What every request counts in, looked up once; the recorder is there before the first one.
static METERS: LazyLock<Meters> = LazyLock::new(|| Meters {
    queue: histogram!(names::TTFT_PHASE, "phase" => "queue"),
    ticket: histogram!(names::TTFT_PHASE, "phase" => "ticket"),
    tokenize: histogram!(names::TTFT_PHASE, "phase" => "tokenize"),
    ttft: histogram!(names::TTFT),
    itl: histogram!(names::ITL),
    e2e: histogram!(names::E2E),
    prefill: histogram!(names::REQUEST_PREFILL),
    decode: histogram!(names::REQUEST_DECODE),
    max_tokens: histogram!(names::REQUEST_MAX),
    prompt: histogram!(names::REQUEST_PROMPT),
    generation: histogram!(names::REQUEST_GENERATION),
    prompt_tokens: counter!(names::PROMPT_TOKENS),
    cached_tokens: counter!(names::CACHED_TOKENS),
    generation_tokens: counter!(names::GENERATION_TOKENS),
    stopped: counter!(names::OUTPUTS, "finish" => finish_name(Finish::Stop)),
    cut: counter!(names::OUTPUTS, "finish" => finish_name(Finish::Length)),
});

struct Meters {
    queue: Histogram,
    ticket: Histogram,
    tokenize: Histogram,
    ttft: Histogram,
    itl: Histogram,
    e2e: Histogram,
    prefill: Histogram,
    decode: Histogram,
    max_tokens: Histogram,
    prompt: Histogram,
    generation: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generation_tokens: Counter,
    stopped: Counter,
    cut: Counter,
}

/// Times of one output.
#[derive(Debug)]
pub struct Timing {
    arrived: Instant,
    prompt_tokens: u32,
    /// When the first and the last token so far were here.
    tokens: Option<(Instant, Instant)>,
}

impl Timing {
    /// For a request that arrived then, and is submitted to the ring now.
    pub fn new(arrived: Instant, prompt_tokens: u32, max_tokens: u32) -> Self {
        METERS.tokenize.record(arrived.elapsed());
        METERS.max_tokens.record(max_tokens);
        Self { arrived, prompt_tokens, tokens: None }
    }

    /// `count` tokens are here now; a gap is spread evenly over the tokens that end it.
    pub fn tokens(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let now = Instant::now();
        match &mut self.tokens {
            None => {
                self.tokens = Some((now, now));
                METERS.ttft.record(now - self.arrived);
                self.prompt();
            }
            Some((_, last)) => {
                let each = (now - *last).as_secs_f64() / count as f64;
                *last = now;
                METERS.itl.record_many(each, count);
            }
        }
        METERS.generation_tokens.increment(count as u64);
    }

    fn prompt(&self) {
        METERS.prompt.record(self.prompt_tokens);
        METERS.prompt_tokens.increment(u64::from(self.prompt_tokens));
    }

    /// The output, maybe of no token, is complete.
    pub fn finished(&self, finish: Finish, usage: Usage) {
        if self.tokens.is_none() {
            self.prompt();
        }
        METERS.e2e.record(self.arrived.elapsed());
        if let Some((first, _)) = self.tokens {
            METERS.decode.record(first.elapsed());
        }
        METERS.generation.record(usage.completion);
        METERS.cached_tokens.increment(u64::from(usage.cached));
        match finish {
            Finish::Stop => METERS.stopped.increment(1),
            Finish::Length => METERS.cut.increment(1),
        }
    }
}
