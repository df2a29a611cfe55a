//! Anthropic's answers: a message of content blocks, whole or as events.

use super::error;
use crate::blocks::{Block, Blocks, Kind, Step};
use crate::error::ApiError;
use crate::openai::Head;
use crate::reply::Reply;
use crate::sse::Events;
use crate::stream::Shape;
use crate::transcript::{Delta, Ending, Matched, Output, Usage};
use serde_json::{Map, Value, json};
use shared::request::Finish;

/// The answer to one Messages call.
#[derive(Debug)]
pub struct MessageShape {
    head: Head,
    reply: Reply,
    blocks: Blocks,
    opened: bool,
}

impl MessageShape {
    /// An answer that `reply` has read nothing of.
    pub fn new(head: Head, reply: Reply) -> Self {
        Self { head, reply, blocks: Blocks::default(), opened: false }
    }

    fn message(&self, content: &[Value], ending: Option<&Ending>, usage: Usage) -> Value {
        let (reason, sequence) = self.stop(ending);
        json!({
            "id": self.head.id,
            "type": "message",
            "role": "assistant",
            "model": self.head.model.served_name,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": tokens(usage),
        })
    }

    /// `stop_reason` and `stop_sequence`.
    fn stop<'a>(&self, ending: Option<&'a Ending>) -> (Option<&'static str>, Option<&'a str>) {
        let Some(Ending { finish, matched }) = ending else { return (None, None) };
        match (finish, matched) {
            (Finish::Length, _) => (Some("max_tokens"), None),
            (Finish::Stop, Some(Matched::Text(text))) => (Some("stop_sequence"), Some(text)),
            (Finish::Stop, _) if self.reply.has_calls() => (Some("tool_use"), None),
            (Finish::Stop, _) => (Some("end_turn"), None),
        }
    }

    fn told(&self, step: Step, events: &mut Events) {
        match step {
            Step::Opened(index) => {
                let block = opened(self.blocks.get(index));
                let data = json!({"index": index, "content_block": block});
                event(events, "content_block_start", data);
            }
            Step::Grew(index, text) => {
                let delta = match self.blocks.get(index).kind {
                    Kind::Thought => json!({"type": "thinking_delta", "thinking": text}),
                    Kind::Text => json!({"type": "text_delta", "text": text}),
                    Kind::Call { .. } => json!({"type": "input_json_delta", "partial_json": text}),
                };
                let data = json!({"index": index, "delta": delta});
                event(events, "content_block_delta", data);
            }
            Step::Closed(index) => event(events, "content_block_stop", json!({"index": index})),
        }
    }
}

impl Shape for MessageShape {
    fn chunks(&mut self, delta: Delta, events: &mut Events) {
        if !std::mem::replace(&mut self.opened, true) {
            let usage = Usage { completion: 0, ..delta.usage };
            let message = self.message(&[], None, usage);
            event(events, "message_start", json!({"message": message}));
        }
        let mut steps = self.blocks.take(self.reply.parts(&delta.text, delta.ending.is_some()));
        if delta.ending.is_some() {
            steps.extend(self.blocks.close());
        }
        steps.into_iter().for_each(|step| self.told(step, events));
        if let Some(ending) = &delta.ending {
            let (reason, sequence) = self.stop(Some(ending));
            let stop = json!({"stop_reason": reason, "stop_sequence": sequence});
            let last = json!({"delta": stop, "usage": tokens(delta.usage)});
            event(events, "message_delta", last);
            event(events, "message_stop", json!({}));
        }
    }

    fn end(&mut self, ended: Result<Usage, ApiError>, events: &mut Events) {
        if let Err(err) = ended {
            events.add_json(Some("error"), &error::body(&err, None));
        }
    }

    fn whole(&mut self, outputs: Vec<Output>, _usage: Usage) -> String {
        let output = outputs.into_iter().next().unwrap_or_default();
        self.blocks.take(self.reply.parts(&output.text, true));
        let content: Vec<Value> = self.blocks.all().iter().map(closed).collect();
        self.message(&content, output.ending.as_ref(), output.usage).to_string()
    }
}

/// Adds an event, whose data repeats its name.
fn event(events: &mut Events, name: &str, mut data: Value) {
    data["type"] = json!(name);
    events.add_json(Some(name), &data);
}

/// `usage`; Anthropic counts the cached tokens of the prompt apart.
fn tokens(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt.saturating_sub(usage.cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    })
}

/// A block that has no text yet.
fn opened(block: &Block) -> Value {
    closed(&Block { text: String::new(), ..block.clone() })
}

/// A whole block. Arguments that were cut are no JSON object and cannot be told: `{}` stands in.
fn closed(block: &Block) -> Value {
    match &block.kind {
        Kind::Thought => json!({"type": "thinking", "thinking": block.text, "signature": ""}),
        Kind::Text => json!({"type": "text", "text": block.text}),
        Kind::Call { name } => {
            let input: Map<String, Value> = serde_json::from_str(&block.text).unwrap_or_default();
            let id = format!("toolu_{}", block.letters);
            json!({"type": "tool_use", "id": id, "name": name, "input": input})
        }
    }
}
