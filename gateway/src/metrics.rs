//! The gateway's own metrics; names and help are in `shared::metrics`.

use crate::transcript::Usage;
use metrics::{Counter, Histogram, counter, gauge, histogram};
use shared::metrics as names;
use std::sync::LazyLock;
use std::time::Instant;

/// Counts an HTTP answer.
pub fn answered(route: &str, code: u16) {
    let labels = [("route", route.to_owned()), ("code", code.to_string())];
    counter!(names::GATEWAY_REQUESTS, &labels).increment(1);
}

/// What the gauges say now.
pub fn depths(calls: usize, queued: usize) {
    gauge!(names::GATEWAY_IN_FLIGHT).set(calls as f64);
    gauge!(names::QUEUE_DEPTH).set(queued as f64);
}

/// What every token counts in, looked up once; the recorder is there before the first request.
static PER_TOKEN: LazyLock<(Histogram, Counter)> =
    LazyLock::new(|| (histogram!(names::ITL), counter!(names::GENERATION_TOKENS)));

/// Times of one output.
#[derive(Debug)]
pub struct Timing {
    arrived: Instant,
    prompt_tokens: u32,
    last: Option<Instant>,
}

impl Timing {
    /// For a request that arrived then.
    pub fn new(arrived: Instant, prompt_tokens: u32) -> Self {
        Self { arrived, prompt_tokens, last: None }
    }

    /// `count` tokens are here now; a gap is spread evenly over the tokens that end it.
    pub fn tokens(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let now = Instant::now();
        let (itl, generated) = &*PER_TOKEN;
        match self.last.replace(now) {
            None => {
                histogram!(names::TTFT).record(now - self.arrived);
                self.prompt();
            }
            Some(last) => {
                let each = (now - last).as_secs_f64() / count as f64;
                itl.record_many(each, count);
            }
        }
        generated.increment(count as u64);
    }

    fn prompt(&self) {
        counter!(names::PROMPT_TOKENS).increment(u64::from(self.prompt_tokens));
    }

    /// The output, maybe of no token, is complete.
    pub fn finished(&self, usage: Usage) {
        if self.last.is_none() {
            self.prompt();
        }
        histogram!(names::E2E).record(self.arrived.elapsed());
        counter!(names::CACHED_TOKENS).increment(u64::from(usage.cached));
    }
}
