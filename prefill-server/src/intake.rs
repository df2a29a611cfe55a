//! Walk 6/12. Before: `gateway/src/fleet/ticket.rs`. After: `shared/src/sched/prefill.rs`.
//!
//! From what gateways say to the queue, and out of it again: take, refuse, cancel.

use crate::job::{Queued, Route};
use crate::step::Prefill;
use link::StopPoint;
use shared::ids::Epoch;
use shared::request::{Reads, Request};
use shared::sched::decode::fits_pool;
use shared::wire::messages::{
    Fault, FaultKind, GatewayToPrefill, PrefillToGateway, Refusal, RequestKey, Target,
};

impl Prefill {
    pub(crate) fn hear_gateway(&mut self, gateway: Epoch, message: GatewayToPrefill) {
        match message {
            GatewayToPrefill::Prefill { key, request, target } => {
                match self.enqueue(key, request, target) {
                    Ok(()) => self.stops.reach(StopPoint::PrefillQueued),
                    Err(refusal) => {
                        self.meter.refused(&refusal);
                        self.outboxes.push(gateway, PrefillToGateway::Refused { key, refusal });
                    }
                }
            }
            GatewayToPrefill::Cancel(key) => {
                self.cancel(|other| *other == key);
                self.outboxes.push(gateway, PrefillToGateway::Cancelled(key));
            }
            GatewayToPrefill::FlushCache => {
                self.cache.clear();
                self.measure();
                self.outboxes.push(gateway, PrefillToGateway::Flushed);
            }
        }
    }

    fn enqueue(
        &mut self,
        key: RequestKey,
        request: Request,
        target: Option<Target>,
    ) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        if self.queue.len() >= self.limits.queued_max {
            return Err(Refusal::QueueFull);
        }
        let (pool, context) = (self.pool.counts().total, self.engine.context_length());
        let prompt = request.tokens.len() as u32;
        if prompt > context || !fits_pool(prompt, pool, self.page_tokens) {
            let pool = pool.min(context / self.page_tokens);
            return Err(Refusal::TooLarge { pages: prompt.div_ceil(self.page_tokens), pool });
        }
        let here = |other: &RequestKey| *other == key;
        if self.queue.iter().map(|q| &q.key).chain(self.jobs.iter().map(|j| &j.key)).any(here) {
            return Err(Refusal::NoLink(format!("{key} is here already")));
        }
        let asked = match &request.reads {
            Some(Reads::Next(ids)) => &ids[..],
            _ => &[],
        };
        let mut all = request.tokens.iter().chain(asked).chain(&request.logprob_ids);
        if let Some(foreign) = all.find(|t| t.get() >= self.engine.vocab()) {
            return Err(Refusal::NoLink(format!("token {foreign} is not in this vocabulary")));
        }
        if target.is_none() && request.needs_decode() {
            let wanted = request.max_tokens;
            return Err(Refusal::NoLink(format!("{wanted} tokens, and no decode server is named")));
        }
        if let Some(target) = &target
            && !self.peers.contains_key(&target.epoch)
        {
            let (decode, epoch) = (&target.decode, target.epoch);
            return Err(Refusal::NoLink(format!("{decode} ({epoch}) is not joined here")));
        }
        tracing::debug!(target: "story", request = %key, "queued");
        self.arrivals += 1;
        let (arrival, arrived) = (self.arrivals, self.now());
        let guide = self.guides.begin(&request);
        self.queue.push(Queued { key, request, guide, target, arrival, arrived, passed: 0 });
        Ok(())
    }

    /// Ends what `wanted` names, queued or admitted; what is in flight is waited for.
    pub(crate) fn cancel(&mut self, wanted: impl Fn(&RequestKey) -> bool) {
        self.queue.retain(|queued| !wanted(&queued.key));
        let message = "the request was cancelled".to_string();
        for job in self.jobs.iter_mut().filter(|job| wanted(&job.key)) {
            job.ended.get_or_insert(Fault { kind: FaultKind::Revoked, message: message.clone() });
        }
        self.settle();
    }

    /// Ends an admitted request with a word to its gateway.
    pub(crate) fn fail(&mut self, key: RequestKey, fault: Fault) {
        let Some(job) = self.jobs.iter_mut().find(|job| job.key == key) else { return };
        if job.ended.is_none() {
            job.ended = Some(fault.clone());
            self.outboxes.push(key.id.gateway(), PrefillToGateway::Failed { key, fault });
        }
        self.settle();
    }

    /// A decode incarnation is gone; this side's writer to it is destroyed, so nothing of its jobs
    /// is in flight any more.
    pub(crate) fn peer_lost(&mut self, peer: Epoch) {
        self.peers.remove(&peer);
        self.announce_peers();
        let message = "the decode server of this request is gone".to_string();
        let fault = Fault { kind: FaultKind::PeerLost, message };
        let goes_there = |target: &Option<Target>| target.as_ref().is_some_and(|t| t.epoch == peer);
        let (lost, stay): (Vec<_>, Vec<_>) =
            self.queue.drain(..).partition(|queued| goes_there(&queued.target));
        self.queue = stay;
        for Queued { key, .. } in lost {
            let fault = fault.clone();
            self.outboxes.push(key.id.gateway(), PrefillToGateway::Failed { key, fault });
        }
        let jobs: Vec<_> =
            self.jobs.iter().filter(|job| job.decode == Some(peer)).map(|job| job.key).collect();
        for key in jobs {
            if let Some(job) = self.jobs.iter_mut().find(|job| job.key == key) {
                job.in_flight = 0;
                job.route = Route::Gateway;
            }
            self.fail(key, fault.clone());
        }
        self.ops.retain(|_, (to, _)| *to != peer);
        self.settle();
    }
}
