//! One request's mailbox: what servers said of it, so that no server waits for a client.
//!
//! Tokens go straight to the client's [`Line`], and its journey sleeps on. The journey hears all
//! else as [`Note`]s.
//!
//! 1. [`Mailbox::open`]: from here on tokens are this attempt's.
//! 2. [`Mailbox::close`]: no more are told. What was told is what [`Mailbox::take_made`] gives to
//!    the next attempt: no gap, no duplicate.
//!
//! Bound: tokens as the line has it; every note comes at most once a stage and attempt, and notes
//! of other attempts are not delivered.

use crate::ring::{Event, Line};
use shared::ids::{Epoch, TicketId, TokenId};
use shared::request::{Finish, Token};
use shared::wire::handshake::Role;
use shared::wire::messages::{Fault, Refusal, token_ids};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a journey hears.
#[derive(Debug, PartialEq)]
pub(crate) enum Note {
    /// Decode promised pages.
    Ticket(TicketId),
    /// A server did not take it.
    Refused(Role, Refusal),
    /// There is no more output; while the attempt is open the client has been told.
    Finished(Finish),
    /// A server gave up on it.
    Failed(Role, Fault),
    /// Decode took its pages back: replay.
    Retracted,
    /// A server has acknowledged the cancel.
    Cancelled(Role),
    /// The link to that incarnation ended.
    Lost(Epoch),
    /// Somebody asked for its end.
    Abort,
}

/// Notes in order. One journey receives; any link delivers.
#[derive(Debug)]
pub(crate) struct Mailbox {
    state: Mutex<State>,
    arrived: Notify,
    line: Arc<Line>,
    prompt_len: u32,
}

/// What a client was told by tokens.
pub(crate) struct Told {
    /// If they are the attempt's first: how long it has waited for them.
    pub(crate) first: Option<Duration>,
    /// Nothing follows.
    pub(crate) last: bool,
}

#[derive(Debug, Default)]
struct State {
    notes: VecDeque<Note>,
    open: bool,
    opened: Option<Instant>,
    /// What the open attempt has made.
    made: Vec<TokenId>,
    /// When its last tokens came.
    heard: Option<Instant>,
    told_cached: bool,
    /// The end that the client was told.
    told_end: Option<Finish>,
}

impl Mailbox {
    /// For a request with a prompt of `prompt_len` tokens, whose client reads `line`.
    pub(crate) fn new(line: Arc<Line>, prompt_len: u32) -> Self {
        Self { state: Mutex::default(), arrived: Notify::new(), line, prompt_len }
    }

    /// Adds a note; never waits.
    pub(crate) fn deliver(&self, note: Note) {
        self.lock().notes.push_back(note);
        self.arrived.notify_one();
    }

    /// Tells the client of tokens, and all of the end.
    pub(crate) fn tokens(&self, cached: u32, tokens: Vec<Token>, finish: Option<Finish>) -> Told {
        let mut state = self.lock();
        let mut told = Told { first: None, last: false };
        if state.open {
            let now = Instant::now();
            told.first = match state.heard.replace(now) {
                None => state.opened.map(|opened| now - opened),
                Some(_) => None,
            };
            told.last = finish.is_some();
            state.told_end = finish;
            state.made.extend(token_ids(&tokens));
            // A replay finds its own output cached; what counts is the prompt, once.
            let cached = (!std::mem::replace(&mut state.told_cached, true))
                .then_some(Event::Cached(cached.min(self.prompt_len)));
            let tokens = cached.into_iter().chain([Event::Tokens(tokens)]);
            self.line.leave(tokens.chain(finish.map(Event::Finished)));
        }
        if let Some(finish) = finish {
            state.notes.push_back(Note::Finished(finish));
            drop(state);
            self.arrived.notify_one();
        }
        told
    }

    /// The oldest note, waiting for one. Cancel safe.
    pub(crate) async fn next(&self) -> Note {
        loop {
            if let Some(note) = self.lock().notes.pop_front() {
                return note;
            }
            self.arrived.notified().await;
        }
    }

    /// From now on tokens are told.
    pub(crate) fn open(&self) {
        let mut state = self.lock();
        (state.open, state.opened, state.heard) = (true, Some(Instant::now()), None);
    }

    /// From now on no tokens are told. Gives the end, if the client was told of one.
    pub(crate) fn close(&self) -> Option<Finish> {
        let mut state = self.lock();
        state.open = false;
        state.told_end
    }

    /// When the attempt's last tokens came.
    pub(crate) fn heard(&self) -> Option<Instant> {
        self.lock().heard
    }

    /// What the attempt that was closed has told.
    pub(crate) fn take_made(&self) -> Vec<TokenId> {
        std::mem::take(&mut self.lock().made)
    }

    /// Drops what was said of an attempt that is over.
    pub(crate) fn forget_attempt(&self) {
        self.lock().notes.retain(|note| matches!(note, Note::Abort | Note::Lost(_)));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Answer;
    use shared::ids::RequestId;

    fn token(id: u32) -> Token {
        Token { id: TokenId::new(id), logprob: 0.0, top: vec![] }
    }

    #[tokio::test]
    async fn what_is_told_is_what_was_made_over_two_attempts() {
        let line = Arc::<Line>::default();
        let mut answer = Answer::new(RequestId::new(Epoch::new(1), 1), line.clone());
        let mailbox = Mailbox::new(line, 4);
        mailbox.tokens(4, vec![token(1)], None); // of no attempt
        mailbox.open();
        assert!(mailbox.tokens(9, vec![token(2)], None).first.is_some());
        assert!(mailbox.tokens(9, vec![token(3)], None).first.is_none());
        mailbox.deliver(Note::Retracted);
        assert_eq!(mailbox.next().await, Note::Retracted);
        assert_eq!(mailbox.close(), None);
        assert!(!mailbox.tokens(9, vec![token(4)], Some(Finish::Stop)).last);
        assert_eq!(mailbox.take_made(), [2, 3].map(TokenId::new));
        mailbox.forget_attempt();
        mailbox.open();
        assert!(mailbox.tokens(9, vec![token(5)], Some(Finish::Length)).last);
        assert_eq!(mailbox.next().await, Note::Finished(Finish::Length));
        assert_eq!(mailbox.close(), Some(Finish::Length));

        let mut told = vec![];
        while let Some(event) = answer.next().await {
            told.push(event);
        }
        let tokens = |id| Event::Tokens(vec![token(id)]);
        let finished = Event::Finished(Finish::Length);
        assert_eq!(told, [Event::Cached(4), tokens(2), tokens(3), tokens(5), finished]);
    }
}
