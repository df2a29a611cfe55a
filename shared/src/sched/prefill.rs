//! Walk 7/12. Before: `prefill-server/src/intake.rs`. After: `prefill-server/src/step.rs`.
//!
//! Prefill's two decisions: whom to admit next ([`order`]), and what to compute in this step
//! ([`chunks`]).
//!
//! Admission goes down the order and stops at the first prompt whose pages are not there: a large
//! prompt is not passed over for ever by small ones. A policy that prefers some prompts to others
//! is bounded by age: one that was passed over [`STARVE_AFTER`] times goes first. So a prompt is
//! admitted after at most that many younger ones and those before it.
//!
//! A prompt of which more is being computed than is cached [`waits`] for that: of requests that
//! come together with one system prompt, the first computes it.

use super::budget::TokenBudget;
use crate::ids::TokenId;
use crate::scramble::scrambled;
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
    /// Tokens that it may make.
    pub max_tokens: u32,
    /// Larger goes earlier under [`Priority`].
    pub priority: i32,
    /// Its place under [`DfsWeight`], of [`super::dfs::ranks`].
    pub rank: u32,
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

/// Depth first through the cached tree, the branch with most waiting prompts first.
#[derive(Clone, Copy, Debug, Default)]
pub struct DfsWeight;

/// Longest output first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lof;

/// In an order that has nothing to do with the prompts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shuffled;

/// Highest priority first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Priority;

impl Order for DfsWeight {
    fn sort(&self, candidates: &mut [Candidate]) {
        candidates.sort_unstable_by_key(|c| (c.rank, c.arrival));
    }
}

impl Order for Lof {
    fn sort(&self, candidates: &mut [Candidate]) {
        candidates.sort_unstable_by_key(|c| (Reverse(c.max_tokens), c.arrival));
    }
}

impl Order for Shuffled {
    fn sort(&self, candidates: &mut [Candidate]) {
        candidates.sort_unstable_by_key(|c| (scrambled(c.arrival), c.arrival));
    }
}

impl Order for Priority {
    fn sort(&self, candidates: &mut [Candidate]) {
        candidates.sort_unstable_by_key(|c| (Reverse(c.priority), c.arrival));
    }
}

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
    /// [`DfsWeight`]
    DfsWeight,
    /// [`Lof`]
    Lof,
    /// [`Shuffled`]
    Random,
    /// [`Priority`]
    Priority,
}

impl PrefillPolicy {
    /// Every policy.
    pub const ALL: [Self; 6] =
        [Self::Fcfs, Self::Lpm, Self::DfsWeight, Self::Lof, Self::Random, Self::Priority];

    /// The name in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fcfs => "fcfs",
            Self::Lpm => "lpm",
            Self::DfsWeight => "dfs-weight",
            Self::Lof => "lof",
            Self::Random => "random",
            Self::Priority => "priority",
        }
    }

    fn order(self) -> &'static dyn Order {
        match self {
            Self::Fcfs => &Fcfs,
            Self::Lpm => &Lpm,
            Self::DfsWeight => &DfsWeight,
            Self::Lof => &Lof,
            Self::Random => &Shuffled,
            Self::Priority => &Priority,
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
#[error("prefill policy {0:?}: want fcfs, lpm, dfs-weight, lof, random or priority")]
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

/// Whether a prompt had better wait: one that is `being` computed has more whole pages in common
/// with it than are cached. It waits for those alone that are computed already, so it waits for an
/// end that comes, and one that was passed over too often does not.
pub fn waits<'a>(
    candidate: &Candidate,
    prompt: &[TokenId],
    mut being: impl Iterator<Item = &'a [TokenId]>,
    page_tokens: u32,
) -> bool {
    let matched = candidate.matched as usize;
    let next = matched..matched + page_tokens as usize;
    let shares = |other: &[TokenId]| {
        // Most prompts part in the first page that is not cached.
        prompt.get(next.clone()).is_some_and(|page| other.get(next.clone()) == Some(page))
            && prompt[..matched] == other[..matched]
    };
    !candidate.starved() && being.any(shares)
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
    /// First position whose row of logits is read beside what is drawn; beyond the prompt if none.
    pub reads_from: u32,
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
/// ends on a page border or ends its prompt. Rows that are read are bounded too, since each is as
/// wide as the vocabulary: at most `rows` of all chunks together, or a page's.
pub fn chunks(running: &[Prefilling], mut budget: TokenBudget, rows: u32) -> Vec<Chunk> {
    let page_tokens = budget.page_tokens();
    let mut rows = rows.max(page_tokens);
    let mut plan = Vec::new();
    for &Prefilling { slot, start, remaining, reads_from } in running {
        let unread = reads_from.saturating_sub(start);
        let mut most = TokenBudget::exactly(unread.saturating_add(rows), page_tokens);
        let tokens = budget.take(start, most.take(start, remaining));
        if tokens > 0 {
            rows -= tokens.saturating_sub(unread);
            plan.push(Chunk { slot, tokens });
        }
    }
    plan
}
