//! What servers say, on its way to the journeys: no link ever waits for one.

use super::mailbox::Note;
use super::server::Server;
use super::{Fleet, lock};
use crate::metrics;
use shared::ids::Epoch;
use shared::wire::handshake::Role;
use shared::wire::messages::{
    DecodeToGateway, Emitted, GatewayToDecode, GatewayToPrefill, PrefillToGateway, RequestKey,
};
use std::sync::atomic::Ordering;

impl Fleet {
    pub(super) fn hear_prefill(
        &self,
        server: &Server<GatewayToPrefill>,
        message: PrefillToGateway,
    ) {
        use PrefillToGateway as M;
        let role = Role::Prefill;
        match message {
            M::Accepted(_) => {} // its tokens or a refusal follow, and only they are waited for
            M::Refused { key, refusal } => self.tell(key, Note::Refused(role, refusal)),
            M::Failed { key, fault } => self.tell(key, Note::Failed(role, fault)),
            M::Result(emitted) => self.tell_tokens(vec![emitted]),
            M::Cancelled(key) => self.tell(key, Note::Cancelled(role)),
            M::Flushed => self.flushed(),
            M::Joined(epochs) => {
                server.update(|up| up.joined = epochs.into_iter().collect());
                self.changed.send_replace(());
            }
            M::Load(load) => {
                server.update(|up| up.load = load);
                self.changed.send_replace(());
            }
        }
    }

    pub(super) fn hear_decode(&self, server: &Server<GatewayToDecode>, message: DecodeToGateway) {
        use DecodeToGateway as M;
        let role = Role::Decode;
        match message {
            M::Ticket { key, ticket } => self.tell(key, Note::Ticket(ticket)),
            M::Refused { key, refusal } => self.tell(key, Note::Refused(role, refusal)),
            M::Tokens(emitted) => self.tell_tokens(emitted),
            M::Failed { key, fault } => self.tell(key, Note::Failed(role, fault)),
            M::Retracted(key) => self.tell(key, Note::Retracted),
            M::Cancelled(key) => self.tell(key, Note::Cancelled(role)),
            M::Flushed => self.flushed(),
            M::Load(load) => {
                server.update(|up| up.load = load);
                self.changed.send_replace(());
            }
        }
    }

    /// Delivers to the journey, unless the note is of an earlier attempt or the journey is over.
    fn tell(&self, key: RequestKey, note: Note) {
        if let Some(travelling) = self.journeys().get(&key.id).filter(|t| t.key == key) {
            travelling.mailbox.deliver(note);
        }
    }

    fn tell_tokens(&self, emitted: Vec<Emitted>) {
        let mut journeys = self.journeys();
        for Emitted { key, cached_tokens, tokens, finish } in emitted {
            let Some(travelling) = journeys.get(&key.id).filter(|t| t.key == key) else { continue };
            let told = travelling.mailbox.tokens(cached_tokens, tokens, finish);
            if let Some(after) = told.first {
                metrics::first_token(after);
                tracing::debug!(target: "story", request = %key, "first token heard");
            }
            if told.last {
                journeys.remove(&key.id); // who knows the answer finds no trace of the request
            }
        }
    }

    fn flushed(&self) {
        self.flushed.fetch_add(1, Ordering::AcqRel);
        self.changed.send_replace(());
    }

    /// A server came, or the one that is named went.
    pub(super) fn changed(&self, lost: Option<Epoch>) {
        if let Some(epoch) = lost {
            let up: Vec<_> = self.prefill_up().iter().map(|up| up.epoch).collect();
            lock(&self.seen).keep(&up);
            for travelling in self.journeys().values() {
                travelling.mailbox.deliver(Note::Lost(epoch));
            }
        }
        self.changed.send_replace(());
    }
}
