//! Models: weights, the forward pass over the op trait, sampling, and the engine made of them.
#![forbid(unsafe_code)]

pub mod engine;
