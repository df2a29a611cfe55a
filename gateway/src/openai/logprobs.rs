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
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Value>,
}

impl CompletionLogprobs {
    /// Adds the token that opens a prompt, which follows nothing.
    pub fn open(&mut self, id: TokenId, names: Names<'_>, offset: &mut usize) {
        self.token_logprobs.push(None);
        self.top_logprobs.push(Value::Null);
        self.add(id, names, offset);
    }

    /// Adds tokens with at most `top` alternatives each; `offset` is the length so far of the
    /// tokens' texts, in characters, and moves on.
    pub fn extend(&mut self, tokens: &[Token], names: Names<'_>, top: u32, offset: &mut usize) {
        for token in tokens {
            let own = (token.id, token.logprob);
            let best = token.top.iter().copied().take(top as usize);
            // The token itself is among the alternatives, wherever it stands, as in vLLM.
            let top: Map<String, Value> = best
                .chain([own])
                .map(|(id, logprob)| (names.of(id), json!(finite(logprob))))
                .collect();
            self.token_logprobs.push(Some(finite(token.logprob)));
            self.top_logprobs.push(Value::Object(top));
            self.add(token.id, names, offset);
        }
    }

    fn add(&mut self, id: TokenId, names: Names<'_>, offset: &mut usize) {
        self.text_offset.push(*offset);
        self.tokens.push(names.of(id));
        *offset += text(id, names.pieces).chars().count();
    }
}

/// How tokens are written.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// Their texts.
    pub pieces: &'a Pieces,
    /// Whether they are written `token_id:7`, which is exact where a text is not.
    pub as_ids: bool,
}

impl Names<'_> {
    fn of(self, id: TokenId) -> String {
        if self.as_ids { format!("token_id:{id}") } else { text(id, self.pieces) }
    }
}

/// vLLM's `prompt_logprobs`: by token id, null for the token that opens the prompt. A rank is given
/// to the best ones alone: the others' are not counted.
pub fn prompt_logprobs(tokens: &[Token], top: u32, pieces: &Pieces) -> Value {
    let one = |token: &Token| {
        let entry = |rank: Option<usize>, id: TokenId, logprob: f32| {
            let entry = json!({
                "logprob": finite(logprob), "rank": rank, "decoded_token": text(id, pieces),
            });
            (id.to_string(), entry)
        };
        let best = token.top.iter().enumerate();
        let ranked = |(at, &(id, logprob)): (usize, &(TokenId, f32))| {
            (at < top as usize || id == token.id).then(|| entry(Some(at + 1), id, logprob))
        };
        let mut entries: Map<String, Value> = best.filter_map(ranked).collect();
        let (id, own) = entry(None, token.id, token.logprob);
        entries.entry(id).or_insert(own);
        Value::Object(entries)
    };
    std::iter::once(Value::Null).chain(tokens.iter().map(one)).collect()
}

/// A token's text, U+FFFD for what is no whole character.
pub fn text(id: TokenId, pieces: &Pieces) -> String {
    String::from_utf8_lossy(pieces.bytes(id)).into_owned()
}

/// A log-probability that JSON can hold.
pub fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { LEAST } else { logprob.max(LEAST) }
}
