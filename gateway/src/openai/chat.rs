//! `/v1/chat/completions`.

use super::knobs::{self, Delivery};
use super::logprobs::{ChatLogprobs, prompt_logprobs};
use super::reply::{Message, MessageDelta};
use super::tools::{self, Tools};
use super::{Head, Opening, finish_reason, messages, stop_reason};
use crate::error::Invalid;
use crate::fields::Fields;
use crate::model::Model;
use crate::reasoning::Thoughts;
use crate::reply::{Reader, Reply};
use crate::sse::{Data, Events};
use crate::stream::Shape;
use crate::structured;
use crate::template::Conversation;
use crate::tools::{CallParser, Format};
use crate::transcript::{Delta, Ending, Matched, Output, Usage};
use crate::validate::{Dialect, Knobs, PromptLogprobs};
use serde::Serialize;
use serde_json::{Map, Value};
use shared::request::Finish;
use std::sync::Arc;

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
    pub conversation: Conversation,
    /// The tools that the model may call.
    pub tools: Tools,
    /// Whether the chain of thought is told from the answer, where the model has one.
    pub separate_reasoning: bool,
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
pub fn read(fields: &mut Fields, model: &Model) -> Result<ChatRequest, Invalid> {
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
    let separate_reasoning = fields.take_or("separate_reasoning", true)?;
    let (conversation, tools) = conversation(fields)?;
    if let Some(calls) = tools.wanted(model.calls.unwrap_or(Format::HERMES)) {
        // That is of the answer, and there is none where a call is required.
        knobs.wanted.take_if(|wanted| wanted.field.starts_with("response_format"));
        structured::add(&mut knobs.wanted, calls)?;
    }
    let tag_is_special = model.calls.is_some_and(Format::needs_special_tokens);
    knobs.show_special |= tag_is_special && !tools.callable.is_empty();
    Ok(ChatRequest { conversation, tools, separate_reasoning, knobs, dialect, delivery })
}

/// Reads the conversation, with the tools that are part of it: `/tokenize` takes it too.
///
/// # Errors
/// By field.
pub fn conversation(fields: &mut Fields) -> Result<(Conversation, Tools), Invalid> {
    let mut kwargs: Map<String, Value> = fields.take_or("chat_template_kwargs", Map::new())?;
    if let Some(effort) = fields.take_value("reasoning_effort") {
        kwargs.entry("reasoning_effort").or_insert(effort);
    }
    let mut tools = tools::read(fields)?;
    let conversation = Conversation {
        messages: messages::normalised(fields.take_value("messages"))?,
        tools: tools.definitions.take(),
        add_generation_prompt: fields.take_or("add_generation_prompt", true)?,
        kwargs,
    };
    Ok((conversation, tools))
}

impl ChatRequest {
    /// What reads an output that follows `prompt`. One that follows a grammar has no thoughts, and
    /// calls that are required come as the grammar has them.
    pub fn reply(&self, model: &Model, prompt: &str) -> Reply {
        let offered = &self.tools.callable;
        let required = !self.tools.required.is_empty();
        let format = model.calls.or(required.then_some(Format::HERMES));
        let calls = format.filter(|_| !offered.is_empty());
        let separate = self.separate_reasoning;
        let thinks = model.thoughts.filter(|_| self.knobs.wanted.is_none());
        let reader = Reader {
            thoughts: thinks.map(|style| Thoughts::new(style, separate, prompt)),
            calls: calls.map(|format| CallParser::new(format, Arc::clone(offered))),
        };
        Reply::new(reader, self.tools.one_call, required)
    }
}

/// Chat's answers.
#[derive(Debug)]
pub struct ChatShape {
    head: Head,
    opening: Opening,
    delivery: Delivery,
    logprobs: bool,
    /// Report the prompt's, with this many alternatives.
    prompt_logprobs: Option<u32>,
    /// As it is before an output begins.
    reply: Reply,
    outputs: Vec<Spoken>,
}

/// What was said of an output.
#[derive(Debug)]
struct Spoken {
    opened: bool,
    reply: Reply,
}

struct ChunkChoice {
    index: usize,
    delta: MessageDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Value>,
}

impl ChunkChoice {
    fn write(&self, data: &mut Data<'_>) {
        data.field("{\"index\":", &self.index);
        data.field(",\"delta\":", &self.delta);
        data.field(",\"logprobs\":", &self.logprobs);
        data.field(",\"finish_reason\":", &self.finish_reason);
        if let Some(reason) = &self.stop_reason {
            data.field(",\"stop_reason\":", reason);
        }
        data.text("}");
    }
}

#[derive(Serialize)]
struct WholeChoice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Value,
}

impl ChatShape {
    /// For one call.
    pub fn new(head: Head, delivery: Delivery, logprobs: bool) -> Self {
        let (reply, outputs) = (Reply::default(), Vec::new());
        let opening = Opening::new(&head, "chat.completion.chunk");
        Self { head, opening, delivery, logprobs, prompt_logprobs: None, reply, outputs }
    }

    /// Reports the prompt's log-probabilities too.
    #[must_use]
    pub fn with_prompt_logprobs(self, asked: Option<PromptLogprobs>) -> Self {
        Self { prompt_logprobs: asked.map(|asked| asked.top), ..self }
    }

    /// Reads every output as `reply`, which has read nothing yet, does.
    #[must_use]
    pub fn reading(mut self, reply: Reply) -> Self {
        self.reply = reply;
        self
    }

    fn output(&mut self, index: usize) -> &mut Spoken {
        if self.outputs.len() <= index {
            let reply = &self.reply;
            let fresh = || Spoken { opened: false, reply: reply.clone() };
            self.outputs.resize_with(index + 1, fresh);
        }
        &mut self.outputs[index]
    }

    fn chunk(&self, choices: &[ChunkChoice], usage: Option<Usage>, events: &mut Events) {
        let items = |data: &mut Data<'_>| data.items(choices, |data, choice| choice.write(data));
        events.add(None, |data| self.opening.chunk(data, usage, items));
    }
}

impl Shape for ChatShape {
    fn chunks(&mut self, delta: Delta, events: &mut Events) {
        let usage = self.delivery.continuous_usage.then_some(delta.usage);
        let shows = self.logprobs && !delta.tokens.is_empty();
        let mut logprobs =
            shows.then(|| ChatLogprobs::new(&delta.tokens, self.head.model.tokenizer.pieces()));
        let index = delta.index;
        let output = self.output(index);
        let opens = !std::mem::replace(&mut output.opened, true);
        let mut deltas = output.reply.deltas(&delta.text, delta.ending.is_some());
        if deltas.is_empty() && shows {
            deltas.push(MessageDelta::text(String::new()));
        }
        let has_calls = output.reply.has_calls();
        let ending = delta.ending.map(|ending| {
            let reason = message_finish(&ending, has_calls);
            (reason, stop_reason(&ending, &self.head.model))
        });
        // Calls are complete before the chunk that ends them.
        if ending.is_some() && !deltas.last().is_some_and(MessageDelta::is_text) {
            deltas.push(MessageDelta::default());
        }
        let last = deltas.len().wrapping_sub(1);
        let choice = |delta, logprobs, ending: Option<(&'static str, Value)>| {
            let (finish_reason, stop_reason) = ending.unzip();
            ChunkChoice { index, delta, logprobs, finish_reason, stop_reason }
        };
        let opening = opens.then(|| choice(MessageDelta::opening(), None, None));
        let deltas = deltas.into_iter().enumerate().map(|(at, delta)| {
            choice(delta, logprobs.take(), ending.clone().filter(|_| at == last))
        });
        let choices: Vec<ChunkChoice> = opening.into_iter().chain(deltas).collect();
        choices.chunks(1).for_each(|choice| self.chunk(choice, usage, events));
    }

    fn last(&mut self, usage: Usage, events: &mut Events) {
        if self.delivery.include_usage {
            self.chunk(&[], Some(usage), events);
        }
    }

    fn whole(&mut self, outputs: Vec<Output>, usage: Usage) -> String {
        let model = &self.head.model;
        let pieces = model.tokenizer.pieces();
        let prompt = outputs.first().map_or(&[][..], |output| &output.prompt);
        let prompt_logprobs = self.prompt_logprobs.map(|top| prompt_logprobs(prompt, top, pieces));
        let choices = outputs.into_iter().enumerate().map(|(index, output)| {
            let mut reply = self.reply.clone();
            let message = reply.message(&output.text);
            let ending = output.ending.as_ref();
            WholeChoice {
                index,
                message,
                logprobs: self.logprobs.then(|| ChatLogprobs::new(&output.tokens, pieces)),
                finish_reason: ending.map(|ending| message_finish(ending, reply.has_calls())),
                stop_reason: ending.map_or(Value::Null, |ending| stop_reason(ending, model)),
            }
        });
        let choices: Vec<WholeChoice> = choices.collect();
        let items = |data: &mut Data<'_>| data.items(&choices, |data, choice| data.json(choice));
        let opening = Opening::new(&self.head, "chat.completion");
        Data::text_of(|data| {
            opening.open(data, Some(usage), items);
            if let Some(prompt) = &prompt_logprobs {
                data.field(",\"prompt_logprobs\":", prompt);
            }
            data.text("}");
        })
    }
}

/// `finish_reason` of a message: the model stopped in order to have tools called.
fn message_finish(ending: &Ending, has_calls: bool) -> &'static str {
    let stopped_by_text = matches!(ending.matched, Some(Matched::Text(_)));
    match ending.finish {
        Finish::Stop if has_calls && !stopped_by_text => "tool_calls",
        _ => finish_reason(ending),
    }
}
