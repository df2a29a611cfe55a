//! The seam between HTTP and the fleet: a checked request goes in, events come out.
//!
//! 1. [`Ring::submit`] queues a request or refuses it at once.
//! 2. [`Answer::next`] yields [`Event`]s: any number of `Read`, `Cached`, any number of `Tokens`,
//!    then one `Finished` or `Failed`.
//! 3. Dropping an unfinished [`Answer`] cancels the request on both servers and frees its pages.
//!
//! Replays (retraction) happen behind this seam: the client sees a pause, no gap, no duplicate.

use shared::ids::RequestId;
use shared::request::{Finish, Read, Token};
use tokio::sync::mpsc;

/// What the fleet says of one request.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Comes before the first tokens: prompt tokens that did not have to be computed.
    Cached(u32),
    /// The next part of what is read of the prompt. A vector may come again, after a replay.
    Read(Read),
    /// New output tokens, in order. The stop id that ends a request is among them.
    Tokens(Vec<Token>),
    /// The request is done, by a stop id or by length; a stop string is HTTP's own affair.
    Finished(Finish),
    /// The request ended early; no more events follow.
    Failed(Failure),
}

/// Why a request ended without a result. The message is fit for a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the client may do about it.
    pub kind: FailureKind,
    /// One sentence: what happened, and the cure where there is one.
    pub message: String,
}

/// The classes of [`Failure`], each one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Prompt and max_tokens exceed the context or the largest pool: 400.
    TooLarge,
    /// The queue is full: 429 with Retry-After.
    QueueFull,
    /// No pair of ready servers: 503 with Retry-After.
    NotReady,
    /// A server died or timed out with the request on it: 502 before the first byte, an error
    /// event after.
    PeerLost,
    /// Ended by `/abort_request`.
    Aborted,
    /// A deadline of the request passed: 504.
    Deadline,
    /// A bug or a broken server: 500.
    Internal,
}

/// Limits of the fleet that validation needs; `None` until a pair of servers is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest prompt plus output, tokens: the least context length among ready servers.
    pub context_length: u32,
    /// Longest prompt plus output that fits the largest pool, tokens.
    pub pool_tokens: u32,
    /// Vocabulary size of the model the servers run.
    pub vocab: u32,
}

/// One request's events; dropping it early cancels the request.
#[derive(Debug)]
pub struct Answer {
    id: RequestId,
    events: mpsc::Receiver<Event>,
}

impl Answer {
    /// An answer whose events arrive on `events`; the sender notices when it is dropped.
    pub fn new(id: RequestId, events: mpsc::Receiver<Event>) -> Self {
        Self { id, events }
    }
    /// The request's id, for logs and `/abort_request`.
    pub fn id(&self) -> RequestId {
        self.id
    }
    /// The next event; `None` after `Finished` or `Failed`. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}
