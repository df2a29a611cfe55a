//! A model on disk: what it is (`config`), its weights row by row, its tokenizer and its defaults.
//!
//! Two sources, one view. A Hugging Face folder (`config.json`, safetensors whole or sharded) and a
//! GGUF file both appear under Hugging Face tensor names, shapes and row order, so that a model
//! family is written once.
//!
//! 1. [`Checkpoint::open`] reads every header, checks every length against the file before it
//!    allocates, and holds the tensors found against those of the architecture.
//! 2. Afterwards the files stay open and are read by position: many threads may read rows of many
//!    tensors at once. Nothing is mapped into memory: a truncated file is an error, not a signal.
//!
//! **Invariant:** an opened checkpoint has every tensor of [`ModelConfig::tensors`], in that shape
//! and a known dtype, and none whose absence would change the result. What is not supported is
//! refused by name; nothing is skipped in silence.
#![forbid(unsafe_code)]

mod blocks;
mod checkpoint;
mod config;
mod dtype;
mod error;
mod fields;
pub mod gguf;
pub mod hf;
mod name;
mod tensor;
mod text;

pub use blocks::Groups;
pub use checkpoint::Checkpoint;
pub use config::{Family, ModelConfig, RopeScaling};
pub use dtype::Dtype;
pub use error::Error;
pub use name::name;
pub use tensor::{Element, Tensor};
pub use text::{GenerationConfig, SpecialTokens};

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
