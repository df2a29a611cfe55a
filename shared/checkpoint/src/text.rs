//! What a model says about text: special tokens and default sampling.

use crate::error::Error;
use crate::fields::Fields;

/// The special tokens by their text, for the chat template.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SpecialTokens {
    /// Beginning of a text.
    pub bos: Option<String>,
    /// End of a text.
    pub eos: Option<String>,
    /// Filler of batches.
    pub pad: Option<String>,
    /// What the tokenizer cannot express.
    pub unk: Option<String>,
    /// Encoding with special tokens puts `bos` first (`tokenizer.json` does it itself).
    pub add_bos: bool,
    /// Encoding with special tokens puts `eos` last (`tokenizer.json` does it itself).
    pub add_eos: bool,
}

/// `generation_config.json`: defaults of requests that leave a field out, as vLLM has it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct GenerationConfig {
    /// Tokens that end an answer; empty if the file names none.
    pub eos_token_ids: Vec<u32>,
    /// False asks for greedy decoding in transformers; vLLM ignores it.
    pub do_sample: Option<bool>,
    /// Softmax temperature, ≥ 0.
    pub temperature: Option<f64>,
    /// Mass of the nucleus, in 0..=1.
    pub top_p: Option<f64>,
    /// Candidates kept; absent also where the file switches it off with 0 or −1.
    pub top_k: Option<u32>,
    /// Least probability relative to the best, in 0..=1.
    pub min_p: Option<f64>,
    /// Divisor of the logits of tokens seen before, above 0.
    pub repetition_penalty: Option<f64>,
    /// Longest answer in tokens.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Self, Error> {
        Ok(Self {
            eos_token_ids: fields.ids("eos_token_id")?,
            do_sample: fields.flag("do_sample")?,
            temperature: fields.within("temperature", 0.0, 100.0)?,
            top_p: fields.within("top_p", 0.0, 1.0)?,
            top_k: fields.within("top_k", -1.0, f64::from(u32::MAX))?.and_then(kept),
            min_p: fields.within("min_p", 0.0, 1.0)?,
            repetition_penalty: fields.positive("repetition_penalty")?,
            max_new_tokens: fields.size("max_new_tokens", usize::MAX)?,
        })
    }
}

fn kept(top_k: f64) -> Option<u32> {
    (top_k >= 1.0).then_some(top_k as u32)
}
