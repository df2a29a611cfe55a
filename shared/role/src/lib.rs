//! What both server roles stand on: settings, the model and its pages, transports, logs, shutdown.
//!
//! 1. [`settings::Settings`] are read once, from a TOML file and flags, into exact values.
//! 2. [`core::Core::open`] loads the model into pages that the chosen transports can reach.
//! 3. The role runs its loop; `service::shutdown` says when to drain.
#![forbid(unsafe_code)]

pub mod core;
pub mod guide;
pub mod outbox;
pub mod place;
pub mod process;
pub mod settings;
pub mod turn;
