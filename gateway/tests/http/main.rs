//! The gateway's HTTP surface without servers behind it: text, shapes, refusals, limits, drain.
//! What needs a ring is in the workspace's `tests`.
#![expect(clippy::unwrap_used, reason = "a test may panic; clippy knows only #[test] functions")]

mod anthropic;
mod golden_text;
mod openapi;
mod page;
mod refusals;
mod responses;
mod server;
mod shapes;
mod support;
mod tools;
