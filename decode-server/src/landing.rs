//! Walk 10/12. Before: `prefill-server/src/handoff.rs` (and `kv-transfer` between). After:
//! `step.rs`.
//!
//! Names target pages when a ticket is opened, and takes the request over when its pages landed.

use crate::flight::Flying;
use crate::sequence::{Granted, Sequence};
use crate::step::Decode;
use kv_transfer::land;
use model::sample::History;
use shared::eviction::Inserted;
use shared::ids::{Epoch, TicketId};
use shared::pool::Owned;
use shared::ticket::Ended;
use shared::wire::messages::{
    DecodeToGateway, DecodeToPrefill, Emitted, Fault, FaultKind, Handoff, PageRun, RequestKey,
};

impl Decode {
    /// Answers `Open` with pages, or with `Revoked`.
    pub(crate) fn open(&mut self, writer: Epoch, ticket: TicketId, key: RequestKey) {
        let now = self.now();
        let message = match self.tickets.open(ticket, writer, key.id, key.attempt) {
            Ok(granted) => {
                let tokens = &granted.request.tokens;
                // The last page is always written: it is the request's own.
                let most = tokens.len() - 1;
                let held = self.cache.match_prefix(&granted.request.salt, &tokens[..most], now);
                let pages = (tokens.len() as u32).div_ceil(self.page_tokens);
                let missing = pages - held.len() as u32;
                granted.target = granted.credit.draw(missing);
                drop(granted.credit.split(held.len() as u32));
                granted.held = held;
                tracing::debug!(target: "story", request = %key, "opened");
                self.meter.held(granted.held.len());
                let runs = PageRun::pack(granted.target.iter().map(Owned::id));
                DecodeToPrefill::Opened { ticket, held: granted.held.len() as u32, runs }
            }
            Err(why) => {
                tracing::info!(%ticket, request = %key, %why, "revoked");
                DecodeToPrefill::Revoked { ticket }
            }
        };
        self.tell_writer(writer, message);
    }

    /// Takes over a request whose pages are complete.
    pub(crate) fn handoff(&mut self, writer: Epoch, handoff: Handoff) {
        let granted = match self.tickets.land(handoff.ticket, writer) {
            Ok(Ended::Wanted(granted)) => granted,
            Ok(Ended::Cancelled(_)) => return, // its pages go back here
            Err(why) => {
                tracing::info!(ticket = %handoff.ticket, request = %handoff.key, %why, "late handoff");
                return;
            }
        };
        if let Err(fault) = self.verify(&granted, &handoff) {
            return self.fail(granted.key, fault);
        }
        self.stops.reach(link::StopPoint::DecodeLanded);
        let (cached_tokens, times) = (handoff.cached_tokens, Some(handoff.times));
        let mut sequence = self.land(granted, cached_tokens);
        let (key, gateway) = (sequence.key, sequence.gateway());
        let finish = sequence.take(&handoff.first);
        let tokens = vec![handoff.first];
        let emitted = Emitted { key, cached_tokens, tokens, finish, times };
        self.outboxes.push(gateway, DecodeToGateway::Tokens(vec![emitted]));
        if finish.is_none() {
            // Oldest first, and a replay is as old as its first attempt.
            let at = self.sequences.partition_point(|older| older.key.id < key.id);
            self.sequences.insert(at, sequence);
            tracing::debug!(target: "story", request = %key, "landed");
        }
    }

    fn verify(&self, granted: &Granted, handoff: &Handoff) -> Result<(), Fault> {
        let fault = |kind, message| Err(Fault { kind, message });
        if handoff.key != granted.key {
            let message = format!("handoff of {} on the ticket of {}", handoff.key, granted.key);
            return fault(FaultKind::Internal, message);
        }
        if handoff.first.id.get() >= self.engine.vocab() {
            let message = format!("first token {} is not in the vocabulary", handoff.first.id);
            return fault(FaultKind::Internal, message);
        }
        if handoff.checksums.is_empty() {
            return Ok(());
        }
        let pages: Vec<_> = granted.target.iter().map(Owned::id).collect();
        let whole = 0..self.pages.geometry().page_bytes();
        land::verify(&*self.pages, &pages, &whole, &handoff.checksums)
            .or_else(|error| fault(FaultKind::Checksum, error.to_string()))
    }

    /// Pages of the prompt become cached where full; the rest is the sequence's own.
    fn land(&mut self, granted: Granted, cached_tokens: u32) -> Sequence {
        let Granted { key, request, credit, guide, held, target } = granted;
        let written = request.tokens.len() as u32;
        let mut sequence = Sequence {
            key,
            history: History::new(&request),
            guide,
            request,
            cached_tokens,
            full: held,
            tail: target,
            credit,
            made: vec![],
            written,
            flying: Flying::default(),
            landed: self.now(),
        };
        sequence.seal_full(self.page_tokens);
        let request = &sequence.request;
        let by = Inserted { at: self.now(), priority: request.priority };
        self.cache.adopt(&request.salt, &request.tokens, &mut sequence.full, by);
        sequence
    }
}
