//! One request's mailbox: what servers said of it, merged, so that no server waits for a client.
//!
//! Bound: tokens are merged and at most the request's `max_tokens`, what is read of the prompt is
//! said of each of its tokens once; every other note comes at most once a stage and attempt, and
//! notes of other attempts are not delivered.

use shared::ids::{Epoch, TicketId};
use shared::request::{Finish, Read, Token};
use shared::wire::handshake::Role;
use shared::wire::messages::{Fault, Refusal};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What a journey hears.
#[derive(Debug, PartialEq)]
pub(crate) enum Note {
    /// Decode promised pages.
    Ticket(TicketId),
    /// Prefill has queued it.
    Accepted,
    /// A server did not take it.
    Refused(Role, Refusal),
    /// The next part of what is read of the prompt.
    Read(Read),
    /// Output, how many prompt tokens were cached for it, and how it ended.
    Tokens { cached: u32, tokens: Vec<Token>, finish: Option<Finish> },
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

/// Notes in order, consecutive tokens merged. One journey receives; any link delivers.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    notes: Mutex<VecDeque<Note>>,
    arrived: Notify,
}

impl Mailbox {
    /// Adds a note; never waits.
    pub(crate) fn deliver(&self, note: Note) {
        {
            let mut notes = self.lock();
            match (notes.back_mut(), note) {
                (
                    Some(Note::Tokens { tokens, finish: finish @ None, .. }),
                    Note::Tokens { tokens: more, finish: last, .. },
                ) => {
                    tokens.extend(more);
                    *finish = last;
                }
                (_, note) => notes.push_back(note),
            }
        }
        self.arrived.notify_one();
    }

    /// The oldest note, waiting for one. Cancel safe.
    pub(crate) async fn next(&self) -> Note {
        loop {
            if let Some(note) = self.lock().pop_front() {
                return note;
            }
            self.arrived.notified().await;
        }
    }

    /// Drops what was said of an attempt that is over.
    pub(crate) fn forget_attempt(&self) {
        self.lock().retain(|note| matches!(note, Note::Abort | Note::Lost(_)));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
