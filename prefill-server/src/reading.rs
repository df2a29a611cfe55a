//! What is told of a prompt itself: which rows of its chunks are read, and the way of what they say
//! to the gateway.
//!
//! 1. [`Job::row_reads`] asks with each chunk.
//! 2. [`Prefill::tell_read`] takes what the step has read. Log-probabilities go out step by step,
//!    so that no job holds more than a step's; hidden states are summed here and go out pooled.
//!
//! All of it is said before the result, or before the handoff that brings the first token.

use crate::job::Job;
use crate::step::Prefill;
use model::engine::RowReads;
use shared::request::{Pooling, Read, Reads};
use shared::wire::messages::{PrefillToGateway, RequestKey};

impl Job {
    /// What is read of the next chunk, of so many tokens.
    pub(crate) fn row_reads(&self, chunk: u32) -> Option<RowReads> {
        let (start, end) = (self.computed, self.computed + chunk);
        let last = end == self.len();
        match self.request.reads.as_ref()? {
            Reads::Logprobs { top, .. } => {
                // The row of a token says how probable the one after it was.
                let first = self.request.reads_from().max(start);
                let told = first.saturating_add(1)..self.request.prompt_len.min(end + 1);
                let told = told.start as usize..told.end as usize;
                let tokens = self.request.tokens.get(told)?;
                let (first, tokens, top) = ((first - start) as usize, tokens.to_vec(), *top);
                let ids = self.request.logprob_ids.clone();
                (!tokens.is_empty()).then_some(RowReads::Tokens { first, tokens, top, ids })
            }
            Reads::Next(ids) => last.then(|| RowReads::Next(ids.clone())),
            Reads::Hidden(Pooling::Last) => last.then_some(RowReads::Last),
            Reads::Hidden(Pooling::Mean) => Some(RowReads::Sum),
        }
    }

    /// Adds what a chunk has read; what is to be said of it now.
    fn take_read(&mut self, read: Read) -> Option<Read> {
        let Read::Hidden(states) = read else { return Some(read) };
        if self.states.is_empty() {
            self.states = states;
        } else {
            self.states.iter_mut().zip(states).for_each(|(sum, x)| *sum += x);
        }
        if !self.is_whole() {
            return None;
        }
        let mut pooled = std::mem::take(&mut self.states);
        if matches!(self.request.reads, Some(Reads::Hidden(Pooling::Mean))) {
            let len = self.len() as f32;
            pooled.iter_mut().for_each(|x| *x /= len);
        }
        Some(Read::Hidden(pooled))
    }
}

impl Prefill {
    /// A chunk of `key` has read something.
    pub(crate) fn tell_read(&mut self, key: RequestKey, read: Read) {
        let Some(job) = self.jobs.iter_mut().find(|job| job.key == key) else { return };
        if let Some(read) = job.take_read(read) {
            self.outboxes.push(key.id.gateway(), PrefillToGateway::Read { key, read });
        }
    }
}
