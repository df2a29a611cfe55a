//! What servers say, on its way to the journeys: no link ever waits for one.

use super::mailbox::{Note, Told};
use super::server::Server;
use super::story::{Ending, Heard};
use super::{Fleet, Journeys, Travelling, lock};
use crate::metrics;
use shared::ids::Epoch;
use shared::wire::handshake::Role;
use shared::wire::messages::{
    DecodeToGateway, Emitted, GatewayToDecode, GatewayToPrefill, PrefillToGateway, RequestKey,
};
use std::sync::Arc;
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
            M::Refused { key, refusal } => self.tell(key, Note::Refused(role, refusal)),
            M::Failed { key, fault } => self.tell(key, Note::Failed(role, fault)),
            M::Read { key, read } => {
                self.tell_client(&mut self.journeys(), key, |to| to.mailbox.read(read));
            }
            M::Result(emitted) => self.tell_tokens(vec![emitted]),
            M::Cancelled(key) => self.tell(key, Note::Cancelled(role)),
            M::Flushed => self.flushed(),
            M::Joined(epochs) => {
                server.update(|up| up.joined = Arc::new(epochs.into_iter().collect()));
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
        for Emitted { key, cached_tokens, tokens, finish, times } in emitted {
            let heard = Heard { tokens: tokens.len() as u32, cached: cached_tokens, times };
            self.tell_client(&mut journeys, key, |to| {
                let told = to.mailbox.tokens(cached_tokens, tokens, finish);
                if told.counts {
                    to.story.heard(heard, &self.pulse);
                }
                told
            });
        }
    }

    /// Tells the client of an attempt, unless it is an earlier one or the journey is over.
    fn tell_client(
        &self,
        journeys: &mut Journeys,
        key: RequestKey,
        tell: impl FnOnce(&Travelling) -> Told,
    ) {
        let Some(to) = journeys.get(&key.id).filter(|t| t.key == key) else { return };
        let told = tell(to);
        if let Some(after) = told.first {
            metrics::first_token(after);
            tracing::debug!(target: "story", request = %key, "first token heard");
        }
        if told.last {
            self.recent.end(&to.story, Ending::Finished, &self.pulse);
            journeys.remove(&key.id); // who knows the answer finds no trace of the request
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
