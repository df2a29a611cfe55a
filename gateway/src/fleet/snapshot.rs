//! The ring at one moment and the stories of requests, as the page and `/ring` have them.
//!
//! Counts only grow; whoever wants a rate takes the difference of two snapshots over that of their
//! `now_us`. Servers keep their places while they are down.

use super::Ring;
use super::pulse::Times;
use super::server::{Server, Up};
use super::story::Story;
use serde_json::{Value, json};
use shared::ids::{Epoch, ServerId};
use shared::wire::messages::Message;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Requests under way whose stories are told at once, at most; the oldest.
const TRAVELLING_TOLD: usize = 64;

impl Ring {
    /// Every server and link with its numbers, and what the ring has done.
    pub fn snapshot(&self) -> Value {
        let fleet = &self.0;
        let (prefill_up, decode_up) = (fleet.prefill_up(), fleet.decode_up());
        let reachable: HashSet<Epoch> =
            prefill_up.iter().flat_map(|up| up.joined.iter().copied()).collect();
        let reaches = |up: &Up<_>| decode_up.iter().any(|decode| up.joined.contains(&decode.epoch));
        let prefill = fleet.prefill.iter().map(|server| {
            let mut said = one(server, reaches);
            let joined = server.up().map(|up| up.joined.clone()).unwrap_or_default();
            let slots = decode_up.iter().filter(|decode| joined.contains(&decode.epoch));
            said["joined"] = slots.map(|decode| decode.slot).collect();
            said
        });
        let decode = fleet.decode.iter().map(|s| one(s, |up| reachable.contains(&up.epoch)));
        let (requests, queued) = self.depth();
        let pulse = &fleet.pulse;
        json!({
            "now_us": pulse.began.elapsed().as_micros() as u64,
            "epoch": fleet.epoch.to_string(),
            "requests": requests,
            "queued": queued,
            "queued_max": fleet.max_queued,
            "prefill": prefill.collect::<Vec<_>>(),
            "decode": decode.collect::<Vec<_>>(),
            "links": self.links(),
            "finished": pulse.finished.load(Relaxed),
            "failed": pulse.failed.load(Relaxed),
            "dropped": pulse.dropped.load(Relaxed),
            "times": {
                "from_us": Times::bounds_us(),
                "ttft": pulse.ttft.counts(),
                "itl": pulse.itl.counts(),
            },
        })
    }

    /// Links that were used or are about to be.
    fn links(&self) -> Vec<Value> {
        let fleet = &self.0;
        let mut links: BTreeMap<_, _> =
            fleet.pulse.links().into_iter().map(|(pair, handoffs)| (pair, (handoffs, 0))).collect();
        for pair in fleet.journeys().values().filter_map(|travelling| travelling.story.on_its_way())
        {
            links.entry(pair).or_default().1 += 1;
        }
        let link = |((prefill, decode), (handoffs, coming)): (_, (super::pulse::Handoffs, u32))| {
            json!({
                "prefill": prefill, "decode": decode, "coming": coming,
                "handoffs": handoffs.count, "exposed_us": handoffs.last_us,
            })
        };
        links.into_iter().map(link).collect()
    }

    /// Stories of requests under way, the oldest first, and of `most` that ended, the newest first.
    pub fn stories(&self, most: usize) -> Value {
        let fleet = &self.0;
        let mut travelling: Vec<_> =
            fleet.journeys().iter().map(|(id, t)| (*id, t.story.clone())).collect();
        travelling.sort_unstable_by_key(|(id, _)| *id);
        let travelling = travelling.iter().take(TRAVELLING_TOLD).map(|(_, story)| story.told());
        let ended = fleet.recent.newest(most);
        json!({
            "running": travelling.collect::<Vec<_>>(),
            "ended": ended.iter().map(|story| story.told()).collect::<Vec<_>>(),
        })
    }

    /// Stories of the requests of that call, or of the request with that id; empty if there is
    /// none, or it ended too long ago.
    pub fn stories_of(&self, name: &str) -> Vec<Value> {
        let fleet = &self.0;
        // In the order in which they move, so that none is missed; one may be found twice.
        let mut found: Vec<Arc<Story>> =
            fleet.journeys().values().map(|travelling| travelling.story.clone()).collect();
        found.extend(fleet.recent.newest(usize::MAX));
        found.retain(|story| story.is_called(name));
        found.sort_unstable_by_key(|story| story.id());
        found.dedup_by_key(|story| story.id());
        found.iter().map(|story| json!(story.told())).collect()
    }
}

/// A server's state: `lost` (also before it is found), `draining`, `joining` (no server of the
/// other role reaches it or is reached) or `joined`.
fn one<Out: Message>(server: &Server<Out>, joined: impl Fn(&Up<Out>) -> bool) -> Value {
    let up = server.up();
    let state = match &up {
        None => "lost",
        Some(up) if up.load.draining => "draining",
        Some(up) if !joined(up) => "joining",
        Some(_) => "joined",
    };
    let mut said = json!({
        "name": server.id().as_ref().map(ServerId::as_str),
        "address": server.address,
        "state": state,
        "why": server.down_reason(),
        "requests": server.tally.requests.load(Relaxed),
        "tokens": server.tally.tokens.load(Relaxed),
    });
    if let Some(up) = up {
        let (pages, load) = (up.capacity.pages, up.load);
        said["epoch"] = json!(up.epoch.to_string());
        said["pages"] = json!(pages);
        said["pages_used"] = json!(pages.saturating_sub(load.pages_available));
        said["pages_quarantined"] = json!(load.pages_quarantined);
        said["page_tokens"] = json!(up.layout.geometry.page_tokens);
        said["queued"] = json!(load.queued);
        said["running"] = json!(load.running);
    }
    said
}
