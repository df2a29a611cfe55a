//! One small file a model family: what a layer is made of, by tensor name.

mod llama;
mod qwen2;
mod qwen3;

use crate::forward::Layer;
use crate::load::{LayerLoader, LoadError};
use checkpoint::Family;
use kernels::ops::Ops;

/// Loads one layer of a model of `family`.
///
/// # Errors
/// [`LoadError`] from the checkpoint or the device.
pub fn layer<O: Ops>(
    family: Family,
    load: &mut LayerLoader<'_, '_, O>,
) -> Result<Layer<O>, LoadError> {
    match family {
        Family::Llama => llama::layer(load),
        Family::Qwen2 => qwen2::layer(load),
        Family::Qwen3 => qwen3::layer(load),
    }
}
