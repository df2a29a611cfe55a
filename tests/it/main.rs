//! The whole system, as processes: what no crate can test alone.
//!
//! A test starts a [`ring::Ring`] of the real binaries with config files in a folder of its own,
//! talks HTTP to the gateway and reads the servers' metrics. Faults are signals to real processes;
//! where they land is said by the servers' named stop points, never by a clock. Waiting is polling
//! for a condition; a deadline only fails the test.
//!
//! `TANDEM_LONG=1` (`./ops/test --long`) runs many more rounds of the same.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ports;
mod http;
mod process;
mod plan;
mod ring;
mod ask;

mod random;

mod golden;
mod convert;
mod reads;
mod grammar;
mod stops;
mod lists;
mod equal;
mod gpu;
mod killed;
mod frozen;
mod cancel;
mod drain;
mod retract;
mod priority;
mod cache;
mod endpoints;
mod refusals;
mod traces;
mod logs;
mod up;
mod many;
mod soak;
mod chaos;
