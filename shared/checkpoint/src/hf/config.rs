//! `config.json` → [`ModelConfig`]. Defaults are those of the family's class in transformers;
//! whatever would change the result and is not implemented is refused by its name.

use crate::config::{Family, ModelConfig, RopeScaling};
use crate::error::Error;
use crate::fields::Fields;
use serde_json::Value;
use std::path::Path;

/// Reads `folder/config.json`.
pub(crate) fn read(folder: &Path) -> Result<ModelConfig, Error> {
    let path = folder.join("config.json");
    let bytes = super::read_file(&path, super::JSON_MAX)?.ok_or_else(|| Error::NotAModel {
        path: folder.into(),
        reason: "the folder has no config.json".to_owned(),
    })?;
    parse(&path, &bytes)
}

/// Parses the bytes of a `config.json`; `path` is for messages only.
///
/// # Errors
/// Not JSON, a field missing or out of bounds, or a feature that is not supported.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<ModelConfig, Error> {
    let map = super::object(path, bytes)?;
    let fields = Fields { path, prefix: "", map: &map };
    let family = family(&fields)?;
    refuse_unsupported(&fields)?;
    let max = ModelConfig::MAX;
    let heads = fields.need_size("num_attention_heads", max.heads)?;
    let hidden = fields.need_size("hidden_size", max.width)?;
    let (rope_theta, rope_scaling) = rope(&fields, family)?;
    ModelConfig {
        family,
        vocab: fields.need_size("vocab_size", max.vocab)?,
        hidden,
        intermediate: fields.need_size("intermediate_size", max.width)?,
        layers: fields.need_size("num_hidden_layers", max.layers)?,
        heads,
        kv_heads: kv_heads(&fields, family, heads)?,
        head_dim: head_dim(&fields, family, hidden, heads)?,
        max_positions: fields.need_size("max_position_embeddings", max.positions)?,
        rms_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope_theta,
        rope_scaling,
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        bos_token_id: fields.id("bos_token_id")?,
        eos_token_ids: fields.ids("eos_token_id")?,
    }
    .check(path)
}

fn family(fields: &Fields<'_>) -> Result<Family, Error> {
    let named = match fields.get("architectures") {
        Some(Value::Array(list)) if list.len() == 1 => list[0].as_str(),
        Some(_) => None,
        None => {
            let model_type = fields.text("model_type")?;
            return Family::ALL
                .into_iter()
                .find(|family| Some(family.model_type()) == model_type)
                .ok_or_else(|| fields.refuse("model_type", &known_classes()));
        }
    };
    Family::ALL
        .into_iter()
        .find(|family| Some(family.class()) == named)
        .ok_or_else(|| fields.refuse("architectures", &known_classes()))
}

fn known_classes() -> String {
    format!("known architectures are {}", Family::ALL.map(Family::class).join(", "))
}

fn refuse_unsupported(fields: &Fields<'_>) -> Result<(), Error> {
    if fields.get("quantization_config").is_some() {
        return Err(fields.refuse("quantization_config", "use the F32, F16 or BF16 weights"));
    }
    for (key, implicit) in [("hidden_act", "silu")] {
        if fields.text(key)?.unwrap_or(implicit) != implicit {
            return Err(fields.refuse(key, "only silu is"));
        }
    }
    for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
        if fields.flag(key)?.unwrap_or(false) {
            return Err(fields.refuse(key, "only false is"));
        }
    }
    if let Some(types) = fields.get("layer_types") {
        let full = |list: &Vec<Value>| list.iter().all(|kind| kind == "full_attention");
        if !types.as_array().is_some_and(full) {
            return Err(fields.refuse("layer_types", "only full_attention is"));
        }
    }
    refuse_partial_rotary(fields)
}

fn refuse_partial_rotary(fields: &Fields<'_>) -> Result<(), Error> {
    match fields.positive("partial_rotary_factor")? {
        None | Some(1.0) => Ok(()),
        Some(_) => Err(fields.refuse("partial_rotary_factor", "only 1.0 is")),
    }
}

/// Llama's class takes absent as "as many as query heads"; Qwen's would guess 32, we do not.
fn kv_heads(fields: &Fields<'_>, family: Family, heads: usize) -> Result<usize, Error> {
    match (fields.size("num_key_value_heads", ModelConfig::MAX.heads)?, family) {
        (Some(kv_heads), _) => Ok(kv_heads),
        (None, Family::Llama) => Ok(heads),
        (None, Family::Qwen2 | Family::Qwen3) => {
            fields.need_size("num_key_value_heads", ModelConfig::MAX.heads)
        }
    }
}

fn head_dim(
    fields: &Fields<'_>,
    family: Family,
    hidden: usize,
    heads: usize,
) -> Result<usize, Error> {
    match fields.size("head_dim", ModelConfig::MAX.head_dim)? {
        Some(head_dim) => Ok(head_dim),
        None if family == Family::Qwen3 => Ok(128),
        None if hidden.is_multiple_of(heads) => Ok(hidden / heads),
        None => Err(fields.wrong("head_dim", "given, since heads do not divide hidden_size")),
    }
}

/// transformers 5 writes `rope_parameters`, older ones `rope_theta` and `rope_scaling`.
fn rope(fields: &Fields<'_>, family: Family) -> Result<(f64, RopeScaling), Error> {
    let new = fields.object("rope_parameters")?;
    let old = fields.object("rope_scaling")?;
    let mut theta = None;
    for place in [new, Some(*fields), old].into_iter().flatten() {
        theta = match theta {
            None => place.positive("rope_theta")?,
            some => some,
        };
    }
    let theta = match (theta, family) {
        (Some(theta), _) => theta,
        (None, Family::Llama) => 10_000.0, // Llama 2 files have none
        (None, Family::Qwen2 | Family::Qwen3) => fields.need_positive("rope_theta")?,
    };
    match new.or(old) {
        None => Ok((theta, RopeScaling::None)),
        Some(scaling) => Ok((theta, rope_scaling(&scaling)?)),
    }
}

fn rope_scaling(fields: &Fields<'_>) -> Result<RopeScaling, Error> {
    refuse_partial_rotary(fields)?;
    let key = if fields.get("rope_type").is_some() { "rope_type" } else { "type" };
    match fields.text(key)? {
        Some("default") => Ok(RopeScaling::None),
        Some("llama3") => llama3(fields),
        Some(_) => Err(fields.refuse(key, "known rope types are default and llama3")),
        None => Err(fields.wrong("rope_type", "one of default and llama3")),
    }
}

fn llama3(fields: &Fields<'_>) -> Result<RopeScaling, Error> {
    let low_freq_factor = fields.need_positive("low_freq_factor")?;
    let high_freq_factor = fields.need_positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(fields.wrong("high_freq_factor", "above low_freq_factor"));
    }
    let positions = "original_max_position_embeddings";
    Ok(RopeScaling::Llama3 {
        factor: fields.need_positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_positions: fields.need_size(positions, ModelConfig::MAX.positions)?,
    })
}
