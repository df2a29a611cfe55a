//! The gateway: HTTP in front, the fleet of prefill and decode servers behind.
//!
//! 1. [`http`] takes a request, [`validate`] checks it, [`tokenize`] makes it token ids.
//! 2. [`fleet`] picks a pair of servers and follows the request through them; [`ring`] is the seam.
//! 3. [`stream`] turns tokens into text and sends it as the client's API has it.
//!
//! **Invariant:** a client that is gone holds nothing: its answers are dropped, and a dropped
//! answer is cancelled on both servers.
#![forbid(unsafe_code)]

pub mod config;
pub mod command;
pub mod error;
pub mod fields;
pub mod schema;
pub mod structured;
pub mod random;
pub mod trace;
pub mod ring;
pub mod metrics;
pub mod fleet;
pub mod pieces;
pub mod detokenize;
pub mod sse;
pub mod stop;
pub mod parts;
pub mod blocks;
pub mod reasoning;
pub mod tools;
pub mod reply;
pub mod template;
pub mod tokenize;
pub mod model;
pub mod validate;
pub mod transcript;
pub mod stream;
pub mod openai;
pub mod anthropic;
pub mod responses;
pub mod native;
pub mod openapi;
pub mod auth;
pub mod in_flight;
pub mod http;
pub mod page;
pub mod calls;
pub mod readings;
pub mod control;
pub mod serve;
pub mod start;
