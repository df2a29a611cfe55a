//! Walk 11/12. Before: `landing.rs`. After: `emit.rs`, then `gateway/src/stream.rs`.
//!
//! The engine thread: the only owner of pool, cache, tickets and running sequences.
//! 1. Drain the inbox. 2. Collect the step that is done. 3. Emit. 4. Plan the next and launch it.
//!    Where the engine overlaps, another one runs meanwhile. The inbox is heard while steps run.

use crate::emit::merge;
use crate::flight::{Flight, Leaves};
use crate::inbox::Event;
use crate::metrics::Meter;
use crate::reserve::Retracted;
use crate::sequence::{Granted, Sequence};
use link::{SendError, Sender, StopPoint, Stops};
use model::engine::{Batch, Engine, EngineError, IN_FLIGHT, Input, Row, Sample};
use role::guide::{Guide, Guides};
use role::outbox::Outboxes;
use role::turn::Turn;
use shared::eviction::Inserted;
use shared::ids::{Epoch, TicketId};
use shared::kv::PageStore;
use shared::pool::Pool;
use shared::radix::RadixCache;
use shared::request::Token;
use shared::sched::decode::{DecodePlan, Room, Running, plan};
use shared::ticket::{Cancelled, Lost, Tickets};
use shared::wire::messages::{
    DecodeToGateway, DecodeToPrefill, Emitted, Fault, FaultKind, GatewayToDecode, Load, RequestKey,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bounds of a decode server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most sequences of a step.
    pub batch_max: usize,
    /// Tokens of growth in a ticket's credit (SGLang's `num_reserved_decode_tokens`).
    pub growth_tokens: u32,
    /// Most tickets at a time.
    pub tickets_max: usize,
    /// A ticket that is not opened expires after this.
    pub ticket_life: Duration,
    /// A retracted request goes before younger ones for at most this long.
    pub retracted_wait: Duration,
}

/// Between two load reports.
const REPORT_EVERY: Duration = Duration::from_millis(5);
/// Longest sleep of an idle server.
const IDLE_AT_MOST: Duration = Duration::from_secs(1);

/// What the engine thread owns.
pub(crate) struct Decode {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) pages: Arc<dyn PageStore>,
    pub(crate) page_tokens: u32,
    pub(crate) pool: Pool,
    pub(crate) cache: RadixCache,
    pub(crate) tickets: Tickets<Granted>,
    /// Oldest first.
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) flight: Flight,
    /// No step can be launched beside the one that runs, unless something is heard.
    stalled: bool,
    pub(crate) retracted: Retracted,
    pub(crate) outboxes: Outboxes<DecodeToGateway>,
    pub(crate) writers: HashMap<Epoch, Sender<DecodeToPrefill>>,
    pub(crate) guides: Guides,
    pub(crate) limits: Limits,
    pub(crate) stops: Stops,
    pub(crate) draining: bool,
    started: Instant,
    reported: (Load, Duration),
    measured: Duration,
    pub(crate) meter: Meter,
}

/// What [`Decode::new`] is made of.
pub(crate) struct Parts {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) pool: Pool,
    pub(crate) cache: RadixCache,
    pub(crate) guides: Guides,
    pub(crate) limits: Limits,
    pub(crate) stops: Stops,
    /// This server's name, for metrics.
    pub(crate) server: String,
}

impl Decode {
    pub(crate) fn new(parts: Parts) -> Self {
        let pages = parts.engine.pages();
        Self {
            page_tokens: pages.geometry().page_tokens,
            pages,
            engine: parts.engine,
            pool: parts.pool,
            cache: parts.cache,
            tickets: Tickets::new(TicketId::new(1), parts.limits.tickets_max),
            sequences: vec![],
            flight: Flight::default(),
            stalled: false,
            retracted: Retracted::default(),
            outboxes: Outboxes::new(merge),
            writers: HashMap::new(),
            guides: parts.guides,
            limits: parts.limits,
            stops: parts.stops,
            draining: false,
            started: Instant::now(),
            reported: (Load::default(), Duration::ZERO),
            measured: Duration::ZERO,
            meter: Meter::new(&parts.server),
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn cancel(&mut self, key: RequestKey) {
        self.retracted.forget(key.id);
        self.drop_sequences(|sequence| sequence.key == key);
        match self.tickets.cancel(key.id, key.attempt) {
            Cancelled::Granted(_) | Cancelled::Opened | Cancelled::Unknown => {}
        }
        self.outboxes.push(key.id.gateway(), DecodeToGateway::Cancelled(key));
    }

    fn gateway_lost(&mut self, gateway: Epoch) {
        self.outboxes.leave(gateway);
        self.drop_sequences(|sequence| sequence.gateway() == gateway);
        self.tickets.cancel_gateway(gateway);
        self.retracted.forget_gateway(gateway);
    }

    fn drop_sequences(&mut self, gone: impl Fn(&Sequence) -> bool) {
        for sequence in self.sequences.extract_if(.., |sequence| gone(sequence)) {
            drop(self.flight.part(sequence, Leaves::Nothing));
        }
    }

    fn writer_gone(&mut self, writer: Epoch, lost: Lost<Granted>) {
        let failed = lost.revoked.iter().map(|granted| granted.key).chain(lost.failed);
        let keys: Vec<_> = failed.collect();
        if lost.quarantined + lost.freed > 0 {
            let (quarantined, freed) = (lost.quarantined, lost.freed);
            tracing::warn!(%writer, quarantined, freed, "tickets of a lost prefill server");
        }
        for key in keys {
            let message = "the prefill server of this request is gone".to_string();
            self.fail(key, Fault { kind: FaultKind::PeerLost, message });
        }
    }

    pub(crate) fn fail(&mut self, key: RequestKey, fault: Fault) {
        self.outboxes.push(key.id.gateway(), DecodeToGateway::Failed { key, fault });
    }

    pub(crate) fn tell_writer(&mut self, writer: Epoch, message: DecodeToPrefill) {
        // The queue holds an answer for every ticket (see `peers.rs`), so a full one is a peer that
        // does not read: its link ends by silence, and its tickets with it.
        if let Some(Err(SendError::Full(message))) =
            self.writers.get(&writer).map(|sender| sender.try_send(message))
        {
            tracing::error!(%writer, ?message, "a prefill server does not read its answers");
        }
    }

    fn expire(&mut self) {
        for (ticket, granted) in self.tickets.expire(self.now()) {
            let message = format!("{ticket} was not opened within {:?}", self.limits.ticket_life);
            self.fail(granted.key, Fault { kind: FaultKind::Revoked, message });
        }
    }

    /// Collects what is done and launches a step where there is room for one; whether there was
    /// anything to do, or a step still runs.
    fn step(&mut self) -> Result<bool, EngineError> {
        let mut worked = !self.flight.is_empty();
        while !self.flight.is_empty() && self.engine.is_ready()? {
            self.collect()?;
        }
        if self.flight.len() < self.depth() {
            let plan = self.plan()?;
            self.stalled = plan.run.is_empty();
            if !self.stalled {
                self.launch(plan)?;
                worked = true;
            }
        }
        Ok(worked)
    }

    /// Most steps in flight.
    fn depth(&self) -> usize {
        if self.engine.overlaps() { IN_FLIGHT } else { 1 }
    }

    fn launch(&mut self, plan: DecodePlan) -> Result<(), EngineError> {
        for (slot, pages) in plan.grow {
            self.grow(slot, pages);
        }
        let batch = Batch { rows: plan.run.iter().map(|&slot| self.row(slot)).collect() };
        for sequence in plan.run.iter().map(|&slot| &self.sequences[slot]) {
            if sequence.made.len() == 1 {
                tracing::debug!(target: "story", request = %sequence.key, "first step launched");
            }
        }
        self.engine.launch(&batch)?;
        self.meter.step(batch.rows.len());
        let mut run = plan.run.into_iter().peekable();
        let sequences = self.sequences.iter_mut().enumerate();
        let rows = sequences.filter(|(slot, _)| run.next_if_eq(slot).is_some());
        self.flight.launch(rows.map(|(_, sequence)| sequence));
        Ok(())
    }

    fn collect(&mut self) -> Result<(), EngineError> {
        let tokens = self.engine.collect()?;
        let (rows, parted) = self.flight.collected();
        self.take(&rows, tokens)?;
        for (sequence, leaves) in parted {
            match leaves {
                Leaves::Pages => self.keep(sequence),
                Leaves::Nothing => {}
            }
        }
        self.stops.reach(StopPoint::DecodeStepped);
        Ok(())
    }

    /// The step that can be made now, retracting until the rest fits: before anything new lands,
    /// so that pages given back go to the rows that lacked them.
    fn plan(&mut self) -> Result<DecodePlan, EngineError> {
        loop {
            let room = Room {
                pages: self.pool.available(),
                rows: self.limits.batch_max,
                page_tokens: self.page_tokens,
            };
            let mut rows = self.running();
            rows.retain(|row| self.sequences[row.slot].has_more());
            let plan = plan(&rows, room);
            if plan.retract.is_empty() {
                return Ok(plan);
            }
            if self.flight.is_empty() {
                self.retract(&plan.retract);
            }
            // What is in flight may end a sequence, and none gives pages back before.
            while !self.flight.is_empty() {
                self.collect()?;
            }
        }
    }

    /// The sequences as the scheduler sees them, oldest first.
    pub(crate) fn running(&self) -> Vec<Running> {
        self.sequences.iter().enumerate().map(running).collect()
    }

    fn row(&self, slot: usize) -> Row {
        let sequence = &self.sequences[slot];
        let ahead = sequence.flying.steps;
        Row {
            input: match ahead {
                0 => Input::Tokens(vec![sequence.last()]),
                _ => Input::Drawn(sequence.flying.row),
            },
            start: sequence.written + ahead,
            pages: sequence.page_table(),
            sample: Some(Sample {
                mask: sequence.guide.as_ref().map(Guide::mask),
                ..sequence.history.sample(ahead)
            }),
            reads: None,
        }
    }

    fn grow(&mut self, slot: usize, pages: u32) {
        let sequence = &mut self.sequences[slot];
        let own = pages.min(sequence.credit.len());
        sequence.tail.extend(sequence.credit.draw(own));
        if pages > own {
            let mut more = self
                .cache
                .reserve(&self.pool, pages - own)
                .expect("the plan counted these pages, and only this thread takes any");
            sequence.tail.extend(more.draw(pages - own));
        }
    }

    /// Takes what a step drew for its rows; those of sequences that have left are dropped.
    fn take(&mut self, rows: &[RequestKey], tokens: Vec<Option<Token>>) -> Result<(), EngineError> {
        let mut by_gateway: HashMap<Epoch, Vec<Emitted>> = HashMap::new();
        let (mut ended, mut broken) = (vec![], vec![]);
        let now = self.now();
        let slots: HashMap<_, _> =
            self.sequences.iter().enumerate().map(|(slot, s)| (s.key, slot)).collect();
        for (key, token) in rows.iter().zip(tokens) {
            let token = token.ok_or_else(|| EngineError("a decode row made no token".into()))?;
            let Some(&slot) = slots.get(key) else { continue };
            let sequence = &mut self.sequences[slot];
            sequence.flying.steps -= 1;
            if let Some(why) = sequence.guide.as_ref().and_then(Guide::failure) {
                broken.push((slot, why.to_owned()));
                continue;
            }
            sequence.written += 1;
            sequence.seal_full(self.page_tokens);
            let cached_tokens = sequence.cached_tokens;
            if sequence.made.len() == 1 {
                tracing::debug!(target: "story", request = %sequence.key, "first step done");
                self.meter.first_token(now.saturating_sub(sequence.landed));
            }
            let finish = sequence.take(&token);
            ended.extend(finish.is_some().then_some(slot));
            let (key, tokens) = (sequence.key, vec![token]);
            let emitted = Emitted { key, cached_tokens, tokens, finish, times: None };
            by_gateway.entry(sequence.gateway()).or_default().push(emitted);
        }
        for (gateway, emitted) in by_gateway {
            self.outboxes.push(gateway, DecodeToGateway::Tokens(emitted));
        }
        for (slot, why) in broken {
            let message = format!("the output cannot follow its grammar: {why}");
            self.fail(self.sequences[slot].key, Fault { kind: FaultKind::Internal, message });
            ended.push(slot);
        }
        ended.sort_unstable();
        for slot in ended.into_iter().rev() {
            let sequence = self.sequences.remove(slot);
            if let Some(sequence) = self.flight.part(sequence, Leaves::Pages) {
                self.keep(sequence);
            }
        }
        Ok(())
    }

    /// Leaves a sequence's full pages to the cache.
    fn keep(&mut self, sequence: Sequence) {
        let tokens = sequence.written_tokens();
        let by = Inserted { at: self.now(), priority: sequence.request.priority };
        self.cache.insert(&sequence.request.salt, &tokens, sequence.full, by);
    }

    fn retract(&mut self, slots: &[usize]) {
        let until = self.now() + self.limits.retracted_wait;
        let mut slots = slots.to_vec();
        slots.sort_unstable();
        for slot in slots.into_iter().rev() {
            let sequence = self.sequences.remove(slot);
            let (key, gateway) = (sequence.key, sequence.gateway());
            tracing::info!(request = %key, made = sequence.made.len(), "retracted");
            self.retracted.expect(key.id, until);
            self.outboxes.push(gateway, DecodeToGateway::Retracted(key));
            self.keep(sequence);
            self.meter.retracted();
        }
    }

    fn load(&self) -> Load {
        let tickets = self.tickets.counts();
        Load {
            pages_available: self.pool.available(),
            queued: (tickets.granted + tickets.opened) as u32,
            tokens: self.sequences.iter().map(|sequence| sequence.written).sum(),
            running: self.sequences.len() as u32,
            pages_quarantined: self.pool.counts().quarantined,
            draining: self.draining,
        }
    }

    fn report(&mut self) {
        let (load, now) = (self.load(), self.now());
        if load != self.reported.0 && now >= self.reported.1 + REPORT_EVERY {
            self.reported = (load, now);
            self.outboxes.push_all(&DecodeToGateway::Load(load));
            self.measure();
        } else if now >= self.measured + IDLE_AT_MOST {
            self.measure(); // pages change hands without a change of load
        }
    }

    fn measure(&mut self) {
        self.measured = self.now();
        let pages = self.pool.counts();
        debug_assert!(pages.audit(), "{pages:?}");
        let kept = self.tickets.live().map(|ticket| (ticket.credit.len(), ticket.target.len()));
        let kept = kept.fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1 as u32));
        self.meter.report(&pages, (self.tickets.counts(), kept), self.load());
    }
}

impl Turn for Decode {
    type Event = Event;

    fn computing(&mut self) -> Result<bool, EngineError> {
        let waits = self.flight.len() == self.depth() || (self.stalled && !self.flight.is_empty());
        Ok(waits && !self.engine.is_ready()?)
    }

    fn rest(&mut self) -> Result<(), EngineError> {
        self.engine.rest()
    }

    fn hear(&mut self, event: Event) {
        self.stalled = false;
        match event {
            Event::GatewayUp(epoch, sender) => {
                self.outboxes.join(epoch, sender);
                self.outboxes.push(epoch, DecodeToGateway::Load(self.load()));
            }
            Event::Gateway(_, GatewayToDecode::Reserve { key, writer, request }) => {
                self.reserve(key, writer, request);
                self.stops.reach(StopPoint::DecodeGranted);
            }
            Event::Gateway(_, GatewayToDecode::Cancel(key)) => self.cancel(key),
            Event::Gateway(epoch, GatewayToDecode::FlushCache) => {
                self.cache.clear();
                self.measure();
                self.outboxes.push(epoch, DecodeToGateway::Flushed);
            }
            Event::GatewayLost(epoch) => self.gateway_lost(epoch),
            Event::Scratch(pages, reply) => {
                let pages = pages.min(self.pool.available());
                let credit = self.cache.reserve(&self.pool, pages);
                let pages = credit.map(|mut credit| credit.draw(pages)).unwrap_or_default();
                drop(reply.send(pages));
            }
            Event::WriterUp(epoch, sender) => drop(self.writers.insert(epoch, sender)),
            Event::Open(writer, ticket, key) => {
                self.open(writer, ticket, key);
                self.stops.reach(StopPoint::DecodeOpened);
            }
            Event::Handoff(writer, handoff) => self.handoff(writer, *handoff),
            Event::Closed(writer, ticket) => drop(self.tickets.close(ticket, writer)),
            Event::WriterLost(epoch) => {
                self.writers.remove(&epoch);
                let lost = self.tickets.writer_lost(epoch);
                self.writer_gone(epoch, lost);
            }
            Event::WriterEnded(epoch) => {
                let lost = self.tickets.writer_ended(epoch);
                self.writer_gone(epoch, lost);
            }
            Event::Drain => self.draining = true,
        }
    }

    fn turn(&mut self) -> Result<bool, EngineError> {
        self.expire();
        let stepped = self.step()?;
        self.report();
        Ok(stepped)
    }

    fn flush(&mut self) -> bool {
        self.outboxes.flush()
    }

    fn drained(&self) -> bool {
        let tickets = self.tickets.counts();
        let nothing = self.sequences.is_empty()
            && self.flight.is_empty()
            && tickets.granted + tickets.opened == 0;
        self.draining && nothing && self.outboxes.is_written()
    }

    fn idle(&self) -> Duration {
        let expiry = self.tickets.next_expiry().map(|at| at.saturating_sub(self.now()));
        let soon = self.draining || self.load() != self.reported.0;
        let report = soon.then_some(REPORT_EVERY);
        let waits = [expiry, report, Some(IDLE_AT_MOST)];
        waits.into_iter().flatten().min().unwrap_or(IDLE_AT_MOST)
    }
}

fn running((slot, sequence): (usize, &Sequence)) -> Running {
    Running {
        slot,
        arrival: slot as u64, // kept oldest first
        tokens: sequence.written + sequence.flying.steps,
        pages_held: sequence.pages_held(),
        credit: sequence.credit.len(),
    }
}
