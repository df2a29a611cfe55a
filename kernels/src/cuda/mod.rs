//! The CUDA backend: bf16 weights, activations and pages, f32 arithmetic.
//!
//! `cuda/*.cu` are the kernels, one module a file; [`Cuda`] checks shapes and launches the row-wise
//! ones itself, `attention` and `linear` the rest. What they share: [`device`] (context, stream,
//! memory), [`compile`] (NVRTC, cubins cached on disk), `module` (loaded kernels and their launch),
//! `plan` (how split-KV decode shares out its work). Libraries are found when a device is opened,
//! so the program starts without any. Calls enqueue on one stream; [`crate::ops::Ops::download`]
//! waits for it.

pub mod compile;
pub mod device;
pub mod pages;

mod attention;
mod backend;
mod batch;
mod linear;
mod module;
mod plan;

#[cfg(test)]
mod parity;

pub use backend::{Cuda, CudaMatrix, CudaTensor, CudaVector};
pub use batch::CudaBatch;
pub use device::Device;
pub use pages::{CudaPages, PagePool};
