//! Walk 8/12. Before: `shared/src/sched/prefill.rs`. After: `handoff.rs`.
//!
//! The engine thread: the only owner of pool, cache, queue and jobs.
//! 1. Drain the inbox. 2. Collect the step that is done, ship the rest of its pages, answer.
//! 3. Admit. 4. Cut chunks, launch, ship what will be complete. The inbox is heard while it runs.

use crate::inbox::{Event, Peer};
use crate::job::{Job, Queued};
use crate::metrics::Meter;
use kv_transfer::OpId;
use link::{StopPoint, Stops};
use model::engine::{Batch, Engine, EngineError, Input, READ_ROWS, Row, Sample};
use model::sample::History;
use role::guide::{Guide, Guides};
use role::outbox::Outboxes;
use role::turn::Turn;
use shared::eviction::Inserted;
use shared::ids::Epoch;
use shared::kv::PageStore;
use shared::pool::Pool;
use shared::radix::RadixCache;
use shared::request::Finish;
use shared::sched::budget::TokenBudget;
use shared::sched::dfs::ranks;
use shared::sched::prefill::{Candidate, Chunk, PrefillPolicy, Prefilling, chunks, order, waits};
use shared::wire::messages::{Emitted, Fault, FaultKind, Load, PrefillToGateway, RequestKey};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::Level;

/// Bounds of a prefill server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most prompt tokens of a step.
    pub chunk_tokens: u32,
    /// Requests that may wait.
    pub queued_max: usize,
    /// Order of admission.
    pub policy: PrefillPolicy,
    /// Whether every shipped page is checksummed.
    pub checksums: bool,
}

/// Between two load reports.
const REPORT_EVERY: Duration = Duration::from_millis(5);
/// Longest sleep of an idle server.
const IDLE_AT_MOST: Duration = Duration::from_secs(1);

/// What the engine thread owns.
pub(crate) struct Prefill {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) pages: Arc<dyn PageStore>,
    pub(crate) page_tokens: u32,
    pub(crate) pool: Pool,
    pub(crate) cache: RadixCache,
    pub(crate) queue: Vec<Queued>,
    /// In order of admission.
    pub(crate) jobs: Vec<Job>,
    /// Rows of the step that runs, with their tokens.
    running: Option<Vec<(RequestKey, u32)>>,
    /// Puts and flushes in flight: to whom, and for which request.
    pub(crate) ops: HashMap<OpId, (Epoch, RequestKey)>,
    pub(crate) next_op: u64,
    /// A push queue was full: some job has more to ship than it could queue.
    pub(crate) backlog: bool,
    pub(crate) arrivals: u64,
    pub(crate) outboxes: Outboxes<PrefillToGateway>,
    pub(crate) peers: HashMap<Epoch, Peer>,
    pub(crate) guides: Guides,
    pub(crate) limits: Limits,
    pub(crate) stops: Stops,
    pub(crate) draining: bool,
    pub(crate) meter: Meter,
    started: Instant,
    reported: (Load, Duration),
    measured: Duration,
}

/// What [`Prefill::new`] is made of.
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

impl Prefill {
    pub(crate) fn new(parts: Parts) -> Self {
        let pages = parts.engine.pages();
        Self {
            page_tokens: pages.geometry().page_tokens,
            pages,
            engine: parts.engine,
            pool: parts.pool,
            cache: parts.cache,
            queue: vec![],
            jobs: vec![],
            running: None,
            ops: HashMap::new(),
            next_op: 0,
            backlog: false,
            arrivals: 0,
            outboxes: Outboxes::new(|_, message| Some(message)),
            peers: HashMap::new(),
            guides: parts.guides,
            limits: parts.limits,
            stops: parts.stops,
            draining: false,
            meter: Meter::new(&parts.server),
            started: Instant::now(),
            reported: (Load::default(), Duration::ZERO),
            measured: Duration::ZERO,
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Says to which decode servers requests can be sent through here: none any more in a drain, so
    /// that gateways send new ones elsewhere.
    pub(crate) fn announce_peers(&mut self) {
        let joined = if self.draining { vec![] } else { self.peers.keys().copied().collect() };
        self.outboxes.push_all(&PrefillToGateway::Joined(joined));
    }

    /// Admits waiting requests while this step's budget is not spoken for and their pages are
    /// there.
    fn admit(&mut self) {
        let computing = self.jobs.iter().filter(|job| job.is_computing());
        let mut spoken: u32 = computing.map(|job| job.len() - job.computed).sum();
        if self.queue.is_empty() || spoken >= self.limits.chunk_tokens {
            return;
        }
        let mut candidates: Vec<Candidate> =
            self.queue.iter().enumerate().map(|c| self.candidate(c)).collect();
        if self.limits.policy == PrefillPolicy::DfsWeight {
            self.rank(&mut candidates);
        }
        order(self.limits.policy, &mut candidates);
        let mut admitted = vec![];
        for candidate in candidates {
            if spoken >= self.limits.chunk_tokens {
                break;
            }
            if self.waits(&candidate) {
                continue;
            }
            let Some(job) = self.start(candidate.slot) else { break };
            spoken += job.len() - job.computed;
            self.jobs.push(job);
            admitted.push(candidate);
        }
        admitted.sort_unstable_by_key(|candidate| candidate.slot);
        for candidate in admitted.into_iter().rev() {
            self.queue.remove(candidate.slot);
            for queued in self.queue.iter_mut().filter(|q| q.arrival < candidate.arrival) {
                queued.passed = queued.passed.saturating_add(1);
            }
        }
    }

    /// Whether pages of its prompt are being computed by others.
    fn waits(&self, candidate: &Candidate) -> bool {
        let request = &self.queue[candidate.slot].request;
        let most = request.reusable();
        let computing = self.jobs.iter().filter(|job| job.is_computing());
        let same = computing.filter(|job| job.request.salt == request.salt);
        let being = same.map(|job| &job.request.tokens[..]);
        waits(candidate, most, being, self.page_tokens)
    }

    fn candidate(&self, (slot, queued): (usize, &Queued)) -> Candidate {
        let (tokens, most) = (queued.request.tokens.len() as u32, queued.request.reusable());
        Candidate {
            slot,
            arrival: queued.arrival,
            tokens,
            matched: self.cache.peek(&queued.request.salt, most) * self.page_tokens,
            max_tokens: queued.request.max_tokens,
            priority: queued.request.priority,
            rank: 0,
            passed: queued.passed,
        }
    }

    /// Their places in depth-first order of the cached tree.
    fn rank(&self, candidates: &mut [Candidate]) {
        let path = |candidate: &Candidate| {
            let request = &self.queue[candidate.slot].request;
            self.cache.path(&request.salt, request.reusable())
        };
        let paths: Vec<_> = candidates.iter().map(path).collect();
        candidates
            .iter_mut()
            .zip(ranks(&paths))
            .for_each(|(candidate, rank)| candidate.rank = rank);
    }

    /// Takes pages for all of a waiting request's prompt; `None` if there are too few.
    fn start(&mut self, slot: usize) -> Option<Job> {
        let now = self.now();
        let queued = &self.queue[slot];
        let request = &queued.request;
        let most = request.reusable();
        let pages = (request.tokens.len() as u32).div_ceil(self.page_tokens);
        if pages - self.cache.peek(&request.salt, most) > self.pool.available() {
            return None; // without a match, which would count as a use
        }
        let full = self.cache.match_prefix(&request.salt, most, now);
        let missing = pages - full.len() as u32;
        let mut credit = self.cache.reserve(&self.pool, missing)?;
        let computed = full.len() as u32 * self.page_tokens;
        let job = queued.admitted(now, (full, credit.draw(missing)), computed);
        tracing::debug!(target: "story", request = %job.key, computed, "admitted");
        self.meter.admitted(computed, job.len() - computed);
        Some(job)
    }

    /// Launches a step over the next chunks; whether there were any.
    fn launch(&mut self) -> Result<bool, EngineError> {
        let computing = self.jobs.iter().enumerate().filter(|(_, job)| job.is_computing());
        let prefilling = computing.map(|(slot, job)| Prefilling {
            slot,
            start: job.computed,
            remaining: job.len() - job.computed,
            reads_from: job.request.reads_from(),
        });
        let budget = TokenBudget::new(self.limits.chunk_tokens, self.page_tokens);
        let mut plan = chunks(&prefilling.collect::<Vec<_>>(), budget, READ_ROWS);
        plan.truncate(self.engine.rows_max());
        if plan.is_empty() {
            return Ok(false);
        }
        let batch = Batch { rows: plan.iter().map(|chunk| self.row(*chunk)).collect() };
        for Chunk { slot, tokens } in &plan {
            let request = self.jobs[*slot].key;
            tracing::debug!(target: "story", %request, tokens, "launched");
        }
        self.engine.launch(&batch)?;
        let mut running = vec![];
        for chunk in &plan {
            let job = &mut self.jobs[chunk.slot];
            running.push((job.key, chunk.tokens));
            job.computed += chunk.tokens;
            job.flying = true;
            job.seal_full(self.page_tokens);
        }
        self.running = Some(running);
        self.meter.step(plan.iter().map(|chunk| chunk.tokens).sum());
        self.ship_all();
        Ok(true)
    }

    /// Takes what the step has computed.
    fn collect(&mut self) -> Result<(), EngineError> {
        let tokens = self.engine.collect()?;
        let reads = self.engine.read().into_iter().chain(std::iter::repeat(None));
        let (mut done, mut broken) = (vec![], vec![]);
        let rows = self.running.take().into_iter().flatten().zip(tokens).zip(reads);
        for (((key, _), token), read) in rows {
            let now = self.now();
            let job = self.jobs.iter_mut().find(|job| job.key == key);
            let Some(job) = job else { unreachable!("a job stays while it is in a step") };
            job.flying = false;
            if job.ended.is_some() {
                continue;
            }
            // At once, for those that wait for the same prefix.
            let by = Inserted { at: now, priority: job.request.priority };
            self.cache.adopt(&job.request.salt, &job.request.tokens, &mut job.full, by);
            if let Some(why) =
                job.guide.as_ref().and_then(Guide::failure).filter(|_| token.is_some())
            {
                broken.push((key, format!("the output cannot follow its grammar: {why}")));
                continue;
            }
            if job.is_whole() {
                tracing::debug!(target: "story", request = %job.key, "computed");
                (job.first, job.done, job.finished) = (token, true, now);
                done.push(key);
            }
            if let Some(read) = read {
                self.tell_read(key, read);
            }
        }
        for (key, message) in broken {
            self.fail(key, Fault { kind: FaultKind::Internal, message });
        }
        self.stops.reach(StopPoint::PrefillComputed);
        self.ship_all();
        while let Some(at) = self.jobs.iter().position(Job::is_handed)
            && let Some(peer) = self.jobs[at].decode
        {
            self.stops.reach(StopPoint::PrefillWritten);
            self.hand_over(at, peer);
        }
        self.answer();
        self.settle();
        if tracing::enabled!(target: "story", Level::DEBUG) {
            let ended = self.engine.computed_at()?;
            for request in done {
                let ago_us = ended.map_or(0, |at| at.elapsed().as_micros() as u64);
                tracing::debug!(target: "story", %request, ago_us, "kernels ended");
            }
        }
        Ok(())
    }

    fn row(&self, Chunk { slot, tokens }: Chunk) -> Row {
        let job = &self.jobs[slot];
        let last = job.computed + tokens == job.len();
        Row {
            input: Input::Tokens(job.chunk(tokens)),
            start: job.computed,
            pages: job.page_table(),
            sample: (last && job.request.max_tokens > 0).then(|| Sample {
                mask: job.guide.as_ref().map(Guide::mask),
                ..History::new(&job.request).sample(0)
            }),
            reads: job.row_reads(tokens),
        }
    }

    /// Answers the gateway where no decode is needed.
    fn answer(&mut self) {
        let done = |job: &Job| job.done && job.decode.is_none() && job.ended.is_none();
        while let Some(at) = self.jobs.iter().position(done) {
            let job = self.jobs.remove(at);
            let times = Some(job.times(job.finished)); // nothing is handed over
            let stops = job.first.as_ref().is_some_and(|first| job.request.stops_at(first.id, 0));
            let finish = Some(if stops { Finish::Stop } else { Finish::Length });
            let (key, cached_tokens) = (job.key, job.cached_tokens);
            let tokens = job.first.into_iter().collect();
            let emitted = Emitted { key, cached_tokens, tokens, finish, times };
            self.outboxes.push(key.id.gateway(), PrefillToGateway::Result(emitted));
        }
    }

    fn load(&self) -> Load {
        let waiting = self.queue.iter().map(|queued| queued.request.tokens.len() as u64);
        let computing = self.jobs.iter().filter(|job| job.is_computing());
        let computing = computing.map(|job| u64::from(job.len() - job.computed));
        let running = self.running.iter().flatten().map(|(_, tokens)| u64::from(*tokens));
        let tokens = waiting.chain(computing).chain(running).sum::<u64>();
        Load {
            pages_available: self.pool.available(),
            queued: self.queue.len() as u32,
            tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            running: self.jobs.len() as u32,
            pages_quarantined: self.pool.counts().quarantined,
            draining: self.draining,
        }
    }

    /// Says what changed, a while after the last word or when nothing is left to compute.
    fn report(&mut self) {
        let (load, now) = (self.load(), self.now());
        let (said, at) = self.reported;
        let due = now >= at + REPORT_EVERY || (load.tokens == 0 && said.tokens > 0);
        if load != said && due {
            self.reported = (load, now);
            self.outboxes.push_all(&PrefillToGateway::Load(load));
            self.measure();
        } else if now >= self.measured + IDLE_AT_MOST {
            self.measure(); // pages change hands without a change of load
        }
    }

    pub(crate) fn measure(&mut self) {
        self.measured = self.now();
        let pages = self.pool.counts();
        debug_assert!(pages.audit(), "{pages:?}");
        self.meter.report(&pages, self.load());
    }
}

impl Turn for Prefill {
    type Event = Event;

    fn computing(&mut self) -> Result<bool, EngineError> {
        Ok(self.running.is_some() && !self.engine.is_ready()?)
    }

    fn rest(&mut self) -> Result<(), EngineError> {
        // What was launched within a while after the last report is in none yet.
        if self.now() >= self.reported.1 + REPORT_EVERY {
            self.report();
            self.outboxes.flush();
        }
        self.engine.rest()
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::GatewayUp(epoch, sender) => {
                self.outboxes.join(epoch, sender);
                self.announce_peers();
                self.outboxes.push(epoch, PrefillToGateway::Load(self.load()));
            }
            Event::Gateway(epoch, message) => self.hear_gateway(epoch, message),
            Event::GatewayLost(epoch) => {
                self.outboxes.leave(epoch);
                self.cancel(|key| key.id.gateway() == epoch);
            }
            Event::Scratch(pages, reply) => {
                let pages = pages.min(self.pool.available());
                let credit = self.cache.reserve(&self.pool, pages);
                let pages = credit.map(|mut credit| credit.draw(pages)).unwrap_or_default();
                drop(reply.send(pages));
            }
            Event::PeerUp(epoch, peer) => {
                self.peers.insert(epoch, peer);
                self.announce_peers();
            }
            Event::Opened { peer, ticket, held, runs } => self.opened(peer, ticket, held, &runs),
            Event::Revoked { peer, ticket } => self.revoked(peer, ticket),
            Event::PeerLost(epoch) => self.peer_lost(epoch),
            Event::Pushed { peer, op, result } => self.pushed(peer, op, &result),
            Event::Drain => {
                self.draining = true;
                self.announce_peers();
            }
        }
        self.open();
    }

    fn turn(&mut self) -> Result<bool, EngineError> {
        let mut worked = self.running.is_some();
        if worked && self.engine.is_ready()? {
            self.collect()?;
        }
        self.ship_backlog();
        if self.running.is_none() {
            self.admit();
            self.open();
            worked |= self.launch()?;
        }
        self.report();
        Ok(worked)
    }

    fn flush(&mut self) -> bool {
        self.outboxes.flush()
    }

    fn drained(&self) -> bool {
        let nothing = self.queue.is_empty() && self.jobs.is_empty();
        let written = || self.peers.values().all(|peer| peer.sender.is_written());
        self.draining && nothing && self.outboxes.is_written() && written()
    }

    fn idle(&self) -> Duration {
        // Pages may come back from a push thread without an event of their own.
        let waits = !self.queue.is_empty() || self.backlog || self.draining;
        let soon = waits || self.load() != self.reported.0;
        if soon { REPORT_EVERY } else { IDLE_AT_MOST }
    }
}
