//! `/v1/completions`.

use super::knobs::{self, Delivery};
use super::logprobs::CompletionLogprobs;
use super::{Head, UsageJson, finish_reason, json_text, stop_reason};
use crate::error::Invalid;
use crate::fields::{Fields, kind};
use crate::ring::Limits;
use crate::stream::{Sent, Shape};
use crate::transcript::{Delta, Output, Usage};
use crate::validate::{Content, Dialect, Knobs, MAX_PROMPTS, Prompt, vocabulary_id};
use serde::Serialize;
use serde_json::Value;

/// Completions' words; 16 tokens is OpenAI's default.
pub const DIALECT: Dialect = Dialect {
    max_tokens: "max_tokens",
    min_tokens: "min_tokens",
    logprobs: "logprobs",
    sampling: "",
    default_tokens: Some(16),
    model_defaults: true,
};

/// A completion request, read.
#[derive(Debug)]
pub struct CompletionRequest {
    /// One output each.
    pub prompts: Vec<Prompt>,
    /// Sampling and output.
    pub knobs: Knobs,
    /// How to answer.
    pub delivery: Delivery,
    /// Tokens in logprobs are written as ids.
    pub tokens_as_ids: bool,
}

/// Reads the fields.
///
/// # Errors
/// By field.
pub fn read(fields: &mut Fields, limits: Limits) -> Result<CompletionRequest, Invalid> {
    let mut knobs = knobs::read(fields)?;
    knobs.max_tokens = fields.take("max_tokens")?;
    knobs.logprobs = fields.take("logprobs")?;
    let add_special = fields.take_or("add_special_tokens", true)?;
    let tokens_as_ids = fields.take_or("return_tokens_as_token_ids", false)?;
    let delivery = knobs::delivery(fields)?;
    let prompts = match fields.take_value("prompt") {
        Some(value) => prompts("prompt", value, add_special, limits)?,
        None => return Err(fields.wrong("prompt", "is required")),
    };
    Ok(CompletionRequest { prompts, knobs, delivery, tokens_as_ids })
}

/// The prompts in a field: a text, token ids, or a list of either.
///
/// # Errors
/// By element.
pub fn prompts(
    field: &str,
    value: Value,
    add_special: bool,
    limits: Limits,
) -> Result<Vec<Prompt>, Invalid> {
    let list = match value {
        Value::Array(list) if list.is_empty() => {
            return Err(Invalid::field(field, "is empty; want at least one prompt or token"));
        }
        Value::Array(list) if !list[0].is_number() => list,
        one => return Ok(vec![prompt(field.to_owned(), one, add_special, limits)?]),
    };
    if list.len() > MAX_PROMPTS {
        let what = format!("has {} prompts; at most {MAX_PROMPTS} fit", list.len());
        return Err(Invalid::field(field, &what));
    }
    let each = list.into_iter().enumerate();
    each.map(|(at, one)| prompt(format!("{field}[{at}]"), one, add_special, limits)).collect()
}

fn prompt(
    field: String,
    value: Value,
    add_special: bool,
    limits: Limits,
) -> Result<Prompt, Invalid> {
    let content = match value {
        Value::String(text) => Content::Text { text, add_special },
        Value::Array(list) => Content::Ids(ids(&field, &list, limits)?),
        other => {
            let what = format!("must be a string or token ids, got {}", kind(&other));
            return Err(Invalid::field(field, &what));
        }
    };
    Ok(Prompt { field, content })
}

/// Token ids in a field.
///
/// # Errors
/// The first element that is no id of the vocabulary.
pub fn ids(
    field: &str,
    list: &[Value],
    limits: Limits,
) -> Result<Vec<shared::ids::TokenId>, Invalid> {
    let id = |(at, value): (usize, &Value)| match value.as_u64() {
        Some(id) => vocabulary_id(id, limits, || format!("{field}[{at}]")),
        None => {
            let what = format!("must be a token id, got {value}");
            Err(Invalid::field(format!("{field}[{at}]"), &what))
        }
    };
    list.iter().enumerate().map(id).collect()
}

/// Completions' answers.
#[derive(Debug)]
pub struct CompletionShape {
    head: Head,
    delivery: Delivery,
    logprobs: bool,
    tokens_as_ids: bool,
    /// Characters of token text so far, by output.
    offsets: Vec<usize>,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageJson>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Value,
}

impl CompletionShape {
    /// For one call with `count` prompts.
    pub fn new(head: Head, delivery: Delivery, count: usize) -> Self {
        let (logprobs, tokens_as_ids) = (false, false);
        Self { head, delivery, logprobs, tokens_as_ids, offsets: vec![0; count] }
    }

    /// Reports logprobs, tokens written as ids or as text.
    #[must_use]
    pub fn with_logprobs(mut self, logprobs: bool, tokens_as_ids: bool) -> Self {
        (self.logprobs, self.tokens_as_ids) = (logprobs, tokens_as_ids);
        self
    }

    fn body(&self, choices: Vec<Choice>, usage: Option<Usage>) -> String {
        json_text(&Body {
            id: &self.head.id,
            object: "text_completion",
            created: self.head.created,
            model: &self.head.model.served_name,
            choices,
            usage: usage.map(UsageJson::from),
        })
    }

    fn choice(&mut self, delta: Delta) -> Choice {
        let model = &self.head.model;
        let logprobs = self.logprobs.then(|| {
            let offset = &mut self.offsets[delta.index];
            let pieces = model.tokenizer.pieces();
            CompletionLogprobs::new(&delta.tokens, pieces, offset, self.tokens_as_ids)
        });
        Choice {
            index: delta.index,
            text: delta.text,
            logprobs,
            finish_reason: delta.ending.as_ref().map(finish_reason),
            stop_reason: delta.ending.map_or(Value::Null, |ending| stop_reason(&ending, model)),
        }
    }
}

impl Shape for CompletionShape {
    fn chunks(&mut self, delta: Delta) -> Vec<Sent> {
        // Whoever follows the usage sees every token come, also those that complete no text.
        let follows = self.logprobs || self.delivery.continuous_usage;
        let shows = follows && !delta.tokens.is_empty();
        if delta.text.is_empty() && !shows && delta.ending.is_none() {
            return Vec::new();
        }
        let usage = self.delivery.continuous_usage.then_some(delta.usage);
        let choice = self.choice(delta);
        vec![self.body(vec![choice], usage).into()]
    }

    fn last(&mut self, usage: Usage) -> Option<String> {
        self.delivery.include_usage.then(|| self.body(Vec::new(), Some(usage)))
    }

    fn whole(&mut self, outputs: Vec<Output>) -> String {
        let usages: Vec<Usage> = outputs.iter().map(|output| output.usage).collect();
        let deltas =
            outputs.into_iter().enumerate().map(|(index, output)| output.into_delta(index));
        let choices = deltas.map(|delta| self.choice(delta)).collect();
        self.body(choices, Some(crate::stream::total(&usages)))
    }
}
