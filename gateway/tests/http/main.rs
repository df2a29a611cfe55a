//! The gateway's HTTP surface without servers behind it: text, shapes, refusals, limits, drain.
//! What needs a ring is in the workspace's `tests`.
#![expect(clippy::unwrap_used, reason = "a test may panic; clippy knows only #[test] functions")]

mod golden_text;
mod refusals;
mod server;
mod shapes;
mod support;
mod tools;
