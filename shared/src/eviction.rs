//! Which cached pages go first when room is needed: one small struct a policy.
//!
//! The radix cache evicts leaf-first; a policy only ranks leaves by how they were used.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How a run of cached pages was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// When it was inserted.
    pub first: Duration,
    /// When it was last matched or inserted.
    pub last: Duration,
    /// How often it was matched.
    pub hits: u64,
    /// The highest priority that it was inserted for.
    pub priority: i32,
}

/// When pages are inserted, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// When.
    pub at: Duration,
    /// The priority of the request that computed them.
    pub priority: i32,
}

/// Ranks runs of cached pages for eviction.
pub trait Eviction: Send + fmt::Debug {
    /// The run with the smallest rank goes first.
    fn rank(&self, usage: &Usage) -> (u64, u64);
}

/// Least recently used first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lru;

/// Least often matched first; among equals the least recently used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lfu;

/// First inserted first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fifo;

/// Most recently used first: for prompts that come round in turn and do not all fit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mru;

/// Those of the lowest priority first, among equals the least recently used. Who only matches a run
/// does not raise its priority.
#[derive(Clone, Copy, Debug, Default)]
pub struct Priority;

impl Eviction for Fifo {
    fn rank(&self, usage: &Usage) -> (u64, u64) {
        (nanos(usage.first), 0)
    }
}

impl Eviction for Mru {
    fn rank(&self, usage: &Usage) -> (u64, u64) {
        (u64::MAX - nanos(usage.last), 0)
    }
}

impl Eviction for Lru {
    fn rank(&self, usage: &Usage) -> (u64, u64) {
        (nanos(usage.last), 0)
    }
}

impl Eviction for Lfu {
    fn rank(&self, usage: &Usage) -> (u64, u64) {
        (usage.hits, nanos(usage.last))
    }
}

impl Eviction for Priority {
    fn rank(&self, usage: &Usage) -> (u64, u64) {
        (usage.priority.abs_diff(i32::MIN).into(), nanos(usage.last))
    }
}

/// Since the server's start: 64 bits last 584 years.
const fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}

/// A policy by its name in configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EvictionPolicy {
    /// [`Lru`]
    #[default]
    Lru,
    /// [`Lfu`]
    Lfu,
    /// [`Fifo`]
    Fifo,
    /// [`Mru`]
    Mru,
    /// [`Priority`]
    Priority,
}

impl EvictionPolicy {
    /// Every policy.
    pub const ALL: [Self; 5] = [Self::Lru, Self::Lfu, Self::Fifo, Self::Mru, Self::Priority];

    /// The name in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::Fifo => "fifo",
            Self::Mru => "mru",
            Self::Priority => "priority",
        }
    }

    /// The policy itself.
    pub fn build(self) -> Box<dyn Eviction> {
        match self {
            Self::Lru => Box::new(Lru),
            Self::Lfu => Box::new(Lfu),
            Self::Fifo => Box::new(Fifo),
            Self::Mru => Box::new(Mru),
            Self::Priority => Box::new(Priority),
        }
    }
}

impl fmt::Display for EvictionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no eviction policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("eviction policy {0:?}: want lru, lfu, fifo, mru or priority")]
pub struct UnknownEviction(pub String);

impl FromStr for EvictionPolicy {
    type Err = UnknownEviction;

    fn from_str(name: &str) -> Result<Self, UnknownEviction> {
        let found = Self::ALL.into_iter().find(|policy| policy.name() == name);
        found.ok_or_else(|| UnknownEviction(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for policy in EvictionPolicy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        let error = "arc".parse::<EvictionPolicy>().unwrap_err();
        let wanted = "eviction policy \"arc\": want lru, lfu, fifo, mru or priority";
        assert_eq!(error.to_string(), wanted);
    }

    #[test]
    fn frequency_beats_recency_only_under_lfu() {
        let usage = |hits, last| {
            let (first, last) = (Duration::ZERO, Duration::from_secs(last));
            Usage { first, last, hits, priority: 0 }
        };
        let (old_hot, new_cold) = (usage(9, 1), usage(0, 2));
        assert!(Lru.rank(&old_hot) < Lru.rank(&new_cold));
        assert!(Lfu.rank(&new_cold) < Lfu.rank(&old_hot));
        assert!(Lfu.rank(&usage(9, 1)) < Lfu.rank(&usage(9, 2)));
        assert!(Mru.rank(&new_cold) < Mru.rank(&old_hot));
    }

    #[test]
    fn fifo_looks_at_the_insertion_alone() {
        let usage = |first, last| Usage {
            first: Duration::from_secs(first),
            last: Duration::from_secs(last),
            hits: last,
            priority: 0,
        };
        assert!(Fifo.rank(&usage(1, 9)) < Fifo.rank(&usage(2, 3)));
        assert_eq!(Fifo.rank(&usage(1, 9)), Fifo.rank(&usage(1, 2)));
    }

    #[test]
    fn priority_beats_recency() {
        let usage = |priority, last| {
            let (first, last) = (Duration::ZERO, Duration::from_secs(last));
            Usage { first, last, hits: 0, priority }
        };
        let ascending =
            [usage(i32::MIN, 9), usage(-1, 8), usage(0, 1), usage(0, 2), usage(i32::MAX, 0)];
        assert!(ascending.is_sorted_by(|a, b| Priority.rank(a) < Priority.rank(b)));
    }
}
