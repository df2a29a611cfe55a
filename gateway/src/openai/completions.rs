//! `/v1/completions`.

use super::knobs::{self, Delivery};
use super::logprobs::{CompletionLogprobs, Names, prompt_logprobs};
use super::{Head, UsageJson, finish_reason, json_text, stop_reason};
use crate::detokenize::decode_all;
use crate::error::Invalid;
use crate::fields::{Fields, kind};
use crate::ring::Limits;
use crate::stream::{Sent, Shape};
use crate::transcript::{Delta, Output, Usage};
use crate::validate::{
    Content, Dialect, Knobs, MAX_PROMPTS, Prompt, PromptLogprobs, vocabulary_id,
};
use serde::Serialize;
use serde_json::Value;
use shared::ids::TokenId;

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
    /// What is reported.
    pub report: Report,
}

/// What an answer reports beside its text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// Log-probabilities, with this many alternatives.
    pub logprobs: Option<u32>,
    /// vLLM's log-probabilities of the prompt, with this many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// The prompt opens the answer, in text and log-probabilities.
    pub echo: bool,
    /// Tokens in logprobs are written as ids.
    pub tokens_as_ids: bool,
    /// Special tokens are left out of the prompt's text.
    pub skip_special: bool,
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
    let echo = fields.take_or("echo", false)?;
    let report = Report {
        logprobs: knobs.logprobs,
        prompt_logprobs: knobs.prompt_logprobs.map(|asked| asked.top),
        echo,
        tokens_as_ids: fields.take_or("return_tokens_as_token_ids", false)?,
        skip_special: !knobs.show_special,
    };
    knobs.may_make_none = echo || knobs.prompt_logprobs.is_some();
    if let (true, Some(top)) = (echo, knobs.logprobs) {
        let top = report.prompt_logprobs.map_or(top, |other| other.max(top));
        knobs.prompt_logprobs = Some(PromptLogprobs { from: 1, top });
    }
    let delivery = knobs::delivery(fields)?;
    let prompts = match fields.take_value("prompt") {
        Some(value) => prompts("prompt", value, add_special, limits)?,
        None => return Err(fields.wrong("prompt", "is required")),
    };
    Ok(CompletionRequest { prompts, knobs, delivery, report })
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
    report: Report,
    outputs: Vec<Told>,
}

/// What was said of an output.
#[derive(Debug, Clone, Default)]
struct Told {
    /// Characters of token text so far.
    offset: usize,
    /// The prompt, until it is said.
    prompt: Vec<TokenId>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Value>,
}

impl CompletionShape {
    /// For one call with `count` outputs.
    pub fn new(head: Head, delivery: Delivery, count: usize) -> Self {
        Self { head, delivery, report: Report::default(), outputs: vec![Told::default(); count] }
    }

    /// Reports more than text.
    #[must_use]
    pub fn reporting(mut self, report: Report) -> Self {
        self.report = report;
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
        let (model, report) = (&self.head.model, self.report);
        let pieces = model.tokenizer.pieces();
        let told = &mut self.outputs[delta.index];
        let prompt = std::mem::take(&mut told.prompt);
        let echoed = if report.echo { &prompt[..] } else { &[] };
        let logprobs = report.logprobs.map(|top| {
            let names = Names { pieces, as_ids: report.tokens_as_ids };
            let mut logprobs = CompletionLogprobs::default();
            if let Some(&first) = echoed.first() {
                logprobs.open(first, names, &mut told.offset);
                logprobs.extend(&delta.prompt, names, top, &mut told.offset);
            }
            logprobs.extend(&delta.tokens, names, top, &mut told.offset);
            logprobs
        });
        let asked = report.prompt_logprobs.filter(|_| !prompt.is_empty());
        Choice {
            index: delta.index,
            text: decode_all(pieces, echoed, report.skip_special) + &delta.text,
            logprobs,
            finish_reason: delta.ending.as_ref().map(finish_reason),
            stop_reason: delta.ending.map_or(Value::Null, |ending| stop_reason(&ending, model)),
            prompt_logprobs: asked.map(|top| prompt_logprobs(&delta.prompt, top, pieces)),
        }
    }
}

impl Shape for CompletionShape {
    fn prompt(&mut self, index: usize, ids: &[TokenId]) {
        if self.report.echo || self.report.prompt_logprobs.is_some() {
            self.outputs[index].prompt = ids.to_vec();
        }
    }

    fn chunks(&mut self, delta: Delta) -> Vec<Sent> {
        // Whoever follows the usage sees every token come, also those that complete no text.
        let follows = self.report.logprobs.is_some() || self.delivery.continuous_usage;
        let opens = !self.outputs[delta.index].prompt.is_empty();
        let shows = opens || (follows && !delta.tokens.is_empty());
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

    fn whole(&mut self, outputs: Vec<Output>, usage: Usage) -> String {
        let deltas =
            outputs.into_iter().enumerate().map(|(index, output)| output.into_delta(index));
        let choices = deltas.map(|delta| self.choice(delta)).collect();
        self.body(choices, Some(usage))
    }
}
