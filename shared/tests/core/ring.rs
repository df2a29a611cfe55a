//! A whole ring of the pure parts: gateway queue, two prefill servers, one decode server, with
//! cancels, late tickets, retractions and dying writers, by seed. Page contents are modelled as the
//! hash of the prefix they must hold, so a page that went to the wrong place is seen.
//!
//! After every tick: the books of all pools balance, and what a lost writer may still write is in
//! quarantine. At the end: every request finished or was cancelled, and all pages came back.

mod decode;
mod prefill;

use crate::Seeded;
use decode::Decode;
use prefill::Prefill;
use shared::ids::{Attempt, Epoch, RequestId, TicketId, TokenId};
use shared::page_hash::{PageHash, PageHasher};
use shared::ticket::{Cancelled, NotOpen};
use std::time::Duration;

const PAGE: u32 = 4;
const REQUESTS: u64 = 150;

#[derive(Clone, Debug)]
struct Req {
    number: u64,
    attempt: Attempt,
    /// Prompt and output so far.
    tokens: Vec<TokenId>,
    left: u32,
}

impl Req {
    fn id(&self) -> RequestId {
        RequestId::new(Epoch::new(1), self.number)
    }
    fn again(mut self) -> Self {
        self.attempt = self.attempt.next();
        self
    }
    fn len(&self) -> u32 {
        self.tokens.len() as u32
    }
}

/// What each page of a server holds.
struct Memory {
    pages: Vec<Option<PageHash>>,
    hasher: PageHasher,
}

impl Memory {
    fn new(pages: u32) -> Self {
        Self { pages: vec![None; pages as usize], hasher: PageHasher::new(&[3; 32], "") }
    }
    fn hashes(&self, tokens: &[TokenId]) -> Vec<PageHash> {
        self.hasher.pages(tokens, PAGE)
    }
}

/// A writer whose link was lost, with the tickets that it had opened.
struct Zombie {
    epoch: Epoch,
    tickets: Vec<TicketId>,
    ends: u64,
}

struct Ring {
    random: Seeded,
    tick: u64,
    next: u64,
    waiting: Vec<Req>,
    prefills: Vec<Prefill>,
    decode: Decode,
    zombies: Vec<Zombie>,
    done: Vec<u64>,
    retracted: usize,
}

impl Ring {
    fn new(seed: u64) -> Self {
        Self {
            random: Seeded(seed),
            tick: 0,
            next: 0,
            waiting: Vec::new(),
            prefills: (10..12).map(|epoch| Prefill::new(Epoch::new(epoch))).collect(),
            decode: Decode::new(),
            zombies: Vec::new(),
            done: Vec::new(),
            retracted: 0,
        }
    }

    fn now(&self) -> Duration {
        Duration::from_secs(self.tick)
    }

    fn arrive(&mut self) {
        if self.next == REQUESTS || self.random.chance(40) {
            return;
        }
        let system = self.random.below(3) as u32;
        let shared = self.random.below(25);
        let own = 1 + self.random.below(15);
        let mut tokens: Vec<_> =
            (0..shared as u32).map(|i| TokenId::new(system * 100 + i)).collect();
        tokens.extend((0..own).map(|_| TokenId::new(1000 + self.random.below(3) as u32)));
        let left = 1 + self.random.below(20) as u32;
        self.waiting.push(Req { number: self.next, attempt: Attempt::new(0), tokens, left });
        self.next += 1;
    }

    /// Reserve, oldest first; a refusal holds back everyone younger.
    fn reserve(&mut self) {
        self.waiting.sort_by_key(|req| req.number);
        while !self.waiting.is_empty() {
            let at = self.random.below(self.prefills.len());
            let expires = self.now() + Duration::from_secs(2 + self.random.below(12) as u64);
            let req = self.waiting.remove(0);
            match self.decode.reserve(req, self.prefills[at].epoch, expires) {
                Ok((ticket, req)) => self.prefills[at].enqueue(ticket, req),
                Err(req) => {
                    self.waiting.insert(0, req);
                    return;
                }
            }
        }
    }

    fn prefill(&mut self) {
        let now = self.now();
        for prefill in &mut self.prefills {
            prefill.admit(now, |ticket, epoch, req| self.decode.open(ticket, epoch, req, now));
            for (ticket, hashes) in prefill.step(now) {
                self.decode.land(ticket, prefill.epoch, &hashes, now);
            }
        }
    }

    fn decode(&mut self) {
        let (done, retracted) = self.decode.step(self.now());
        self.done.extend(done.iter().map(|req| req.number));
        self.retracted += retracted.len();
        self.waiting.extend(retracted.into_iter().map(Req::again));
        let expired = self.decode.tickets.expire(self.now());
        for (ticket, grant) in expired {
            self.prefills.iter_mut().for_each(|prefill| prefill.forget(ticket));
            self.waiting.push(grant.req.again());
        }
    }

    fn cancel(&mut self) {
        if self.next == 0 || !self.random.chance(4) {
            return;
        }
        let number = self.random.below(self.next as usize) as u64;
        if self.done.contains(&number) {
            return;
        }
        self.done.push(number);
        if let Some(at) = self.waiting.iter().position(|req| req.number == number) {
            self.waiting.remove(at);
            return;
        }
        if self.decode.cancel_row(number) {
            return;
        }
        let job = self.prefills.iter().find_map(|p| Some((p.epoch, p.job(number)?)));
        let (writer, (ticket, attempt)) = job.expect("a live request is somewhere");
        let id = RequestId::new(Epoch::new(1), number);
        match self.decode.tickets.cancel(id, attempt) {
            Cancelled::Granted(grant) => assert_eq!(grant.req.number, number),
            Cancelled::Opened => {
                let ended = self.decode.tickets.close(ticket, writer).expect("it was opened");
                assert!(ended.wanted().is_none(), "cancelled");
            }
            Cancelled::Unknown => panic!("request {number} has no ticket"),
        }
        self.prefills.iter_mut().for_each(|prefill| prefill.forget(ticket));
    }

    /// A prefill server goes: with its link alone, or provenly.
    fn kill(&mut self) {
        if !self.random.chance(2) {
            return;
        }
        let at = self.random.below(self.prefills.len());
        let next = Prefill::new(Epoch::new(100 + self.tick));
        let dead = std::mem::replace(&mut self.prefills[at], next);
        let (epoch, tickets) = (dead.epoch, dead.open_tickets());
        dead.end();
        let lost = if self.random.chance(50) {
            self.decode.tickets.writer_ended(epoch)
        } else {
            let ends = self.tick + 1 + self.random.below(20) as u64;
            self.zombies.push(Zombie { epoch, tickets: tickets.clone(), ends });
            self.decode.tickets.writer_lost(epoch)
        };
        assert_eq!(lost.failed.len(), tickets.len());
        assert_eq!(lost.quarantined + lost.freed, tickets.len());
        self.waiting.extend(lost.revoked.into_iter().map(|grant| grant.req.again()));
        self.waiting.extend(lost.failed.into_iter().map(Req::again));
    }

    fn lay_zombies(&mut self) {
        for mut zombie in std::mem::take(&mut self.zombies) {
            if self.random.chance(10)
                && let Some(ticket) = zombie.tickets.pop()
            {
                // Its late word ends that ticket, and changes nothing else.
                let late = self.decode.tickets.land(ticket, zombie.epoch);
                assert!(matches!(late, Err(NotOpen::Quarantined)));
            }
            if zombie.ends > self.tick {
                self.zombies.push(zombie);
                continue;
            }
            let lost = self.decode.tickets.writer_ended(zombie.epoch);
            assert_eq!(lost.freed, zombie.tickets.len());
            for ticket in zombie.tickets {
                let late = self.decode.tickets.land(ticket, zombie.epoch);
                assert!(matches!(late, Err(NotOpen::Gone)));
            }
        }
    }

    fn check(&self) {
        self.prefills.iter().for_each(Prefill::check);
        self.decode.check();
        let quarantined: usize = self.zombies.iter().map(|zombie| zombie.tickets.len()).sum();
        assert_eq!(self.decode.tickets.counts().quarantined, quarantined);
        let pages = self.decode.pool.counts().quarantined as usize;
        assert!(pages >= quarantined, "an opened ticket has at least one page to write");
    }

    fn run(mut self) -> Self {
        while self.done.len() < REQUESTS as usize {
            self.tick += 1;
            assert!(self.tick < 20_000, "stuck with {} done", self.done.len());
            self.arrive();
            self.reserve();
            self.prefill();
            self.decode();
            self.cancel();
            self.kill();
            self.lay_zombies();
            self.check();
        }
        self
    }
}

#[test]
fn every_request_ends_and_every_page_comes_back() {
    let mut retracted = 0;
    for seed in 0..24 {
        let mut ring = Ring::new(seed).run();
        ring.done.sort_unstable();
        assert!(ring.done.iter().copied().eq(0..REQUESTS), "each ended once");
        ring.zombies.iter_mut().for_each(|zombie| zombie.ends = 0);
        while !ring.zombies.is_empty() {
            ring.lay_zombies();
        }
        ring.decode.end();
        ring.prefills.into_iter().for_each(Prefill::end);
        retracted += ring.retracted;
    }
    assert!(retracted > 20, "the pool is tight enough to retract: {retracted}");
}
