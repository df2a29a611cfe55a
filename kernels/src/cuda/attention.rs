//! Attention over pages.
#![expect(unsafe_code, reason = "kernel launches")]

use super::backend::{Cuda, CudaTensor};
use super::batch::CudaBatch;
use super::device::Device;
use super::module::{Arg, Kernel, Shape};
use super::pages::CudaPages;
use crate::ops::{Attention, OpError};

/// Longest head of `cuda/attention.cu`.
const DIM_MAX: usize = 256;

pub(super) struct AttentionKernels {
    any: Kernel,
}

impl AttentionKernels {
    pub fn load(device: &Device) -> Result<Self, OpError> {
        Ok(Self { any: Kernel::load(device, "attention", "attention")? })
    }

    pub fn run(&self, args: Attention<'_, Cuda>) -> Result<(), OpError> {
        let Attention { qkv, heads, scale, batch, layer, pages, out } = args;
        let kv = *pages.shape();
        let tokens = batch.host.tokens.len();
        assert_eq!(out.width(), heads * kv.head_dim, "attention");
        assert_eq!(qkv.width(), (heads + 2 * kv.kv_heads) * kv.head_dim, "attention");
        assert!(kv.head_dim <= DIM_MAX, "head_dim {}", kv.head_dim);
        check(batch, pages, [qkv, out]);
        let arguments = [
            Arg::Wide(qkv.address()),
            Arg::Wide(batch.positions()),
            Arg::Wide(batch.table_at()),
            Arg::Wide(batch.tables()),
            Arg::Wide(pages.address()),
            Arg::Wide(pages.page_stride()),
            Arg::Wide(pages.layer_at(layer)),
            Arg::Wide(out.address()),
            Arg::Number(scale),
            Arg::Count(heads as u32),
            Arg::Count(kv.kv_heads as u32),
            Arg::Count(kv.page_tokens as u32),
            Arg::Count(kv.head_dim as u32),
        ];
        let shape = Shape { grid: (tokens, heads), threads: 128 };
        // SAFETY: the kernel's arguments in order; tensors have the rows, tables the entries and
        // the pool the pages, as checked above.
        unsafe { self.any.launch(shape, &arguments) }
    }
}

/// # Panics
/// If tables do not cover the batch's tokens, name foreign pages, or tensors are too small.
pub(super) fn check(batch: &CudaBatch, pages: &CudaPages, tensors: [&CudaTensor; 2]) {
    batch.check(pages.shape());
    pages.check(&batch.host.pages);
    let tokens = batch.host.tokens.len();
    assert!(tensors.iter().all(|tensor| tensor.rows() >= tokens), "{tokens} tokens");
}
