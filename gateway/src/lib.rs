#![forbid(unsafe_code)]

pub mod fleet;
pub mod ring;
