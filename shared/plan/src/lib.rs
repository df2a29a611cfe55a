//! How a ring of given servers would do under a given load: a discrete-event simulation.
//!
//! In reading order: [`table`] says how long an engine's steps take, and is what the `sim` engine
//! waits by too; [`trace`] reads what others were asked; [`load`] makes requests of it at a rate;
//! [`ring`] plays them through gateway, prefill and decode; [`search`] asks which ring meets
//! targets; [`plot`] draws lines.
//!
//! **Invariant:** no clock and no randomness: the same files give the same answer. What decides in
//! a server decides here too, by the same code: orders of admission, chunks, the radix cache,
//! plans of decode steps, credits of tickets.
#![forbid(unsafe_code)]

pub mod table;
pub mod trace;
pub mod load;
pub mod numbers;
pub mod ring;
pub mod search;
pub mod plot;
