//! Which calls are being answered, by the name that the client knows.
//!
//! 1. [`InFlight::hold`] enters a call with the ids of its requests.
//! 2. [`Held`] lives as long as its answers are read; its drop takes the call out.
//!
//! Bound: one entry a call, and the fleet bounds requests.

use crate::ring::bare_name;
use foldhash::fast::RandomState;
use shared::ids::RequestId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The calls. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Mutex<Calls>>);

#[derive(Debug, Default)]
struct Calls {
    next: u64,
    by_number: HashMap<u64, Call, RandomState>,
}

/// A call's names and its requests.
type Call = (Vec<Arc<str>>, Vec<RequestId>);

/// A call's entry.
#[derive(Debug)]
pub struct Held {
    calls: InFlight,
    number: u64,
}

impl InFlight {
    /// Enters a call by all its names: its own, and those of its requests.
    pub fn hold(&self, names: Vec<Arc<str>>, ids: Vec<RequestId>) -> Held {
        let mut calls = self.lock();
        calls.next += 1;
        let number = calls.next;
        calls.by_number.insert(number, (names, ids));
        Held { calls: self.clone(), number }
    }

    /// Requests of the calls of that name, with or without the prefix of an API's ids.
    pub fn requests(&self, name: &str) -> Vec<RequestId> {
        let bare = bare_name(name);
        let calls = self.lock();
        let is_it = |own: &Arc<str>| **own == *name || **own == *bare;
        let named = calls.by_number.values().filter(|(names, _)| names.iter().any(is_it));
        named.flat_map(|(_, ids)| ids.iter().copied()).collect()
    }

    /// How many calls there are.
    pub fn count(&self) -> usize {
        self.lock().by_number.len()
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.calls.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::Epoch;

    #[test]
    fn a_call_is_known_by_its_name_until_it_is_dropped() {
        let (calls, id) = (InFlight::default(), |n| RequestId::new(Epoch::new(1), n));
        let first = calls.hold(vec!["abc".into(), "d".into()], vec![id(1), id(2)]);
        let _second = calls.hold(vec!["abc".into()], vec![id(3)]);
        let mut all = calls.requests("chatcmpl-abc");
        all.sort_unstable();
        assert_eq!(all, [id(1), id(2), id(3)]);
        assert!(calls.requests("ab").is_empty());
        assert_eq!(calls.requests("d").len(), 2);
        drop(first);
        assert_eq!(calls.requests("abc"), [id(3)]);
        assert_eq!(calls.count(), 1);
    }
}
