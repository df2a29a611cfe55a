//! What a prefill server counts; names and help are in `shared::metrics`.

use kv_transfer::Kind;
use metrics::{Label, counter, gauge, histogram};
use shared::metrics as names;
use shared::pool::Counts;
use shared::wire::messages::{Load, PrefillTimes, Refusal};
use std::time::Duration;

/// A decode server was joined by this transport, which reached so much in its self-test; 0 when it
/// has left.
pub(crate) fn joined(server: &str, peer: &str, transport: Kind, mb_s: u64) {
    let labels = vec![
        Label::new("server", server.to_owned()),
        Label::new("peer", peer.to_owned()),
        Label::new("transport", transport.to_string()),
    ];
    gauge!(names::BANDWIDTH, labels).set(mb_s as f64 * 1e6);
}

/// Counts for one server: `server` is its label.
#[derive(Debug)]
pub(crate) struct Meter {
    server: Label,
}

impl Meter {
    /// Counters begin at 0, or what has not happened yet would look like what nobody counts.
    pub(crate) fn new(server: &str) -> Self {
        let meter = Self { server: Label::new("server", server.to_owned()) };
        for name in [names::STEPS, names::COMPUTED_TOKENS, names::HANDOFFS, names::TRANSFERRED] {
            counter!(name, meter.labels(None)).increment(0);
        }
        meter.admitted(0, 0);
        for reason in Refusal::NAMES {
            counter!(names::REFUSALS, meter.labels(Some(("reason", reason)))).increment(0);
        }
        meter
    }

    /// A request was not taken.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        let reason = Some(("reason", refusal.name()));
        counter!(names::REFUSALS, self.labels(reason)).increment(1);
    }

    /// A prompt was admitted, with so many tokens cached and so many to compute.
    pub(crate) fn admitted(&self, cached: u32, computed: u32) {
        for (source, tokens) in [("cached", cached), ("computed", computed)] {
            let labels = self.labels(Some(("source", source)));
            counter!(names::ADMITTED_TOKENS, labels).increment(u64::from(tokens));
        }
    }

    fn labels(&self, more: Option<(&'static str, &'static str)>) -> Vec<Label> {
        let more = more.map(|(key, value)| Label::new(key, value));
        [self.server.clone()].into_iter().chain(more).collect()
    }

    /// A step of so many tokens.
    pub(crate) fn step(&self, tokens: u32) {
        counter!(names::STEPS, vec![self.server.clone()]).increment(1);
        counter!(names::COMPUTED_TOKENS, vec![self.server.clone()]).increment(u64::from(tokens));
        histogram!(names::STEP_TOKENS, vec![self.server.clone()]).record(tokens);
    }

    /// A request was handed to decode.
    pub(crate) fn handed(&self, times: PrefillTimes) {
        counter!(names::HANDOFFS, vec![self.server.clone()]).increment(1);
        let exposed = Duration::from_micros(times.exposed_us);
        histogram!(names::EXPOSED, vec![self.server.clone()]).record(exposed);
        let PrefillTimes { queued_us, computed_us, exposed_us } = times;
        for (phase, us) in
            [("intake", queued_us), ("prefill", computed_us), ("handoff", exposed_us)]
        {
            histogram!(names::TTFT_PHASE, "phase" => phase).record(Duration::from_micros(us));
        }
    }

    /// So many bytes of pages were queued for a decode server.
    pub(crate) fn shipped(&self, bytes: u64) {
        counter!(names::TRANSFERRED, vec![self.server.clone()]).increment(bytes);
    }

    /// What the gauges say now.
    pub(crate) fn report(&self, pages: &Counts, load: Load) {
        let states = [
            ("free", pages.free),
            ("granted", pages.granted),
            ("owned", pages.owned),
            ("sealed", pages.sealed),
            ("idle", pages.idle),
            ("quarantined", pages.quarantined),
        ];
        for (state, count) in states {
            let labels = vec![self.server.clone(), Label::new("state", state)];
            gauge!(names::PAGES, labels).set(f64::from(count));
        }
        gauge!(names::POOL, vec![self.server.clone()]).set(f64::from(pages.total));
        gauge!(names::RUNNING, vec![self.server.clone()]).set(f64::from(load.running));
        gauge!(names::WAITING, vec![self.server.clone()]).set(f64::from(load.queued));
    }
}
