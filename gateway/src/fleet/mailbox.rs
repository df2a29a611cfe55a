//! One request's mailbox: what servers said of it, so that no server waits for a client.
//!
//! What is read of the prompt, then tokens go straight to the client's [`Line`], and its journey
//! sleeps on. The journey hears all else as [`Note`]s.
//!
//! 1. [`Mailbox::open`]: from here on output is this attempt's. Decode's may overtake what prefill
//!    has read, since it comes by another link; it is held until all of that is told.
//! 2. [`Mailbox::close`]: no more is told. What was told is what [`Mailbox::take_told`] gives to
//!    the next attempt: no gap, no duplicate.
//!
//! Bound: output as the line has it, of which at most the request's `max_tokens` are held; every
//! note comes at most once a stage and attempt, and notes of other attempts are not delivered.

use crate::ring::{Event, Line};
use shared::ids::{Epoch, TicketId, TokenId};
use shared::request::{Finish, Read, Token};
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

/// What a client was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// It is of the open attempt.
    pub(crate) counts: bool,
    /// If they are the attempt's first tokens: how long it has waited for them.
    pub(crate) first: Option<Duration>,
    /// Nothing follows.
    pub(crate) last: bool,
}

/// When the client was last told something in an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Heard {
    /// Of the prompt, and of no tokens yet.
    Read(Instant),
    /// Of tokens, or that there are none.
    Tokens(Instant),
}

/// Tokens, and how many of the prompt's were cached for them.
#[derive(Debug)]
struct Output {
    cached: u32,
    tokens: Vec<Token>,
    finish: Option<Finish>,
}

#[derive(Debug, Default)]
struct State {
    notes: VecDeque<Note>,
    open: bool,
    opened: Option<Instant>,
    /// Tokens of the prompt that are still to be told of before any output is.
    unread: u32,
    /// Output that came before all of that.
    early: Vec<Output>,
    /// How many of the prompt's tokens the open attempt has told of.
    read: u32,
    /// What it has made, as told.
    made: Vec<TokenId>,
    heard: Option<Heard>,
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

    /// Tells the client what was read of the prompt, and the output that waited for all of it.
    pub(crate) fn read(&self, read: Read) -> Told {
        let mut state = self.lock();
        let mut told = Told { counts: state.open, ..Told::default() };
        if !state.open {
            return told;
        }
        state.heard = Some(Heard::Read(Instant::now()));
        if let Read::Tokens(tokens) = &read {
            let tokens = tokens.len() as u32;
            state.read = state.read.saturating_add(tokens);
            state.unread = state.unread.saturating_sub(tokens);
        }
        self.line.leave([Event::Read(read)]);
        if state.unread == 0 {
            for output in std::mem::take(&mut state.early) {
                let now = self.tell(&mut state, output);
                (told.first, told.last) = (told.first.or(now.first), told.last | now.last);
            }
        }
        told
    }

    /// Tells the client of tokens, and all of the end; later if the prompt comes first.
    pub(crate) fn tokens(&self, cached: u32, tokens: Vec<Token>, finish: Option<Finish>) -> Told {
        let (mut state, output) = (self.lock(), Output { cached, tokens, finish });
        if state.open && state.unread > 0 {
            state.early.push(output);
            return Told { counts: true, ..Told::default() };
        }
        self.tell(&mut state, output)
    }

    fn tell(&self, state: &mut State, Output { cached, tokens, finish }: Output) -> Told {
        let mut told = Told { counts: state.open, ..Told::default() };
        if state.open {
            let now = Instant::now();
            told.first = match state.heard.replace(Heard::Tokens(now)) {
                Some(Heard::Tokens(_)) => None,
                _ => state.opened.map(|opened| now - opened),
            };
            told.last = finish.is_some();
            state.told_end = finish;
            state.made.extend(token_ids(&tokens));
            // A replay finds its own output cached; what counts is the prompt, once.
            let cached = (!std::mem::replace(&mut state.told_cached, true))
                .then_some(Event::Cached(cached.min(self.prompt_len)));
            let tokens = (!tokens.is_empty()).then_some(Event::Tokens(tokens));
            let events = cached.into_iter().chain(tokens);
            self.line.leave(events.chain(finish.map(Event::Finished)));
        }
        self.note_end(state, finish);
        told
    }

    fn note_end(&self, state: &mut State, finish: Option<Finish>) {
        if let Some(finish) = finish {
            state.notes.push_back(Note::Finished(finish));
            self.arrived.notify_one();
        }
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

    /// From now on output is told, once `unread` tokens of the prompt are.
    pub(crate) fn open(&self, unread: u32) {
        let mut state = self.lock();
        (state.open, state.opened) = (true, Some(Instant::now()));
        (state.unread, state.heard) = (unread, None);
    }

    /// From now on nothing is told. Gives the end, if the client was told of one.
    pub(crate) fn close(&self) -> Option<Finish> {
        let mut state = self.lock();
        state.open = false;
        for Output { finish, .. } in std::mem::take(&mut state.early) {
            self.note_end(&mut state, finish); // that server acknowledges no cancel
        }
        state.told_end
    }

    /// When the client was last told something in this attempt.
    pub(crate) fn heard(&self) -> Option<Heard> {
        self.lock().heard
    }

    /// What the attempt that was closed has told: tokens made, and how many of the prompt's.
    pub(crate) fn take_told(&self) -> (Vec<TokenId>, u32) {
        let mut state = self.lock();
        (std::mem::take(&mut state.made), std::mem::take(&mut state.read))
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
        mailbox.open(0);
        assert!(mailbox.tokens(9, vec![token(2)], None).first.is_some());
        assert!(mailbox.tokens(9, vec![token(3)], None).first.is_none());
        mailbox.deliver(Note::Retracted);
        assert_eq!(mailbox.next().await, Note::Retracted);
        assert_eq!(mailbox.close(), None);
        assert!(!mailbox.tokens(9, vec![token(4)], Some(Finish::Stop)).last);
        assert_eq!(mailbox.take_told(), ([2, 3].map(TokenId::new).to_vec(), 0));
        mailbox.forget_attempt();
        mailbox.open(0);
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

    #[tokio::test]
    async fn output_waits_for_what_is_read_of_the_prompt() {
        let line = Arc::<Line>::default();
        let mut answer = Answer::new(RequestId::new(Epoch::new(1), 1), line.clone());
        let mailbox = Mailbox::new(line, 4);
        let read = |ids: &[u32]| Read::Tokens(ids.iter().copied().map(token).collect());
        mailbox.open(3);
        mailbox.read(read(&[1]));
        assert!(!mailbox.tokens(0, vec![token(7)], Some(Finish::Stop)).last);
        assert!(matches!(mailbox.heard(), Some(Heard::Read(_))));
        assert_eq!(mailbox.close(), None);
        assert_eq!(mailbox.next().await, Note::Finished(Finish::Stop)); // in place of its cancel
        assert_eq!(mailbox.take_told(), (vec![], 1));
        mailbox.forget_attempt();
        mailbox.open(2);
        mailbox.tokens(0, vec![token(7)], None);
        assert!(mailbox.read(read(&[2])).first.is_none());
        mailbox.tokens(0, vec![token(8)], Some(Finish::Stop));
        let told = mailbox.read(read(&[3]));
        assert!(told.first.is_some() && told.last);
        assert_eq!(mailbox.next().await, Note::Finished(Finish::Stop));
        assert_eq!(mailbox.close(), Some(Finish::Stop));

        let mut told = vec![];
        while let Some(event) = answer.next().await {
            told.push(event);
        }
        let [one, two, three] = [1, 2, 3].map(|id| Event::Read(read(&[id])));
        let tokens = |id| Event::Tokens(vec![token(id)]);
        let (cached, finished) = (Event::Cached(0), Event::Finished(Finish::Stop));
        assert_eq!(told, [one, two, three, cached, tokens(7), tokens(8), finished]);
    }
}
