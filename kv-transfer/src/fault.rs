//! Fault knobs of the loopback transport: what goes wrong, and exactly when.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What happens to a put, chosen by its number on its link, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The link breaks when it comes to this put.
    Break,
    /// The put is swallowed: no byte moves and no event comes until the link closes.
    Lose,
    /// The first byte arrives with its lowest bit flipped.
    Corrupt,
}

/// Fault knobs of a source's links; may be turned while they run.
#[derive(Default)]
pub struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    by_put: HashMap<u64, Fault>,
    /// Pieces (of at most 64 KiB) that may still pass; `None` for no limit.
    passes: Option<u64>,
    /// Whether a link came to the end of `passes`.
    frozen: bool,
}

impl Faults {
    /// What becomes of the put with this number; [`Fault::Lose`] must be set before it is queued.
    pub fn on_put(&self, number: u64, fault: Fault) {
        self.lock().by_put.insert(number, fault);
    }

    /// Links freeze after copying this many more pieces of at most 64 KiB.
    pub fn freeze_after(&self, pieces: u64) {
        let mut state = self.lock();
        (state.passes, state.frozen) = (Some(pieces), false);
    }

    /// Lets frozen links go on.
    pub fn thaw(&self) {
        let mut state = self.lock();
        (state.passes, state.frozen) = (None, false);
        self.changed.notify_all();
    }

    /// Returns once a link is frozen, or `false` after `limit`.
    pub fn wait_frozen(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.frozen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.wait(state, left);
        }
        true
    }

    /// Whether a piece may pass; waits at most `wait` while frozen.
    pub(crate) fn pass_piece(&self, wait: Duration) -> bool {
        let mut state = self.lock();
        if state.passes == Some(0) {
            state.frozen = true;
            self.changed.notify_all();
            state = self.wait(state, wait);
        }
        match &mut state.passes {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    pub(crate) fn take(&self, put: u64) -> Option<Fault> {
        self.lock().by_put.remove(&put)
    }

    pub(crate) fn loses(&self, put: u64) -> bool {
        let mut state = self.lock();
        let loses = state.by_put.get(&put) == Some(&Fault::Lose);
        if loses {
            state.by_put.remove(&put);
        }
        loses
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }
}
