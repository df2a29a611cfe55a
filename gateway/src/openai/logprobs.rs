//! Log-probabilities in the two shapes that OpenAI has for them.

use crate::pieces::Pieces;
use serde::Serialize;
use serde_json::{Map, Value, json};
use shared::ids::TokenId;
use shared::request::Token;

/// JSON has no infinity; vLLM writes this.
const LEAST: f32 = -9999.0;

/// `choices[].logprobs` of chat.
#[derive(Debug, Serialize)]
pub struct ChatLogprobs {
    content: Vec<ChatToken>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatAlternative>,
}

#[derive(Debug, Serialize)]
struct ChatAlternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// For tokens that were sampled, with the alternatives that they carry.
    pub fn new(tokens: &[Token], pieces: &Pieces) -> Self {
        let alternative = |&(id, logprob): &(TokenId, f32)| {
            let (token, bytes) = (text(id, pieces), pieces.bytes(id).to_vec());
            ChatAlternative { token, logprob: finite(logprob), bytes }
        };
        let content = tokens.iter().map(|token| ChatToken {
            token: text(token.id, pieces),
            logprob: finite(token.logprob),
            bytes: pieces.bytes(token.id).to_vec(),
            top_logprobs: token.top.iter().map(alternative).collect(),
        });
        Self { content: content.collect() }
    }
}

/// `choices[].logprobs` of completions.
#[derive(Debug, Default, Serialize)]
pub struct CompletionLogprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<f32>,
    tokens: Vec<String>,
    top_logprobs: Vec<Value>,
}

impl CompletionLogprobs {
    /// For `tokens`; `offset` is the length so far of the tokens' texts, in characters, and moves
    /// on. With `as_ids` tokens are written `token_id:7`, which is exact where a text is not.
    pub fn new(tokens: &[Token], pieces: &Pieces, offset: &mut usize, as_ids: bool) -> Self {
        let name = |id: TokenId| if as_ids { format!("token_id:{id}") } else { text(id, pieces) };
        let mut logprobs = Self::default();
        for token in tokens {
            let own = (token.id, token.logprob);
            let best = token.top.iter().copied();
            // The sampled token is among the alternatives, wherever it stands, as in vLLM.
            let top: Map<String, Value> =
                best.chain([own]).map(|(id, logprob)| (name(id), json!(finite(logprob)))).collect();
            logprobs.text_offset.push(*offset);
            logprobs.token_logprobs.push(finite(token.logprob));
            logprobs.top_logprobs.push(Value::Object(top));
            logprobs.tokens.push(name(token.id));
            *offset += text(token.id, pieces).chars().count();
        }
        logprobs
    }
}

/// A token's text, U+FFFD for what is no whole character.
pub fn text(id: TokenId, pieces: &Pieces) -> String {
    String::from_utf8_lossy(pieces.bytes(id)).into_owned()
}

/// A log-probability that JSON can hold.
pub fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { LEAST } else { logprob.max(LEAST) }
}
