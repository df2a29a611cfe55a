//! Llama 3, and what shares its layer: SmolLM2, Mistral without a window.
//!
//! Pre-norm, grouped-query attention without biases, SiLU-gated MLP. The stretched rotary
//! frequencies of Llama 3.1 (`rope_type: llama3`) are the checkpoint's to compute: they change the
//! table, not the layer.

use crate::forward::{Attention, Layer, Mlp};
use crate::load::{LayerLoader, LoadError};
use kernels::ops::Ops;

pub(super) fn layer<O: Ops>(load: &mut LayerLoader<'_, '_, O>) -> Result<Layer<O>, LoadError> {
    Ok(Layer {
        attention_norm: load.vector("input_layernorm.weight")?,
        attention: Attention {
            qkv: load.qkv()?,
            qkv_bias: None,
            head_norm: None,
            out: load.matrix(&["self_attn.o_proj.weight"])?,
        },
        mlp_norm: load.vector("post_attention_layernorm.weight")?,
        mlp: Mlp {
            gate_up: load.matrix(&["mlp.gate_proj.weight", "mlp.up_proj.weight"])?,
            down: load.matrix(&["mlp.down_proj.weight"])?,
        },
    })
}
