//! Which ring meets the targets, and what it serves then.
//!
//! *Goodput* is the highest rate of requests at which a share of them, `attainment`, keeps both
//! targets. It is found by halving an interval until that is a few per cent wide.
//!
//! A rate is judged by a *window* of load, after a quarter as much that only fills the ring:
//! 1. The quarter lasts longer than all requests but those that may miss the targets, so that
//!    batches are as full as they will be. Before anything has been played that is the longest
//!    that the targets allow; [`Question::learn`] takes what a ring has shown.
//! 2. A rate that is [`NARROW`] too high lets a queue grow by that part of the window: the window
//!    is so long that the queue takes longer than the first token may.
//! 3. It has [`REQUESTS_A_GPU`] for each GPU, and [`REQUESTS_MIN`], so that large rings and small
//!    ones are judged alike.

use crate::load::{self, Load};
use crate::ring::{self, DecodeLimits, Outcome, PrefillLimits, Ring, Targets};
use crate::table::StepTable;
use crate::trace::Entry;
use serde::Serialize;
use shared::sched::prefill::PrefillPolicy;
use std::sync::Arc;
use std::time::Duration;

/// Width at which an interval of rates is narrow enough, as a part of the rate.
const NARROW: f64 = 0.03;
/// First step from a guess, as a factor.
const STEP_MIN: f64 = 1.2;
/// Widest step upwards, as a factor: the time that a rate takes to judge
/// goes with it.
const STEP_MAX: f64 = 2.0;
/// Fewer requests than this say nothing about one in a hundred.
const REQUESTS_MIN: usize = 400;
/// Nor do fewer than this about each GPU.
const REQUESTS_A_GPU: usize = 50;
/// Parts of a window for one part of load before it.
const WARM: usize = 4;

/// What is asked.
pub struct Question {
    /// How long steps take.
    pub table: Arc<StepTable>,
    /// What is served.
    pub entries: Vec<Entry>,
    /// Lengths of the trace are divided by this.
    pub divisor: u32,
    /// To the first token.
    pub ttft: Duration,
    /// Mean time between tokens.
    pub itl: Duration,
    /// Share of requests that must keep both, below 1.
    pub attainment: f64,
    /// Seconds of load that a rate is judged by, where not as long as it takes.
    pub window: Option<f64>,
}

/// A ring and what it serves.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// What is special about it.
    pub what: String,
    /// Prefill servers.
    pub prefills: usize,
    /// Decode servers.
    pub decodes: usize,
    /// Requests a second within the targets; 0 where a lone request misses them.
    pub goodput: f64,
    /// Seconds of load that it was judged by.
    pub window: f64,
    /// To the first token at that rate, p50 and p99, ms.
    pub ttft_ms: (f64, f64),
    /// Between tokens at that rate, p50 and p99, ms.
    pub itl_ms: (f64, f64),
    /// Most tokens of pages in use at one decode server.
    pub pool_tokens: u64,
    /// Share of the time that devices of prefill and of decode compute.
    pub busy: (f64, f64),
    /// Share of prompt tokens that were cached.
    pub cached: f64,
    /// Seconds within which all requests were over but those that may miss the targets.
    pub longest: f64,
}

impl Answer {
    /// Requests a second and GPU.
    pub fn each(&self) -> f64 {
        self.goodput / (self.prefills + self.decodes) as f64
    }
}

impl Question {
    /// A ring of the table's own settings.
    pub fn ring(&self, prefills: usize, decodes: usize) -> Ring {
        let steps = self.table.steps();
        Ring {
            prefills,
            decodes,
            prefill: PrefillLimits {
                policy: PrefillPolicy::Lpm,
                chunk_tokens: steps.chunk_tokens,
                page_tokens: steps.page_tokens,
                pool_tokens: steps.pool_tokens,
            },
            decode: DecodeLimits {
                rows_max: steps.rows_max as usize,
                growth_tokens: 512,
                page_tokens: steps.page_tokens,
                pool_tokens: steps.pool_tokens,
            },
        }
    }

    /// From here on windows are as long as requests need that take as long as those of `best`: a
    /// larger ring of that ratio serves each of its GPUs the same.
    pub fn learn(&mut self, best: &Answer) {
        let window = self.window.unwrap_or_else(|| self.steady(best.longest));
        self.window = Some(window);
    }

    /// Seconds of load that show what becomes of queues and batches.
    fn steady(&self, longest: f64) -> f64 {
        (WARM as f64 * longest).max(self.ttft.as_secs_f64() / NARROW)
    }

    /// Seconds within which a request is over that keeps its targets, if its answer is none of the
    /// longest.
    fn allowed(&self) -> f64 {
        let mut outputs: Vec<_> = self.entries.iter().map(|entry| entry.output as u32).collect();
        outputs.sort_unstable();
        let rank = (self.attainment * outputs.len() as f64) as usize;
        let output = outputs.get(rank).or(outputs.last()).copied().unwrap_or(1);
        (self.ttft + self.itl * (output / self.divisor)).as_secs_f64()
    }

    /// Requests of the window at this rate.
    fn count(&self, ring: &Ring, rate: f64) -> usize {
        let window = self.window.unwrap_or_else(|| self.steady(self.allowed()));
        let gpus = ring.prefills + ring.decodes;
        ((rate * window) as usize).max(REQUESTS_A_GPU * gpus).max(REQUESTS_MIN)
    }

    /// What comes of this many requests a second; given up once too many have missed a target.
    pub fn at(&self, ring: &Ring, rate: f64) -> Outcome {
        let count = self.count(ring, rate);
        let pace = load::rate(&self.entries) / rate;
        let warm = count / WARM;
        let mut load = Load::repeated(&self.entries, self.divisor, warm + count, pace);
        load.warm = warm;
        let bad_max = ((1.0 - self.attainment) * count as f64) as usize;
        let targets = Targets { ttft: self.ttft, itl: self.itl, bad_max };
        ring::run(ring, &self.table, &load, Some(targets))
    }

    /// The goodput of a ring, looked for around `guess` requests a second.
    pub fn goodput(&self, what: impl Into<String>, ring: &Ring, guess: f64) -> Answer {
        let (mut low, mut high) = (0.0, f64::INFINITY);
        let mut best: Option<Outcome> = None;
        let (mut rate, mut step) = (guess, STEP_MIN);
        while high - low > NARROW * low && rate > guess / 1e4 {
            let outcome = self.at(ring, rate);
            if outcome.given_up {
                high = rate;
            } else {
                low = rate;
                best = Some(outcome);
            }
            rate = match (low > 0.0, high.is_finite()) {
                (true, true) => f64::midpoint(low, high),
                (true, false) => low * step,
                // Not faster and faster: a trace comes in bursts, so that a far lower rate, which
                // sees others of them, may fail where this one does not.
                _ => high / STEP_MIN,
            };
            step = (step * step).min(STEP_MAX);
        }
        self.answer(what.into(), ring, (low, best.as_ref()))
    }

    /// The goodputs of all ratios of `gpus` servers, at least 2.
    pub fn ratios(&self, gpus: usize) -> Vec<Answer> {
        let mut guess = load::rate(&self.entries);
        let each = |prefills| {
            let ring = self.ring(prefills, gpus - prefills);
            let answer = self.goodput(format!("{prefills}:{}", gpus - prefills), &ring, guess);
            if answer.goodput > 0.0 {
                guess = answer.goodput;
            }
            answer
        };
        (1..gpus).map(each).collect()
    }

    /// Other policies and pools than the table's, one change each, for a ring like `best`.
    pub fn variants(&self, best: &Answer) -> Vec<Answer> {
        let base = self.ring(best.prefills, best.decodes);
        let change = |what: String, change: &dyn Fn(&mut Ring)| {
            let mut ring = base.clone();
            change(&mut ring);
            self.goodput(what, &ring, best.goodput)
        };
        let (chunk, pool) = (base.prefill.chunk_tokens, base.decode.pool_tokens);
        let mut all = vec![
            change("order fcfs".into(), &|ring| ring.prefill.policy = PrefillPolicy::Fcfs),
            change(format!("chunk {}", chunk / 4), &|ring| ring.prefill.chunk_tokens = chunk / 4),
            change(format!("chunk {}", chunk * 2), &|ring| ring.prefill.chunk_tokens = chunk * 2),
            change("growth 64".into(), &|ring| ring.decode.growth_tokens = 64),
        ];
        all.extend([2, 4].map(|part| {
            change(format!("decode pool {}", pool / part), &|ring| {
                ring.decode.pool_tokens = pool / part;
            })
        }));
        all
    }

    /// The goodputs of these sizes, ascending, with as large a part of prefill servers as `best`.
    pub fn growth(&self, best: &Answer, sizes: &[usize]) -> Vec<Answer> {
        let mut each = best.each();
        let one = |&gpus: &usize| {
            let prefills = part(best, gpus);
            let ring = self.ring(prefills, gpus - prefills);
            let answer = self.goodput(format!("{gpus} GPUs"), &ring, each * gpus as f64);
            if answer.goodput > 0.0 {
                each = answer.each();
            }
            answer
        };
        sizes.iter().map(one).collect()
    }

    /// The smallest ring that serves `rate` within the targets, of `sizes`' range; ratios next to
    /// that of `best` are tried too.
    pub fn least(&self, best: &Answer, rate: f64, sizes: (usize, usize)) -> Option<Answer> {
        let serves = |gpus: usize| {
            let middle = part(best, gpus);
            let near = [middle, middle.saturating_sub(1).max(1), (middle + 1).min(gpus - 1)];
            near.into_iter().find_map(|prefills| {
                let ring = self.ring(prefills, gpus - prefills);
                let outcome = self.at(&ring, rate);
                let what = || format!("least for {} requests/s", crate::numbers::short(rate));
                (!outcome.given_up).then(|| self.answer(what(), &ring, (rate, Some(&outcome))))
            })
        };
        let (mut low, mut high) = (sizes.0.max(2) - 1, sizes.1);
        let mut found = serves(high)?;
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            match serves(middle) {
                Some(answer) => (found, high) = (answer, middle),
                None => low = middle,
            }
        }
        Some(found)
    }

    fn answer(
        &self,
        what: String,
        ring: &Ring,
        (goodput, outcome): (f64, Option<&Outcome>),
    ) -> Answer {
        let nothing = (f64::NAN, f64::NAN);
        let ranks = |of: fn(&Outcome) -> crate::numbers::Ranks| {
            outcome.map_or(nothing, |outcome| {
                let ranks = of(outcome);
                (ranks.p50, ranks.p99)
            })
        };
        Answer {
            what,
            prefills: ring.prefills,
            decodes: ring.decodes,
            goodput,
            window: outcome.map_or(f64::NAN, |_| self.count(ring, goodput) as f64 / goodput),
            ttft_ms: ranks(Outcome::ttft),
            itl_ms: ranks(Outcome::itl),
            pool_tokens: outcome.map_or(0, |outcome| {
                u64::from(outcome.pages_max) * u64::from(ring.decode.page_tokens)
            }),
            busy: outcome.map_or(nothing, |outcome| outcome.busy),
            cached: outcome.map_or(f64::NAN, |outcome| outcome.cached),
            longest: outcome.map_or(f64::NAN, |outcome| outcome.over_within(self.attainment)),
        }
    }
}

/// Prefill servers of `gpus`, by the ratio of `best`.
fn part(best: &Answer, gpus: usize) -> usize {
    let share = best.prefills as f64 / (best.prefills + best.decodes) as f64;
    ((share * gpus as f64).round() as usize).clamp(1, gpus - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::steps;

    /// Ten requests a second, 400 tokens in and `output` out.
    fn question(output: usize, window: Option<f64>) -> Question {
        let entry = |n: u64| Entry {
            at: Duration::from_millis(100 * n),
            input: 400,
            output,
            blocks: vec![],
        };
        Question {
            table: Arc::new(StepTable::new(steps()).unwrap()),
            entries: (0..200).map(entry).collect(),
            divisor: 1,
            ttft: Duration::from_millis(500),
            itl: Duration::from_millis(20),
            attainment: 0.99,
            window,
        }
    }

    #[test]
    fn a_window_is_as_long_as_queues_batches_and_sizes_need() {
        let count = |question: &Question, gpus: usize, rate| {
            question.count(&question.ring(gpus / 2, gpus - gpus / 2), rate)
        };
        let queue = question(20, None);
        assert_eq!(count(&queue, 2, 60.0), 1000, "0.03 of 16.7 s is the target of 0.5 s");
        let mut batch = question(1000, None);
        assert_eq!(count(&batch, 2, 60.0), 60 * 82, "four times 20.5 s");
        let seen = Answer { longest: 6.0, ..batch.goodput("", &batch.ring(1, 1), 10.0) };
        batch.learn(&seen);
        assert_eq!(count(&batch, 2, 60.0), 60 * 24, "four times 6 s");
        assert_eq!(count(&queue, 2000, 60.0), 100_000, "50 for each GPU");
        assert_eq!(count(&question(20, Some(0.1)), 2, 60.0), 400);
    }

    #[test]
    fn a_large_ring_serves_no_more_a_gpu_than_a_small_one() {
        // Evenly spaced requests of one length gain nothing by being many.
        let each = |question: &Question, gpus: usize| {
            let ring = question.ring(gpus / 2, gpus / 2);
            question.goodput("", &ring, 12.0 * gpus as f64).each()
        };
        let steady = question(20, None);
        let (small, large) = (each(&steady, 4), each(&steady, 64));
        assert!((large / small - 1.0).abs() < 2.0 * NARROW, "{small} and {large}");
        // So many are over before the queue that they leave behind is too long.
        let short = question(20, Some(1e-9));
        assert!(
            each(&short, 64) > (1.0 + 2.0 * NARROW) * large,
            "{} and {large}",
            each(&short, 64)
        );
    }
}
