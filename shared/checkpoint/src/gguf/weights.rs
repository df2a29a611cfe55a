//! ggml's tensor names and row order → Hugging Face's.

use super::{Header, TensorInfo, config::ROPE_DIVISORS};
use crate::config::{Family, ModelConfig};
use crate::error::Error;
use crate::tensor::{Stored, Weights};
use std::fs::File;
use std::path::Path;

const TOP: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Below `blk.N.` and `model.layers.N.`.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Every tensor of `header` under its Hugging Face name.
pub(crate) fn locate(
    path: &Path,
    header: &Header,
    config: &ModelConfig,
    file: File,
) -> Result<Weights, Error> {
    let mut weights = Weights { files: vec![(path.into(), file)], ..Weights::default() };
    for info in &header.tensors {
        if info.name == ROPE_DIVISORS {
            continue; // read into the configuration
        }
        let Some(name) = hugging_face_name(&info.name) else {
            let (name, family) = (info.name.clone(), config.family.class());
            return Err(Error::UnexpectedTensor { name, path: path.into(), family });
        };
        let stored = stored(path, info, config)?;
        if weights.tensors.insert(name, stored).is_some() {
            let what = format!("tensor `{}` is there under two names", info.name);
            return Err(Error::malformed(path, what));
        }
    }
    Ok(weights)
}

fn hugging_face_name(name: &str) -> Option<String> {
    if let Some((_, top)) = TOP.iter().find(|(ggml, _)| *ggml == name) {
        return Some((*top).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.split_once('.')?;
    let (_, part) = LAYER.iter().find(|(ggml, _)| *ggml == part)?;
    let layer: u32 = layer.parse().ok()?;
    matches!(kind, "weight" | "bias").then(|| format!("model.layers.{layer}.{part}.{kind}"))
}

fn stored(path: &Path, info: &TensorInfo, config: &ModelConfig) -> Result<Stored, Error> {
    if info.shape.len() == 1 && info.dtype.block().0 != 1 {
        let known = "vectors are F32, F16 or BF16";
        return Err(Error::unsupported(path, info.name.as_str(), info.dtype, known));
    }
    let rotated = info.name.contains(".attn_q.") || info.name.contains(".attn_k.");
    let interleaved = (rotated && config.family == Family::Llama).then_some(config.head_dim);
    Ok(Stored {
        dtype: info.dtype,
        shape: info.shape.clone(),
        file: 0,
        offset: info.offset,
        interleaved,
    })
}
