//! The pure half of Tandem: no clock, no I/O, no async, no unsafe, no GPU. Time is an argument.
//! Modules in reading order; each may use only earlier ones.
#![forbid(unsafe_code)]

pub mod ids;
pub mod kv;
pub mod request;
pub mod metrics;
pub mod wire;
pub mod pool;
pub mod page_hash;
pub mod eviction;
pub mod radix;
pub mod ticket;
pub mod scramble;
pub mod sched;
