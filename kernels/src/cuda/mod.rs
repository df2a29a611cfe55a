//! The CUDA backend: bf16 weights, activations and pages, f32 arithmetic.
//!
//! `cuda/*.cu` are the kernels, one module a file; [`Cuda`] checks shapes and launches the row-wise
//! ones itself; `attention`, `linear` (many rows, by cuBLASLt), `project` (few rows) and `sample`
//! the rest. What they share: [`device`] (context, stream, memory), [`compile`] (NVRTC, cubins
//! cached on disk), `module` (loaded kernels, their launch), `batch` (a step's arrays, one copy),
//! `plan` (how split-KV decode shares out its work). Libraries are found when a device is opened,
//! so the program starts without any.
//!
//! Calls enqueue on one stream; [`crate::ops::Ops::download`] and [`Fetch::read`] wait for it. A
//! step of decode is recorded once a number of rows (`graph`) and replayed: [`Cuda::record`],
//! [`Cuda::replay`]; what a recording takes is measured by [`Cuda::time_recorded`] (`timing`).
//! Kernels overlap with the one before them and wait themselves before they touch what others
//! write; weights, tables and the batch itself were there before a step's first kernel.
//!
//! Pages leave beside it: [`ship`] copies them between pools on a [`stream`] of its own, also into
//! a pool of another process ([`ipc`]), of whose end [`nvml`] knows, or on another GPU ([`peer`]);
//! [`staging`] takes them through the host.

pub mod compile;
pub mod device;
pub mod ipc;
pub mod nvml;
pub mod pages;
pub mod peer;
pub mod ship;
pub mod staging;
pub mod stream;

mod attention;
mod backend;
mod batch;
mod graph;
mod heads;
mod linear;
mod module;
mod plan;
mod project;
mod sample;
mod stage;
mod timing;
mod tune;

#[cfg(test)]
mod parity;

pub use backend::{Cuda, CudaMatrix, CudaShape, CudaTensor, CudaVector, LIBRARY_ROWS, Recorded};
pub use batch::{CudaBatch, DRAWN, Frame, ROWS_MAX};
pub use device::Device;
pub use heads::Heads;
pub use pages::{CudaPages, PagePool};
pub use project::ROWS_MAX as PROJECT_ROWS_MAX;
pub use sample::{Adjusted, Draw, DrawnToken, Fetch, TOP_MAX};
pub use tune::Tune;
