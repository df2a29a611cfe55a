//! `/v1/embeddings`: which fields a request has, and the JSON of its answer.

use super::completions::prompts;
use super::{Head, json_text};
use crate::error::Invalid;
use crate::fields::Fields;
use crate::model::Model;
use crate::ring::Limits;
use crate::transcript::Usage;
use crate::validate::Prompt;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use shared::request::Pooling;

/// An embedding request, read.
#[derive(Debug)]
pub struct EmbeddingRequest {
    /// A vector each.
    pub prompts: Vec<Prompt>,
    /// How its tokens' states become one.
    pub pooling: Pooling,
    /// Whether vectors are written as base64 of their little-endian f32, and not as numbers.
    pub base64: bool,
}

/// Reads the fields.
///
/// # Errors
/// By field.
pub fn read(
    fields: &mut Fields,
    model: &Model,
    limits: Limits,
) -> Result<EmbeddingRequest, Invalid> {
    let base64 = match fields.take::<String>("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let what = format!("must be \"float\" or \"base64\", got {other:?}");
            return Err(fields.wrong("encoding_format", &what));
        }
    };
    if let Some(asked) = fields.take::<u64>("dimensions")?
        && asked != model.hidden as u64
    {
        let what = format!(
            "this model's vectors have {} dimensions and are not made to be cut, got {asked}",
            model.hidden
        );
        return Err(fields.wrong("dimensions", &what));
    }
    let pooling = pooling(fields)?;
    let add_special = fields.take_or("add_special_tokens", true)?;
    let prompts = match fields.take_value("input") {
        Some(value) => prompts("input", value, add_special, limits)?,
        None => return Err(fields.wrong("input", "is required")),
    };
    Ok(EmbeddingRequest { prompts, pooling, base64 })
}

/// `pooling`, ours: that of the last token, unless the mean is asked for.
///
/// # Errors
/// Neither.
pub fn pooling(fields: &mut Fields) -> Result<Pooling, Invalid> {
    match fields.take::<String>("pooling")?.as_deref() {
        None | Some("last") => Ok(Pooling::Last),
        Some("mean") => Ok(Pooling::Mean),
        Some(other) => {
            let what = format!("must be \"last\" or \"mean\", got {other:?}");
            Err(fields.wrong("pooling", &what))
        }
    }
}

/// A vector of length 1; one of zeros stays.
pub fn normalised(vector: &[f32]) -> Vec<f32> {
    let square: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let scale = if square > 0.0 { square.sqrt().recip() } else { 0.0 };
    vector.iter().map(|&x| (f64::from(x) * scale) as f32).collect()
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    data: Vec<Embedding>,
    usage: Value,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

/// The answer, of vectors as they came.
pub fn answer(head: &Head, vectors: &[Vec<f32>], base64: bool, usage: Usage) -> String {
    let one = |(index, vector): (usize, &Vec<f32>)| {
        let vector = normalised(vector);
        let embedding = match base64 {
            true => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Vector::Base64(BASE64_STANDARD.encode(bytes))
            }
            false => Vector::Numbers(vector),
        };
        Embedding { object: "embedding", index, embedding }
    };
    json_text(&Body {
        id: &head.id,
        object: "list",
        created: head.created,
        model: &head.model.served_name,
        data: vectors.iter().enumerate().map(one).collect(),
        usage: usage_json(usage),
    })
}

/// `usage` of a call that makes no token.
pub fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "total_tokens": usage.prompt,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_have_length_1() {
        assert_eq!(normalised(&[3.0, -4.0]), [0.6, -0.8]);
        assert_eq!(normalised(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(normalised(&[f32::MAX, 0.0]), [1.0, 0.0]);
    }
}
