//! The fields that chat and completions share.

use crate::error::Invalid;
use crate::fields::Fields;
use crate::structured;
use crate::validate::{Knobs, Neutral, PromptLogprobs, refuse_unless_neutral};
use serde_json::Value;
use shared::request::MAX_TOP_LOGPROBS;
use std::collections::BTreeMap;

/// Known to OpenAI, vLLM or SGLang, and refused where they would change the result.
const NOT_YET: &[(&str, Neutral)] = &[
    ("use_beam_search", Neutral::False),
    ("length_penalty", Neutral::Number(1.0)),
    ("bad_words", Neutral::Empty),
    ("allowed_token_ids", Neutral::Absent),
    ("logits_processors", Neutral::Empty),
    ("custom_logit_processor", Neutral::Absent),
    ("vllm_xargs", Neutral::Empty),
    ("suffix", Neutral::Empty),
    ("prompt_embeds", Neutral::Absent),
    ("return_token_ids", Neutral::False),
    ("truncate_prompt_tokens", Neutral::Absent),
    ("structural_tag", Neutral::Absent),
    ("stop_regex", Neutral::Empty),
    ("lora_path", Neutral::Absent),
    ("return_hidden_states", Neutral::False),
    // chat
    ("functions", Neutral::Empty),
    ("audio", Neutral::Absent),
    ("web_search_options", Neutral::Absent),
    ("documents", Neutral::Empty),
    ("chat_template", Neutral::Absent),
    ("continue_final_message", Neutral::False),
    ("mm_processor_kwargs", Neutral::Empty),
    ("thinking_token_budget", Neutral::Absent),
];

/// How an answer is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery {
    /// As server-sent events.
    pub stream: bool,
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// The usage so far in every chunk.
    pub continuous_usage: bool,
}

/// Reads the shared fields but for `max_tokens` and `logprobs`, whose names and types differ.
///
/// # Errors
/// A field of the wrong type, or one that is not supported yet.
pub fn read(fields: &mut Fields) -> Result<Knobs, Invalid> {
    refuse_unless_neutral(fields, NOT_YET)?;
    refuse_formats(fields)?;
    Ok(Knobs {
        n: fields.take("n")?,
        best_of: best_of(fields)?,
        temperature: fields.take("temperature")?,
        top_p: fields.take("top_p")?,
        top_k: fields.take("top_k")?,
        min_p: fields.take("min_p")?,
        presence_penalty: fields.take("presence_penalty")?,
        frequency_penalty: fields.take("frequency_penalty")?,
        repetition_penalty: fields.take("repetition_penalty")?,
        logit_bias: logit_bias(fields)?,
        seed: fields.take("seed")?,
        max_tokens: None,
        min_tokens: fields.take_or("min_tokens", 0)?,
        stop: strings(fields, "stop")?,
        stop_token_ids: fields.take_or("stop_token_ids", Vec::new())?,
        ignore_eos: fields.take_or("ignore_eos", false)?,
        show_special: !fields.take_or("skip_special_tokens", true)?,
        include_stop: fields.take_or("include_stop_str_in_output", false)?
            || fields.take_or("no_stop_trim", false)?,
        logprobs: None,
        logprob_ids: Vec::new(),
        prompt_logprobs: prompt_logprobs(fields)?,
        may_make_none: false,
        cache_salt: fields.take_or("cache_salt", String::new())?,
        priority: fields.take_or("priority", 0)?,
        wanted: structured::read(fields)?,
    })
}

/// vLLM's `prompt_logprobs`: how many alternatives. As there, not in a stream.
fn prompt_logprobs(fields: &mut Fields) -> Result<Option<PromptLogprobs>, Invalid> {
    let Some(top) = fields.take::<i64>("prompt_logprobs")? else { return Ok(None) };
    match u32::try_from(top) {
        Ok(top) if top <= u32::from(MAX_TOP_LOGPROBS) => {
            if fields.get("stream") == Some(&Value::Bool(true)) {
                return Err(fields.wrong("prompt_logprobs", "needs `stream` to be false"));
            }
            Ok(Some(PromptLogprobs { from: 1, top }))
        }
        _ => {
            let what = format!("must be 0 to {MAX_TOP_LOGPROBS} alternatives, got {top}");
            Err(fields.wrong("prompt_logprobs", &what))
        }
    }
}

/// Reads `stream` and `stream_options`.
///
/// # Errors
/// Of the wrong type, or options without `stream`.
pub fn delivery(fields: &mut Fields) -> Result<Delivery, Invalid> {
    let stream = fields.take_or("stream", false)?;
    if !stream && fields.get("stream_options").is_some() {
        return Err(fields.wrong("stream_options", "is only allowed where `stream` is true"));
    }
    let mut options = fields.object("stream_options")?;
    Ok(Delivery {
        stream,
        include_usage: options.take_or("include_usage", false)?,
        continuous_usage: options.take_or("continuous_usage_stats", false)?,
    })
}

/// Which outputs are best is known once all have ended, so not in a stream.
fn best_of(fields: &mut Fields) -> Result<Option<u32>, Invalid> {
    let best: Option<u32> = fields.take("best_of")?;
    if best.is_some_and(|best| best > 1) && fields.get("stream") == Some(&Value::Bool(true)) {
        return Err(fields.wrong("best_of", "needs `stream` to be false"));
    }
    Ok(best)
}

/// A field that is one string or a list of them.
///
/// # Errors
/// Neither.
pub fn strings(fields: &mut Fields, name: &str) -> Result<Vec<String>, Invalid> {
    match fields.get(name) {
        Some(Value::String(_)) => Ok(fields.take(name)?.into_iter().collect()),
        _ => fields.take_or(name, Vec::new()),
    }
}

/// `logit_bias`: an object with token ids as keys, as OpenAI has it.
///
/// # Errors
/// A key that is no id, or a value that is no number, by key.
pub fn logit_bias(fields: &mut Fields) -> Result<BTreeMap<u32, f32>, Invalid> {
    let by_key: BTreeMap<String, f32> = fields.take_or("logit_bias", BTreeMap::new())?;
    let biased = by_key.into_iter().map(|(key, bias)| match key.parse() {
        Ok(id) => Ok((id, bias)),
        Err(_) => Err(fields.wrong(&format!("logit_bias.{key}"), "must be a token id in quotes")),
    });
    biased.collect()
}

/// Fields whose neutral value is nested or a word.
fn refuse_formats(fields: &Fields) -> Result<(), Invalid> {
    if fields.get("function_call").is_some_and(|call| call != "none" && call != "auto") {
        return Err(fields.unsupported("function_call"));
    }
    if fields.get("modalities").is_some_and(|list| list != &serde_json::json!(["text"])) {
        return Err(fields.unsupported("modalities"));
    }
    Ok(())
}
