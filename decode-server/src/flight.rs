//! Steps that are launched and not collected.
//!
//! Where the engine overlaps, a step is launched before the one before it is collected, with the
//! tokens that that one draws. So a sequence may end, or be cancelled, while it is a row of a step
//! that still runs:
//! 1. [`Flight::launch`] notes a step's rows, and in each sequence that it is one.
//! 2. A sequence that leaves goes through [`Flight::part`]: its pages stay until its last step is
//!    collected, and what that step draws for it is dropped.
//! 3. [`Flight::collected`] gives back what the step was the last one for.

use crate::sequence::Sequence;
use shared::wire::messages::RequestKey;
use std::collections::VecDeque;

/// Where a sequence is in the steps that are launched and not collected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flying {
    /// How many of them it is in: tokens that are being made.
    pub(crate) steps: u32,
    /// Number of the last one.
    last: u64,
    /// Its row there.
    pub(crate) row: usize,
}

/// What a sequence leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    /// Nothing.
    Nothing,
    /// Its full pages, to the cache.
    Pages,
}

#[derive(Debug, Default)]
pub(crate) struct Flight {
    /// Their rows, oldest step first.
    steps: VecDeque<Vec<RequestKey>>,
    /// Steps launched so far; the number of the last one.
    launched: u64,
    parting: Vec<(Sequence, Leaves)>,
}

impl Flight {
    /// Launched and not collected.
    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether no step runs.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// A step was launched with these rows.
    pub(crate) fn launch<'a>(&mut self, rows: impl Iterator<Item = &'a mut Sequence>) {
        self.launched += 1;
        let note = |(row, sequence): (usize, &mut Sequence)| {
            let steps = sequence.flying.steps + 1;
            sequence.flying = Flying { steps, last: self.launched, row };
            sequence.key
        };
        self.steps.push_back(rows.enumerate().map(note).collect());
    }

    /// Takes a sequence that leaves, or gives it back if it is in no step.
    pub(crate) fn part(&mut self, sequence: Sequence, leaves: Leaves) -> Option<Sequence> {
        if sequence.flying.steps == 0 {
            return Some(sequence);
        }
        self.parting.push((sequence, leaves));
        None
    }

    /// The oldest step was collected: its rows, and the sequences that had parted and were in no
    /// later one.
    pub(crate) fn collected(&mut self) -> (Vec<RequestKey>, Vec<(Sequence, Leaves)>) {
        let rows = self.steps.pop_front().unwrap_or_default();
        let step = self.launched - self.steps.len() as u64;
        let parted = self.parting.extract_if(.., |(sequence, _)| sequence.flying.last <= step);
        (rows, parted.collect())
    }
}
