//! `/v1/completions`.

use super::knobs::{self, Delivery};
use super::logprobs::{CompletionLogprobs, Names, prompt_logprobs};
use super::{Head, Opening, finish_reason, stop_reason};
use crate::detokenize::decode_all;
use crate::error::Invalid;
use crate::fields::{Fields, kind};
use crate::model::Model;
use crate::ring::Limits;
use crate::sse::{Data, Events};
use crate::stream::Shape;
use crate::transcript::{Delta, Output, Usage};
use crate::validate::{
    Content, Dialect, Knobs, MAX_PROMPTS, Prompt, PromptLogprobs, vocabulary_id,
};
use serde_json::Value;
use shared::ids::TokenId;
use std::sync::Arc;

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
    model: Arc<Model>,
    opening: Opening,
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

struct Choice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Value,
    prompt_logprobs: Option<Value>,
}

impl Choice {
    fn write(&self, data: &mut Data<'_>) {
        data.field("{\"index\":", &self.index);
        data.field(",\"text\":", &self.text);
        data.field(",\"logprobs\":", &self.logprobs);
        data.field(",\"finish_reason\":", &self.finish_reason);
        data.field(",\"stop_reason\":", &self.stop_reason);
        if let Some(prompt) = &self.prompt_logprobs {
            data.field(",\"prompt_logprobs\":", prompt);
        }
        data.text("}");
    }
}

impl CompletionShape {
    /// For one call with `count` outputs.
    pub fn new(head: Head, delivery: Delivery, count: usize) -> Self {
        let opening = Opening::new(&head, "text_completion");
        let (report, outputs) = (Report::default(), vec![Told::default(); count]);
        Self { model: head.model, opening, delivery, report, outputs }
    }

    /// Reports more than text.
    #[must_use]
    pub fn reporting(mut self, report: Report) -> Self {
        self.report = report;
        self
    }

    fn choice(&mut self, delta: Delta) -> Choice {
        let (model, report) = (&self.model, self.report);
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
        let text = match echoed {
            [] => delta.text,
            prompt => decode_all(pieces, prompt, report.skip_special) + &delta.text,
        };
        let asked = report.prompt_logprobs.filter(|_| !prompt.is_empty());
        Choice {
            index: delta.index,
            text,
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

    fn chunks(&mut self, delta: Delta, events: &mut Events) {
        // Whoever follows the usage sees every token come, also those that complete no text.
        let follows = self.report.logprobs.is_some() || self.delivery.continuous_usage;
        let opens = !self.outputs[delta.index].prompt.is_empty();
        let shows = opens || (follows && !delta.tokens.is_empty());
        if delta.text.is_empty() && !shows && delta.ending.is_none() {
            return;
        }
        let usage = self.delivery.continuous_usage.then_some(delta.usage);
        let choice = self.choice(delta);
        events.add(None, |data| self.opening.chunk(data, usage, |data| choice.write(data)));
    }

    fn last(&mut self, usage: Usage, events: &mut Events) {
        if self.delivery.include_usage {
            events.add(None, |data| self.opening.chunk(data, Some(usage), |_| {}));
        }
    }

    fn whole(&mut self, outputs: Vec<Output>, usage: Usage) -> String {
        let deltas =
            outputs.into_iter().enumerate().map(|(index, output)| output.into_delta(index));
        let choices: Vec<Choice> = deltas.map(|delta| self.choice(delta)).collect();
        Data::text_of(|data| {
            let items =
                |data: &mut Data<'_>| data.items(&choices, |data, choice| choice.write(data));
            self.opening.chunk(data, Some(usage), items);
        })
    }
}
