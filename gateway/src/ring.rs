//! The seam between HTTP and the fleet: a checked request goes in, events come out.
//!
//! 1. [`Ring::submit`] queues a request or refuses it at once.
//! 2. [`Answer::next`] yields [`Event`]s: any number of `Read`, `Cached`, any number of `Tokens`,
//!    then one `Finished` or `Failed`.
//! 3. Dropping an unfinished [`Answer`] cancels the request on both servers and frees its pages.
//!
//! Replays (retraction) happen behind this seam: the client sees a pause, no gap, no duplicate.

use crate::trace::Trace;
use shared::ids::RequestId;
use shared::request::{Finish, Read, Token};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// What the APIs put before a call's name in their ids.
const PREFIXES: [&str; 6] = ["chatcmpl-", "cmpl-", "msg_", "resp_", "embd-", "score-"];

/// A call's name, of the name itself or an API's id with it.
pub fn bare_name(id: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| id.strip_prefix(prefix)).unwrap_or(id)
}

/// The call that a request is part of.
#[derive(Debug, Clone)]
pub struct Origin {
    /// `x-request-id`.
    pub name: Arc<str>,
    /// When its headers were complete.
    pub arrived: Instant,
    /// Where it is in a trace.
    pub trace: Trace,
}

impl Origin {
    /// Of the call's request of this index, and of the client's own name for it if it has one: each
    /// has a span of its own, and the first the one that the client is told.
    #[must_use]
    pub fn of(&self, index: usize, name: Option<&str>) -> Self {
        let trace = if index == 0 { self.trace } else { self.trace.sibling() };
        let name = name.map_or_else(|| Arc::clone(&self.name), Arc::from);
        Self { name, trace, ..*self }
    }

    /// Whether it is known by this name, with or without the prefix of an API's ids.
    pub fn is_called(&self, name: &str) -> bool {
        *self.name == *name || *self.name == *bare_name(name)
    }
}

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

impl FailureKind {
    /// Every class.
    pub const ALL: [Self; 7] = [
        Self::TooLarge,
        Self::QueueFull,
        Self::NotReady,
        Self::PeerLost,
        Self::Aborted,
        Self::Deadline,
        Self::Internal,
    ];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::QueueFull => "queue_full",
            Self::NotReady => "not_ready",
            Self::PeerLost => "peer_lost",
            Self::Aborted => "aborted",
            Self::Deadline => "deadline",
            Self::Internal => "internal",
        }
    }
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
    line: Arc<Line>,
}

/// Events that wait one by one; tokens beyond are added to the last ones.
const WAITING: usize = 64;

/// Where events of one request are left for its [`Answer`]. Whoever leaves them never waits.
///
/// Bound: [`WAITING`] events, the last with at most the request's `max_tokens` or what is read of
/// its prompt.
#[derive(Debug, Default)]
pub struct Line(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    events: VecDeque<Event>,
    /// Nothing follows what is here.
    ended: bool,
    /// Nobody takes anything any more.
    dropped: bool,
    reader: Option<Waker>,
    teller: Option<Waker>,
}

impl Line {
    /// Leaves events; those after a last one are not told.
    pub fn leave(&self, events: impl IntoIterator<Item = Event>) {
        let mut told = self.lock();
        events.into_iter().for_each(|event| told.add(event));
        told.wake_reader();
    }

    /// Nothing follows; an [`Answer`] without a last event says so.
    pub fn end(&self) {
        let mut told = self.lock();
        told.ended = true;
        told.wake_reader();
    }

    /// Whether the answer is dropped.
    pub fn is_dropped(&self) -> bool {
        self.lock().dropped
    }

    /// Returns once the answer is dropped. Cancel safe; one at a time may wait.
    pub async fn dropped(&self) {
        poll_fn(|context| {
            let mut told = self.lock();
            if told.dropped {
                return Poll::Ready(());
            }
            told.teller = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn add(&mut self, event: Event) {
        if self.ended {
            return;
        }
        self.ended = matches!(event, Event::Finished(_) | Event::Failed(_));
        let full = self.events.len() >= WAITING;
        match (self.events.back_mut(), event) {
            (Some(Event::Tokens(tokens)), Event::Tokens(more))
            | (Some(Event::Read(Read::Tokens(tokens))), Event::Read(Read::Tokens(more)))
                if full =>
            {
                tokens.extend(more);
            }
            (_, event) => self.events.push_back(event),
        }
    }

    fn wake_reader(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
    }
}

impl Answer {
    /// An answer whose events are left on `line`.
    pub fn new(id: RequestId, line: Arc<Line>) -> Self {
        Self { id, line }
    }
    /// The request's id, for logs and `/abort_request`.
    pub fn id(&self) -> RequestId {
        self.id
    }
    /// The next event; `None` after `Finished` or `Failed`. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_next(context)).await
    }
    /// [`Self::next`], for streams.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut told = self.line.lock();
        match told.events.pop_front() {
            None if !told.ended => {
                told.reader = Some(context.waker().clone());
                Poll::Pending
            }
            event => Poll::Ready(event),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut told = self.line.lock();
        told.dropped = true;
        let teller = told.teller.take();
        drop(told);
        teller.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::{Epoch, TokenId};

    #[tokio::test]
    async fn a_slow_reader_gets_all_tokens_in_a_bounded_number_of_events() {
        let line = Arc::<Line>::default();
        let mut answer = Answer::new(RequestId::new(Epoch::new(1), 1), line.clone());
        let ids = (0..1000).map(TokenId::new);
        let token = |id| Token { id, logprob: 0.0, top: vec![] };
        line.leave(ids.clone().map(|id| Event::Read(Read::Tokens(vec![token(id)]))));
        line.leave(ids.clone().map(|id| Event::Tokens(vec![token(id)])));
        line.leave([Event::Finished(Finish::Stop), Event::Cached(1)]);
        let (mut events, mut read, mut got) = (0, vec![], vec![]);
        while let Some(event) = answer.next().await {
            events += 1;
            match event {
                Event::Read(Read::Tokens(tokens)) => read.extend(tokens.iter().map(|t| t.id)),
                Event::Tokens(tokens) => got.extend(tokens.iter().map(|t| t.id)),
                _ => {}
            }
        }
        assert_eq!(events, WAITING + 2);
        assert_eq!((&read, &got), (&ids.collect(), &read));
        assert!(!line.is_dropped());
        drop(answer);
        line.dropped().await;
    }

    #[tokio::test]
    async fn whoever_waits_hears_that_nothing_follows() {
        let line = Arc::<Line>::default();
        let mut answer = Answer::new(RequestId::new(Epoch::new(1), 1), line.clone());
        let reader = tokio::spawn(async move { answer.next().await });
        tokio::task::yield_now().await;
        line.end();
        assert_eq!(reader.await.unwrap(), None);
    }
}
