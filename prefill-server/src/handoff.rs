//! Walk 9/12. Before: `step.rs`. After: `kv-transfer/src/push.rs`, then
//! `decode-server/src/landing.rs`.
//!
//! Pages → peer → Handoff:
//! 1. `Open` asks for target pages, once no other job is on its way with pages of this one's:
//!    decode holds them then, and they travel once.
//! 2. `Opened` names target pages. From then on every page that a chunk fills is queued for
//!    writing, the part-filled last one with the last chunk: once the step is done, or, where the
//!    engine says when layers will be complete, before: they travel while later ones are computed.
//! 3. After the last put a flush is queued.
//! 4. The flush's event says that all pages are visible: the Handoff is sent.
//!
//! A put holds its source pages until its own event. An ended job sends `Closed` once nothing of it
//! is in flight.

use crate::job::{Job, Route};
use crate::step::Prefill;
use kv_transfer::{OpId, Part, PutOp, TransferError, Unqueued, land};
use link::{SendError, StopPoint};
use model::engine::StepPart;
use shared::ids::{Epoch, TicketId};
use shared::pool::{Owned, Sealed};
use shared::wire::messages::{Fault, FaultKind, Handoff, PageRun, PrefillToDecode, RequestKey};
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

impl Prefill {
    /// Asks decode for the pages of jobs that wait for nobody else's.
    pub(crate) fn open(&mut self) {
        for at in 0..self.jobs.len() {
            let (earlier, job) = (&self.jobs[..at], &self.jobs[at]);
            let (Route::Unopened(ticket), Some(peer), None) = (&job.route, job.decode, &job.ended)
            else {
                continue;
            };
            if brought(earlier, job) {
                continue;
            }
            let (key, ticket) = (job.key, *ticket);
            self.jobs[at].route = Route::Opening(ticket);
            self.stops.reach(StopPoint::PrefillOpening);
            self.tell_peer(peer, PrefillToDecode::Open { ticket, key });
        }
    }

    /// `Opened` came.
    pub(crate) fn opened(&mut self, peer: Epoch, ticket: TicketId, held: u32, runs: &[PageRun]) {
        let Some(target_pages) = self.peers.get(&peer).map(|p| p.pusher.target_pages()) else {
            return;
        };
        let Some(at) = self.opening(peer, ticket) else {
            tracing::warn!(%ticket, "pages for a ticket that was not asked for");
            return;
        };
        let job = &mut self.jobs[at];
        let pages = job.len().div_ceil(self.page_tokens);
        let named = PageRun::unpack(runs, target_pages, pages);
        match named {
            Ok(named) if held < pages && named.len() as u32 == pages - held => {
                tracing::debug!(target: "story", request = %job.key, held, "pages named");
                job.route = Route::Opened { ticket, held, pages: named };
                job.shipped = held;
                let key = job.key;
                self.ship(key);
            }
            other => {
                let message = format!("decode named {other:?} for {pages} pages, {held} held");
                job.route = Route::Opened { ticket, held: 0, pages: vec![] };
                let key = job.key;
                self.fail(key, Fault { kind: FaultKind::Internal, message });
            }
        }
        self.settle();
    }

    /// `Revoked` came: there is no ticket any more, and nothing was written.
    pub(crate) fn revoked(&mut self, peer: Epoch, ticket: TicketId) {
        let Some(at) = self.opening(peer, ticket) else { return };
        self.jobs[at].route = Route::Gateway;
        let (key, message) = (self.jobs[at].key, format!("decode has revoked {ticket}"));
        self.fail(key, Fault { kind: FaultKind::Revoked, message });
        self.settle();
    }

    fn opening(&self, peer: Epoch, ticket: TicketId) -> Option<usize> {
        self.jobs.iter().position(|job| {
            job.decode == Some(peer) && matches!(job.route, Route::Opening(open) if open == ticket)
        })
    }

    /// [`Self::ship`] of every job.
    pub(crate) fn ship_all(&mut self) {
        for key in self.jobs.iter().map(|job| job.key).collect::<Vec<_>>() {
            self.ship(key);
        }
    }

    /// Queues what found a push queue full; a queue has room again when its puts have ended.
    pub(crate) fn ship_backlog(&mut self) {
        if std::mem::take(&mut self.backlog) {
            self.ship_all();
        }
    }

    /// Queues what is computed and not queued yet, and what is being computed, where the engine
    /// says when it will be complete.
    pub(crate) fn ship(&mut self, key: RequestKey) {
        let Some(job) = self.jobs.iter().find(|job| job.key == key) else { return };
        // A checksum is of bytes that are there.
        let early = job.flying && !self.limits.checksums;
        let parts = if early { self.engine.parts().to_vec() } else { vec![] };
        if job.flying && parts.is_empty() {
            return;
        }
        let (Route::Opened { .. }, Some(decode), None) = (&job.route, job.decode, &job.ended)
        else {
            return;
        };
        let tail = if job.is_whole() { job.tail.len() as u32 } else { 0 };
        let ready = job.full.len() as u32 + tail;
        let queued = if job.shipped < ready {
            let pages = job.shipped as usize..ready as usize;
            self.put((key, decode), pages, &parts)
        } else {
            Ok(())
        };
        match queued.and_then(|()| self.flush(key, decode)) {
            Ok(()) => {}
            Err(Unqueued::Full) => self.backlog = true,
            Err(why @ Unqueued::Closed) => {
                let message = format!("pages cannot be queued: {why}");
                self.fail(key, Fault { kind: FaultKind::PeerLost, message });
            }
        }
    }

    /// Queues the pages in `range` of the prompt; they stay the job's if that fails.
    ///
    /// The engine may still be writing them. They are held by the put, and should that end before
    /// its time, no job is admitted, and so takes pages, before the step is collected.
    fn put(
        &mut self,
        (key, decode): (RequestKey, Epoch),
        range: Range<usize>,
        parts: &[StepPart],
    ) -> Result<(), Unqueued> {
        let Some(job) = self.jobs.iter_mut().find(|job| job.key == key) else { return Ok(()) };
        let (Route::Opened { held, pages, .. }, Some(peer)) = (&job.route, self.peers.get(&decode))
        else {
            return Ok(());
        };
        let geometry = self.pages.geometry();
        let (sources, bytes) = (job.page_table(), 0..geometry.page_bytes());
        let targets = pages[range.start - *held as usize..].iter().copied();
        let pairs: Vec<_> = sources[range.clone()].iter().copied().zip(targets).collect();
        let checksums = match self.limits.checksums {
            true => land::checksums(&*self.pages, &sources[range.clone()], &bytes),
            false => vec![],
        };
        self.next_op += 1;
        let id = OpId::new(self.next_op);
        let shipping = (pairs.len() * bytes.len()) as u64;
        let owner = hold(job, range.clone());
        let mut put = PutOp::new(id, pairs, bytes, owner);
        if !parts.is_empty() {
            let part = |StepPart { layers, after }: &StepPart| Part {
                bytes: geometry.layers_range(layers),
                after: Some(Arc::clone(after)),
            };
            put.parts = parts.iter().map(part).collect();
        }
        if let Err((put, why)) = peer.pusher.put(put) {
            give_back(job, put.owner);
            return Err(why);
        }
        job.checksums.extend(checksums);
        job.shipped = range.end as u32;
        job.in_flight += 1;
        tracing::debug!(target: "story", request = %key, bytes = shipping, "pages queued");
        self.meter.shipped(shipping);
        self.ops.insert(id, (decode, key));
        self.stops.reach(StopPoint::PrefillWriting);
        Ok(())
    }

    /// Queues the flush once all pages are queued.
    fn flush(&mut self, key: RequestKey, decode: Epoch) -> Result<(), Unqueued> {
        let Some(job) = self.jobs.iter_mut().find(|job| job.key == key) else { return Ok(()) };
        let whole = job.len().div_ceil(self.page_tokens);
        let due = job.is_whole() && !job.flush_sent && job.shipped == whole;
        let (Some(peer), true) = (self.peers.get(&decode), due) else { return Ok(()) };
        self.next_op += 1;
        let id = OpId::new(self.next_op);
        tracing::debug!(target: "story", request = %key, "flush queued");
        peer.pusher.flush(id)?;
        self.ops.insert(id, (decode, job.key));
        job.in_flight += 1;
        job.flush_sent = true;
        Ok(())
    }

    /// A put or flush has ended.
    pub(crate) fn pushed(&mut self, peer: Epoch, op: OpId, result: &Result<(), TransferError>) {
        let Some((_, key)) = self.ops.remove(&op) else { return };
        let Some(at) = self.jobs.iter().position(|job| job.key == key) else { return };
        self.jobs[at].in_flight -= 1;
        match result {
            Ok(()) => {
                if self.jobs[at].flush_sent && self.jobs[at].in_flight == 0 {
                    tracing::debug!(target: "story", request = %key, "flushed");
                }
                if self.jobs[at].is_handed() {
                    self.stops.reach(StopPoint::PrefillWritten);
                    self.hand_over(at, peer);
                }
            }
            Err(error) => {
                let message = format!("pages could not be written: {error}");
                self.fail(key, Fault { kind: FaultKind::PeerLost, message });
            }
        }
        self.settle();
    }

    pub(crate) fn hand_over(&mut self, at: usize, peer: Epoch) {
        let job = self.jobs.remove(at);
        let (Route::Opened { ticket, .. }, Some(first)) = (&job.route, job.first.clone()) else {
            unreachable!("only an opened job with a first token is flushed");
        };
        let times = job.times(self.now());
        let handoff = Handoff {
            ticket: *ticket,
            key: job.key,
            first,
            cached_tokens: job.cached_tokens,
            checksums: job.checksums,
            times,
        };
        self.tell_peer(peer, PrefillToDecode::Handoff(Box::new(handoff)));
        tracing::debug!(target: "story", request = %job.key, "handed over");
        self.meter.handed(times);
        self.stops.reach(StopPoint::PrefillHanded);
    }

    /// Lets go of ended jobs that have nothing in flight.
    pub(crate) fn settle(&mut self) {
        let mut at = 0;
        while at < self.jobs.len() {
            if !self.jobs[at].settled() {
                at += 1;
                continue;
            }
            let job = self.jobs.remove(at);
            if let (Route::Opened { ticket, .. }, Some(peer), Some(fault)) =
                (job.route, job.decode, job.ended)
            {
                self.tell_peer(peer, PrefillToDecode::Closed { ticket, fault });
            }
        }
    }

    pub(crate) fn tell_peer(&self, peer: Epoch, message: PrefillToDecode) {
        // The queue holds a message for every ticket that decode can grant, so a full one is a peer
        // that does not read: its link ends by silence.
        if let Some(Err(SendError::Full(message))) =
            self.peers.get(&peer).map(|p| p.sender.try_send(message))
        {
            tracing::error!(%peer, ?message, "a decode server does not read");
        }
    }
}

/// Whether an earlier job is on its way with pages of this one's. What decode holds of them it says
/// to each job; until one is answered, what it said to those who have a prefix in common is known.
fn brought(earlier: &[Job], job: &Job) -> bool {
    let related =
        earlier.iter().filter(|other| other.ended.is_none() && other.decode == job.decode);
    let related: Vec<_> = related.map(|other| (other.common(job), other.held())).collect();
    let said = related.iter().filter_map(|(common, held)| Some((*common).min((*held)?)));
    let known = said.max().unwrap_or(0);
    related.iter().any(|(common, held)| *common > held.unwrap_or(known))
}

/// What a put holds: see [`hold`].
type Held = (Vec<Sealed>, Vec<Owned>);

/// Takes back what [`hold`] gave to a put that was not queued.
fn give_back(job: &mut Job, owner: Box<dyn Any + Send>) {
    if let Ok(held) = owner.downcast::<Held>() {
        job.tail.extend(held.1);
    }
}

/// Guards that keep the pages in `range` as they are.
fn hold(job: &mut Job, range: Range<usize>) -> Box<dyn Any + Send> {
    let full = job.full.len();
    let sealed: Vec<Sealed> = job.full[range.start.min(full)..range.end.min(full)].to_vec();
    // The part-filled page is written no more: the prompt is computed.
    let tail: Vec<Owned> = if range.end > full { job.tail.drain(..).collect() } else { vec![] };
    let held: Held = (sealed, tail);
    Box::new(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Queued;
    use shared::ids::{Attempt, RequestId, TokenId};
    use shared::pool::{Owned, Pool};
    use shared::request::{Reads, Request, RequestParts};
    use std::time::Duration;

    const DECODE: Epoch = Epoch::new(1);
    const TICKET: TicketId = TicketId::new(1);
    const UNOPENED: Route = Route::Unopened(TICKET);

    fn opened(held: u32) -> Route {
        Route::Opened { ticket: TICKET, held, pages: vec![] }
    }

    fn job(decode: Epoch, route: Route, full: &[Sealed]) -> Job {
        let parts =
            RequestParts::reading(vec![TokenId::new(0)], Reads::Next(vec![TokenId::new(0)]));
        let queued = Queued {
            key: RequestKey { id: RequestId::new(DECODE, 1), attempt: Attempt::new(0) },
            request: Request::try_from(parts).unwrap(),
            guide: None,
            target: None,
            arrival: 1,
            arrived: Duration::ZERO,
            passed: 0,
        };
        let job = queued.admitted(Duration::ZERO, (full.to_vec(), vec![]), 0);
        Job { decode: Some(decode), route, ..job }
    }

    #[test]
    fn a_job_waits_for_those_that_bring_its_pages_and_for_no_others() {
        let pool = Pool::new(20);
        let pages = pool.reserve(20).unwrap().draw(20);
        let pages: Vec<_> = pages.into_iter().map(Owned::seal).collect();
        let other_end = [&pages[..1], &pages[10..19]].concat();
        let own = |earlier: &[Job]| brought(earlier, &job(DECODE, UNOPENED, &pages[..9]));
        let check = |waits, earlier: &[Job]| assert_eq!(own(earlier), waits, "{earlier:#?}");
        let asks = |route, full: &[Sealed]| job(DECODE, route, full);

        check(false, &[]);
        check(false, &[asks(UNOPENED, &pages[10..])]);
        check(true, &[asks(UNOPENED, &pages[..9])]);
        check(true, &[asks(Route::Opening(TICKET), &other_end)]);
        check(false, &[job(Epoch::new(2), UNOPENED, &pages[..9])]);
        let fault = Fault { kind: FaultKind::Revoked, message: String::new() };
        check(false, &[Job { ended: Some(fault), ..asks(UNOPENED, &pages[..9]) }]);

        check(true, &[asks(opened(8), &pages[..9])]);
        check(false, &[asks(opened(9), &pages[..9])]);
        // What decode said to one with a part of it is known of that part alone.
        check(false, &[asks(opened(1), &other_end), asks(UNOPENED, &other_end)]);
        check(true, &[asks(opened(1), &other_end), asks(UNOPENED, &pages[..2])]);
        check(true, &[asks(opened(10), &other_end), asks(UNOPENED, &pages[..2])]);
        check(false, &[asks(opened(9), &pages[..9]), asks(UNOPENED, &pages[..9])]);
    }
}
