//! What a run of requests comes to: latencies by rank, rates, and every request's times as JSON.

use super::client::Sample;
use super::load::Run;
use serde::Serialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Latencies in ms, by rank.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ranks {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Ranks {
    /// Of durations in any order; NaN of none.
    pub fn of(durations: impl Iterator<Item = Duration>) -> Self {
        let mut ms: Vec<f64> = durations.map(|duration| duration.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let at = (share * ms.len() as f64).ceil() as usize;
            ms.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
        };
        let mean = ms.iter().sum::<f64>() / ms.len() as f64;
        Self { mean, p50: rank(0.5), p90: rank(0.9), p99: rank(0.99) }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub what: String,
    pub requests: usize,
    /// Of those, how many are no good; their times count nowhere.
    pub failed: usize,
    pub seconds: f64,
    pub requests_a_second: f64,
    pub input_tokens: usize,
    /// Of those, how many the server found in its cache, if it says so.
    pub cached_tokens: usize,
    pub output_tokens: usize,
    pub output_tokens_a_second: f64,
    /// To the first token, ms.
    pub ttft: Ranks,
    /// Between two chunks that brought tokens, ms.
    pub itl: Ranks,
    /// A token of output after the first, mean of its request, ms.
    pub tpot: Ranks,
    /// To the end, ms.
    pub e2e: Ranks,
}

impl Summary {
    pub fn of(what: impl Into<String>, run: &Run) -> Self {
        let good: Vec<&Sample> = run.samples.iter().filter(|s| s.failure.is_none()).collect();
        let seconds = run.took.as_secs_f64();
        let output_tokens = good.iter().map(|sample| sample.tokens()).sum();
        Self {
            what: what.into(),
            requests: run.samples.len(),
            failed: run.samples.len() - good.len(),
            seconds,
            requests_a_second: good.len() as f64 / seconds,
            input_tokens: good.iter().map(|sample| sample.prompt_tokens).sum(),
            cached_tokens: good.iter().map(|sample| sample.cached_tokens).sum(),
            output_tokens,
            output_tokens_a_second: output_tokens as f64 / seconds,
            ttft: Ranks::of(good.iter().filter_map(|sample| sample.ttft())),
            itl: Ranks::of(good.iter().flat_map(|sample| gaps(sample, None))),
            tpot: Ranks::of(good.iter().filter_map(|sample| sample.tpot())),
            e2e: Ranks::of(good.iter().map(|sample| sample.end - sample.sent)),
        }
    }

    pub const HEADER: &'static str = "                         requests failed        s    req/s  out tok/s \
        | TTFT p50    p90    p99 | ITL p50    p99 | E2E p50    p99 (ms)";

    pub fn line(&self) -> String {
        let Self { what, requests, failed, seconds, ttft, itl, e2e, .. } = self;
        format!(
            "{what:<24} {requests:>8} {failed:>6} {seconds:>8.3} {:>8.2} {:>10.1} \
             | {:>8.2} {:>6.1} {:>6.1} | {:>7.3} {:>6.2} | {:>7.1} {:>6.1}",
            self.requests_a_second,
            self.output_tokens_a_second,
            ttft.p50,
            ttft.p90,
            ttft.p99,
            itl.p50,
            itl.p99,
            e2e.p50,
            e2e.p99
        )
    }
}

/// Times between the chunks of an answer; those before `from` do not count.
pub fn gaps(sample: &Sample, from: Option<Instant>) -> impl Iterator<Item = Duration> + '_ {
    let counts = move |pair: &&[super::client::Chunk]| from.is_none_or(|from| pair[0].at >= from);
    sample.chunks.windows(2).filter(counts).map(|pair| pair[1].at - pair[0].at)
}

/// Every request: µs from the run's first one to its start, to each chunk, to its end.
pub fn raw(run: &Run) -> Value {
    let Some(zero) = run.samples.iter().map(|sample| sample.sent).min() else { return json!([]) };
    let us = |at: Instant| (at - zero).as_micros() as u64;
    let each = run.samples.iter().map(|sample| {
        json!({
            "request": sample.name,
            "due_us": sample.due.map(|due| due.saturating_duration_since(zero).as_micros() as u64),
            "sent_us": us(sample.sent),
            "chunks_us": sample.chunks.iter().map(|chunk| us(chunk.at)).collect::<Vec<_>>(),
            "chunk_tokens": sample.chunks.iter().map(|chunk| chunk.tokens).collect::<Vec<_>>(),
            "end_us": us(sample.end),
            "prompt_tokens": sample.prompt_tokens,
            "cached_tokens": sample.cached_tokens,
            "failure": sample.failure,
        })
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_of_the_values_that_were_measured() {
        let ms = |values: std::ops::RangeInclusive<u64>| values.map(Duration::from_millis);
        let ranks = Ranks::of(ms(1..=100).rev());
        assert_eq!((ranks.p50, ranks.p90, ranks.p99), (50.0, 90.0, 99.0));
        assert_eq!(Ranks::of(ms(7..=7)).p99, 7.0);
        assert!(Ranks::of([].into_iter()).p50.is_nan());
    }
}
