//! GGUF metadata → [`ModelConfig`].

use super::Header;
use crate::config::{Family, ModelConfig, RopeScaling};
use crate::error::Error;
use crate::fields::Fields;
use crate::tensor::{Stored, Tensor, Weights};
use std::fs::File;
use std::path::Path;

/// Divisors of the rotary frequencies: Llama 3.1's scaling, baked in by the converter.
pub(super) const ROPE_DIVISORS: &str = "rope_freqs.weight";

pub(crate) fn read(path: &Path, header: &Header, file: &File) -> Result<ModelConfig, Error> {
    let top = Fields { path, prefix: "", map: &header.scalars };
    let family = family(&top)?;
    let prefix = format!("{}.", family.model_type());
    let fields = Fields { prefix: &prefix, ..top };
    let max = ModelConfig::MAX;
    let heads = fields.need_size("attention.head_count", max.heads)?;
    let hidden = fields.need_size("embedding_length", max.width)?;
    let head_dim = head_dim(&fields, hidden, heads)?;
    refuse_unsupported(&fields, head_dim)?;
    let tokens = Fields { prefix: "tokenizer.ggml.", ..top };
    ModelConfig {
        family,
        vocab: vocab(path, header)?,
        hidden,
        intermediate: fields.need_size("feed_forward_length", max.width)?,
        layers: fields.need_size("block_count", max.layers)?,
        heads,
        kv_heads: fields.size("attention.head_count_kv", max.heads)?.unwrap_or(heads),
        head_dim,
        max_positions: fields.need_size("context_length", max.positions)?,
        rms_eps: fields.need_positive("attention.layer_norm_rms_epsilon")? as f32,
        rope_theta: fields.positive("rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: rope_divisors(path, header, file, head_dim)?,
        tied: !header.tensors.iter().any(|tensor| tensor.name == "output.weight"),
        bos_token_id: tokens.id("bos_token_id")?,
        eos_token_ids: ["eos_token_id", "eot_token_id", "eom_token_id"]
            .iter()
            .filter_map(|key| tokens.id(key).transpose())
            .collect::<Result<_, _>>()?,
    }
    .check(path)
}

fn family(fields: &Fields<'_>) -> Result<Family, Error> {
    let name = fields.text("general.architecture")?;
    Family::ALL.into_iter().find(|family| Some(family.model_type()) == name).ok_or_else(|| {
        let known = Family::ALL.map(Family::model_type).join(", ");
        fields.refuse("general.architecture", &format!("known architectures are {known}"))
    })
}

fn head_dim(fields: &Fields<'_>, hidden: usize, heads: usize) -> Result<usize, Error> {
    match fields.size("attention.key_length", ModelConfig::MAX.head_dim)? {
        Some(head_dim) => Ok(head_dim),
        None if hidden.is_multiple_of(heads) => Ok(hidden / heads),
        None => Err(fields.wrong("attention.key_length", "given, since heads do not divide width")),
    }
}

fn refuse_unsupported(fields: &Fields<'_>, head_dim: usize) -> Result<(), Error> {
    for key in ["attention.value_length", "rope.dimension_count"] {
        let given = fields.size(key, ModelConfig::MAX.head_dim)?;
        if given.is_some_and(|given| given != head_dim) {
            return Err(fields.refuse(key, &format!("only the head's size, {head_dim}, is")));
        }
    }
    for key in ["expert_count", "attention.sliding_window"] {
        if fields.get(key).is_some_and(|value| value.as_u64() != Some(0)) {
            return Err(fields.refuse(key, "only 0 is"));
        }
    }
    if fields.text("rope.scaling.type")?.is_some_and(|kind| kind != "none") {
        return Err(fields.refuse("rope.scaling.type", "only none is"));
    }
    for key in ["rope.scale_linear", "rope.scaling.factor"] {
        if fields.positive(key)?.is_some_and(|factor| factor != 1.0) {
            return Err(fields.refuse(key, "only 1.0 is"));
        }
    }
    Ok(())
}

/// The embedding's rows: `vocab_size` may be absent, or count padding differently.
fn vocab(path: &Path, header: &Header) -> Result<usize, Error> {
    let embedding = header.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
    let Some(embedding) = embedding else {
        let name = "token_embd.weight".to_owned();
        return Err(Error::MissingTensor { name, path: path.into() });
    };
    match embedding.shape[0] {
        rows if rows <= ModelConfig::MAX.vocab => Ok(rows),
        rows => {
            let expected = format!("at most {}", ModelConfig::MAX.vocab);
            Err(Error::field(path, "rows of token_embd.weight", rows, expected))
        }
    }
}

fn rope_divisors(
    path: &Path,
    header: &Header,
    file: &File,
    head_dim: usize,
) -> Result<RopeScaling, Error> {
    let Some(info) = header.tensors.iter().find(|tensor| tensor.name == ROPE_DIVISORS) else {
        return Ok(RopeScaling::None);
    };
    if info.shape != [head_dim / 2] || info.dtype.block().0 != 1 {
        let expected = format!("{} plain floats, one a pair", head_dim / 2);
        return Err(Error::field(path, ROPE_DIVISORS, format!("{info:?}"), expected));
    }
    let file = file.try_clone().map_err(Error::io(path))?;
    let stored = Stored {
        dtype: info.dtype,
        shape: info.shape.clone(),
        file: 0,
        offset: info.offset,
        interleaved: None,
    };
    let weights = Weights { files: vec![(path.into(), file)], ..Weights::default() };
    let divisors: Vec<f32> = Tensor::new(ROPE_DIVISORS, &stored, &weights).to_vec()?;
    match divisors.iter().find(|divisor| !(divisor.is_finite() && **divisor > 0.0)) {
        None => Ok(RopeScaling::Divisors(divisors)),
        Some(bad) => Err(Error::field(path, ROPE_DIVISORS, bad, "all finite and above 0")),
    }
}
