//! OpenAI's API: which fields a request has, and the JSON of answers. No I/O.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod knobs;
mod logprobs;
pub mod messages;
pub mod models;
mod reply;
pub mod score;
pub mod tools;

pub use logprobs::{finite, text};

use crate::model::Model;
use crate::transcript::{Ending, Matched, Usage};
use serde::Serialize;
use serde_json::{Value, json};
use shared::request::Finish;
use std::sync::Arc;

/// What every answer of a call repeats.
#[derive(Debug, Clone)]
pub struct Head {
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model, for its name and its tokens' texts.
    pub model: Arc<Model>,
}

impl Head {
    /// For an answer that is made now, named `prefix` and the call's `name`.
    pub fn new(model: &Arc<Model>, name: &str, prefix: &str) -> Self {
        let created = crate::model::unix_s();
        Self { id: format!("{prefix}{name}"), created, model: Arc::clone(model) }
    }
}

/// `usage`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct UsageJson {
    prompt_tokens: u32,
    total_tokens: u32,
    completion_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl From<Usage> for UsageJson {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt,
            total_tokens: usage.prompt + usage.completion,
            completion_tokens: usage.completion,
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached },
        }
    }
}

/// `finish_reason`.
pub fn finish_reason(ending: &Ending) -> &'static str {
    match ending.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

/// vLLM's `stop_reason`: the stop string, or a stop id that the client asked for itself.
fn stop_reason(ending: &Ending, model: &Model) -> Value {
    match &ending.matched {
        Some(Matched::Text(text)) => json!(text),
        Some(Matched::Id(id)) if !model.eos.contains(id) => json!(id.get()),
        Some(Matched::Id(_)) | None => Value::Null,
    }
}

/// A chunk of a stream is seldom longer.
const CHUNK_BYTES: usize = 512;

/// A JSON text of one of our own types.
fn json_text(value: &impl Serialize) -> String {
    let mut text = Vec::with_capacity(CHUNK_BYTES);
    serde_json::to_writer(&mut text, value)
        .expect("our own types have string keys and finite numbers");
    String::from_utf8(text).expect("serde_json writes UTF-8")
}
