//! Walk 7/12. Before: `prefill-server/src/intake.rs`. After: `prefill-server/src/step.rs`.
//!
//! Prefill's two decisions: whom to admit next ([`order`]), and what to compute in this step
//! ([`chunks`]).
//!
//! Admission goes down the order and stops at the first prompt whose pages are not there: a large
//! prompt is not passed over for ever by small ones. A policy that prefers some prompts to others
//! is bounded by age: one that was passed over [`STARVE_AFTER`] times goes first. So a prompt is
//! admitted after at most that many younger ones and those before it.

use super::budget::TokenBudget;
use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

/// After so many younger prompts were admitted before it, a prompt goes first.
pub const STARVE_AFTER: u32 = 64;

/// A prompt that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The caller's name for it.
    pub slot: usize,
    /// Position in the order of arrival; unique.
    pub arrival: u64,
    /// Length of the prompt.
    pub tokens: u32,
    /// Tokens of it that are cached here.
    pub matched: u32,
    /// Larger goes earlier under a policy by priority.
    pub priority: i32,
    /// How often a younger prompt was admitted before it: see [`Candidate::passed_by`].
    pub passed: u32,
}

impl Candidate {
    /// Notes that the prompt that arrived as number `arrival` was admitted while this one waits.
    pub const fn passed_by(&mut self, arrival: u64) {
        if arrival > self.arrival {
            self.passed = self.passed.saturating_add(1);
        }
    }

    const fn starved(&self) -> bool {
        self.passed >= STARVE_AFTER
    }
}

/// An order of admission: one small struct a policy.
pub trait Order {
    /// Sorts candidates, first to admit first. Ties go by arrival.
    fn sort(&self, candidates: &mut [Candidate]);
}

/// First come, first served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fcfs;

/// Longest prefix match first: what is cached is used before it is evicted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lpm;

impl Order for Fcfs {
    fn sort(&self, candidates: &mut [Candidate]) {
        candidates.sort_unstable_by_key(|c| c.arrival);
    }
}

impl Order for Lpm {
    fn sort(&self, candidates: &mut [Candidate]) {
        candidates.sort_unstable_by_key(|c| (Reverse(c.matched), c.arrival));
    }
}

/// A policy by its name in configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefillPolicy {
    /// [`Fcfs`]
    #[default]
    Fcfs,
    /// [`Lpm`]
    Lpm,
}

impl PrefillPolicy {
    /// Every policy.
    pub const ALL: [Self; 2] = [Self::Fcfs, Self::Lpm];

    /// The name in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fcfs => "fcfs",
            Self::Lpm => "lpm",
        }
    }

    fn order(self) -> &'static dyn Order {
        match self {
            Self::Fcfs => &Fcfs,
            Self::Lpm => &Lpm,
        }
    }
}

impl fmt::Display for PrefillPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no prefill policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("prefill policy {0:?}: want \"fcfs\" or \"lpm\"")]
pub struct UnknownPolicy(pub String);

impl FromStr for PrefillPolicy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        let found = Self::ALL.into_iter().find(|policy| policy.name() == name);
        found.ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}

/// Sorts the waiting prompts, first to admit first: starved ones by arrival, then the policy's
/// order.
pub fn order(policy: PrefillPolicy, candidates: &mut [Candidate]) {
    policy.order().sort(candidates);
    // Stable, so the policy's order holds among the others.
    candidates.sort_by_key(|c| if c.starved() { (false, c.arrival) } else { (true, 0) });
}

/// A prompt that is being computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefilling {
    /// The caller's name for it.
    pub slot: usize,
    /// Tokens that are in its pages already, matched or computed.
    pub start: u32,
    /// Tokens still to compute.
    pub remaining: u32,
}

/// Part of a prompt to compute in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whose.
    pub slot: usize,
    /// How many of its remaining tokens.
    pub tokens: u32,
}

/// Cuts this step's chunks, first come first: each prompt gets what is left of the budget. A chunk
/// ends on a page border or ends its prompt.
pub fn chunks(running: &[Prefilling], mut budget: TokenBudget) -> Vec<Chunk> {
    let mut plan = Vec::new();
    for prompt in running {
        let tokens = budget.take(prompt.start, prompt.remaining);
        if tokens > 0 {
            plan.push(Chunk { slot: prompt.slot, tokens });
        }
    }
    plan
}
