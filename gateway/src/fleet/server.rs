//! One server as the gateway sees it: down, or up with a link, numbers and a load.
//!
//! A task per server dials, listens until the link ends, tells every journey on it, and dials
//! again: no server is ever given up.

use super::pulse::Tally;
use super::story::Part;
use link::{Local, Sender, dial};
use serde_json::{Value, json};
use shared::ids::{Epoch, ServerId};
use shared::wire::handshake::{Capacity, Layout, Role};
use shared::wire::messages::{Load, Message};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Messages that may wait for one server's socket: every queued and running request may have one
/// in each stage, so a multiple of what a gateway admits.
const OUTBOX: usize = 4096;

/// A link that held for so long is tried again soon; one that did not, after ever longer pauses.
const HELD: Duration = Duration::from_secs(1);

/// A configured server.
#[derive(Debug)]
pub(crate) struct Server<Out> {
    pub(crate) address: String,
    /// Its place among those of its role.
    slot: usize,
    /// What all its incarnations did.
    pub(crate) tally: Arc<Tally>,
    state: Mutex<State<Out>>,
}

#[derive(Debug)]
enum State<Out> {
    /// Why, and what it was called when it was up.
    Down(String, Option<ServerId>),
    /// Shared with the requests that go there; a report makes a new one if it must.
    Up(Arc<Up<Out>>),
}

/// A server that answers.
#[derive(Debug)]
pub(crate) struct Up<Out> {
    pub(crate) slot: usize,
    pub(crate) tally: Arc<Tally>,
    pub(crate) id: ServerId,
    pub(crate) epoch: Epoch,
    pub(crate) layout: Layout,
    pub(crate) capacity: Capacity,
    pub(crate) load: Load,
    /// Decode incarnations that a prefill server has joined; empty for decode.
    pub(crate) joined: Arc<HashSet<Epoch>>,
    pub(crate) sender: Sender<Out>,
}

impl<Out> Clone for Up<Out> {
    fn clone(&self) -> Self {
        Self {
            slot: self.slot,
            tally: self.tally.clone(),
            id: self.id.clone(),
            epoch: self.epoch,
            layout: self.layout,
            capacity: self.capacity,
            load: self.load,
            joined: self.joined.clone(),
            sender: self.sender.clone(),
        }
    }
}

impl<Out> Up<Out> {
    /// What a story says of it.
    pub(crate) fn part(&self) -> Part {
        Part { slot: self.slot, id: self.id.clone(), tally: self.tally.clone() }
    }

    /// Tokens that its pool holds.
    pub(crate) fn pool_tokens(&self) -> u32 {
        self.capacity.pages.saturating_mul(self.layout.geometry.page_tokens)
    }
}

impl<Out: Message> Server<Out> {
    /// A server that has not answered yet.
    pub(crate) fn new((slot, address): (usize, String)) -> Self {
        let state = Mutex::new(State::Down("not reached yet".into(), None));
        Self { address, slot, tally: Arc::default(), state }
    }

    /// Its link and numbers now, if it is up.
    pub(crate) fn up(&self) -> Option<Arc<Up<Out>>> {
        match &*self.lock() {
            State::Up(up) => Some(up.clone()),
            State::Down(..) => None,
        }
    }

    /// What it is or was called, if it was ever up.
    pub(crate) fn id(&self) -> Option<ServerId> {
        match &*self.lock() {
            State::Up(up) => Some(up.id.clone()),
            State::Down(_, id) => id.clone(),
        }
    }

    /// Why it is down, if it is.
    pub(crate) fn down_reason(&self) -> Option<String> {
        match &*self.lock() {
            State::Up(_) => None,
            State::Down(why, _) => Some(format!("{}: {why}", self.address)),
        }
    }

    /// All that is known of it, for `/server_info`.
    pub(crate) fn describe(&self) -> Value {
        let address = &self.address;
        match self.up() {
            None => json!({ "address": address, "up": false, "why": self.down_reason() }),
            Some(up) => json!({
                "address": address,
                "up": true,
                "id": up.id.as_str(),
                "epoch": up.epoch.to_string(),
                "joined": up.joined.iter().map(Epoch::to_string).collect::<Vec<_>>(),
                "pages": up.capacity.pages,
                "pages_available": up.load.pages_available,
                "page_size": up.layout.geometry.page_tokens,
                "context_length": up.capacity.context_length,
                "queued": up.load.queued,
                "running": up.load.running,
                "tokens": up.load.tokens,
            }),
        }
    }

    /// Changes what is known of it, if it is up.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Up<Out>)) {
        if let State::Up(up) = &mut *self.lock() {
            change(Arc::make_mut(up));
        }
    }

    /// Counts tokens on an incarnation, until its next report does: a burst is spread all the same.
    pub(crate) fn count(&self, epoch: Epoch, tokens: u32) {
        self.update(|up| {
            if up.epoch == epoch {
                up.load.tokens = up.load.tokens.saturating_add(tokens);
            }
        });
    }

    /// Keeps the link up for ever. `hear` gets each message; `changed` is called when the server
    /// comes and, with its epoch, when it goes.
    pub(crate) async fn keep<In: Message>(
        self: Arc<Self>,
        role: Role,
        local: Arc<Local>,
        hear: impl Fn(&Self, In),
        changed: impl Fn(Option<Epoch>),
    ) {
        let mut pause = Backoff::default();
        loop {
            let why = match dial(&self.address, role, &local).await {
                Err(error) => error.to_string(),
                Ok(session) => {
                    let began = Instant::now();
                    let (id, epoch) = (session.peer.id.clone(), session.peer.epoch);
                    let (Some(layout), Some(capacity)) = (session.layout, session.capacity) else {
                        unreachable!("an acceptor's Welcome carries both")
                    };
                    let (sender, mut receiver) = session.start::<Out, In>(OUTBOX);
                    let (load, joined) = (Load::default(), Arc::default());
                    let (slot, tally) = (self.slot, self.tally.clone());
                    let up = Up { slot, tally, id, epoch, layout, capacity, load, joined, sender };
                    tracing::info!(%role, id = %up.id, %epoch, address = %self.address, "server up");
                    *self.lock() = State::Up(Arc::new(up));
                    changed(None);
                    let error = loop {
                        match receiver.recv().await {
                            Ok(message) => hear(&self, message),
                            Err(error) => break error,
                        }
                    };
                    self.note_down(error.to_string());
                    changed(Some(epoch));
                    if began.elapsed() >= HELD {
                        pause = Backoff::default();
                    }
                    error.to_string()
                }
            };
            tracing::debug!(%role, address = %self.address, %why, "server down");
            self.note_down(why);
            tokio::time::sleep(pause.next()).await;
        }
    }

    fn note_down(&self, why: String) {
        let mut state = self.lock();
        let id = match &*state {
            State::Up(up) => Some(up.id.clone()),
            State::Down(_, id) => id.clone(),
        };
        *state = State::Down(why, id);
    }

    fn lock(&self) -> MutexGuard<'_, State<Out>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pauses between dials: doubling, so that a restart is found within half a second.
#[derive(Default)]
struct Backoff(u32);

impl Backoff {
    fn next(&mut self) -> Duration {
        self.0 = (self.0 + 1).min(5);
        Duration::from_millis(10 << self.0)
    }
}
