//! What a prefill server counts; names and help are in `shared::metrics`.

use kv_transfer::Kind;
use metrics::{Label, counter, gauge, histogram};
use shared::metrics as names;
use shared::pool::Counts;
use shared::wire::messages::{Load, PrefillTimes};
use std::time::Duration;

/// A decode server was joined by this transport, which reached so much in its self-test.
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
    pub(crate) fn new(server: &str) -> Self {
        Self { server: Label::new("server", server.to_owned()) }
    }

    /// A step of so many tokens.
    pub(crate) fn step(&self, tokens: u32) {
        counter!(names::STEPS, vec![self.server.clone()]).increment(1);
        counter!(names::COMPUTED_TOKENS, vec![self.server.clone()]).increment(u64::from(tokens));
    }

    /// A request was handed to decode.
    pub(crate) fn handed(&self, times: PrefillTimes) {
        counter!(names::HANDOFFS, vec![self.server.clone()]).increment(1);
        let exposed = Duration::from_micros(times.exposed_us);
        histogram!(names::EXPOSED, vec![self.server.clone()]).record(exposed);
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
        gauge!(names::RUNNING, vec![self.server.clone()]).set(f64::from(load.running));
        gauge!(names::WAITING, vec![self.server.clone()]).set(f64::from(load.queued));
    }
}
