//! The prefill server of the modelled ring.

use super::{Memory, PAGE, Req};
use shared::eviction::{EvictionPolicy, Inserted};
use shared::ids::{Attempt, Epoch, TicketId};
use shared::page_hash::PageHash;
use shared::pool::{Owned, Pool, Sealed};
use shared::radix::RadixCache;
use shared::sched::budget::TokenBudget;
use shared::sched::prefill::{Candidate, PrefillPolicy, Prefilling, chunks, order};
use std::time::Duration;

const PAGES: u32 = 28;
const BUDGET: u32 = 20;

struct Queued {
    ticket: TicketId,
    req: Req,
    passed: Candidate,
}

struct Job {
    ticket: TicketId,
    req: Req,
    matched: Vec<Sealed>,
    owned: Vec<Owned>,
    start: u32,
}

pub(super) struct Prefill {
    pub(super) epoch: Epoch,
    pool: Pool,
    cache: RadixCache,
    memory: Memory,
    queue: Vec<Queued>,
    running: Vec<Job>,
    arrivals: u64,
}

impl Prefill {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            pool: Pool::new(PAGES),
            cache: RadixCache::new(PAGE, EvictionPolicy::Lru.build()),
            memory: Memory::new(PAGES),
            queue: Vec::new(),
            running: Vec::new(),
            arrivals: 0,
        }
    }

    pub(super) fn enqueue(&mut self, ticket: TicketId, req: Req) {
        let passed = Candidate {
            slot: 0,
            arrival: self.arrivals,
            tokens: req.len(),
            matched: 0,
            max_tokens: 0,
            rank: 0,
            priority: 0,
            passed: 0,
        };
        self.arrivals += 1;
        self.queue.push(Queued { ticket, req, passed });
    }

    /// Longest match first, until one does not fit. `open` asks decode.
    pub(super) fn admit(
        &mut self,
        now: Duration,
        mut open: impl FnMut(TicketId, Epoch, &Req) -> bool,
    ) {
        loop {
            let mut candidates: Vec<_> = self.queue.iter().map(|queued| queued.passed).collect();
            for (slot, candidate) in candidates.iter_mut().enumerate() {
                candidate.slot = slot;
                candidate.matched = self.cache.peek("", &self.queue[slot].req.tokens) * PAGE;
            }
            order(PrefillPolicy::Lpm, &mut candidates);
            let Some(first) = candidates.first() else { return };
            let req = &self.queue[first.slot].req;
            let all_but_one = &req.tokens[..req.tokens.len() - 1];
            let matched = self.cache.match_prefix("", all_but_one, now);
            let expected = self.memory.hashes(all_but_one);
            for (page, hash) in matched.iter().zip(expected) {
                assert_eq!(self.memory.pages[page.id().get() as usize], Some(hash));
            }
            let missing = req.len().div_ceil(PAGE) - matched.len() as u32;
            let Some(mut credit) = self.cache.reserve(&self.pool, missing) else { return };
            let Queued { ticket, req, passed } = self.queue.remove(first.slot);
            self.queue.iter_mut().for_each(|queued| queued.passed.passed_by(passed.arrival));
            assert!(open(ticket, self.epoch, &req), "expired tickets leave the queue");
            let owned = credit.draw(missing);
            let start = matched.len() as u32 * PAGE;
            self.running.push(Job { ticket, req, matched, owned, start });
        }
    }

    /// Computes one step's chunks; the finished ones, with the hashes of their full pages.
    pub(super) fn step(&mut self, now: Duration) -> Vec<(TicketId, Vec<PageHash>)> {
        let remaining = |job: &Job| job.req.len() - job.start;
        let numbered = self.running.iter().enumerate();
        let running: Vec<_> = numbered
            .map(|(slot, job)| (slot, job.start, remaining(job)))
            .map(|(slot, start, remaining)| Prefilling {
                slot,
                start,
                remaining,
                reads_from: u32::MAX,
            })
            .collect();
        for chunk in chunks(&running, TokenBudget::new(BUDGET, PAGE), 0) {
            self.running[chunk.slot].start += chunk.tokens;
        }
        let done = self.running.extract_if(.., |job| job.start == job.req.len());
        let mut landed = Vec::new();
        for job in done.collect::<Vec<_>>() {
            let hashes = self.memory.hashes(&job.req.tokens);
            let mut pages = job.matched;
            let full = hashes.len() - pages.len();
            pages.extend(job.owned.into_iter().take(full).map(Owned::seal));
            for (page, hash) in pages.iter().zip(&hashes) {
                self.memory.pages[page.id().get() as usize] = Some(*hash);
            }
            let by = Inserted { at: now, priority: 0 };
            self.cache.insert("", &job.req.tokens, pages, by);
            landed.push((job.ticket, hashes));
        }
        landed
    }

    pub(super) fn forget(&mut self, ticket: TicketId) {
        self.queue.retain(|queued| queued.ticket != ticket);
        self.running.retain(|job| job.ticket != ticket);
    }

    pub(super) fn job(&self, number: u64) -> Option<(TicketId, Attempt)> {
        let queued = self.queue.iter().map(|queued| (queued.ticket, &queued.req));
        let running = self.running.iter().map(|job| (job.ticket, &job.req));
        let found = queued.chain(running).find(|(_, req)| req.number == number);
        found.map(|(ticket, req)| (ticket, req.attempt))
    }

    pub(super) fn open_tickets(&self) -> Vec<TicketId> {
        self.running.iter().map(|job| job.ticket).collect()
    }

    pub(super) fn check(&self) {
        let counts = self.pool.counts();
        assert!(counts.audit() && counts.granted == 0, "{counts:?}");
        let owned: usize = self.running.iter().map(|job| job.owned.len()).sum();
        assert_eq!(counts.owned as usize, owned);
    }

    /// Drops everything but the pool, which must then be whole.
    pub(super) fn end(self) {
        let Self { pool, cache, queue, running, .. } = self;
        drop((cache, queue, running));
        assert_eq!(pool.counts().free, PAGES);
    }
}
