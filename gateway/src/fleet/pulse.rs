//! What the ring has done since this gateway started: counts that only grow, for the page to take
//! differences of.
//!
//! Bound: counters of a server and of times are of fixed number; a link is counted once a handoff
//! went over it, so there are at most as many as pairs of servers.

use super::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Places of a pair among the configured prefill and decode servers.
pub(crate) type Slots = (usize, usize);

/// The counts of the whole ring.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// When counting began.
    pub(crate) began: Instant,
    /// From a request's arrival to its first token.
    pub(crate) ttft: Times,
    /// Between two tokens of an output.
    pub(crate) itl: Times,
    /// Requests that ended with a result.
    pub(crate) finished: AtomicU64,
    /// Requests that failed.
    pub(crate) failed: AtomicU64,
    /// Requests whose client left, or had enough: a stop string came.
    pub(crate) dropped: AtomicU64,
    links: Mutex<BTreeMap<Slots, Handoffs>>,
}

/// What went over a link between prefill and decode.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Handoffs {
    /// Handoffs whose first token was heard.
    pub(crate) count: u64,
    /// The exposed part of the last one, microseconds.
    pub(crate) last_us: u64,
}

/// What one server has done for this gateway.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Requests sent to it.
    pub(crate) requests: AtomicU64,
    /// Prompt tokens that it computed (prefill), or tokens that came from it (decode).
    pub(crate) tokens: AtomicU64,
}

impl Tally {
    /// Counts tokens.
    pub(crate) fn add(&self, tokens: u32) {
        self.tokens.fetch_add(tokens.into(), Relaxed);
    }
}

impl Pulse {
    /// Nothing counted yet.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            ttft: Times::default(),
            itl: Times::default(),
            finished: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            links: Mutex::default(),
        }
    }

    /// A first token came by way of this pair.
    pub(crate) fn handed(&self, pair: Slots, exposed_us: u64) {
        let mut links = lock(&self.links);
        let link = links.entry(pair).or_default();
        link.count += 1;
        link.last_us = exposed_us;
    }

    /// Every link that was used, in order.
    pub(crate) fn links(&self) -> BTreeMap<Slots, Handoffs> {
        lock(&self.links).clone()
    }
}

/// 64 µs to 134 s, two buckets an octave.
const BUCKETS: usize = 42;
const FIRST_OCTAVE: u32 = 6;

/// How often times of which size were seen.
#[derive(Debug)]
pub(crate) struct Times([AtomicU64; BUCKETS]);

impl Default for Times {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Times {
    /// `count` times of this size were seen.
    pub(crate) fn record(&self, time: Duration, count: u64) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0[bucket(us)].fetch_add(count, Relaxed);
    }

    /// Counts of all buckets.
    pub(crate) fn counts(&self) -> Vec<u64> {
        self.0.iter().map(|count| count.load(Relaxed)).collect()
    }

    /// Least time of each bucket, microseconds; the first has all below the second, too, and the
    /// last all above.
    pub(crate) fn bounds_us() -> Vec<u64> {
        let bound = |at: usize| {
            let octave = 1_u64 << (FIRST_OCTAVE as usize + at / 2);
            octave + (at % 2) as u64 * (octave / 2)
        };
        (0..BUCKETS).map(bound).collect()
    }
}

fn bucket(us: u64) -> usize {
    let us = us.max(1 << FIRST_OCTAVE);
    let octave = us.ilog2();
    let upper_half = (us >> (octave - 1)) & 1;
    (2 * (octave - FIRST_OCTAVE) as usize + upper_half as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_the_bucket_whose_bounds_hold_it() {
        let bounds = Times::bounds_us();
        for us in (0..40).flat_map(|power| [(1_u64 << power) - 1, 1 << power, 3 << power]) {
            let at = bucket(us);
            assert!(us >= bounds[at] || at == 0, "{us} µs in bucket {at}");
            assert!(bounds.get(at + 1).is_none_or(|next| us < *next), "{us} µs in bucket {at}");
        }
    }

    #[test]
    fn counts_add_up() {
        let times = Times::default();
        times.record(Duration::from_micros(10), 3);
        times.record(Duration::from_secs(1000), 2);
        let counts = times.counts();
        assert_eq!((counts[0], counts[BUCKETS - 1], counts.iter().sum::<u64>()), (3, 2, 5));
    }
}
