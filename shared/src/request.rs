//! What a request asks for, once it has left the gateway: exact values, checked once.
//!
//! [`RequestParts`] is the loose shape (wire, builders); [`Request`] can only be made from parts
//! that fit, so no later stage checks again.

use crate::ids::TokenId;
use serde::{Deserialize, Serialize, Serializer};
use std::ops::Deref;

/// Longest sequence (prompt and output together) that any part of Tandem accepts, tokens.
pub const MAX_SEQUENCE: u32 = 1 << 20;
/// Most stop ids of one request.
pub const MAX_STOP_IDS: usize = 1024;
/// Most alternatives reported beside a sampled token.
pub const MAX_TOP_LOGPROBS: u8 = 20;
/// Most tokens with a bias of their own.
pub const MAX_LOGIT_BIAS: usize = 300;
/// Most tokens whose probabilities are asked for by id.
pub const MAX_NEXT: usize = 1024;
/// Longest cache salt, bytes.
pub const MAX_SALT: usize = 256;
/// Longest grammar of an output, bytes.
pub const MAX_GRAMMAR: usize = 1 << 18;

/// How the next token is drawn. `temperature == 0` is greedy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 to 2; logits are divided by it, 0 takes the best.
    pub temperature: f32,
    /// In (0, 1]: smallest set of best tokens whose probability reaches it.
    pub top_p: f32,
    /// Keep the best `top_k`; 0 keeps all.
    pub top_k: u32,
    /// In [0, 1]: drop tokens less probable than `min_p` times the best.
    pub min_p: f32,
    /// -2 to 2: taken from the logit of every token that the output has.
    pub presence_penalty: f32,
    /// -2 to 2: taken from a token's logit for every time that the output has it.
    pub frequency_penalty: f32,
    /// Above 0: logits of tokens that prompt or output have are divided by it where positive,
    /// multiplied where negative. 1 changes nothing.
    pub repetition_penalty: f32,
    /// Effective seed, drawn by the gateway if the client gave none. Token number `i` of the
    /// output depends on (seed, i) alone, so a replay continues exactly.
    pub seed: u64,
}

impl Sampling {
    /// Takes the most probable token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repetition_penalty: 1.0,
        seed: 0,
    };

    /// Whether what the output has changes what comes next beyond the model's own view of it.
    pub fn penalises(&self) -> bool {
        let Self { presence_penalty, frequency_penalty, repetition_penalty, .. } = *self;
        presence_penalty != 0.0 || frequency_penalty != 0.0 || repetition_penalty != 1.0
    }

    /// # Errors
    /// The first value out of range.
    fn check(&self) -> Result<(), BadRequest> {
        let bad =
            |field, value: f32, want| Err(BadRequest { field, value: value.to_string(), want });
        if !(0.0..=2.0).contains(&self.temperature) {
            return bad("temperature", self.temperature, "0 to 2");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", self.top_p, "above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("min_p", self.min_p, "0 to 1");
        }
        if !(-2.0..=2.0).contains(&self.presence_penalty) {
            return bad("presence_penalty", self.presence_penalty, "-2 to 2");
        }
        if !(-2.0..=2.0).contains(&self.frequency_penalty) {
            return bad("frequency_penalty", self.frequency_penalty, "-2 to 2");
        }
        if !(self.repetition_penalty.is_normal() && self.repetition_penalty > 0.0) {
            return bad("repetition_penalty", self.repetition_penalty, "a number above 0");
        }
        Ok(())
    }
}

/// What an output has to be: text that every server compiles for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grammar {
    /// JSON that this JSON schema describes.
    JsonSchema(String),
    /// All of it matches this regular expression.
    Regex(String),
    /// Derived from `start` of this grammar, in llguidance's dialect of Lark.
    Lark(String),
}

impl Grammar {
    /// The text, whatever it is.
    pub fn text(&self) -> &str {
        match self {
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) => text,
        }
    }
}

/// What is told of a prompt once it is computed, beside the tokens that follow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reads {
    /// How probable the prompt's own tokens were, each after those before it: from position `from`
    /// on, 1 to the prompt's length, where the latter reads none.
    Logprobs {
        /// The first token that is told of; the very first of a prompt follows nothing.
        from: u32,
        /// Alternatives to report.
        top: u8,
    },
    /// How probable each of these tokens is as the next one. No output.
    Next(Vec<TokenId>),
    /// The hidden state behind the last norm. No output.
    Hidden(Pooling),
}

/// How a prompt's hidden states become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pooling {
    /// That of the last token.
    Last,
    /// Their mean.
    Mean,
}

/// What was read of a prompt, or of the next part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Read {
    /// The next of the prompt's own tokens, in order.
    Tokens(Vec<Token>),
    /// Natural logs of the probabilities of the tokens that [`Reads::Next`] names, in its order.
    Next(Vec<f32>),
    /// The pooled hidden state, not normalised.
    Hidden(Vec<f32>),
}

/// A request as it crosses the wire; see [`Request`] for the checked form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestParts {
    /// The prompt, followed on a replay by the tokens that the client already has.
    pub tokens: Vec<TokenId>,
    /// Length of the client's prompt; the rest of `tokens` is output of earlier attempts.
    pub prompt_len: u32,
    /// Tokens still to make; 0 only of a prompt that is read.
    pub max_tokens: u32,
    /// Tokens still to make before a stop id can be drawn.
    pub min_tokens: u32,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// What is added to single tokens' logits: -100 to 100, ids ascending.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Any of these ends the request; empty under `ignore_eos` without own stop ids.
    pub stop_ids: Vec<TokenId>,
    /// Report log-probabilities, with this many alternatives.
    pub logprobs: Option<u8>,
    /// Tokens whose log-probabilities are reported beside those of every token that is told of,
    /// the prompt's own too.
    pub logprob_ids: Vec<TokenId>,
    /// Keeps cached pages of different tenants apart: part of every page hash.
    pub salt: String,
    /// Larger runs earlier, and its pages are evicted later, under the priority policies.
    pub priority: i32,
    /// What the output has to be. Once it is complete, only an end of sequence can be drawn.
    pub grammar: Option<Box<Grammar>>,
    /// What is told of the prompt itself.
    pub reads: Option<Reads>,
}

impl RequestParts {
    /// A prompt that is read and makes no token.
    pub fn reading(tokens: Vec<TokenId>, reads: Reads) -> Self {
        Self {
            prompt_len: tokens.len() as u32,
            tokens,
            max_tokens: 0,
            min_tokens: 0,
            sampling: Sampling::GREEDY,
            logit_bias: Vec::new(),
            stop_ids: Vec::new(),
            logprobs: None,
            logprob_ids: Vec::new(),
            salt: String::new(),
            priority: 0,
            grammar: None,
            reads: Some(reads),
        }
    }
}

/// A request that fits: see the checks in [`Request::try_from`].
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "RequestParts")]
pub struct Request(RequestParts);

/// Why parts are no request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field}: {value} does not fit; want {want}")]
pub struct BadRequest {
    /// Name of the offending field.
    pub field: &'static str,
    /// What it held.
    pub value: String,
    /// What it may hold.
    pub want: &'static str,
}

impl Request {
    /// Index of the next output token: how many the client already has.
    pub fn output_index(&self) -> u32 {
        self.0.tokens.len() as u32 - self.0.prompt_len
    }
    /// Output that the client already has.
    pub fn output(&self) -> &[TokenId] {
        &self.0.tokens[self.0.prompt_len as usize..]
    }
    /// Longest the whole sequence can become, tokens.
    pub fn tokens_max(&self) -> u32 {
        self.0.tokens.len() as u32 + self.0.max_tokens
    }
    /// Whether `token`, as the `made`-th new token (from 0) of this attempt, ends the request.
    pub fn stops_at(&self, token: TokenId, made: u32) -> bool {
        made >= self.0.min_tokens && self.0.stop_ids.contains(&token)
    }
    /// Whether prefill leaves something to make to decode.
    pub fn needs_decode(&self) -> bool {
        self.0.max_tokens > 1
    }
    /// Leading tokens whose keys and values may come from a cache: what is read of a token is
    /// computed with it, and one token at least is.
    pub fn reusable(&self) -> &[TokenId] {
        let most = self.0.tokens.len() - 1;
        let most = match self.0.reads {
            Some(Reads::Hidden(Pooling::Mean)) => 0,
            Some(Reads::Logprobs { .. }) => most.min(self.reads_from() as usize),
            _ => most,
        };
        &self.0.tokens[..most]
    }
    /// Position of the first token whose row of logits says something of the prompt's next one;
    /// beyond all of them where none is asked for.
    pub fn reads_from(&self) -> u32 {
        match self.0.reads {
            Some(Reads::Logprobs { from, .. }) if from < self.0.prompt_len => from - 1,
            _ => u32::MAX,
        }
    }
    /// Tokens of the prompt that are still to be told of.
    pub fn reads_left(&self) -> u32 {
        match self.0.reads {
            Some(Reads::Logprobs { from, .. }) => self.0.prompt_len - from,
            _ => 0,
        }
    }
    /// The loose form, to change and check again.
    pub fn into_parts(self) -> RequestParts {
        self.0
    }
    /// The request that continues this one after `made` more tokens, once `read` more of the
    /// prompt's own are told of: a replay. `None` when nothing is left to make.
    pub fn replay(&self, made: &[TokenId], read: u32) -> Option<Self> {
        let mut parts = self.0.clone();
        let n = u32::try_from(made.len()).ok()?;
        parts.tokens.extend_from_slice(made);
        let is_left = |left: &u32| *left > 0 || (n == 0 && parts.reads.is_some());
        parts.max_tokens = parts.max_tokens.checked_sub(n).filter(is_left)?;
        parts.min_tokens = parts.min_tokens.saturating_sub(n);
        if let Some(Reads::Logprobs { from, .. }) = &mut parts.reads {
            *from = from.saturating_add(read).min(parts.prompt_len);
        }
        Some(Self(parts))
    }
}

impl Deref for Request {
    type Target = RequestParts;
    fn deref(&self) -> &RequestParts {
        &self.0
    }
}

/// As its parts, of which it makes no copy.
impl Serialize for Request {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl TryFrom<RequestParts> for Request {
    type Error = BadRequest;

    fn try_from(parts: RequestParts) -> Result<Self, BadRequest> {
        let bad = |field, value: String, want| Err(BadRequest { field, value, want });
        let len = parts.tokens.len();
        if len == 0 || len >= MAX_SEQUENCE as usize {
            return bad("tokens", format!("{len} tokens"), "1 to 1048575 tokens");
        }
        if parts.prompt_len == 0 || parts.prompt_len as usize > len {
            return bad("prompt_len", parts.prompt_len.to_string(), "1 to the number of tokens");
        }
        let least = u32::from(parts.reads.is_none());
        if parts.max_tokens < least || parts.max_tokens > MAX_SEQUENCE - len as u32 {
            return bad("max_tokens", parts.max_tokens.to_string(), "1 to 1048576 less the prompt");
        }
        check_reads(&parts)?;
        if parts.min_tokens > parts.max_tokens {
            return bad("min_tokens", parts.min_tokens.to_string(), "at most max_tokens");
        }
        parts.sampling.check()?;
        if parts.logit_bias.len() > MAX_LOGIT_BIAS {
            let len = parts.logit_bias.len();
            return bad("logit_bias", format!("{len} tokens"), "at most 300 tokens");
        }
        if let Some((_, bias)) =
            parts.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias))
        {
            return bad("logit_bias", bias.to_string(), "-100 to 100");
        }
        if !parts.logit_bias.is_sorted_by(|(a, _), (b, _)| a < b) {
            return bad("logit_bias", "unsorted".to_owned(), "every token once, ids ascending");
        }
        if parts.stop_ids.len() > MAX_STOP_IDS {
            return bad("stop_ids", format!("{} ids", parts.stop_ids.len()), "at most 1024 ids");
        }
        if parts.logprobs.is_some_and(|n| n > MAX_TOP_LOGPROBS) {
            return bad("logprobs", format!("{:?}", parts.logprobs), "at most 20");
        }
        if parts.logprob_ids.len() > MAX_NEXT {
            let len = parts.logprob_ids.len();
            return bad("logprob_ids", format!("{len} ids"), "at most 1024 ids");
        }
        if parts.salt.len() > MAX_SALT {
            return bad("salt", format!("{} bytes", parts.salt.len()), "at most 256 bytes");
        }
        let grammar = parts.grammar.as_ref().map_or(0, |grammar| grammar.text().len());
        if grammar > MAX_GRAMMAR {
            return bad("grammar", format!("{grammar} bytes"), "at most 262144 bytes");
        }
        Ok(Self(parts))
    }
}

/// # Errors
/// What is read does not fit the prompt, or the output.
fn check_reads(parts: &RequestParts) -> Result<(), BadRequest> {
    let bad = |field, value: String, want| Err(BadRequest { field, value, want });
    match &parts.reads {
        None => {}
        Some(Reads::Logprobs { from, top }) => {
            if !(1..=parts.prompt_len).contains(from) {
                return bad("reads.from", from.to_string(), "1 to the prompt's length");
            }
            if *top > MAX_TOP_LOGPROBS {
                return bad("reads.top", top.to_string(), "at most 20");
            }
        }
        Some(Reads::Next(_) | Reads::Hidden(_)) if parts.max_tokens > 0 => {
            return bad("max_tokens", parts.max_tokens.to_string(), "0 where a vector is read");
        }
        Some(Reads::Next(ids)) if !(1..=MAX_NEXT).contains(&ids.len()) => {
            return bad("reads.next", format!("{} ids", ids.len()), "1 to 1024 ids");
        }
        Some(Reads::Next(_) | Reads::Hidden(_)) => {}
    }
    Ok(())
}

/// A token that was made, with what was asked to be reported of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// The token.
    pub id: TokenId,
    /// Natural log of its probability under the unscaled logits.
    pub logprob: f32,
    /// Best alternatives, best first, as many as the request's `logprobs` asked for; then what its
    /// `logprob_ids` names, in that order.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a request ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// A stop id (or, at the gateway, a stop string) came.
    Stop,
    /// `max_tokens` reached.
    Length,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(len: u32, max_tokens: u32, reads: Reads) -> Result<Request, BadRequest> {
        let tokens = (0..len).map(TokenId::new).collect();
        RequestParts { max_tokens, ..RequestParts::reading(tokens, reads) }.try_into()
    }

    fn logprobs(from: u32) -> Reads {
        Reads::Logprobs { from, top: 2 }
    }

    #[test]
    fn what_is_read_is_not_taken_from_a_cache() {
        let check = |reads, reusable| {
            assert_eq!(prompt(9, 0, reads).unwrap().reusable().len(), reusable);
        };
        check(logprobs(1), 0);
        check(logprobs(5), 4);
        check(logprobs(8), 7);
        check(logprobs(9), 8);
        check(Reads::Hidden(Pooling::Last), 8);
        check(Reads::Hidden(Pooling::Mean), 0);
        check(Reads::Next(vec![TokenId::new(1)]), 8);
    }

    #[test]
    fn reads_that_do_not_fit_are_refused_by_name() {
        let field = |request: Result<Request, BadRequest>| request.unwrap_err().field;
        assert_eq!(field(prompt(9, 0, logprobs(0))), "reads.from");
        assert_eq!(field(prompt(9, 0, logprobs(10))), "reads.from");
        assert_eq!(field(prompt(9, 0, Reads::Logprobs { from: 1, top: 21 })), "reads.top");
        assert_eq!(field(prompt(9, 1, Reads::Hidden(Pooling::Last))), "max_tokens");
        assert_eq!(field(prompt(9, 0, Reads::Next(vec![]))), "reads.next");
        let parts = prompt(9, 0, logprobs(1)).unwrap().into_parts();
        assert_eq!(field(RequestParts { reads: None, ..parts }.try_into()), "max_tokens");
    }

    #[test]
    fn a_replay_reads_on_where_it_was() {
        let request = prompt(9, 3, logprobs(1)).unwrap();
        let again = request.replay(&[], 5).unwrap();
        assert_eq!((again.reads_from(), again.reads_left()), (5, 3));
        let again = again.replay(&[TokenId::new(4)], 3).unwrap();
        assert_eq!((again.reads_from(), again.reads_left()), (u32::MAX, 0));
        assert_eq!((again.max_tokens, again.reusable().len()), (2, 9));
        assert_eq!(again.replay(&[TokenId::new(4); 2], 0), None);
        let silent = prompt(9, 0, Reads::Hidden(Pooling::Mean)).unwrap();
        assert_eq!(silent.replay(&[], 0), Some(silent));
    }
}
