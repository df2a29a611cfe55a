//! Qwen2 and Qwen2.5: the Llama layer with biases on queries, keys and values.

use super::llama;
use crate::forward::{Attention, Layer};
use crate::load::{LayerLoader, LoadError};
use kernels::ops::Ops;

pub(super) fn layer<O: Ops>(load: &mut LayerLoader<'_, '_, O>) -> Result<Layer<O>, LoadError> {
    let plain = llama::layer(load)?;
    let biases = ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"];
    let attention = Attention { qkv_bias: Some(load.vectors(&biases)?), ..plain.attention };
    Ok(Layer { attention, ..plain })
}
