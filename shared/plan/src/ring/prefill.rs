//! A prefill server: the same admission, chunks and cache as `prefill-server/src/step.rs`, with a
//! block of the trace for a page of the cache.

use crate::load::{Ask, Load};
use crate::table::StepTable;
use shared::eviction::{EvictionPolicy, Inserted};
use shared::ids::TokenId;
use shared::pool::{Owned, Pool, Sealed};
use shared::radix::RadixCache;
use shared::sched::budget::TokenBudget;
use shared::sched::prefill::{Candidate, Chunk, PrefillPolicy, Prefilling, chunks, order, waits};
use std::sync::Arc;
use std::time::Duration;

/// What all prefill servers have in common.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Order of admission.
    pub policy: PrefillPolicy,
    /// Most prompt tokens of a step.
    pub chunk_tokens: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Tokens that the pool holds.
    pub pool_tokens: u32,
}

/// A request that waits.
struct Queued {
    request: u32,
    ask: Ask,
    arrival: u64,
    passed: u32,
}

/// A request that is computed.
pub struct Job {
    /// Its number.
    pub request: u32,
    ask: Ask,
    computed: u32,
    /// Tokens that were cached here.
    pub cached: u32,
    full: Vec<Sealed>,
    tail: Vec<Owned>,
}

impl Job {
    /// Tokens of its prompt.
    pub fn len(&self) -> u32 {
        self.ask.input
    }
    fn is_computing(&self) -> bool {
        self.computed < self.ask.input
    }
}

/// One server.
pub struct Prefill {
    limits: Arc<Limits>,
    table: Arc<StepTable>,
    block_tokens: u32,
    pool: Pool,
    cache: RadixCache,
    queue: Vec<Queued>,
    /// In order of admission.
    jobs: Vec<Job>,
    /// What the step that runs computes.
    running: Vec<(u32, u32)>,
    arrivals: u64,
    /// Prompt tokens that it has to compute, as far as the gateway knows: those of its last report,
    /// and those sent since.
    pub load: u64,
    /// How long its device has computed.
    pub busy: Duration,
}

impl Prefill {
    /// An idle server with an empty cache, for prompts of `load`.
    pub fn new(limits: &Arc<Limits>, table: &Arc<StepTable>, load: &Load) -> Self {
        let pages = (limits.pool_tokens / load.block_tokens).max(1);
        Self {
            limits: Arc::clone(limits),
            table: Arc::clone(table),
            block_tokens: load.block_tokens,
            pool: Pool::new(pages),
            cache: RadixCache::new(1, EvictionPolicy::Lru.build()),
            queue: vec![],
            jobs: vec![],
            running: vec![],
            arrivals: 0,
            load: 0,
            busy: Duration::ZERO,
        }
    }

    /// Whether its pool can ever hold a prompt.
    pub fn fits(&self, input: u32) -> bool {
        input.div_ceil(self.block_tokens) <= self.pool.counts().total
    }

    /// A request has come; so many of its tokens are not cached here, as far as the gateway knows.
    pub fn push(&mut self, request: u32, ask: Ask, missing: u32) {
        self.arrivals += 1;
        self.load += u64::from(missing);
        self.queue.push(Queued { request, ask, arrival: self.arrivals, passed: 0 });
    }

    /// Admits, launches and reports, unless a step runs; when the launched step will be done.
    pub fn launch(&mut self, now: Duration) -> Option<Duration> {
        if !self.running.is_empty() {
            return None;
        }
        self.admit(now);
        let computing = self.jobs.iter().enumerate().filter(|(_, job)| job.is_computing());
        let prefilling = computing.map(|(slot, job)| Prefilling {
            slot,
            start: job.computed,
            remaining: job.ask.input - job.computed,
            reads_from: u32::MAX,
        });
        let budget = TokenBudget::new(self.limits.chunk_tokens, self.limits.page_tokens);
        let plan = chunks(&prefilling.collect::<Vec<_>>(), budget, 0);
        let row = |chunk: &Chunk| (self.jobs[chunk.slot].computed, chunk.tokens);
        let took = self.table.step(plan.iter().map(row));
        self.running = plan.iter().map(|c| (self.jobs[c.slot].request, c.tokens)).collect();
        self.load = self.report();
        self.busy += took;
        (!plan.is_empty()).then(|| now + took)
    }

    /// As prefill's `load`, which the gateway hears after a launch: whole prompts that wait, and
    /// what is left of those admitted, with what the step computes that runs.
    fn report(&self) -> u64 {
        let waiting = self.queue.iter().map(|queued| u64::from(queued.ask.input));
        let left = self.jobs.iter().map(|job| u64::from(job.ask.input - job.computed));
        waiting.chain(left).sum()
    }

    /// The step that runs is done: jobs whose prompt is whole leave, with their pages.
    pub fn collect(&mut self, now: Duration) -> Vec<Job> {
        let mut whole = vec![];
        for (request, tokens) in std::mem::take(&mut self.running) {
            let at = self.jobs.iter().position(|job| job.request == request);
            let Some(at) = at else { unreachable!("a job stays while it is in a step") };
            let job = &mut self.jobs[at];
            job.computed += tokens;
            // A block without a name is in no other prompt, so nobody looks for it.
            let full = ((job.computed / self.block_tokens) as usize).min(job.ask.blocks.len());
            let newly = full.saturating_sub(job.full.len()).min(job.tail.len());
            job.full.extend(job.tail.drain(..newly).map(Owned::seal));
            let by = Inserted { at: now, priority: 0 };
            self.cache.adopt("", &job.ask.blocks, &mut job.full, by);
            if !job.is_computing() {
                whole.push(self.jobs.remove(at));
            }
        }
        whole
    }

    /// As prefill's `admit`: while this step's budget is not spoken for and pages are there.
    fn admit(&mut self, now: Duration) {
        let computing = self.jobs.iter().filter(|job| job.is_computing());
        let mut spoken: u32 = computing.map(|job| job.ask.input - job.computed).sum();
        if self.queue.is_empty() || spoken >= self.limits.chunk_tokens {
            return;
        }
        let mut candidates: Vec<Candidate> =
            self.queue.iter().enumerate().map(|c| self.candidate(c)).collect();
        order(self.limits.policy, &mut candidates);
        let mut admitted = vec![];
        for candidate in candidates {
            if spoken >= self.limits.chunk_tokens {
                break;
            }
            if self.waits(&candidate) {
                continue;
            }
            let Some(job) = self.start(candidate.slot, now) else { break };
            spoken += job.ask.input - job.computed;
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

    /// Its match counts blocks, not tokens: orders only compare.
    fn candidate(&self, (slot, queued): (usize, &Queued)) -> Candidate {
        Candidate {
            slot,
            arrival: queued.arrival,
            tokens: queued.ask.input,
            matched: self.cache.peek("", self.most(&queued.ask)),
            max_tokens: queued.ask.output,
            priority: 0,
            rank: 0,
            passed: queued.passed,
        }
    }

    fn waits(&self, candidate: &Candidate) -> bool {
        let computing = self.jobs.iter().filter(|job| job.is_computing());
        let being = computing.map(|job| &job.ask.blocks[..]);
        waits(candidate, self.most(&self.queue[candidate.slot].ask), being, 1)
    }

    /// Blocks that may be matched: one token at least is left to compute.
    fn most<'a>(&self, ask: &'a Ask) -> &'a [TokenId] {
        let whole = ((ask.input - 1) / self.block_tokens) as usize;
        &ask.blocks[..whole.min(ask.blocks.len())]
    }

    fn start(&mut self, slot: usize, now: Duration) -> Option<Job> {
        let Queued { request, ask, .. } = &self.queue[slot];
        let pages = ask.input.div_ceil(self.block_tokens);
        let most = self.most(ask);
        if pages - self.cache.peek("", most) > self.pool.available() {
            return None;
        }
        let full = self.cache.match_prefix("", most, now);
        let missing = pages - full.len() as u32;
        let mut credit = self.cache.reserve(&self.pool, missing)?;
        let cached = full.len() as u32 * self.block_tokens;
        let (request, ask) = (*request, ask.clone());
        Some(Job { request, ask, computed: cached, cached, full, tail: credit.draw(missing) })
    }
}
