//! The sessions of a target whose writers store into its pool themselves.
//!
//! Each has a probe slot of its own, in which the writer leaves what only it was told, and may keep
//! something `K` for as long as it is open. A confirmed one knows its writer's process, which its
//! end hands out: pages stay in quarantine until that has ended.

use crate::offer::random;
use crate::{Kind, Proof, SessionId, TransferError, WriterProcess};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) struct Sessions<K> {
    kind: Kind,
    state: Mutex<State<K>>,
}

struct State<K> {
    last: u64,
    open: HashMap<SessionId, Session<K>>,
    free_slots: Vec<usize>,
}

struct Session<K> {
    probe: Probe,
    /// Lives as long as the session.
    #[expect(dead_code, reason = "kept, never used")]
    kept: K,
    writer: Option<WriterProcess>,
}

/// Where a session's writer shows that it reaches the pool, and what it is told to leave there.
#[derive(Clone, Copy)]
pub(crate) struct Probe {
    pub(crate) slot: usize,
    pub(crate) nonce: u64,
}

impl<K> Sessions<K> {
    /// Room for `slots` sessions.
    pub(crate) fn new(kind: Kind, slots: usize) -> Self {
        let free_slots = (0..slots).rev().collect();
        Self { kind, state: Mutex::new(State { last: 0, open: HashMap::new(), free_slots }) }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session, unless all slots are taken.
    pub(crate) fn open(&self, kept: K) -> Result<(SessionId, Probe), TransferError> {
        let nonce = u64::from_le_bytes(random(self.kind)?);
        let mut state = self.state();
        let Some(slot) = state.free_slots.pop() else {
            let reason = format!("{} sessions are open, the most", state.open.len());
            return Err(TransferError::Unavailable { transport: self.kind.name(), reason });
        };
        state.last += 1;
        let (session, probe) = (SessionId::new(state.last), Probe { slot, nonce });
        state.open.insert(session, Session { probe, kept, writer: None });
        Ok((session, probe))
    }

    /// Takes in the writer that `check` finds by the session's probe; ends the session if there is
    /// none.
    pub(crate) fn confirm(
        &self,
        session: SessionId,
        check: impl FnOnce(Probe) -> Result<WriterProcess, TransferError>,
    ) -> Result<(), TransferError> {
        let mut state = self.state();
        let entry = state.open.get_mut(&session);
        let entry = entry
            .ok_or_else(|| TransferError::malformed("session", &session, "an open session"))?;
        match check(entry.probe) {
            Ok(writer) => {
                entry.writer = Some(writer);
                Ok(())
            }
            Err(error) => {
                state.end(session);
                Err(error)
            }
        }
    }

    /// Ends a session, if it is open.
    pub(crate) fn end(&self, session: SessionId) -> Proof {
        self.state().end(session).map_or(Proof::Immediate, Proof::ProcessEnd)
    }
}

impl<K> State<K> {
    fn end(&mut self, session: SessionId) -> Option<WriterProcess> {
        let ended = self.open.remove(&session)?;
        self.free_slots.push(ended.probe.slot);
        ended.writer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_come_back() {
        let sessions = Sessions::new(Kind::Ucx, 2);
        let (first, one) = sessions.open(()).unwrap();
        let (second, two) = sessions.open(()).unwrap();
        assert!(first != second && one.slot != two.slot && one.nonce != two.nonce);
        let full = sessions.open(()).err().unwrap().to_string();
        assert!(full.contains("2 sessions are open"), "{full}");

        let refused = || TransferError::Refused { transport: "ucx", reason: "no".to_owned() };
        let wrong = sessions.confirm(first, |probe| {
            assert_eq!((probe.slot, probe.nonce), (one.slot, one.nonce));
            Err(refused())
        });
        assert!(matches!(wrong, Err(TransferError::Refused { .. })));
        let gone = sessions.confirm(first, |_| unreachable!("that session is over"));
        assert!(matches!(gone, Err(TransferError::Malformed { .. })));

        let (third, again) = sessions.open(()).unwrap();
        assert!(third != first && again.slot == one.slot, "a slot is used again, a number is not");
        for session in [second, third, first] {
            assert!(matches!(sessions.end(session), Proof::Immediate), "none was confirmed");
        }
    }
}
