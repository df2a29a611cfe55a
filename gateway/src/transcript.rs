//! One output as it grows: tokens in, shown text out.
//!
//! 1. [`Transcript::take`] counts tokens, turns them into text and looks for stop strings. Once a
//!    stop string is there the output has ended: later tokens are neither shown nor counted.
//! 2. [`Transcript::finish`] ends it the way the servers say, and lets held-back text out.
//! 3. [`Output`] collects deltas for answers that are sent whole or cumulatively.
//!
//! A stop id is counted and reported among the tokens; its text is shown only on demand.

use crate::detokenize::Detokenizer;
use crate::pieces::Pieces;
use crate::stop::StopMatcher;
use crate::validate::Ask;
use shared::ids::TokenId;
use shared::request::{Finish, Request, Token};
use std::sync::Arc;

/// Tokens of a call, as the client is billed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens made, the stop id among them.
    pub completion: u32,
    /// Prompt tokens that did not have to be computed.
    pub cached: u32,
}

/// How an output ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Stop or length.
    pub finish: Finish,
    /// What stopped it.
    pub matched: Option<Matched>,
}

/// What stopped an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matched {
    /// A stop id.
    Id(TokenId),
    /// A stop string.
    Text(String),
}

/// What came new.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// Which output of the call.
    pub index: usize,
    /// Text that is now certain.
    pub text: String,
    /// Tokens that were counted; their text may still be held back.
    pub tokens: Vec<Token>,
    /// What was read of the prompt's own tokens; all of it is in the first delta.
    pub prompt: Vec<Token>,
    /// Usage so far.
    pub usage: Usage,
    /// Present on the last delta.
    pub ending: Option<Ending>,
}

/// Follows one output.
#[derive(Debug)]
pub struct Transcript {
    index: usize,
    first: bool,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    stop_ids: Vec<TokenId>,
    min_tokens: u32,
    include_stop: bool,
    stopped_by: Option<TokenId>,
    /// Read, and in no delta yet.
    prompt: Vec<Token>,
    usage: Usage,
}

impl Transcript {
    /// For output number `index` of a call, `first` of its prompt's, which the prompt counts to.
    pub fn new(
        (index, first): (usize, bool),
        ask: &Ask,
        request: &Request,
        pieces: &Arc<Pieces>,
    ) -> Self {
        Self {
            index,
            first,
            detokenizer: Detokenizer::new(Arc::clone(pieces), ask.skip_special()),
            stops: StopMatcher::new(ask.stop().to_vec(), ask.include_stop()),
            stop_ids: request.stop_ids.clone(),
            min_tokens: request.min_tokens,
            include_stop: ask.include_stop(),
            stopped_by: None,
            prompt: Vec::new(),
            usage: Usage { prompt: if first { request.prompt_len } else { 0 }, ..Usage::default() },
        }
    }

    /// Takes the next tokens. A delta with an ending is the last.
    pub fn take(&mut self, tokens: Vec<Token>) -> Delta {
        let mut text = String::new();
        let mut counted = Vec::with_capacity(tokens.len());
        for token in tokens {
            let id = token.id;
            let made = self.usage.completion;
            self.usage.completion += 1;
            counted.push(token);
            if made >= self.min_tokens && self.stop_ids.contains(&id) {
                self.stopped_by = Some(id);
                if !self.include_stop {
                    break;
                }
            }
            let piece = self.detokenizer.push(id);
            if self.usage.completion <= self.min_tokens {
                text.push_str(&self.stops.pass(&piece));
                continue;
            }
            let passed = self.stops.push(piece);
            match text.is_empty() {
                true => text = passed.text,
                false => text.push_str(&passed.text),
            }
            if let Some(stop) = passed.stop {
                let matched = Some(Matched::Text(self.stops.stop(stop).to_owned()));
                let ending = Some(Ending { finish: Finish::Stop, matched });
                return self.delta(text, counted, ending);
            }
        }
        self.delta(text, counted, None)
    }

    /// So many tokens of the prompt were cached.
    pub fn cached(&mut self, tokens: u32) {
        if self.first {
            self.usage.cached = tokens;
        }
    }

    /// The next of the prompt's own tokens; all of them come before the first output.
    pub fn read(&mut self, tokens: Vec<Token>) {
        self.prompt.extend(tokens);
    }

    /// The output has ended.
    pub fn finish(&mut self, finish: Finish) -> Delta {
        let matched = match finish {
            Finish::Stop => self.stopped_by.map(Matched::Id),
            Finish::Length => None,
        };
        let text = self.stops.finish();
        self.delta(text, Vec::new(), Some(Ending { finish, matched }))
    }

    fn delta(&mut self, text: String, tokens: Vec<Token>, ending: Option<Ending>) -> Delta {
        let (index, prompt, usage) = (self.index, std::mem::take(&mut self.prompt), self.usage);
        Delta { index, text, tokens, prompt, usage, ending }
    }
}

/// An output so far.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// All text.
    pub text: String,
    /// All tokens counted.
    pub tokens: Vec<Token>,
    /// What was read of the prompt's own tokens.
    pub prompt: Vec<Token>,
    /// Usage.
    pub usage: Usage,
    /// Present once it has ended.
    pub ending: Option<Ending>,
}

impl Output {
    /// Adds the next delta.
    pub fn add(&mut self, delta: Delta) {
        self.text.push_str(&delta.text);
        self.tokens.extend(delta.tokens);
        self.prompt.extend(delta.prompt);
        self.usage = delta.usage;
        self.ending = delta.ending;
    }

    /// How probable it was, as a log-probability a token: what `best_of` ranks by, as OpenAI has
    /// it.
    pub fn mean_logprob(&self) -> f64 {
        let sum: f64 = self.tokens.iter().map(|token| f64::from(token.logprob)).sum();
        sum / self.tokens.len().max(1) as f64
    }

    /// The whole output as if it had come at once.
    pub fn into_delta(self, index: usize) -> Delta {
        let Self { text, tokens, prompt, usage, ending } = self;
        Delta { index, text, tokens, prompt, usage, ending }
    }
}
