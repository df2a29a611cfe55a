//! Walk 2/12. Before: `http.rs`, which has the body as fields. After: `tokenize.rs`.
//!
//! 1. `openai/` and `native.rs` read an API's fields into [`Knobs`]: what the client said, typed.
//! 2. [`Ask::new`] checks the ranges and fills in the model's defaults; a field that is known,
//!    would change the result and is not implemented is refused by name
//!    ([`refuse_unless_neutral`]).
//! 3. [`Ask::request`] joins an `Ask` with a prompt's ids into a [`Request`] that fits the fleet.
//!
//! An explicit value wins over `generation_config.json`, which wins over the API's own default.

use crate::error::Invalid;
use crate::fields::Fields;
use crate::model::Model;
use crate::ring::Limits;
use crate::structured::Wanted;
use serde_json::Value;
use shared::ids::TokenId;
use shared::request::{BadRequest, MAX_SALT, MAX_STOP_IDS, MAX_TOP_LOGPROBS};
use shared::request::{Reads, Request, RequestParts, Sampling};
use std::collections::BTreeMap;

/// Most prompts of one call, counted once an output.
pub const MAX_PROMPTS: usize = 512;
/// Most outputs of one prompt, OpenAI's.
pub const MAX_OUTPUTS: u32 = 128;
/// Most stop strings of one request.
pub const MAX_STOPS: usize = 64;
/// Longest stop string, bytes.
pub const MAX_STOP_LEN: usize = 1024;

/// A prompt and the field that it came in.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// `prompt`, `prompt[3]`, `messages`, …
    pub field: String,
    /// What it is.
    pub content: Content,
}

/// The forms of a prompt.
#[derive(Debug, Clone)]
pub enum Content {
    /// Text; `add_special` as in [`crate::tokenize::Tokenizer::encode`].
    Text {
        /// The text.
        text: String,
        /// Whether a bos token is added, if the model has it so.
        add_special: bool,
    },
    /// Token ids, each below the vocabulary's size.
    Ids(Vec<TokenId>),
}

/// What a client said about sampling and output; `None` where it said nothing.
#[derive(Debug, Clone, Default)]
pub struct Knobs {
    /// Outputs of a prompt; one if absent.
    pub n: Option<u32>,
    /// Outputs to make of a prompt, of which the `n` most probable are answered; `n` if absent.
    pub best_of: Option<u32>,
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Mass of the nucleus.
    pub top_p: Option<f32>,
    /// Candidates kept; -1 and 0 keep all.
    pub top_k: Option<i64>,
    /// Least probability relative to the best.
    pub min_p: Option<f32>,
    /// Off the logit of what the output has.
    pub presence_penalty: Option<f32>,
    /// Off a logit for every time that the output has the token.
    pub frequency_penalty: Option<f32>,
    /// Factor against what prompt or output have.
    pub repetition_penalty: Option<f32>,
    /// Added to single logits, by token id.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed; -1 is as absent.
    pub seed: Option<i64>,
    /// Most output tokens.
    pub max_tokens: Option<u32>,
    /// Fewest output tokens.
    pub min_tokens: u32,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Stop ids beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Whether the model's own stop ids do not stop.
    pub ignore_eos: bool,
    /// Whether special tokens are shown.
    pub show_special: bool,
    /// Whether the stop string or token is shown.
    pub include_stop: bool,
    /// Report log-probabilities, with this many alternatives.
    pub logprobs: Option<u32>,
    /// Report those of these tokens too, by id.
    pub logprob_ids: Vec<u32>,
    /// Report those of the prompt's own tokens.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Whether a call that makes no token is of use.
    pub may_make_none: bool,
    /// Keeps cached pages of tenants apart.
    pub cache_salt: String,
    /// For the priority policy.
    pub priority: i32,
    /// What the output has to be.
    pub wanted: Option<Wanted>,
}

impl Knobs {
    /// Of what has a length, about.
    pub fn bytes(&self) -> usize {
        let stops: usize = self.stop.iter().map(String::len).sum();
        let ids = self.stop_token_ids.len() + self.logprob_ids.len() + 2 * self.logit_bias.len();
        let grammar = self.wanted.as_ref().map_or(0, |wanted| wanted.grammar.text().len());
        self.cache_salt.len() + stops + 4 * ids + grammar
    }
}

/// Which tokens of a prompt are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLogprobs {
    /// The first one, at least 1: the very first of a prompt follows nothing.
    pub from: u32,
    /// Alternatives.
    pub top: u32,
}

/// The words of an API: its names for fields, and its own default length.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// Field that bounds the output.
    pub max_tokens: &'static str,
    /// Field of the lower bound.
    pub min_tokens: &'static str,
    /// Field that says how many alternatives are reported.
    pub logprobs: &'static str,
    /// What stands before the names of sampling fields.
    pub sampling: &'static str,
    /// Output tokens where the client says nothing; `None` is all that fit.
    pub default_tokens: Option<u32>,
    /// Whether `generation_config.json` gives defaults.
    pub model_defaults: bool,
}

impl Dialect {
    /// The client's name for one of our fields.
    fn field(&self, name: &str) -> String {
        match name {
            "max_tokens" => self.max_tokens.to_owned(),
            "min_tokens" => self.min_tokens.to_owned(),
            "logprobs" => self.logprobs.to_owned(),
            "salt" | "cache_salt" => "cache_salt".to_owned(),
            // Only SGLang's API has it.
            ids if ids.starts_with("logprob_ids") => {
                ids.replacen("logprob_ids", "token_ids_logprob", 1)
            }
            sampling => format!("{}{sampling}", self.sampling),
        }
    }

    /// A value of one of our fields that does not fit.
    fn invalid(&self, name: &str, what: &str) -> Invalid {
        Invalid::field(self.field(name), what)
    }
}

/// A checked request, but for its prompt.
#[derive(Debug, Clone)]
pub struct Ask {
    dialect: Dialect,
    limits: Limits,
    sampling: Sampling,
    max_tokens: Option<u32>,
    default_tokens: Option<u32>,
    min_tokens: u32,
    logit_bias: Vec<(TokenId, f32)>,
    stop: Vec<String>,
    stop_ids: Vec<TokenId>,
    logprob_ids: Vec<TokenId>,
    knobs: Knobs,
}

impl Ask {
    /// Checks `knobs`; `draw_seed` gives the seed where the client gave none.
    ///
    /// # Errors
    /// A value out of range, by field.
    pub fn new(
        mut knobs: Knobs,
        dialect: Dialect,
        model: &Model,
        limits: Limits,
        draw_seed: impl FnOnce() -> u64,
    ) -> Result<Self, Invalid> {
        if knobs.max_tokens == Some(0) && !knobs.may_make_none {
            return Err(dialect.invalid("max_tokens", "must be at least 1, got 0"));
        }
        let defaults = if dialect.model_defaults { model.defaults } else { Default::default() };
        let stop = std::mem::take(&mut knobs.stop);
        check_stops(&stop, dialect)?;
        check_rest(&knobs, dialect)?;
        Ok(Self {
            dialect,
            limits,
            sampling: Sampling {
                temperature: knobs.temperature.or(defaults.temperature).unwrap_or(1.0),
                top_p: knobs.top_p.or(defaults.top_p).unwrap_or(1.0),
                top_k: top_k(knobs.top_k, limits, dialect)?.or(defaults.top_k).unwrap_or(0),
                min_p: knobs.min_p.or(defaults.min_p).unwrap_or(0.0),
                presence_penalty: knobs.presence_penalty.unwrap_or(0.0),
                frequency_penalty: knobs.frequency_penalty.unwrap_or(0.0),
                repetition_penalty: knobs
                    .repetition_penalty
                    .or(defaults.repetition_penalty)
                    .unwrap_or(1.0),
                seed: knobs
                    .seed
                    .filter(|&seed| seed != -1)
                    .map_or_else(draw_seed, i64::cast_unsigned),
            },
            max_tokens: knobs.max_tokens,
            default_tokens: defaults.max_tokens.or(dialect.default_tokens),
            min_tokens: knobs.min_tokens,
            logit_bias: logit_bias(&knobs, limits, dialect)?,
            stop,
            stop_ids: stop_ids(&knobs, model, limits, dialect)?,
            logprob_ids: logprob_ids(&knobs, limits, dialect)?,
            knobs,
        })
    }

    /// Longest prompt that leaves room for one token of output, if any is wanted.
    pub fn prompt_max(&self) -> u32 {
        self.sequence_max().saturating_sub(u32::from(self.max_tokens != Some(0)))
    }

    /// Longest prompt and output together, tokens.
    fn sequence_max(&self) -> u32 {
        self.limits.context_length.min(self.limits.pool_tokens)
    }

    /// Outputs of each prompt that are answered.
    pub fn outputs(&self) -> u32 {
        self.knobs.n.unwrap_or(1)
    }

    /// Outputs of each prompt that are made.
    pub fn candidates(&self) -> u32 {
        self.knobs.best_of.unwrap_or_else(|| self.outputs())
    }

    /// Refuses more outputs than a call may have.
    ///
    /// # Errors
    /// By `best_of` or `n`.
    pub fn check_outputs(&self, prompts: usize) -> Result<(), Invalid> {
        let (made, fit) = (self.candidates(), MAX_PROMPTS / prompts.max(1));
        if made as usize <= fit {
            return Ok(());
        }
        let what =
            format!("{made} outputs of {prompts} prompts are too many; at most {fit} each fit");
        let field = if self.knobs.best_of.is_some() { "best_of" } else { "n" };
        Err(self.dialect.invalid(field, &what))
    }

    /// The requests for a prompt of 1 to [`Self::prompt_max`] tokens, one an output. The first
    /// draws by the seed, each other one by the next, as vLLM has it. They have the prompt in
    /// common, which is computed once.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn requests(&self, prompt: &[TokenId]) -> Result<Vec<Request>, Invalid> {
        let numbers = 0..u64::from(self.candidates());
        numbers.map(|number| self.output(prompt.to_vec(), number)).collect()
    }

    /// The request for a prompt of 1 to [`Self::prompt_max`] tokens.
    ///
    /// # Errors
    /// Prompt and `max_tokens` do not fit, or a sampling value is out of range.
    pub fn request(&self, prompt: Vec<TokenId>) -> Result<Request, Invalid> {
        self.output(prompt, 0)
    }

    fn output(&self, prompt: Vec<TokenId>, number: u64) -> Result<Request, Invalid> {
        let seed = self.sampling.seed.wrapping_add(number);
        let most = self.sequence_max();
        let prompt_len = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let left = most.saturating_sub(prompt_len);
        let max_tokens = match (self.max_tokens, self.default_tokens) {
            (Some(asked), _) if asked > left => {
                let field = self.dialect.max_tokens;
                let message = format!(
                    "{field}: this model's maximum context length is {most} tokens; {prompt_len} \
                     in the prompt and {asked} for the output are too many"
                );
                return Err(Invalid::too_long(field, message));
            }
            (Some(asked), _) => asked,
            (None, default) => default.map_or(left, |tokens| tokens.min(left)),
        };
        let parts = RequestParts {
            tokens: prompt,
            prompt_len,
            max_tokens,
            min_tokens: self.min_tokens,
            sampling: Sampling { seed, ..self.sampling },
            logit_bias: self.logit_bias.clone(),
            stop_ids: self.stop_ids.clone(),
            logprobs: self.knobs.logprobs.map(|n| n.min(u32::from(u8::MAX)) as u8),
            logprob_ids: self.logprob_ids.clone(),
            salt: self.knobs.cache_salt.clone(),
            priority: self.knobs.priority,
            grammar: self.wanted().map(|wanted| Box::new(wanted.grammar.clone())),
            reads: self.reads(prompt_len, max_tokens),
        };
        Request::try_from(parts).map_err(|bad| self.in_dialect(&bad))
    }

    /// What is read of a prompt of `prompt_len` tokens; one that is to make no token is read too,
    /// though nothing of it.
    fn reads(&self, prompt_len: u32, max_tokens: u32) -> Option<Reads> {
        match self.knobs.prompt_logprobs {
            Some(PromptLogprobs { from, top }) => {
                let top = top.min(u32::from(u8::MAX)) as u8;
                Some(Reads::Logprobs { from: from.min(prompt_len), top })
            }
            None => (max_tokens == 0).then_some(Reads::Logprobs { from: prompt_len, top: 0 }),
        }
    }

    /// The stop strings.
    pub fn stop(&self) -> &[String] {
        &self.stop
    }
    /// Whether special tokens are left out of the text.
    pub fn skip_special(&self) -> bool {
        !self.knobs.show_special
    }
    /// Whether what stopped the output is part of the text.
    pub fn include_stop(&self) -> bool {
        self.knobs.include_stop
    }
    /// What the output has to be.
    pub fn wanted(&self) -> Option<&Wanted> {
        self.knobs.wanted.as_ref()
    }
    /// Whether log-probabilities are reported.
    pub fn logprobs(&self) -> Option<u32> {
        self.knobs.logprobs
    }

    /// Whether those of the prompt are.
    pub fn prompt_logprobs(&self) -> Option<PromptLogprobs> {
        self.knobs.prompt_logprobs
    }

    fn in_dialect(&self, bad: &BadRequest) -> Invalid {
        self.dialect.invalid(bad.field, &format!("{} does not fit; want {}", bad.value, bad.want))
    }
}

fn check_stops(stops: &[String], dialect: Dialect) -> Result<(), Invalid> {
    if stops.len() > MAX_STOPS {
        let what = format!("has {} strings; at most {MAX_STOPS} fit", stops.len());
        return Err(dialect.invalid("stop", &what));
    }
    match stops.iter().position(|stop| stop.is_empty() || stop.len() > MAX_STOP_LEN) {
        Some(at) => {
            let what = format!("must be 1 to {MAX_STOP_LEN} bytes, got {}", stops[at].len());
            Err(dialect.invalid(&format!("stop[{at}]"), &what))
        }
        None => Ok(()),
    }
}

fn check_rest(knobs: &Knobs, dialect: Dialect) -> Result<(), Invalid> {
    if let Some(n) = knobs.logprobs.filter(|&n| n > u32::from(MAX_TOP_LOGPROBS)) {
        let what = format!("{n} alternatives are too many; at most {MAX_TOP_LOGPROBS}");
        return Err(dialect.invalid("logprobs", &what));
    }
    if let Some(n) = knobs.n.filter(|n| !(1..=MAX_OUTPUTS).contains(n)) {
        return Err(dialect.invalid("n", &format!("must be 1 to {MAX_OUTPUTS}, got {n}")));
    }
    let n = knobs.n.unwrap_or(1);
    if let Some(best) = knobs.best_of.filter(|best| !(n..=MAX_OUTPUTS).contains(best)) {
        let what = format!("must be `n`, here {n}, to {MAX_OUTPUTS}, got {best}");
        return Err(dialect.invalid("best_of", &what));
    }
    if knobs.cache_salt.len() > MAX_SALT {
        let what = format!("has {} bytes; at most {MAX_SALT} fit", knobs.cache_salt.len());
        return Err(dialect.invalid("cache_salt", &what));
    }
    Ok(())
}

/// `None` where the client said nothing; 0 keeps all.
fn top_k(asked: Option<i64>, limits: Limits, dialect: Dialect) -> Result<Option<u32>, Invalid> {
    match asked {
        None => Ok(None),
        Some(-1 | 0) => Ok(Some(0)),
        // SGLang's clients send 2^30 for "all".
        Some(k) if k >= i64::from(limits.vocab) => Ok(Some(0)),
        Some(k) => u32::try_from(k).map(Some).map_err(|_| {
            dialect.invalid("top_k", &format!("must be -1, 0 (all) or at least 1, got {k}"))
        }),
    }
}

fn logit_bias(
    knobs: &Knobs,
    limits: Limits,
    dialect: Dialect,
) -> Result<Vec<(TokenId, f32)>, Invalid> {
    let biased = knobs.logit_bias.iter().map(|(&id, &bias)| {
        let id = vocabulary_id(u64::from(id), limits, || dialect.field("logit_bias"))?;
        Ok((id, bias))
    });
    biased.collect()
}

/// None where no log-probabilities are asked for; checked all the same.
fn logprob_ids(knobs: &Knobs, limits: Limits, dialect: Dialect) -> Result<Vec<TokenId>, Invalid> {
    let ids = knobs.logprob_ids.iter().enumerate().map(|(at, &id)| {
        vocabulary_id(u64::from(id), limits, || dialect.field(&format!("logprob_ids[{at}]")))
    });
    let ids: Vec<_> = ids.collect::<Result<_, _>>()?;
    Ok(if knobs.logprobs.is_some() { ids } else { Vec::new() })
}

fn stop_ids(
    knobs: &Knobs,
    model: &Model,
    limits: Limits,
    dialect: Dialect,
) -> Result<Vec<TokenId>, Invalid> {
    let mut ids = if knobs.ignore_eos { Vec::new() } else { model.eos.clone() };
    for (at, &id) in knobs.stop_token_ids.iter().enumerate() {
        let id = vocabulary_id(u64::from(id), limits, || {
            dialect.field(&format!("stop_token_ids[{at}]"))
        })?;
        if !ids.contains(&id) {
            ids.push(id);
        }
        if ids.len() > MAX_STOP_IDS {
            let what = format!("more than {MAX_STOP_IDS} stop ids");
            return Err(dialect.invalid("stop_token_ids", &what));
        }
    }
    Ok(ids)
}

/// `id` as a token of the model; `field` names it where it is none.
///
/// # Errors
/// The id is not below the vocabulary's size.
pub fn vocabulary_id(
    id: u64,
    limits: Limits,
    field: impl FnOnce() -> String,
) -> Result<TokenId, Invalid> {
    match u32::try_from(id) {
        Ok(id) if id < limits.vocab => Ok(TokenId::new(id)),
        _ => {
            let last = limits.vocab.saturating_sub(1);
            let what = format!("token id {id} is outside the vocabulary (0 to {last})");
            Err(Invalid::field(field(), &what))
        }
    }
}

/// The value with which a field that is not implemented changes nothing.
#[derive(Debug, Clone, Copy)]
pub enum Neutral {
    /// `false`.
    False,
    /// The number.
    Number(f64),
    /// Nothing in it: `""`, `[]`, `{}`, also `false`.
    Empty,
    /// Only absent or null.
    Absent,
}

/// Refuses the fields of `table` that are there with another than their neutral value.
///
/// # Errors
/// The first such field.
pub fn refuse_unless_neutral(fields: &Fields, table: &[(&str, Neutral)]) -> Result<(), Invalid> {
    for (name, neutral) in table {
        let Some(value) = fields.get(name) else { continue };
        let is_neutral = match neutral {
            Neutral::False => value == &Value::Bool(false),
            Neutral::Number(number) => value.as_f64() == Some(*number),
            Neutral::Empty => match value {
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(map) => map.is_empty(),
                other => other == &Value::Bool(false),
            },
            Neutral::Absent => false,
        };
        if !is_neutral {
            return Err(fields.unsupported(name));
        }
    }
    Ok(())
}
