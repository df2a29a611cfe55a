//! What a decode server counts; names and help are in `shared::metrics`.

use metrics::{Label, counter, gauge, histogram};
use shared::metrics as names;
use shared::pool::Counts;
use shared::ticket::TicketCounts;
use shared::wire::messages::{Load, Refusal};
use std::time::Duration;

/// Counts for one server: `server` is its label.
#[derive(Debug)]
pub(crate) struct Meter {
    server: Label,
}

impl Meter {
    /// Counters begin at 0, or what has not happened yet would look like what nobody counts.
    pub(crate) fn new(server: &str) -> Self {
        let meter = Self { server: Label::new("server", server.to_owned()) };
        for name in [names::STEPS, names::COMPUTED_TOKENS, names::RETRACTED, names::HELD_PAGES] {
            counter!(name, vec![meter.server.clone()]).increment(0);
        }
        Refusal::NAMES.iter().for_each(|reason| meter.count_refused(reason, 0));
        meter
    }

    /// A request was not taken.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.count_refused(refusal.name(), 1);
    }

    fn count_refused(&self, reason: &'static str, count: u64) {
        let labels = vec![self.server.clone(), Label::new("reason", reason)];
        counter!(names::REFUSALS, labels).increment(count);
    }

    /// So many pages of a prompt were here already.
    pub(crate) fn held(&self, pages: usize) {
        counter!(names::HELD_PAGES, vec![self.server.clone()]).increment(pages as u64);
    }

    /// A request that had landed so long ago made its first token here.
    pub(crate) fn first_token(&self, after: Duration) {
        histogram!(names::TTFT_PHASE, "phase" => "first_decode").record(after);
    }

    /// A step of so many rows.
    pub(crate) fn step(&self, rows: usize) {
        counter!(names::STEPS, vec![self.server.clone()]).increment(1);
        counter!(names::COMPUTED_TOKENS, vec![self.server.clone()]).increment(rows as u64);
        histogram!(names::STEP_TOKENS, vec![self.server.clone()]).record(rows as f64);
    }

    /// A request gave its pages back.
    pub(crate) fn retracted(&self) {
        counter!(names::RETRACTED, vec![self.server.clone()]).increment(1);
    }

    /// What the gauges say now; `kept` are pages that tickets promise and that they have named.
    pub(crate) fn report(
        &self,
        pages: &Counts,
        (tickets, kept): (TicketCounts, (u32, u32)),
        load: Load,
    ) {
        let states = [
            ("free", pages.free),
            ("granted", pages.granted),
            ("owned", pages.owned),
            ("sealed", pages.sealed),
            ("idle", pages.idle),
            ("quarantined", pages.quarantined),
        ];
        for (state, count) in states {
            self.set(names::PAGES, Some(state), f64::from(count));
        }
        let states = [
            ("granted", tickets.granted),
            ("opened", tickets.opened),
            ("quarantined", tickets.quarantined),
        ];
        for (state, count) in states {
            self.set(names::TICKETS, Some(state), count as f64);
        }
        let states = [("granted", kept.0), ("opened", kept.1), ("quarantined", pages.quarantined)];
        for (state, count) in states {
            self.set(names::REMOTE_PAGES, Some(state), f64::from(count));
        }
        self.set(names::POOL, None, f64::from(pages.total));
        self.set(names::RUNNING, None, f64::from(load.running));
        self.set(names::WAITING, None, f64::from(load.queued));
    }

    fn set(&self, name: &'static str, state: Option<&'static str>, value: f64) {
        let mut labels = vec![self.server.clone()];
        labels.extend(state.map(|state| Label::new("state", state)));
        gauge!(name, labels).set(value);
    }
}
