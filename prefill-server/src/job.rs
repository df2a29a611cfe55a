//! The stages of a request at prefill: [`Queued`] → [`Job`] (computing, then shipping) → gone.
//!
//! A job ends when nothing of it is in flight: until then its pages are held, and its ticket is
//! decode's to wait for. [`Job::settled`] is that moment.

use role::guide::Guide;
use shared::ids::{Epoch, PageId, TicketId, TokenId};
use shared::pool::{Owned, Sealed};
use shared::request::{Request, Token};
use shared::wire::messages::{Fault, PrefillTimes, RequestKey, Target};
use std::time::Duration;

/// A request that waits for pages and its turn.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) key: RequestKey,
    pub(crate) request: Request,
    /// Of the token that will be drawn here, where the request has a grammar.
    pub(crate) guide: Option<Guide>,
    pub(crate) target: Option<Target>,
    pub(crate) arrival: u64,
    pub(crate) arrived: Duration,
    /// How often a younger request was admitted before it.
    pub(crate) passed: u32,
}

/// Where the pages go.
#[derive(Debug)]
pub(crate) enum Route {
    /// Nowhere: one token at most is wanted, and the gateway gets it from here.
    Gateway,
    /// `Open` is not sent yet.
    Unopened(TicketId),
    /// `Open` is sent.
    Opening(TicketId),
    /// Pages are named: those from `held` on are written to `pages`.
    Opened { ticket: TicketId, held: u32, pages: Vec<PageId> },
}

/// An admitted request.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) key: RequestKey,
    pub(crate) request: Request,
    /// Of the token that will be drawn here, where the request has a grammar.
    pub(crate) guide: Option<Guide>,
    pub(crate) decode: Option<Epoch>,
    pub(crate) route: Route,
    /// Full pages: matched ones first, then computed ones.
    pub(crate) full: Vec<Sealed>,
    /// Pages still to fill.
    pub(crate) tail: Vec<Owned>,
    /// The last page, part-filled, once shipping needs it kept as it is; it is not written again.
    pub(crate) cached_tokens: u32,
    /// Tokens whose keys and values are in the pages, or are being written by the step that runs.
    pub(crate) computed: u32,
    /// Whether all of it is computed, and what was drawn and read is known.
    pub(crate) done: bool,
    /// Drawn, where the request makes any token.
    pub(crate) first: Option<Token>,
    /// Sum of the hidden states of what is computed, where they are read; else empty.
    pub(crate) states: Vec<f32>,
    /// Whether it has a chunk in the step that runs.
    pub(crate) flying: bool,
    /// Pages queued for writing, of the whole prompt's.
    pub(crate) shipped: u32,
    /// Puts and flushes whose events are due.
    pub(crate) in_flight: u32,
    pub(crate) flush_sent: bool,
    pub(crate) checksums: Vec<u64>,
    pub(crate) arrived: Duration,
    pub(crate) admitted: Duration,
    pub(crate) finished: Duration,
    /// Set when there will be no handoff; nothing is computed or shipped any more.
    pub(crate) ended: Option<Fault>,
}

impl Queued {
    /// It has its turn, with its pages: full ones that were cached, and those to fill. `computed`
    /// tokens are in the full ones.
    pub(crate) fn admitted(
        &self,
        now: Duration,
        (full, tail): (Vec<Sealed>, Vec<Owned>),
        computed: u32,
    ) -> Job {
        let target = self.target.as_ref();
        Job {
            key: self.key,
            request: self.request.clone(),
            guide: self.guide.clone(),
            decode: target.map(|target| target.epoch),
            route: target.map_or(Route::Gateway, |target| Route::Unopened(target.ticket)),
            full,
            tail,
            cached_tokens: computed,
            computed,
            done: false,
            first: None,
            states: vec![],
            flying: false,
            shipped: 0,
            in_flight: 0,
            flush_sent: false,
            checksums: vec![],
            arrived: self.arrived,
            admitted: now,
            finished: now,
            ended: None,
        }
    }
}

impl Job {
    /// Tokens of the prompt.
    pub(crate) fn len(&self) -> u32 {
        self.request.tokens.len() as u32
    }

    /// Whether chunks are left to compute.
    pub(crate) fn is_computing(&self) -> bool {
        self.ended.is_none() && !self.done
    }

    /// Whether its last chunk is computed, or being computed.
    pub(crate) fn is_whole(&self) -> bool {
        self.computed == self.len()
    }

    /// Whether nothing of an ended job is in flight, nor an answer to its `Open` due.
    pub(crate) fn settled(&self) -> bool {
        let waited_for = self.flying || matches!(self.route, Route::Opening(_));
        self.ended.is_some() && self.in_flight == 0 && !waited_for
    }

    /// Whether all that there is to write is written, and what is to be said of it is known.
    pub(crate) fn is_handed(&self) -> bool {
        let written = self.flush_sent && self.in_flight == 0;
        written && self.first.is_some() && self.ended.is_none()
    }

    /// How many of its first pages `other` has, too: equal ones, out of the cache.
    pub(crate) fn common(&self, other: &Self) -> u32 {
        let (mut same, mut most) = (0, self.full.len().min(other.full.len()));
        // A page is cached in one place, so where two prompts share one they share all before it.
        while same < most {
            let at = (same + most) / 2;
            if self.full[at].id() == other.full[at].id() { same = at + 1 } else { most = at }
        }
        same as u32
    }

    /// How many of its pages decode holds, once it has said so.
    pub(crate) fn held(&self) -> Option<u32> {
        match self.route {
            Route::Opened { held, .. } => Some(held),
            _ => None,
        }
    }

    /// Page table of the prompt.
    pub(crate) fn page_table(&self) -> Vec<PageId> {
        self.full.iter().map(Sealed::id).chain(self.tail.iter().map(Owned::id)).collect()
    }

    /// The tokens of the next chunk.
    pub(crate) fn chunk(&self, tokens: u32) -> Vec<TokenId> {
        let start = self.computed as usize;
        self.request.tokens[start..start + tokens as usize].to_vec()
    }

    /// Seals every page that `computed` has filled.
    pub(crate) fn seal_full(&mut self, page_tokens: u32) {
        let full = (self.computed / page_tokens) as usize;
        let newly = full.saturating_sub(self.full.len()).min(self.tail.len());
        self.full.extend(self.tail.drain(..newly).map(Owned::seal));
    }

    /// Where its time went; `now` is the moment of the handoff.
    pub(crate) fn times(&self, now: Duration) -> PrefillTimes {
        let us = |from: Duration, to: Duration| to.saturating_sub(from).as_micros() as u64;
        PrefillTimes {
            queued_us: us(self.arrived, self.admitted),
            computed_us: us(self.admitted, self.finished),
            exposed_us: us(self.finished, now),
        }
    }
}
