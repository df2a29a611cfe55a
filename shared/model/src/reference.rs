//! The plain single-process loop: one sequence, its own pages, nothing shared.
//!
//! What the ring's tokens are held against, and the bare engine of the benchmarks.

use crate::engine::{Batch, Engine, EngineError, Input, Row, Sample};
use crate::sample::{Drawn, History};
use shared::ids::{PageId, TokenId};
use shared::request::{BadRequest, Request, RequestParts, Sampling};

/// An engine that can be looked into.
pub trait Observed: Engine {
    /// As [`Engine::collect`], with how close each draw was to another outcome.
    ///
    /// # Errors
    /// If nothing was launched, or the device failed.
    fn collect_drawn(&mut self) -> Result<Vec<Option<Drawn>>, EngineError>;
    /// Logits of the sampled rows of the last collected step, `[sampled][vocab]`.
    fn logits(&self) -> &[f32];
}

/// What to generate.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The prompt, at least one token.
    pub prompt: &'a [TokenId],
    /// Tokens to make, at most.
    pub max_tokens: u32,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Tokens to make before a stop id can be drawn.
    pub min_tokens: u32,
    /// As [`RequestParts::logit_bias`].
    pub logit_bias: &'a [(TokenId, f32)],
    /// Any of these ends the sequence, itself included in the result.
    pub stop_ids: &'a [TokenId],
    /// Alternatives to report.
    pub logprobs: Option<u8>,
    /// As [`RequestParts::logprob_ids`].
    pub logprob_ids: &'a [TokenId],
    /// Prompt tokens of a step; 0 takes all at once.
    pub chunk: usize,
}

impl<'a> Ask<'a> {
    /// Greedy, in one chunk, without stops.
    pub fn greedy(prompt: &'a [TokenId], max_tokens: u32) -> Self {
        Self {
            prompt,
            max_tokens,
            sampling: Sampling::GREEDY,
            min_tokens: 0,
            logit_bias: &[],
            stop_ids: &[],
            logprobs: None,
            logprob_ids: &[],
            chunk: 0,
        }
    }

    fn request(&self) -> Result<Request, EngineError> {
        let parts = RequestParts {
            tokens: self.prompt.to_vec(),
            prompt_len: self.prompt.len() as u32,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            sampling: self.sampling,
            logit_bias: self.logit_bias.to_vec(),
            stop_ids: self.stop_ids.to_vec(),
            logprobs: self.logprobs,
            logprob_ids: self.logprob_ids.to_vec(),
            salt: String::new(),
            priority: 0,
            grammar: None,
            reads: None,
        };
        parts.try_into().map_err(|bad: BadRequest| EngineError(bad.to_string()))
    }
}

/// Runs one sequence to its end on pages `0..`, which must be free.
///
/// # Errors
/// [`EngineError`] if the ask is no [`Request`], the sequence does not fit the pool or the engine
/// fails.
pub fn generate(engine: &mut impl Observed, ask: &Ask<'_>) -> Result<Vec<Drawn>, EngineError> {
    let page_tokens = engine.pages().geometry().page_tokens;
    let table = |tokens: u32| (0..tokens.div_ceil(page_tokens)).map(PageId::new).collect();
    let mut step = |tokens: &[TokenId], start: u32, sample: Option<Sample>| {
        let pages = table(start + tokens.len() as u32);
        let input = Input::Tokens(tokens.to_vec());
        let row = Row { input, start, pages, sample, reads: None };
        engine.launch(&Batch { rows: vec![row] })?;
        let mut drawn = engine.collect_drawn()?;
        Ok::<_, EngineError>(drawn.pop().flatten())
    };
    let mut history = History::new(&ask.request()?);
    let mut made: Vec<Drawn> = Vec::new();
    let mut start = 0;
    let mut pending = ask.prompt.to_vec();
    while (made.len() as u32) < ask.max_tokens {
        let chunk = if ask.chunk == 0 { pending.len() } else { ask.chunk.min(pending.len()) };
        let rest = pending.split_off(chunk);
        let wanted = rest.is_empty().then(|| history.sample(0));
        let drawn = step(&pending, start, wanted)?;
        start += pending.len() as u32;
        pending = rest;
        if let Some(drawn) = drawn {
            pending = vec![drawn.token.id];
            history.push(drawn.token.id);
            let stops = ask.stop_ids.contains(&drawn.token.id);
            made.push(drawn);
            if stops {
                break;
            }
        }
    }
    Ok(made)
}
