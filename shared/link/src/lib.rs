//! Control connections between servers: authenticated, framed, watched.
//!
//! 1. [`dial`] or [`answer`] runs the handshake of `shared::wire::handshake` over a TCP stream and
//!    yields a [`Session`]: who the peer is, and keys for both directions.
//! 2. [`Session::start`] makes a typed pair of it: a [`Sender`] (bounded queue, one writer task
//!    that also sends heartbeats) and a [`Receiver`] (frames, deadlines).
//! 3. Whatever ends one half ends the other: an error, a silent peer, a dropped receiver.
//!
//! A lost link says nothing about the peer's process: it may be frozen, or beyond a broken network.
#![forbid(unsafe_code)]

mod connection;
mod handshake;
mod listen;
pub mod identity;
mod stop;

pub use connection::{LinkError, Receiver, SendError, Sender, Timing};
pub use handshake::{HandshakeError, Local, Session, dial};
pub use listen::Door;
pub use stop::{BadStop, StopPoint, Stops};

#[cfg(test)]
mod tests;
