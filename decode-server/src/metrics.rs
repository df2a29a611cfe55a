//! What a decode server counts; names and help are in `shared::metrics`.

use metrics::{Label, counter, gauge};
use shared::metrics as names;
use shared::pool::Counts;
use shared::ticket::TicketCounts;
use shared::wire::messages::Load;

/// Counts for one server: `server` is its label.
#[derive(Debug)]
pub(crate) struct Meter {
    server: Label,
}

impl Meter {
    pub(crate) fn new(server: &str) -> Self {
        Self { server: Label::new("server", server.to_owned()) }
    }

    /// A step of so many rows.
    pub(crate) fn step(&self, rows: usize) {
        counter!(names::STEPS, vec![self.server.clone()]).increment(1);
        counter!(names::COMPUTED_TOKENS, vec![self.server.clone()]).increment(rows as u64);
    }

    /// A request gave its pages back.
    pub(crate) fn retracted(&self) {
        counter!(names::RETRACTED, vec![self.server.clone()]).increment(1);
    }

    /// What the gauges say now.
    pub(crate) fn report(&self, pages: &Counts, tickets: TicketCounts, load: Load) {
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
        self.set(names::RUNNING, None, f64::from(load.running));
        self.set(names::WAITING, None, f64::from(load.queued));
    }

    fn set(&self, name: &'static str, state: Option<&'static str>, value: f64) {
        let mut labels = vec![self.server.clone()];
        labels.extend(state.map(|state| Label::new("state", state)));
        gauge!(name, labels).set(value);
    }
}
