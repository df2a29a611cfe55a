//! `/v1/chat/completions`.

use super::knobs::{self, Delivery};
use super::logprobs::ChatLogprobs;
use super::{Head, UsageJson, finish_reason, json_text, messages, stop_reason};
use crate::error::Invalid;
use crate::fields::Fields;
use crate::stream::Shape;
use crate::template::Conversation;
use crate::transcript::{Delta, Output, Usage};
use crate::validate::{Content, Dialect, Knobs, Prompt};
use serde::Serialize;
use serde_json::{Map, Value};

/// Chat's words; an answer may fill the context.
pub const DIALECT: Dialect = Dialect {
    max_tokens: "max_tokens",
    min_tokens: "min_tokens",
    logprobs: "top_logprobs",
    sampling: "",
    default_tokens: None,
    model_defaults: true,
};

/// A chat request, read.
#[derive(Debug)]
pub struct ChatRequest {
    /// The conversation.
    pub prompt: Prompt,
    /// Sampling and output.
    pub knobs: Knobs,
    /// The names of fields that this client used.
    pub dialect: Dialect,
    /// How to answer.
    pub delivery: Delivery,
}

/// Reads the fields.
///
/// # Errors
/// By field.
pub fn read(fields: &mut Fields) -> Result<ChatRequest, Invalid> {
    let mut knobs = knobs::read(fields)?;
    let mut dialect = DIALECT;
    knobs.max_tokens = match fields.take("max_completion_tokens")? {
        Some(tokens) => {
            dialect.max_tokens = "max_completion_tokens";
            Some(tokens)
        }
        None => fields.take("max_tokens")?,
    };
    let wants_logprobs = fields.take_or("logprobs", false)?;
    let top: Option<u32> = fields.take("top_logprobs")?;
    knobs.logprobs = match (wants_logprobs, top) {
        (false, Some(n)) if n > 0 => {
            return Err(fields.wrong("top_logprobs", "needs `logprobs` to be true"));
        }
        (false, _) => None,
        (true, top) => Some(top.unwrap_or(0)),
    };
    let delivery = knobs::delivery(fields)?;
    Ok(ChatRequest { prompt: prompt(fields)?, knobs, dialect, delivery })
}

/// Reads the conversation alone: `/tokenize` takes it too.
///
/// # Errors
/// By field.
pub fn prompt(fields: &mut Fields) -> Result<Prompt, Invalid> {
    let mut kwargs: Map<String, Value> = fields.take_or("chat_template_kwargs", Map::new())?;
    if let Some(effort) = fields.take_value("reasoning_effort") {
        kwargs.entry("reasoning_effort").or_insert(effort);
    }
    let conversation = Conversation {
        messages: messages::normalised(fields.take_value("messages"))?,
        tools: tools(fields)?,
        add_generation_prompt: fields.take_or("add_generation_prompt", true)?,
        kwargs,
    };
    Ok(Prompt { field: "messages".into(), content: Content::Chat(Box::new(conversation)) })
}

/// Tools go into the prompt where the model is not to call them; calls are not parsed yet.
fn tools(fields: &mut Fields) -> Result<Option<Vec<Value>>, Invalid> {
    let choice = fields.get("tool_choice").cloned();
    let has_tools = fields.get("tools").is_some_and(|tools| tools != &serde_json::json!([]));
    match choice {
        Some(choice) if choice != "none" && choice != "auto" => {
            Err(fields.unsupported("tool_choice"))
        }
        Some(choice) if has_tools && choice == "none" => fields.take("tools"),
        _ if has_tools => Err(fields.unsupported("tools")),
        _ => Ok(None),
    }
}

/// Chat's answers.
#[derive(Debug)]
pub struct ChatShape {
    head: Head,
    delivery: Delivery,
    logprobs: bool,
    opened: bool,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageJson>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: ChunkDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Value>,
}

#[derive(Serialize)]
struct ChunkDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

#[derive(Serialize)]
struct Whole<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<WholeChoice>,
    usage: UsageJson,
}

#[derive(Serialize)]
struct WholeChoice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Value,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
}

impl ChatShape {
    /// For one call.
    pub fn new(head: Head, delivery: Delivery, logprobs: bool) -> Self {
        Self { head, delivery, logprobs, opened: false }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> String {
        json_text(&Chunk {
            id: &self.head.id,
            object: "chat.completion.chunk",
            created: self.head.created,
            model: &self.head.model.served_name,
            choices,
            usage: usage.map(UsageJson::from),
        })
    }
}

impl Shape for ChatShape {
    fn chunks(&mut self, delta: Delta) -> Vec<String> {
        let usage = self.delivery.continuous_usage.then_some(delta.usage);
        let mut chunks = Vec::with_capacity(2);
        let choice = |delta, logprobs| ChunkChoice {
            index: 0,
            delta,
            logprobs,
            finish_reason: None,
            stop_reason: None,
        };
        if !std::mem::replace(&mut self.opened, true) {
            let opening = ChunkDelta { role: Some("assistant"), content: Some(String::new()) };
            chunks.push(self.chunk(vec![choice(opening, None)], usage));
        }
        let shows = self.logprobs && !delta.tokens.is_empty();
        if delta.text.is_empty() && !shows && delta.ending.is_none() {
            return chunks;
        }
        let logprobs =
            shows.then(|| ChatLogprobs::new(&delta.tokens, self.head.model.tokenizer.pieces()));
        let content = (!delta.text.is_empty() || shows).then_some(delta.text);
        let mut choice = choice(ChunkDelta { role: None, content }, logprobs);
        if let Some(ending) = &delta.ending {
            choice.finish_reason = Some(finish_reason(ending));
            choice.stop_reason = Some(stop_reason(ending, &self.head.model));
        }
        chunks.push(self.chunk(vec![choice], usage));
        chunks
    }

    fn last(&mut self, usage: Usage) -> Option<String> {
        self.delivery.include_usage.then(|| self.chunk(Vec::new(), Some(usage)))
    }

    fn whole(&mut self, outputs: Vec<Output>) -> String {
        let usages: Vec<Usage> = outputs.iter().map(|output| output.usage).collect();
        let pieces = self.head.model.tokenizer.pieces();
        let choices = outputs.into_iter().enumerate().map(|(index, output)| WholeChoice {
            index,
            logprobs: self.logprobs.then(|| ChatLogprobs::new(&output.tokens, pieces)),
            finish_reason: output.ending.as_ref().map(finish_reason),
            stop_reason: output
                .ending
                .as_ref()
                .map_or(Value::Null, |ending| stop_reason(ending, &self.head.model)),
            message: Message { role: "assistant", content: output.text },
        });
        json_text(&Whole {
            id: &self.head.id,
            object: "chat.completion",
            created: self.head.created,
            model: &self.head.model.served_name,
            choices: choices.collect(),
            usage: crate::stream::total(&usages).into(),
        })
    }
}
