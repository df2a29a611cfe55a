//! The stages of a request at decode: [`Granted`] → (opened) → [`Sequence`] → gone.

use crate::flight::Flying;
use model::sample::History;
use role::guide::Guide;
use shared::ids::{Epoch, PageId, TokenId};
use shared::pool::{Credit, Owned, Quarantined, Sealed};
use shared::request::{Finish, Request, Token};
use shared::ticket::Quarantine;
use shared::wire::messages::RequestKey;
use std::time::Duration;

/// A request with a ticket: its pages are promised, and named once the ticket is opened.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) key: RequestKey,
    pub(crate) request: Request,
    pub(crate) credit: Credit,
    /// Of the first token, while it is prefill's to draw.
    pub(crate) guide: Option<Guide>,
    /// Leading pages that were cached here when the ticket was opened.
    pub(crate) held: Vec<Sealed>,
    /// Pages that the writer fills; empty until opened.
    pub(crate) target: Vec<Owned>,
}

impl Quarantine for Granted {
    type Held = Vec<Quarantined>;
    type Rest = RequestKey;

    fn quarantine(self) -> (RequestKey, Vec<Quarantined>) {
        (self.key, self.target.into_iter().map(Owned::quarantine).collect())
    }
}

/// A running request. Invariant: `written` tokens have keys and values in the pages, and `last`
/// is the one after them.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) key: RequestKey,
    pub(crate) request: Request,
    pub(crate) cached_tokens: u32,
    /// Full pages, shared with the cache.
    pub(crate) full: Vec<Sealed>,
    /// Pages being filled, at most one of them partly.
    pub(crate) tail: Vec<Owned>,
    pub(crate) credit: Credit,
    /// Tokens made by this attempt, prefill's first included.
    pub(crate) made: Vec<TokenId>,
    pub(crate) written: u32,
    /// How the next token is drawn.
    pub(crate) history: History,
    /// What it may be, where the request has a grammar.
    pub(crate) guide: Option<Guide>,
    /// Tokens beyond these that are being made.
    pub(crate) flying: Flying,
    /// When its pages had landed.
    pub(crate) landed: Duration,
}

impl Sequence {
    /// The gateway that asked.
    pub(crate) fn gateway(&self) -> Epoch {
        self.key.id.gateway()
    }

    /// Whether tokens are left to be made when those in flight are there, and the next can be
    /// asked for now. One whose draw depends on those in flight waits until they are collected: of
    /// an engine that overlaps it gets every other step, where others get every one.
    pub(crate) fn has_more(&self) -> bool {
        let left = self.made.len() as u32 + self.flying.steps < self.request.max_tokens;
        let foresees = self.history.foresees() && self.guide.is_none();
        left && (self.flying.steps == 0 || foresees)
    }

    /// The token after the written ones.
    pub(crate) fn last(&self) -> TokenId {
        *self.made.last().expect("a sequence starts with prefill's token")
    }

    /// Page table of the next step.
    pub(crate) fn page_table(&self) -> Vec<PageId> {
        self.full.iter().map(Sealed::id).chain(self.tail.iter().map(Owned::id)).collect()
    }

    /// Pages in the table.
    pub(crate) fn pages_held(&self) -> u32 {
        (self.full.len() + self.tail.len()) as u32
    }

    /// Takes a token that was just made; says how the request ends with it, if it does.
    pub(crate) fn take(&mut self, token: &Token) -> Option<Finish> {
        let index = self.made.len() as u32;
        self.made.push(token.id);
        self.history.push(token.id);
        if let Some(guide) = &mut self.guide {
            guide.push(token.id);
        }
        if self.request.stops_at(token.id, index) {
            Some(Finish::Stop)
        } else {
            (index + 1 >= self.request.max_tokens).then_some(Finish::Length)
        }
    }

    /// Prompt and output whose keys and values are in the pages.
    pub(crate) fn written_tokens(&self) -> Vec<TokenId> {
        let all = self.request.tokens.iter().chain(&self.made);
        all.copied().take(self.written as usize).collect()
    }

    /// Seals every page that `written` has filled.
    pub(crate) fn seal_full(&mut self, page_tokens: u32) {
        let full = (self.written / page_tokens) as usize;
        let newly = full.saturating_sub(self.full.len()).min(self.tail.len());
        self.full.extend(self.tail.drain(..newly).map(Owned::seal));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::eviction::EvictionPolicy;
    use shared::ids::{Attempt, RequestId};
    use shared::pool::Pool;
    use shared::radix::RadixCache;
    use shared::request::{RequestParts, Sampling};

    /// Whether a sequence that may make 3 tokens and has made one can be asked for another, with so
    /// many in flight.
    fn has_more(steps: u32, change: impl FnOnce(&mut RequestParts)) -> bool {
        let mut parts = RequestParts {
            tokens: vec![TokenId::new(5)],
            prompt_len: 1,
            max_tokens: 3,
            min_tokens: 0,
            sampling: Sampling::GREEDY,
            logit_bias: vec![],
            stop_ids: vec![TokenId::new(2)],
            logprobs: None,
            logprob_ids: Vec::new(),
            salt: String::new(),
            priority: 0,
            grammar: None,
            reads: None,
        };
        change(&mut parts);
        let request: Request = parts.try_into().unwrap();
        let id = RequestId::new(Epoch::new(1), 1);
        let mut cache = RadixCache::new(16, EvictionPolicy::Lru.build());
        let mut sequence = Sequence {
            key: RequestKey { id, attempt: Attempt::new(0) },
            cached_tokens: 0,
            full: vec![],
            tail: vec![],
            credit: cache.reserve(&Pool::new(2), 1).unwrap(),
            made: vec![],
            written: 1,
            history: History::new(&request),
            guide: None,
            flying: Flying::default(),
            landed: Duration::ZERO,
            request,
        };
        sequence.take(&Token { id: TokenId::new(7), logprob: 0.0, top: vec![] });
        sequence.flying.steps = steps;
        sequence.has_more()
    }

    #[test]
    fn tokens_in_flight_count() {
        assert_eq!([0, 1, 2].map(|steps| has_more(steps, |_| {})), [true, true, false]);
    }

    #[test]
    fn a_draw_that_depends_on_the_token_in_flight_waits_for_it() {
        let changes: [fn(&mut RequestParts); 4] = [
            |parts| parts.sampling.presence_penalty = 0.5,
            |parts| parts.sampling.frequency_penalty = -0.5,
            |parts| parts.sampling.repetition_penalty = 1.2,
            |parts| parts.min_tokens = 3,
        ];
        for change in changes {
            assert!(has_more(0, change) && !has_more(1, change));
        }
        let bias = |parts: &mut RequestParts| parts.logit_bias = vec![(TokenId::new(4), 1.0)];
        assert!(has_more(1, bias), "a bias is the same for every token");
    }
}
