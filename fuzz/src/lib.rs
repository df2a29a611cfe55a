//! What every fuzz target calls: one function an entry point, any bytes, no panic but for a bug.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod wire;
