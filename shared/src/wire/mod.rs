//! The wire: frames (who sent these bytes, in which order), the codec (bytes ↔ values), messages
//! (what is said on each arrow of the ring), and the handshake that opens a session.
//!
//! Framing never sees meaning; the codec never sees a socket; a message is exact once decoded.

pub mod codec;
pub mod frame;
pub mod handshake;
pub mod messages;
