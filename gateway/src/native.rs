//! `/generate`, SGLang's own shape: `text` is cumulative in a stream, ids are reported.

use crate::error::Invalid;
use crate::fields::Fields;
use crate::openai::completions::prompts;
use crate::openai::knobs::{logit_bias, strings};
use crate::openai::{finish_reason, finite, text};
use crate::pieces::Pieces;
use crate::ring::Limits;
use crate::sse::Events;
use crate::stream::Shape;
use crate::structured;
use crate::transcript::{Delta, Ending, Matched, Output, Usage};
use crate::validate::{Dialect, Knobs, Neutral, Prompt, PromptLogprobs, refuse_unless_neutral};
use serde_json::{Value, json};
use shared::ids::TokenId;
use shared::request::{Finish, Token};
use std::sync::Arc;
use std::time::Instant;

/// SGLang's words and default length; `generation_config.json` is for the OpenAI routes.
pub const DIALECT: Dialect = Dialect {
    max_tokens: "sampling_params.max_new_tokens",
    min_tokens: "sampling_params.min_new_tokens",
    logprobs: "top_logprobs_num",
    sampling: "sampling_params.",
    default_tokens: Some(128),
    model_defaults: false,
};

/// Known beside the sampling parameters, and not implemented.
const NOT_YET: &[(&str, Neutral)] = &[
    ("input_embeds", Neutral::Absent),
    ("image_data", Neutral::Empty),
    ("video_data", Neutral::Empty),
    ("audio_data", Neutral::Empty),
    ("session_params", Neutral::Empty),
    ("lora_path", Neutral::Absent),
    ("custom_logit_processor", Neutral::Absent),
    ("return_hidden_states", Neutral::False),
];

/// Known sampling parameters, and not implemented.
const SAMPLING_NOT_YET: &[(&str, Neutral)] = &[
    ("structural_tag", Neutral::Absent),
    ("stop_regex", Neutral::Empty),
    ("custom_params", Neutral::Empty),
];

/// A generate request, read.
#[derive(Debug)]
pub struct GenerateRequest {
    /// One output each, or `n`.
    pub prompts: Vec<Prompt>,
    /// Whether the client sent a list or asked for several outputs, so that the answer is a list.
    pub batch: bool,
    /// Sampling and output.
    pub knobs: Knobs,
    /// As server-sent events.
    pub stream: bool,
    /// The client's own name for the request.
    pub rid: Option<String>,
    /// Report `output_token_logprobs`, their texts too.
    pub logprobs: Option<WithText>,
    /// The prompt's too, from this position on.
    pub start: Option<u32>,
    /// Report those of so many tokens by id.
    pub named: usize,
}

/// Whether logprobs carry the tokens' texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WithText(pub bool);

/// Reads the fields.
///
/// # Errors
/// By field.
pub fn read(fields: &mut Fields, limits: Limits) -> Result<GenerateRequest, Invalid> {
    refuse_unless_neutral(fields, NOT_YET)?;
    let (text, ids) = (fields.take_value("text"), fields.take_value("input_ids"));
    let (field, value) = match (text, ids) {
        (Some(text), None) => ("text", text),
        (None, Some(ids)) => ("input_ids", ids),
        _ => return Err(fields.wrong("text", "give either `text` or `input_ids`")),
    };
    let list = value.as_array();
    let batch = list.is_some_and(|list| list.first().is_some_and(|first| !first.is_number()));
    let wants_logprobs = fields.take_or("return_logprob", false)?;
    let start: i64 = fields.take_or("logprob_start_len", -1)?;
    let start = match u32::try_from(start) {
        Ok(start) => wants_logprobs.then_some(start),
        Err(_) if start == -1 => None,
        Err(_) => {
            let what = format!("must be a position in the prompt, or -1 for none, got {start}");
            return Err(fields.wrong("logprob_start_len", &what));
        }
    };
    let top: u32 = fields.take_or("top_logprobs_num", 0)?;
    let mut sampling = fields.object("sampling_params")?;
    let mut knobs = sampling_knobs(&mut sampling)?;
    knobs.logprobs = wants_logprobs.then_some(top);
    knobs.logprob_ids = fields.take_or("token_ids_logprob", Vec::new())?;
    let named = if wants_logprobs { knobs.logprob_ids.len() } else { 0 };
    // The token at `start` is given without a log-probability.
    knobs.prompt_logprobs =
        start.map(|start| PromptLogprobs { from: start.saturating_add(1), top });
    knobs.may_make_none = true;
    knobs.cache_salt = fields.take_or("cache_salt", String::new())?;
    knobs.priority = fields.take_or("priority", 0)?;
    let batch = batch || knobs.n.is_some_and(|n| n > 1);
    let with_text = WithText(fields.take_or("return_text_in_logprobs", false)?);
    Ok(GenerateRequest {
        prompts: prompts(field, value, true, limits)?,
        batch,
        knobs,
        stream: fields.take_or("stream", false)?,
        rid: rid(fields)?,
        logprobs: wants_logprobs.then_some(with_text),
        start,
        named,
    })
}

/// One name for the call, or one a prompt, of which the first names the call.
fn rid(fields: &mut Fields) -> Result<Option<String>, Invalid> {
    Ok(strings(fields, "rid")?.into_iter().next())
}

fn sampling_knobs(sampling: &mut Fields) -> Result<Knobs, Invalid> {
    refuse_unless_neutral(sampling, SAMPLING_NOT_YET)?;
    Ok(Knobs {
        n: sampling.take("n")?,
        temperature: sampling.take("temperature")?,
        top_p: sampling.take("top_p")?,
        top_k: sampling.take("top_k")?,
        min_p: sampling.take("min_p")?,
        presence_penalty: sampling.take("presence_penalty")?,
        frequency_penalty: sampling.take("frequency_penalty")?,
        repetition_penalty: sampling.take("repetition_penalty")?,
        logit_bias: logit_bias(sampling)?,
        seed: sampling.take("sampling_seed")?,
        max_tokens: sampling.take("max_new_tokens")?,
        min_tokens: sampling.take_or("min_new_tokens", 0)?,
        stop: strings(sampling, "stop")?,
        stop_token_ids: sampling.take_or("stop_token_ids", Vec::new())?,
        ignore_eos: sampling.take_or("ignore_eos", false)?,
        show_special: !sampling.take_or("skip_special_tokens", true)?,
        include_stop: sampling.take_or("no_stop_trim", false)?,
        wanted: structured::read(sampling)?,
        ..Knobs::default()
    })
}

/// `/generate`'s answers.
#[derive(Debug)]
pub struct GenerateShape {
    id: String,
    started: Instant,
    pieces: Arc<Pieces>,
    batch: bool,
    logprobs: Option<WithText>,
    /// The prompt's log-probabilities begin here.
    start: Option<u32>,
    /// So many of each token's alternatives, the last, were asked for by id.
    named: usize,
    /// The tokens there, by output.
    opening: Vec<Option<TokenId>>,
    /// Lengths of the prompts, by output: each tells of its own.
    prompts: Vec<usize>,
    outputs: Vec<Output>,
}

impl GenerateShape {
    /// For a call that arrived at `started` and has `count` outputs.
    pub fn new(id: String, started: Instant, pieces: Arc<Pieces>, count: usize) -> Self {
        let (outputs, opening) = (vec![Output::default(); count], vec![None; count]);
        let prompts = vec![0; count];
        let (batch, logprobs, start, named) = (false, None, None, 0);
        Self { id, started, pieces, batch, logprobs, start, named, opening, prompts, outputs }
    }

    /// Answers in a list, or with logprobs, as `request` asks.
    #[must_use]
    pub fn of(mut self, request: &GenerateRequest) -> Self {
        (self.batch, self.logprobs, self.start) = (request.batch, request.logprobs, request.start);
        self.named = request.named;
        self
    }

    fn result(&self, index: usize, output: &Output) -> Value {
        let id = match self.batch {
            true => format!("{}-{index}", self.id),
            false => self.id.clone(),
        };
        let mut meta = json!({
            "id": id,
            "finish_reason": output.ending.as_ref().map(|end| finish(end, output.usage)),
            "prompt_tokens": self.prompts[index],
            "completion_tokens": output.usage.completion,
            "cached_tokens": output.usage.cached,
        });
        if let Some(with_text) = self.logprobs {
            let rows = |token: &Token| self.row(token.id, token.logprob, with_text);
            let list = |some: &[(TokenId, f32)]| -> Value {
                some.iter().map(|&(id, logprob)| self.row(id, logprob, with_text)).collect()
            };
            let named_from = |token: &Token| token.top.len().saturating_sub(self.named);
            let best = |token: &Token| list(&token.top[..named_from(token)]);
            let named = |token: &Token| list(&token.top[named_from(token)..]);
            let opening = self.opening[index].into_iter();
            let none = || self.opening[index].map(|_| Value::Null).into_iter();
            let unknown = |id: TokenId| json!([null, id.get(), self.text(id, with_text)]);
            let (prompt, made) = (&output.prompt, &output.tokens);
            meta["input_token_logprobs"] =
                opening.map(unknown).chain(prompt.iter().map(rows)).collect();
            meta["input_top_logprobs"] = none().chain(prompt.iter().map(best)).collect();
            meta["output_token_logprobs"] = made.iter().map(rows).collect();
            meta["output_top_logprobs"] = made.iter().map(best).collect();
            if self.named > 0 {
                meta["input_token_ids_logprobs"] = none().chain(prompt.iter().map(named)).collect();
                meta["output_token_ids_logprobs"] = made.iter().map(named).collect();
            }
        }
        if output.ending.is_some() {
            meta["e2e_latency"] = json!(self.started.elapsed().as_secs_f64());
        }
        let ids: Vec<u32> = output.tokens.iter().map(|token| token.id.get()).collect();
        json!({"text": output.text, "output_ids": ids, "meta_info": meta})
    }

    /// `[logprob, id, text]`, as SGLang has it.
    fn row(&self, id: TokenId, logprob: f32, with_text: WithText) -> Value {
        json!([finite(logprob), id.get(), self.text(id, with_text)])
    }

    fn text(&self, id: TokenId, with_text: WithText) -> Option<String> {
        with_text.0.then(|| text(id, &self.pieces))
    }
}

fn finish(ending: &Ending, usage: Usage) -> Value {
    let kind = finish_reason(ending);
    match (&ending.matched, ending.finish) {
        (_, Finish::Length) => json!({"type": kind, "length": usage.completion}),
        (Some(Matched::Id(id)), Finish::Stop) => json!({"type": kind, "matched": id.get()}),
        (Some(Matched::Text(text)), Finish::Stop) => json!({"type": kind, "matched": text}),
        (None, Finish::Stop) => json!({"type": kind, "matched": null}),
    }
}

impl Shape for GenerateShape {
    fn prompt(&mut self, index: usize, ids: &[TokenId]) {
        self.prompts[index] = ids.len();
        self.opening[index] = self.start.and_then(|start| ids.get(start as usize).copied());
    }

    fn chunks(&mut self, delta: Delta, events: &mut Events) {
        let index = delta.index;
        self.outputs[index].add(delta);
        let mut chunk = self.result(index, &self.outputs[index]);
        if self.batch {
            chunk["index"] = json!(index);
        }
        events.add_json(None, &chunk);
    }

    fn whole(&mut self, outputs: Vec<Output>, _usage: Usage) -> String {
        let results: Vec<Value> =
            outputs.iter().enumerate().map(|(index, output)| self.result(index, output)).collect();
        match (self.batch, results.as_slice()) {
            (false, [one]) => one.to_string(),
            _ => Value::Array(results).to_string(),
        }
    }
}
