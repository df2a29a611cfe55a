//! The gateway's HTTP surface without servers behind it: text, shapes, refusals, limits, drain.
//! What needs a ring is in the workspace's `tests`.

mod golden_text;
mod refusals;
mod server;
mod shapes;
mod support;
