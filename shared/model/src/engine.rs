//! The seam between a server's step loop and whatever computes: one batch in, sampled tokens out.
//!
//! 1. The loop plans a [`Batch`] and calls [`Engine::launch`], which may return before the device
//!    is done.
//! 2. It calls [`Engine::collect`] for the results of the oldest launched step, in launch order.
//!    Where [`Engine::overlaps`], it launches the next step before: a row may name the token that a
//!    row of the step before draws. At most [`IN_FLIGHT`] steps are launched and not collected.
//! 3. Pages named in a launched batch stay untouched by anyone else until that step is collected.

use crate::sample::Mask;
use kernels::cuda::stream::Mark;
use kernels::cuda::{Adjusted, PagePool};
use shared::ids::{PageId, TokenId};
use shared::kv::PageStore;
use shared::request::{Read, Sampling, Token};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Most steps that are launched and not collected.
pub const IN_FLIGHT: usize = 2;

/// Rows of logits that a step should read at most beside those that are drawn from: each is as wide
/// as the vocabulary, and goes to the host.
pub const READ_ROWS: u32 = 128;

/// A row's new tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// These, at least one.
    Tokens(Vec<TokenId>),
    /// The one that this row of the step launched before draws.
    Drawn(usize),
}

impl Input {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Drawn(_) => 1,
        }
    }
    /// Whether there are none, which no engine takes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What one sequence contributes to a step.
#[derive(Clone, Debug)]
pub struct Row {
    /// New tokens; their keys and values are written to `pages`.
    pub input: Input,
    /// Tokens of this sequence whose keys and values are already in `pages`.
    pub start: u32,
    /// Page table: covers `start + input.len()` tokens, in order.
    pub pages: Vec<PageId>,
    /// Draw a token after the last new one; absent for all but the last chunk of a prompt.
    pub sample: Option<Sample>,
    /// What else is read of the new tokens.
    pub reads: Option<RowReads>,
}

/// What is read of a row's new tokens, beside the draw.
#[derive(Clone, Debug)]
pub enum RowReads {
    /// How probable each of `tokens` is, with `top` alternatives: the first one after the new token
    /// of index `first`, each other one after the next.
    Tokens {
        /// Of the row's new tokens.
        first: usize,
        /// At most as many as there are new tokens from `first` on.
        tokens: Vec<TokenId>,
        /// Alternatives to report.
        top: u8,
        /// Tokens to report beside them.
        ids: Vec<TokenId>,
    },
    /// How probable each of these is after the last new token.
    Next(Vec<TokenId>),
    /// The hidden state of the last new token.
    Last,
    /// The sum of the hidden states of all new tokens.
    Sum,
}

/// How a row's next token is drawn.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Temperature and filters.
    pub sampling: Sampling,
    /// Index of the drawn token in the request's output: the RNG counter.
    pub output_index: u32,
    /// Alternatives to report.
    pub logprobs: Option<u8>,
    /// Tokens to report beside them.
    pub logprob_ids: Arc<[TokenId]>,
    /// Tokens that are penalised or biased, ids ascending; see [`crate::sample::History`].
    pub adjusted: Arc<Vec<Adjusted>>,
    /// Tokens that a grammar allows; absent: all.
    pub mask: Option<Mask>,
}

impl Sample {
    /// No adjustments, nothing to report.
    pub fn new(sampling: Sampling, output_index: u32) -> Self {
        let (logprob_ids, adjusted) = (Arc::default(), Arc::default());
        Self { sampling, output_index, logprobs: None, logprob_ids, adjusted, mask: None }
    }
}

/// One step's work: prompt chunks and single decode tokens may be mixed.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Sequences, in any order.
    pub rows: Vec<Row>,
}

/// Layers of the pages that a step writes, which are complete before the step is.
#[derive(Clone)]
pub struct StepPart {
    /// Which.
    pub layers: Range<u32>,
    /// Once it is reached.
    pub after: Arc<Mark>,
}

/// A step that could not be computed; the server ends, peers see a death.
#[derive(Debug, thiserror::Error)]
#[error("engine: {0}")]
pub struct EngineError(pub String);

/// Computes steps over pages. One thread owns it.
pub trait Engine: Send {
    /// Vocabulary size: every token id in a batch is below it.
    fn vocab(&self) -> u32;
    /// Longest sequence the model is made for (`max_position_embeddings`).
    fn context_length(&self) -> u32;
    /// Names weights and architecture; part of page hashes and of the join check.
    fn fingerprint(&self) -> [u8; 32];
    /// Most rows of a step whose tokens are drawn.
    fn rows_max(&self) -> usize;
    /// Whether a launch returns before its step is done, so that the next one can be launched
    /// before it is collected.
    fn overlaps(&self) -> bool;
    /// The pages, shared with the transports.
    fn pages(&self) -> Arc<dyn PageStore>;
    /// The pool behind them, if it is in device memory, for transports that reach it there.
    fn device_pool(&self) -> Option<Arc<PagePool>> {
        None
    }
    /// Starts one step.
    ///
    /// # Errors
    /// If the device failed; the engine is unusable afterwards.
    fn launch(&mut self, batch: &Batch) -> Result<(), EngineError>;
    /// Whether [`Self::collect`] would return at once.
    ///
    /// # Errors
    /// As [`Self::launch`].
    fn is_ready(&mut self) -> Result<bool, EngineError> {
        Ok(true)
    }
    /// Waits a moment between two looks at [`Self::is_ready`], and no longer than until it is.
    ///
    /// # Errors
    /// As [`Self::launch`].
    fn rest(&mut self) -> Result<(), EngineError> {
        std::thread::yield_now();
        Ok(())
    }
    /// All layers of what the step launched last writes, in the order in which they are complete;
    /// empty where pages are complete only once the step is collected.
    fn parts(&self) -> &[StepPart] {
        &[]
    }
    /// Results of the oldest launched step: one entry a row, `None` where nothing was drawn.
    ///
    /// # Errors
    /// As [`Self::launch`]; also when nothing was launched.
    fn collect(&mut self) -> Result<Vec<Option<Token>>, EngineError>;
    /// What the step collected last has read: one entry a row, or none at all where no row asked.
    /// They are given once.
    fn read(&mut self) -> Vec<Option<Read>> {
        Vec::new()
    }
    /// When the device was done with the step collected last, for a story, if it can tell; it may
    /// wait for what was launched since.
    ///
    /// # Errors
    /// As [`Self::launch`].
    fn computed_at(&self) -> Result<Option<Instant>, EngineError> {
        Ok(None)
    }
}
