//! The CPU backend: f32 arithmetic over weights in f32, bf16 or quantised, and pages in
//! f32 or bf16.
//!
//! One file an op; what they share: [`simd`] (eight lanes, chosen at run time), [`pool`]
//! (fork-join), [`memory`] (pages), `packed`, `paired` and `quantised` (weights in panels), `gemm`
//! (the inner product). Calls return when the work is done.

pub mod memory;
pub mod pool;
pub mod simd;

mod activation;
mod arena;
mod attention;
mod backend;
mod batch;
mod element;
mod fixed;
mod floor;
mod gemm;
mod linear;
mod norm;
mod packed;
mod paired;
mod quantised;
mod rope;
mod softmax;
mod tile;

pub use backend::{Cpu, CpuPages, KvElement, Matrix, Tensor};
pub use batch::CpuBatch;
pub use element::Element;
pub use softmax::Softmax;
