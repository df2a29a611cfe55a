//! Models: weights, the forward pass over the op trait, sampling, and the engine made of them.
//!
//! In reading order: [`engine`] is what servers see; [`forward`] is the pass, written once over
//! [`kernels::ops::Ops`]; [`family`] has one small file a model family, which says what a layer is
//! made of; [`load`] reads and fuses weights; [`sample`] draws tokens; `read` tells of the tokens
//! that came in; [`cpu`] and [`cuda`] join them, and [`sim`] only takes their time; [`worker`] puts
//! an engine on a thread of its own.
//!
//! **Invariant:** a token depends on its sequence, its sampling and its index alone, up to
//! rounding, and never on what else was in the batch or how a prompt was cut.
#![forbid(unsafe_code)]

pub mod engine;
pub mod equal;
pub mod forward;
pub mod family;
pub mod kv;
pub mod load;
pub mod sample;

mod batch;
mod read;
mod quantised;
pub mod cpu;
pub mod cuda;
pub mod sim;
pub mod reference;
pub mod worker;

#[cfg(test)]
mod golden;

pub use cpu::{CpuEngine, EngineConfig};
pub use cuda::{CudaConfig, CudaEngine};
pub use load::LoadError;
pub use quantised::WeightFormat;
pub use sim::{SimConfig, SimEngine};
