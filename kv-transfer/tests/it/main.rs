//! Tests of the transports: one body for all, and two processes for those that have two.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod hostile;
mod join;
mod pair;
mod push;
mod same_body;
mod two_process;
