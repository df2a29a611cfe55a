//! What is read of a step's tokens beside the draws: hidden states, and log-probabilities of tokens
//! that are known.
//!
//! It follows the pass, on the same activations, [`ROWS`] rows at a time: gathered, normed and, for
//! log-probabilities, multiplied with the head; then they go to the host. It waits for the device,
//! so only a step whose rows ask pays for it.

use crate::engine::{Batch, READ_ROWS, RowReads};
use crate::forward::{Model, Scratch};
use crate::sample::Logprobs;
use kernels::cpu::Softmax;
use kernels::ops::{HostBatch, OpError, Ops};
use shared::request::Read;

/// Rows of a step that are gathered at once.
pub const ROWS: usize = READ_ROWS as usize;

/// A step's rows that are read.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Whose, and which of the step's tokens: hidden states.
    states: Vec<(usize, u32)>,
    /// Whose, and which of the step's tokens: rows of logits.
    logits: Vec<(usize, u32)>,
}

impl Wanted {
    /// What the rows of `batch` ask, which is `flat` in flat form.
    pub fn of(batch: &Batch, flat: &HostBatch) -> Self {
        let mut wanted = Self::default();
        for (row, (asks, segment)) in batch.rows.iter().zip(&flat.segments).enumerate() {
            let new = segment.first as u32..(segment.first + segment.len) as u32;
            let last = new.end - 1;
            match &asks.reads {
                None => {}
                Some(RowReads::Tokens { first, tokens, .. }) => {
                    let tokens = new.skip(*first).take(tokens.len());
                    wanted.logits.extend(tokens.map(|token| (row, token)));
                }
                Some(RowReads::Next(_)) => wanted.logits.push((row, last)),
                Some(RowReads::Last) => wanted.states.push((row, last)),
                Some(RowReads::Sum) => wanted.states.extend(new.map(|token| (row, token))),
            }
        }
        wanted
    }

    /// Rows that room is needed for at once; 0 if nothing is asked.
    pub fn rows(&self) -> usize {
        self.states.len().max(self.logits.len()).min(ROWS)
    }
}

/// What reading needs beside the pass's activations.
pub struct Reader<'a, O: Ops> {
    pub ops: &'a O,
    pub model: &'a Model<O>,
    pub softmax: Softmax,
}

impl<O: Ops> Reader<'_, O> {
    /// Reads what the rows of `batch` ask, one entry a row; `scratch` is as the pass left it, with
    /// room for [`Wanted::rows`].
    pub fn read(
        &self,
        (batch, flat): (&Batch, &HostBatch),
        wanted: &Wanted,
        scratch: &mut Scratch<O>,
    ) -> Result<Vec<Option<Read>>, OpError> {
        let empty = |reads: &RowReads| match reads {
            RowReads::Tokens { .. } => Read::Tokens(Vec::new()),
            RowReads::Next(_) => Read::Next(Vec::new()),
            RowReads::Last | RowReads::Sum => Read::Hidden(vec![0.0; self.model.sizes.hidden]),
        };
        let mut out: Vec<_> = batch.rows.iter().map(|row| row.reads.as_ref().map(empty)).collect();
        let mut host = Vec::new();
        for piece in wanted.states.chunks(ROWS) {
            let gathered = self.gathered(flat, piece)?;
            self.model.states(self.ops, (&gathered, piece.len()), scratch)?;
            self.ops.download(scratch.states(), piece.len(), &mut host)?;
            let states = host.chunks_exact(self.model.sizes.hidden);
            for (&(row, _), state) in piece.iter().zip(states) {
                if let Some(Read::Hidden(sum)) = &mut out[row] {
                    sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += x);
                }
            }
        }
        let mut terms = vec![0.0; self.model.sizes.vocab];
        for piece in wanted.logits.chunks(ROWS) {
            let gathered = self.gathered(flat, piece)?;
            self.model.logits_of(self.ops, (&gathered, piece.len()), scratch)?;
            self.ops.download(&scratch.logits, piece.len(), &mut host)?;
            for (&(row, _), logits) in piece.iter().zip(host.chunks_exact(terms.len())) {
                let logprobs = Logprobs::new(self.softmax, logits, &mut terms);
                match (&batch.rows[row].reads, &mut out[row]) {
                    (Some(RowReads::Tokens { tokens, top, ids, .. }), Some(Read::Tokens(told))) => {
                        told.push(logprobs.token(tokens[told.len()], *top, ids));
                    }
                    (Some(RowReads::Next(ids)), Some(Read::Next(told))) => {
                        told.extend(logprobs.of_each(ids).map(|(_, logprob)| logprob));
                    }
                    _ => unreachable!("only these ask for logits"),
                }
            }
        }
        Ok(out)
    }

    /// The step's batch, with other tokens to gather.
    fn gathered(&self, flat: &HostBatch, piece: &[(usize, u32)]) -> Result<O::Batch, OpError> {
        let sampled = piece.iter().map(|&(_, token)| token).collect();
        self.ops.batch(HostBatch { sampled, ..flat.clone() })
    }
}
