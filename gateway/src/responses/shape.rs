//! The Responses API's answers: a response of items, whole or as typed, numbered events.

use crate::blocks::{Block, Blocks, Kind, Step};
use crate::error::ApiError;
use crate::openai::Head;
use crate::reply::Reply;
use crate::sse::Events;
use crate::stream::Shape;
use crate::transcript::{Delta, Output, Usage};
use serde_json::{Map, Value, json};
use shared::request::Finish;

/// The answer to one Responses call.
#[derive(Debug)]
pub struct ResponseShape {
    head: Head,
    repeated: Map<String, Value>,
    reply: Reply,
    blocks: Blocks,
    /// Events sent.
    sent: u64,
}

/// How a response, or an item of it, stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    InProgress,
    Completed,
    /// Cut by its length.
    Incomplete,
    Failed,
}

impl Status {
    fn of(finish: Option<Finish>) -> Self {
        match finish {
            None => Self::InProgress,
            Some(Finish::Stop) => Self::Completed,
            Some(Finish::Length) => Self::Incomplete,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
        }
    }
}

impl ResponseShape {
    /// An answer that `reply` has read nothing of, to a request with these fields to repeat.
    pub fn new(head: Head, repeated: Map<String, Value>, reply: Reply) -> Self {
        Self { head, repeated, reply, blocks: Blocks::default(), sent: 0 }
    }

    fn response(&self, status: Status, usage: Option<Usage>) -> Value {
        let cut = json!({"reason": "max_output_tokens"});
        let mut response = json!({
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": status.word(),
            "background": false,
            "error": null,
            "incomplete_details": (status == Status::Incomplete).then_some(cut),
            "model": self.head.model.served_name,
            "output": self.items(status),
            "previous_response_id": null,
            "store": false,
            "truncation": "disabled",
            "usage": usage.map(|usage| self.tokens(usage)),
        });
        for (name, value) in &self.repeated {
            response[name] = value.clone();
        }
        response
    }

    /// The items so far; only the last one can be other than complete.
    fn items(&self, status: Status) -> Vec<Value> {
        let blocks = self.blocks.all();
        let last = blocks.len().saturating_sub(1);
        let status_at = |at: usize| match status {
            Status::Incomplete | Status::Failed if at == last => Status::Incomplete,
            _ => Status::Completed,
        };
        blocks.iter().enumerate().map(|(at, block)| item(block, status_at(at))).collect()
    }

    /// `usage`. Tokens are not told apart by what they say: thoughts count by their share of text.
    fn tokens(&self, usage: Usage) -> Value {
        let len = |thoughts_only: bool| -> u64 {
            let counted = self.blocks.all().iter();
            let counted = counted.filter(|block| !thoughts_only || block.kind == Kind::Thought);
            counted.map(|block| block.text.len() as u64).sum()
        };
        let reasoning = u64::from(usage.completion) * len(true) / len(false).max(1);
        json!({
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": usage.prompt + usage.completion,
        })
    }

    fn event(&mut self, events: &mut Events, name: &str, mut data: Value) {
        data["type"] = json!(name);
        data["sequence_number"] = json!(self.sent);
        self.sent += 1;
        events.add_json(Some(name), &data);
    }

    fn told(&mut self, step: Step, status: Status, events: &mut Events) {
        match step {
            Step::Opened(at) => self.opened(at, events),
            Step::Grew(at, text) => {
                let block = self.blocks.get(at);
                let name = match block.kind {
                    Kind::Thought => "response.reasoning_text.delta",
                    Kind::Text => "response.output_text.delta",
                    Kind::Call { .. } => "response.function_call_arguments.delta",
                };
                let mut data = place(block, at);
                data["delta"] = json!(text);
                self.event(events, name, data);
            }
            Step::Closed(at) => self.closed(at, status, events),
        }
    }

    fn opened(&mut self, at: usize, events: &mut Events) {
        let block = Block { text: String::new(), ..self.blocks.get(at).clone() };
        let mut added = item(&block, Status::InProgress);
        let part = added.get_mut("content").map(|content| content[0].take());
        if part.is_some() {
            added["content"] = json!([]);
        }
        let data = json!({"output_index": at, "item": added});
        self.event(events, "response.output_item.added", data);
        if let Some(part) = part {
            let mut data = place(&block, at);
            data["part"] = part;
            self.event(events, "response.content_part.added", data);
        }
    }

    fn closed(&mut self, at: usize, status: Status, events: &mut Events) {
        let block = self.blocks.get(at).clone();
        let done = item(&block, status);
        let mut data = place(&block, at);
        if let Kind::Call { name } = &block.kind {
            data["name"] = json!(name);
            data["arguments"] = json!(block.text);
            self.event(events, "response.function_call_arguments.done", data);
        } else {
            let name = match block.kind {
                Kind::Thought => "response.reasoning_text.done",
                _ => "response.output_text.done",
            };
            let mut part = data.clone();
            part["part"] = done["content"][0].clone();
            data["text"] = json!(block.text);
            self.event(events, name, data);
            self.event(events, "response.content_part.done", part);
        }
        let data = json!({"output_index": at, "item": done});
        self.event(events, "response.output_item.done", data);
    }
}

impl Shape for ResponseShape {
    fn chunks(&mut self, delta: Delta, events: &mut Events) {
        if self.sent == 0 {
            for name in ["response.created", "response.in_progress"] {
                let response = self.response(Status::InProgress, None);
                self.event(events, name, json!({"response": response}));
            }
        }
        let ended = delta.ending.as_ref().map(|ending| ending.finish);
        for step in self.blocks.take(self.reply.parts(&delta.text, ended.is_some())) {
            self.told(step, Status::Completed, events);
        }
        if let Some(finish) = ended {
            let status = Status::of(Some(finish));
            if let Some(step) = self.blocks.close() {
                self.told(step, status, events);
            }
            let name = match finish {
                Finish::Stop => "response.completed",
                Finish::Length => "response.incomplete",
            };
            let response = self.response(status, Some(delta.usage));
            self.event(events, name, json!({"response": response}));
        }
    }

    fn end(&mut self, ended: Result<Usage, ApiError>, events: &mut Events) {
        let Err(error) = ended else { return };
        let mut response = self.response(Status::Failed, None);
        let code = match error.status().as_u16() {
            429 => "rate_limit_exceeded",
            _ => "server_error",
        };
        response["error"] = json!({"code": code, "message": error.message()});
        self.event(events, "response.failed", json!({"response": response}));
    }

    fn whole(&mut self, outputs: Vec<Output>, _usage: Usage) -> String {
        let output = outputs.into_iter().next().unwrap_or_default();
        self.blocks.take(self.reply.parts(&output.text, true));
        let status = Status::of(output.ending.map(|ending| ending.finish));
        self.response(status, Some(output.usage)).to_string()
    }
}

/// An item of `output`.
fn item(block: &Block, status: Status) -> Value {
    let (id, text, status) = (id(block), &block.text, status.word());
    match &block.kind {
        Kind::Thought => json!({"type": "reasoning", "id": id, "status": status, "summary": [],
            "content": [{"type": "reasoning_text", "text": text}]}),
        Kind::Text => json!({"type": "message", "id": id, "status": status, "role": "assistant",
            "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]}),
        Kind::Call { name } => json!({"type": "function_call", "id": id, "status": status,
            "call_id": format!("call_{}", block.letters), "name": name, "arguments": text}),
    }
}

fn id(block: &Block) -> String {
    let prefix = match block.kind {
        Kind::Thought => "rs",
        Kind::Text => "msg",
        Kind::Call { .. } => "fc",
    };
    format!("{prefix}_{}", block.letters)
}

/// Where an event belongs.
fn place(block: &Block, at: usize) -> Value {
    let mut place = json!({"item_id": id(block), "output_index": at});
    match block.kind {
        Kind::Call { .. } => {}
        Kind::Thought => place["content_index"] = json!(0),
        Kind::Text => {
            place["content_index"] = json!(0);
            place["logprobs"] = json!([]);
        }
    }
    place
}
