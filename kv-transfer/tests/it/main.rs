//! Tests of the transports: one body for all, and two processes for those that have two.
#![forbid(unsafe_code)]

mod pair;
mod same_body;
