//! Walk 5/12 at decode's end. Before: `gateway/src/fleet/ticket.rs`. After: the ticket goes back
//! there, and on to `prefill-server/src/intake.rs`.
//!
//! Grants tickets: a counted credit for the prompt and some growth. No GPU work has been spent.

use crate::sequence::Granted;
use crate::step::Decode;
use shared::ids::{Epoch, RequestId};
use shared::request::Request;
use shared::sched::decode::{admit_credit, fits_pool, headroom};
use shared::wire::messages::{DecodeToGateway, Refusal, RequestKey};
use std::collections::BTreeMap;
use std::time::Duration;

/// Requests that were retracted here and have not come back: they go before younger ones.
///
/// An entry ends when its request asks again, is cancelled, or after a while, so that a gateway
/// that forgot about it does not block others.
#[derive(Debug, Default)]
pub(crate) struct Retracted(BTreeMap<RequestId, Duration>);

impl Retracted {
    /// `request` gave its pages back and is expected again before `until`.
    pub(crate) fn expect(&mut self, request: RequestId, until: Duration) {
        self.0.insert(request, until);
    }
    /// It is not expected any more.
    pub(crate) fn forget(&mut self, request: RequestId) {
        self.0.remove(&request);
    }
    /// A gateway is gone: nothing of it comes back.
    pub(crate) fn forget_gateway(&mut self, gateway: Epoch) {
        self.0.retain(|request, _| request.gateway() != gateway);
    }
    /// Whether an older request than this one is expected.
    pub(crate) fn before(&mut self, request: RequestId, now: Duration) -> bool {
        self.0.retain(|_, until| *until > now);
        self.0.first_key_value().is_some_and(|(oldest, _)| *oldest < request)
    }
}

impl Decode {
    pub(crate) fn reserve(&mut self, key: RequestKey, writer: Epoch, request: Request) {
        let message = match self.grant(key, writer, request) {
            Ok(message) => message,
            Err(refusal) => {
                self.meter.refused(&refusal);
                DecodeToGateway::Refused { key, refusal }
            }
        };
        self.outboxes.push(key.id.gateway(), message);
    }

    fn grant(
        &mut self,
        key: RequestKey,
        writer: Epoch,
        request: Request,
    ) -> Result<DecodeToGateway, Refusal> {
        let (now, page_tokens) = (self.now(), self.page_tokens);
        if self.draining {
            return Err(Refusal::Draining);
        }
        if !self.writers.contains_key(&writer) {
            return Err(Refusal::NoLink(format!(
                "prefill incarnation {writer} has not joined here"
            )));
        }
        let (pool, context) = (self.pool.counts().total, self.engine.context_length());
        let longest = request.tokens_max();
        if longest > context || !fits_pool(longest, pool, page_tokens) {
            let pool = pool.min(context / page_tokens);
            return Err(Refusal::TooLarge { pages: longest.div_ceil(page_tokens), pool });
        }
        // A request with a ticket will want its row: one that lands when all are taken would stand
        // still after its first token.
        let tickets = self.tickets.counts();
        let rows = self.sequences.len() + tickets.granted + tickets.opened;
        if self.retracted.before(key.id, now) || rows >= self.limits.batch_max {
            return Err(Refusal::NoPages);
        }
        let prompt = request.tokens.len() as u32;
        let pages =
            admit_credit(prompt, request.max_tokens, self.limits.growth_tokens, page_tokens);
        // What the running rows will soon need is not given away: it would only be taken back.
        let ahead = headroom(&self.running(), self.limits.growth_tokens, page_tokens);
        if pages.saturating_add(ahead) > self.pool.available() {
            return Err(Refusal::NoPages);
        }
        let credit = self.cache.reserve(&self.pool, pages).ok_or(Refusal::NoPages)?;
        // Its grammar compiles while prefill computes.
        let guide = self.guides.begin(&request);
        let granted = Granted { key, request, credit, guide, held: vec![], target: vec![] };
        let expires = now + self.limits.ticket_life;
        let ticket = self
            .tickets
            .grant(writer, (key.id, key.attempt), granted, expires)
            .map_err(|_| Refusal::QueueFull)?;
        self.retracted.forget(key.id);
        tracing::debug!(target: "story", request = %key, "granted");
        Ok(DecodeToGateway::Ticket { key, ticket })
    }
}
