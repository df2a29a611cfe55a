//! Qwen3: the Llama layer with every query and key head normed before the rotation.

use super::llama;
use crate::forward::{Attention, HeadGains, Layer};
use crate::load::{LayerLoader, LoadError};
use kernels::ops::Ops;

pub(super) fn layer<O: Ops>(load: &mut LayerLoader<'_, '_, O>) -> Result<Layer<O>, LoadError> {
    let plain = llama::layer(load)?;
    let head_norm = HeadGains {
        q: load.vector("self_attn.q_norm.weight")?,
        k: load.vector("self_attn.k_norm.weight")?,
    };
    let attention = Attention { head_norm: Some(head_norm), ..plain.attention };
    Ok(Layer { attention, ..plain })
}
