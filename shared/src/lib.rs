//! The pure half of Tandem: no clock, no I/O, no async, no unsafe, no GPU. Time is an argument.
//! Modules in reading order; each may use only earlier ones.
#![forbid(unsafe_code)]

pub mod ids;
pub mod kv;
pub mod request;
