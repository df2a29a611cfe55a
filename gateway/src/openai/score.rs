//! `/v1/score` in its two forms: SGLang's asks how probable single tokens are after a query and an
//! item, vLLM's how near the vectors of two texts are.

use super::Head;
use super::completions::ids;
use super::embeddings::{normalised, pooling, usage_json};
use crate::error::Invalid;
use crate::fields::{Fields, kind};
use crate::ring::Limits;
use crate::transcript::Usage;
use crate::validate::{Content, MAX_PROMPTS, Prompt};
use serde_json::{Value, json};
use shared::ids::TokenId;
use shared::request::{MAX_NEXT, Pooling};

/// A score request, read.
#[derive(Debug)]
pub enum ScoreRequest {
    /// SGLang's: a prompt an item.
    Labels {
        /// Query and item, in the order asked for.
        prompts: Vec<Prompt>,
        /// The tokens that are scored.
        labels: Vec<TokenId>,
        /// Whether an item's scores are made to add up to 1.
        softmax: bool,
    },
    /// vLLM's.
    Pairs {
        /// All texts: first those of the left side, then those of the right one.
        prompts: Vec<Prompt>,
        /// How many are on the left: one, or as many as on the right.
        left: usize,
        /// How their tokens' states become one vector.
        pooling: Pooling,
    },
}

/// Reads the fields.
///
/// # Errors
/// By field.
pub fn read(fields: &mut Fields, limits: Limits) -> Result<ScoreRequest, Invalid> {
    let pooling = pooling(fields)?;
    match (fields.take_value("query"), fields.take_value("text_1")) {
        (Some(query), None) => labels(query, fields, limits),
        (None, Some(text)) => pairs(text, pooling, fields),
        _ => {
            Err(fields.wrong("query", "give either `query` and `items`, or `text_1` and `text_2`"))
        }
    }
}

fn labels(query: Value, fields: &mut Fields, limits: Limits) -> Result<ScoreRequest, Invalid> {
    if fields.get("text_2").is_some() {
        return Err(fields.wrong("text_2", "goes with `text_1`, not with `query`"));
    }
    let softmax = fields.take_or("apply_softmax", false)?;
    let item_first = fields.take_or("item_first", false)?;
    let labels = match fields.take_value("label_token_ids") {
        Some(Value::Array(list)) => ids("label_token_ids", &list, limits)?,
        Some(other) => {
            let what = format!("must be a list of token ids, got {}", kind(&other));
            return Err(fields.wrong("label_token_ids", &what));
        }
        None => return Err(fields.wrong("label_token_ids", "is required with `query`")),
    };
    if !(1..=MAX_NEXT).contains(&labels.len()) {
        let what = format!("must have 1 to {MAX_NEXT} ids, got {}", labels.len());
        return Err(fields.wrong("label_token_ids", &what));
    }
    let items = match fields.take_value("items") {
        Some(Value::Array(list)) if list.first().is_none_or(|first| !first.is_number()) => list,
        Some(one) => vec![one],
        None => return Err(fields.wrong("items", "is required with `query`")),
    };
    check_count("items", items.len())?;
    let query = content("query", query, limits)?;
    let joined = |(at, item): (usize, Value)| {
        let field = format!("items[{at}]");
        let item = content(&field, item, limits)?;
        let (one, other) = if item_first { (&item, &query) } else { (&query, &item) };
        let content = match (one, other) {
            (Content::Text { text, add_special }, Content::Text { text: more, .. }) => {
                Content::Text { text: format!("{text}{more}"), add_special: *add_special }
            }
            (Content::Ids(ids), Content::Ids(more)) => Content::Ids([&ids[..], more].concat()),
            _ => return Err(Invalid::field(field, "must be a text or ids, as `query` is")),
        };
        Ok(Prompt { field, content })
    };
    let prompts = items.into_iter().enumerate().map(joined).collect::<Result<_, _>>()?;
    Ok(ScoreRequest::Labels { prompts, labels, softmax })
}

fn pairs(left: Value, pooling: Pooling, fields: &mut Fields) -> Result<ScoreRequest, Invalid> {
    let Some(right) = fields.take_value("text_2") else {
        return Err(fields.wrong("text_2", "is required with `text_1`"));
    };
    let (left, right) = (texts("text_1", left)?, texts("text_2", right)?);
    if left.len() != 1 && left.len() != right.len() {
        let (left, right) = (left.len(), right.len());
        let what = format!("must be one text, or as many as `text_2`: {left} and {right}");
        return Err(fields.wrong("text_1", &what));
    }
    let count = left.len();
    let prompts: Vec<Prompt> = left.into_iter().chain(right).collect();
    check_count("text_2", prompts.len())?;
    Ok(ScoreRequest::Pairs { prompts, left: count, pooling })
}

fn check_count(field: &str, count: usize) -> Result<(), Invalid> {
    if (1..=MAX_PROMPTS).contains(&count) {
        return Ok(());
    }
    Err(Invalid::field(field, &format!("makes {count} prompts; want 1 to {MAX_PROMPTS}")))
}

fn content(field: &str, value: Value, limits: Limits) -> Result<Content, Invalid> {
    match value {
        Value::String(text) => Ok(Content::Text { text, add_special: true }),
        Value::Array(list) => Ok(Content::Ids(ids(field, &list, limits)?)),
        other => {
            let what = format!("must be a text or token ids, got {}", kind(&other));
            Err(Invalid::field(field, &what))
        }
    }
}

fn texts(field: &str, value: Value) -> Result<Vec<Prompt>, Invalid> {
    let list = match value {
        Value::Array(list) => list,
        one => vec![one],
    };
    check_count(field, list.len())?;
    let text = |(at, value): (usize, Value)| match value {
        Value::String(text) => {
            let content = Content::Text { text, add_special: true };
            Ok(Prompt { field: format!("{field}[{at}]"), content })
        }
        other => {
            let what = format!("must be a string, got {}", kind(&other));
            Err(Invalid::field(format!("{field}[{at}]"), &what))
        }
    };
    list.into_iter().enumerate().map(text).collect()
}

/// SGLang's answer: an item's labels as probabilities, of all tokens or among themselves.
pub fn label_answer(head: &Head, logprobs: &[Vec<f32>], softmax: bool, usage: Usage) -> Value {
    let scores: Vec<Vec<f64>> = logprobs.iter().map(|item| probabilities(item, softmax)).collect();
    json!({
        "object": "scoring",
        "model": head.model.served_name,
        "scores": scores,
        "usage": usage_json(usage),
    })
}

fn probabilities(logprobs: &[f32], softmax: bool) -> Vec<f64> {
    let best = logprobs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shift = if softmax && best.is_finite() { f64::from(best) } else { 0.0 };
    let terms: Vec<f64> = logprobs.iter().map(|&x| (f64::from(x) - shift).exp()).collect();
    let total = if softmax { terms.iter().sum() } else { 1.0 };
    terms.iter().map(|term| term / total).collect()
}

/// vLLM's answer: the cosine of each pair.
pub fn pair_answer(head: &Head, vectors: &[Vec<f32>], left: usize, usage: Usage) -> Value {
    let vectors: Vec<Vec<f32>> = vectors.iter().map(|vector| normalised(vector)).collect();
    let (left, right) = vectors.split_at(left);
    let pairs = left.iter().cycle().zip(right).enumerate();
    let score = |(index, (one, other)): (usize, (&Vec<f32>, &Vec<f32>))| {
        let product = |(a, b): (&f32, &f32)| f64::from(*a) * f64::from(*b);
        let cosine: f64 = one.iter().zip(other).map(product).sum();
        json!({"index": index, "object": "score", "score": cosine})
    };
    json!({
        "id": head.id,
        "object": "list",
        "created": head.created,
        "model": head.model.served_name,
        "data": pairs.map(score).collect::<Vec<_>>(),
        "usage": usage_json(usage),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_probabilities_of_all_or_among_themselves() {
        let close = |found: Vec<f64>, want: [f64; 2]| {
            assert!(found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-7), "{found:?}");
        };
        let logprobs = [0.2_f32.ln(), 0.05_f32.ln()];
        close(probabilities(&logprobs, false), [0.2, 0.05]);
        close(probabilities(&logprobs, true), [0.8, 0.2]);
        close(probabilities(&[-1e4, -1e4], true), [0.5, 0.5]);
        close(probabilities(&[-1e4, -1e4], false), [0.0, 0.0]);
    }
}
