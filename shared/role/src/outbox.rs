//! What goes out to gateways, so that the engine thread never waits for one.
//!
//! 1. The loop calls [`Outboxes::push`]; nothing is sent yet.
//! 2. Before and after a step it calls [`Outboxes::flush`]: what the links take is sent, in order.
//!    The rest waits, and later messages may merge into it.
//!
//! Bound: every message comes at most once a stage of a request that this server holds, but for
//! tokens, which merge a request and are at most its `max_tokens`, and for what is read of its
//! prompt, which is said of each prompt token at most once.

use link::{SendError, Sender};
use shared::ids::Epoch;
use shared::wire::messages::Message;
use std::collections::{HashMap, VecDeque};

/// Merges a message into the one before it, or gives it back.
pub type Merge<M> = fn(&mut M, M) -> Option<M>;

/// One outbox a gateway.
#[derive(Debug)]
pub struct Outboxes<M> {
    by_gateway: HashMap<Epoch, Outbox<M>>,
    merge: Merge<M>,
}

#[derive(Debug)]
struct Outbox<M> {
    sender: Sender<M>,
    waiting: VecDeque<M>,
}

impl<M: Message + Clone> Outboxes<M> {
    /// None yet; `merge` joins what can be said in one message.
    pub fn new(merge: Merge<M>) -> Self {
        Self { by_gateway: HashMap::new(), merge }
    }

    /// A gateway has joined.
    pub fn join(&mut self, gateway: Epoch, sender: Sender<M>) {
        self.by_gateway.insert(gateway, Outbox { sender, waiting: VecDeque::new() });
    }

    /// A gateway is gone, with what it did not read.
    pub fn leave(&mut self, gateway: Epoch) {
        self.by_gateway.remove(&gateway);
    }

    /// Adds a message for a gateway; dropped if the gateway is gone.
    pub fn push(&mut self, gateway: Epoch, message: M) {
        let Some(outbox) = self.by_gateway.get_mut(&gateway) else { return };
        let left = match outbox.waiting.back_mut() {
            Some(last) => (self.merge)(last, message),
            None => Some(message),
        };
        outbox.waiting.extend(left);
    }

    /// Adds a message for every gateway.
    pub fn push_all(&mut self, message: &M) {
        for outbox in self.by_gateway.values_mut() {
            outbox.waiting.push_back(message.clone());
        }
    }

    /// Whether nothing waits and all that was sent is on the wire.
    pub fn is_written(&self) -> bool {
        let written = |outbox: &Outbox<M>| outbox.waiting.is_empty() && outbox.sender.is_written();
        self.by_gateway.values().all(written)
    }

    /// Sends what the links take now; whether something is left.
    pub fn flush(&mut self) -> bool {
        let mut left = false;
        for outbox in self.by_gateway.values_mut() {
            while let Some(message) = outbox.waiting.pop_front() {
                match outbox.sender.try_send(message) {
                    Ok(()) => {}
                    Err(SendError::Full(message)) => {
                        outbox.waiting.push_front(message);
                        left = true;
                        break;
                    }
                    Err(SendError::Closed(_)) => outbox.waiting.clear(), // `leave` follows
                }
            }
        }
        left
    }
}
