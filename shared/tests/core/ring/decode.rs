//! The decode server of the modelled ring.

use super::{Memory, PAGE, Req};
use shared::eviction::{EvictionPolicy, Inserted};
use shared::ids::{Epoch, TicketId, TokenId};
use shared::page_hash::PageHash;
use shared::pool::{Credit, Owned, Pool, Quarantined, Sealed};
use shared::radix::RadixCache;
use shared::sched::decode::{DecodePlan, Room, Running, admit_credit, fits_pool, headroom, plan};
use shared::ticket::{Quarantine, Tickets};
use std::time::Duration;

const PAGES: u32 = 44;
const GROWTH: u32 = 6;

pub(super) struct Grant {
    pub(super) req: Req,
    credit: Credit,
    held: Vec<Sealed>,
    pages: Vec<Owned>,
}

impl Quarantine for Grant {
    type Held = Vec<Quarantined>;
    type Rest = Req;
    fn quarantine(self) -> (Req, Vec<Quarantined>) {
        (self.req, self.pages.into_iter().map(Owned::quarantine).collect())
    }
}

struct Row {
    req: Req,
    credit: Credit,
    sealed: Vec<Sealed>,
    owned: Vec<Owned>,
    /// Tokens whose keys and values are written: all but the newest.
    written: u32,
}

pub(super) struct Decode {
    pub(super) pool: Pool,
    pub(super) tickets: Tickets<Grant>,
    cache: RadixCache,
    memory: Memory,
    rows: Vec<Row>,
}

impl Decode {
    pub(super) fn new() -> Self {
        Self {
            pool: Pool::new(PAGES),
            tickets: Tickets::new(TicketId::new(0), 12),
            cache: RadixCache::new(PAGE, EvictionPolicy::Lfu.build()),
            memory: Memory::new(PAGES),
            rows: Vec::new(),
        }
    }

    pub(super) fn reserve(
        &mut self,
        req: Req,
        writer: Epoch,
        expires: Duration,
    ) -> Result<(TicketId, Req), Req> {
        assert!(fits_pool(req.len() + req.left, PAGES, PAGE));
        let pages = admit_credit(req.len(), req.left, GROWTH, PAGE);
        let headroom = headroom(&self.running(), GROWTH, PAGE);
        if pages + headroom > self.pool.available() {
            return Err(req);
        }
        let credit = self.cache.reserve(&self.pool, pages).expect("that many are available");
        let whose = (req.id(), req.attempt);
        let grant = Grant { req: req.clone(), credit, held: Vec::new(), pages: Vec::new() };
        match self.tickets.grant(writer, whose, grant, expires) {
            Ok(ticket) => Ok((ticket, req)),
            Err(grant) => Err(grant.req),
        }
    }

    /// Pins what is here already and draws pages for the rest.
    pub(super) fn open(
        &mut self,
        ticket: TicketId,
        writer: Epoch,
        req: &Req,
        now: Duration,
    ) -> bool {
        let Ok(grant) = self.tickets.open(ticket, writer, req.id(), req.attempt) else {
            return false;
        };
        grant.held = self.cache.match_prefix("", &req.tokens[..req.tokens.len() - 1], now);
        let missing = req.len().div_ceil(PAGE) - grant.held.len() as u32;
        grant.pages = grant.credit.draw(missing);
        true
    }

    /// The pages came, with `hashes` of the full ones as the writer knows them; the first new token
    /// came with the Handoff.
    pub(super) fn land(
        &mut self,
        ticket: TicketId,
        writer: Epoch,
        hashes: &[PageHash],
        now: Duration,
    ) {
        let ended = self.tickets.land(ticket, writer).expect("an opened ticket lands");
        let Grant { mut req, credit, held, pages } = ended.wanted().expect("not cancelled");
        let written = req.len();
        let full = (written / PAGE) as usize;
        let mut pages = pages.into_iter();
        let fresh = pages.by_ref().take(full - held.len()).map(Owned::seal).collect::<Vec<_>>();
        for (page, hash) in fresh.iter().zip(&hashes[held.len()..]) {
            self.memory.pages[page.id().get() as usize] = Some(*hash);
        }
        let mut sealed = held;
        sealed.extend(fresh);
        let by = Inserted { at: now, priority: 0 };
        self.cache.adopt("", &req.tokens, &mut sealed, by);
        req.push_token();
        self.rows.push(Row { req, credit, sealed, owned: pages.collect(), written });
        self.rows.sort_by_key(|row| row.req.number);
    }

    fn running(&self) -> Vec<Running> {
        let numbered = self.rows.iter().enumerate();
        let running = numbered.map(|(slot, row)| Running {
            slot,
            arrival: row.req.number,
            tokens: row.written,
            pages_held: (row.sealed.len() + row.owned.len()) as u32,
            credit: row.credit.len(),
        });
        running.collect()
    }

    fn plan(&self) -> DecodePlan {
        let room = Room { pages: self.pool.available(), rows: 6, page_tokens: PAGE };
        plan(&self.running(), room)
    }

    /// One step; (finished, retracted).
    pub(super) fn step(&mut self, now: Duration) -> (Vec<Req>, Vec<Req>) {
        let mut done: Vec<_> = self.take_finished(now);
        let mut retracted = Vec::new();
        let mut planned = self.plan();
        while !planned.retract.is_empty() {
            for slot in planned.retract {
                let row = self.rows.remove(slot);
                retracted.push(self.leave(row, now));
            }
            planned = self.plan();
        }
        for (slot, pages) in planned.grow {
            let row = &mut self.rows[slot];
            let own = pages.min(row.credit.len());
            row.owned.extend(row.credit.draw(own));
            let rest = self.cache.reserve(&self.pool, pages - own);
            row.owned.extend(rest.expect("the plan is paid for").draw(pages - own));
        }
        for slot in planned.run {
            self.write(slot);
        }
        done.extend(self.take_finished(now));
        (done, retracted)
    }

    /// Writes a row's newest token to its page, seals the page if full, and makes one more token.
    fn write(&mut self, slot: usize) {
        let row = &mut self.rows[slot];
        assert!(((row.sealed.len() + row.owned.len()) as u32) * PAGE > row.written);
        row.written += 1;
        if row.written.is_multiple_of(PAGE) {
            let page = row.owned.remove(0).seal();
            let hashes = self.memory.hashes(&row.req.tokens[..row.written as usize]);
            self.memory.pages[page.id().get() as usize] = hashes.last().copied();
            row.sealed.push(page);
        }
        row.req.push_token();
    }

    fn take_finished(&mut self, now: Duration) -> Vec<Req> {
        let finished: Vec<_> = self.rows.extract_if(.., |row| row.req.left == 0).collect();
        finished.into_iter().map(|row| self.leave(row, now)).collect()
    }

    /// A row goes; its full pages stay cached, after a look at what they hold.
    fn leave(&mut self, row: Row, now: Duration) -> Req {
        let written = &row.req.tokens[..row.written as usize];
        let hashes = self.memory.hashes(written);
        assert_eq!(hashes.len(), row.sealed.len());
        for (page, hash) in row.sealed.iter().zip(hashes) {
            assert_eq!(self.memory.pages[page.id().get() as usize], Some(hash));
        }
        let by = Inserted { at: now, priority: 0 };
        self.cache.insert("", written, row.sealed, by);
        row.req
    }

    pub(super) fn cancel_row(&mut self, number: u64) -> bool {
        let before = self.rows.len();
        self.rows.retain(|row| row.req.number != number);
        self.rows.len() < before
    }

    pub(super) fn check(&self) {
        let counts = self.pool.counts();
        assert!(counts.audit(), "{counts:?}");
        let rows: u32 = self.rows.iter().map(|row| row.credit.len()).sum();
        assert!(counts.granted >= rows);
    }

    /// With no row and no ticket left, all pages are free or idle.
    pub(super) fn end(&mut self) {
        let counts = self.pool.counts();
        assert_eq!((self.rows.len(), self.tickets.counts()), (0, Default::default()));
        assert_eq!(counts.free + counts.idle, PAGES);
        assert_eq!(self.cache.pages(), counts.idle);
        self.cache.clear();
        assert_eq!(self.pool.counts().free, PAGES);
    }
}

impl Req {
    fn push_token(&mut self) {
        self.tokens.push(TokenId::new(5000 + self.len() % 3));
        self.left -= 1;
    }
}
