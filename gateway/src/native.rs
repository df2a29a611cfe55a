//! `/generate`, SGLang's own shape: `text` is cumulative in a stream, ids are reported.

mod lists;

pub use lists::Lists;

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
    /// Sampling and output: of all prompts, or of each.
    pub knobs: Vec<Knobs>,
    /// What is told of tokens, likewise.
    pub tellings: Vec<Telling>,
    /// Whether log-probabilities carry the tokens' texts.
    pub with_text: bool,
    /// As server-sent events.
    pub stream: bool,
    /// The client's own name for the call.
    pub rid: Option<String>,
    /// What the prompts have of their own.
    pub lists: Lists,
}

/// What is told of an output's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Telling {
    /// `output_token_logprobs` and what belongs to them.
    pub logprobs: bool,
    /// The prompt's too, from this position on.
    pub start: Option<u32>,
    /// Those of so many tokens by id.
    pub named: usize,
}

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
    let prompts = prompts(field, value, true, limits)?;
    let mut lists = Lists::new(prompts.len());
    let (knobs, tellings): (Vec<_>, Vec<_>) = each(fields, &mut lists)?.into_iter().unzip();
    let rid = lists.take_rid(fields)?;
    Ok(GenerateRequest {
        batch: batch || knobs.iter().any(|knobs| knobs.n.is_some_and(|n| n > 1)),
        prompts,
        knobs,
        tellings,
        with_text: fields.take_or("return_text_in_logprobs", false)?,
        stream: fields.take_or("stream", false)?,
        rid,
        lists,
    })
}

/// Where one field has a list, what is said for all prompts is copied for each. Bytes that are.
const COPIED_MAX: usize = 16 << 20;

/// What all prompts are to make and to tell, or what each of them is.
fn each(fields: &mut Fields, lists: &mut Lists) -> Result<Vec<(Knobs, Telling)>, Invalid> {
    let sampling = lists.take_objects(fields, "sampling_params", sampling_knobs)?;
    let wants = lists.take(fields, "return_logprob", false)?;
    let starts = lists.take(fields, "logprob_start_len", -1_i64)?;
    let tops = lists.take(fields, "top_logprobs_num", 0_u32)?;
    let named = lists.take_lists::<u32>(fields, "token_ids_logprob")?;
    let salts = lists.take(fields, "cache_salt", String::new())?;
    let priority = fields.take_or("priority", 0)?;
    let outputs = sampling.of(0).n.unwrap_or(1);
    let mut copied = 0;
    let one = |at| {
        let (logprobs, top, ids) = (*wants.of(at), *tops.of(at), named.of(at));
        let start = start(*starts.of(at));
        let start = start.map_err(|what| lists.at(at, fields.wrong("logprob_start_len", &what)))?;
        let start = start.filter(|_| logprobs);
        copied += sampling.of(at).bytes() + salts.of(at).len() + 4 * ids.len();
        if copied > COPIED_MAX {
            let what = format!(
                "comes to more than {COPIED_MAX} bytes with `cache_salt` and `token_ids_logprob`, \
                 counted for each prompt; send fewer prompts at a time"
            );
            return Err(fields.wrong("sampling_params", &what));
        }
        let sampling = sampling.of(at).clone();
        if sampling.n.unwrap_or(1) != outputs {
            let what = format!("must be the same for all prompts, {outputs} as the first");
            return Err(lists.at(at, Invalid::field("sampling_params.n", &what)));
        }
        let knobs = Knobs {
            logprobs: logprobs.then_some(top),
            logprob_ids: ids.clone(),
            // The token at `start` is given without a log-probability.
            prompt_logprobs: start
                .map(|start| PromptLogprobs { from: start.saturating_add(1), top }),
            may_make_none: true,
            cache_salt: salts.of(at).clone(),
            priority,
            ..sampling
        };
        Ok((knobs, Telling { logprobs, start, named: if logprobs { ids.len() } else { 0 } }))
    };
    (0..lists.rows()).map(one).collect()
}

/// A position in the prompt, or -1 for none.
fn start(asked: i64) -> Result<Option<u32>, String> {
    match u32::try_from(asked) {
        Ok(start) => Ok(Some(start)),
        Err(_) if asked == -1 => Ok(None),
        Err(_) => Err(format!("must be a position in the prompt, or -1 for none, got {asked}")),
    }
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
    started: Instant,
    pieces: Arc<Pieces>,
    batch: bool,
    with_text: bool,
    outputs: Vec<Told>,
}

/// What is told of an output.
#[derive(Debug, Clone)]
struct Told {
    id: String,
    telling: Telling,
    /// Length of its prompt.
    prompt: usize,
    /// The token where the prompt's log-probabilities begin.
    opening: Option<TokenId>,
    output: Output,
}

impl GenerateShape {
    /// For a `call` that arrived at `started` and has `made` outputs of each prompt.
    pub fn new(
        request: &GenerateRequest,
        (call, started): (&str, Instant),
        pieces: Arc<Pieces>,
        made: usize,
    ) -> Self {
        let told = |index| {
            let (prompt, number) = (index / made, index % made);
            let id = match request.lists.name(prompt) {
                Some(name) if made == 1 => name.to_owned(),
                Some(name) => format!("{name}_{number}"),
                None if request.batch => format!("{call}_{index}"),
                None => call.to_owned(),
            };
            let telling = request.tellings[prompt.min(request.tellings.len() - 1)];
            Told { id, telling, prompt: 0, opening: None, output: Output::default() }
        };
        let outputs = (0..request.prompts.len() * made).map(told).collect();
        let (batch, with_text) = (request.batch, request.with_text);
        Self { started, pieces, batch, with_text, outputs }
    }

    fn result(&self, Told { id, telling, prompt, opening, output }: &Told) -> Value {
        let mut meta = json!({
            "id": id,
            "finish_reason": output.ending.as_ref().map(|end| finish(end, output.usage)),
            "prompt_tokens": prompt,
            "completion_tokens": output.usage.completion,
            "cached_tokens": output.usage.cached,
        });
        if telling.logprobs {
            let rows = |token: &Token| self.row(token.id, token.logprob);
            let list = |some: &[(TokenId, f32)]| -> Value {
                some.iter().map(|&(id, logprob)| self.row(id, logprob)).collect()
            };
            let named_from = |token: &Token| token.top.len().saturating_sub(telling.named);
            let best = |token: &Token| list(&token.top[..named_from(token)]);
            let named = |token: &Token| list(&token.top[named_from(token)..]);
            let none = || opening.map(|_| Value::Null).into_iter();
            let unknown = |id: TokenId| json!([null, id.get(), self.text(id)]);
            let (prompt, made) = (&output.prompt, &output.tokens);
            meta["input_token_logprobs"] =
                opening.map(unknown).into_iter().chain(prompt.iter().map(rows)).collect();
            meta["input_top_logprobs"] = none().chain(prompt.iter().map(best)).collect();
            meta["output_token_logprobs"] = made.iter().map(rows).collect();
            meta["output_top_logprobs"] = made.iter().map(best).collect();
            if telling.named > 0 {
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
    fn row(&self, id: TokenId, logprob: f32) -> Value {
        json!([finite(logprob), id.get(), self.text(id)])
    }

    fn text(&self, id: TokenId) -> Option<String> {
        self.with_text.then(|| text(id, &self.pieces))
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
        let told = &mut self.outputs[index];
        told.prompt = ids.len();
        told.opening = told.telling.start.and_then(|start| ids.get(start as usize).copied());
    }

    fn chunks(&mut self, delta: Delta, events: &mut Events) {
        let index = delta.index;
        self.outputs[index].output.add(delta);
        let mut chunk = self.result(&self.outputs[index]);
        if self.batch {
            chunk["index"] = json!(index);
        }
        events.add_json(None, &chunk);
    }

    fn whole(&mut self, outputs: Vec<Output>, _usage: Usage) -> String {
        for (told, output) in self.outputs.iter_mut().zip(outputs) {
            told.output = output;
        }
        match (self.batch, &self.outputs[..]) {
            (false, [one]) => self.result(one).to_string(),
            (_, all) => all.iter().map(|told| self.result(told)).collect::<Value>().to_string(),
        }
    }
}
