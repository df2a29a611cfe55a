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
use crate::sse::Data;
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

/// What opens every chunk of a stream, and a completion, as JSON up to its choices: written once.
#[derive(Debug)]
struct Opening(String);

#[derive(Serialize)]
struct Repeated<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
}

impl Opening {
    fn new(head: &Head, object: &'static str) -> Self {
        let (id, created, model) = (&head.id, head.created, &head.model.served_name);
        let mut text = json_text(&Repeated { id, object, created, model });
        text.pop(); // the brace
        text.push_str(",\"choices\":[");
        Self(text)
    }

    /// A chunk with what `choices` writes.
    fn chunk(
        &self,
        data: &mut Data<'_>,
        usage: Option<Usage>,
        choices: impl FnOnce(&mut Data<'_>),
    ) {
        self.open(data, usage, choices);
        data.text("}");
    }

    /// One that goes on.
    fn open(&self, data: &mut Data<'_>, usage: Option<Usage>, choices: impl FnOnce(&mut Data<'_>)) {
        data.text(&self.0);
        choices(data);
        data.text("]");
        if let Some(usage) = usage {
            data.field(",\"usage\":{\"prompt_tokens\":", &usage.prompt);
            data.field(",\"total_tokens\":", &(usage.prompt + usage.completion));
            data.field(",\"completion_tokens\":", &usage.completion);
            data.field(",\"prompt_tokens_details\":{\"cached_tokens\":", &usage.cached);
            data.text("}}");
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

/// A JSON text of one of our own types.
fn json_text(value: &impl Serialize) -> String {
    Data::text_of(|data| data.json(value))
}
