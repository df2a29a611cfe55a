//! Plain sockets, for hosts without a faster way: the source sends, the receiver writes its pool.
//!
//! 1. Accept: the offer has the target's address and a secret for one session.
//! 2. Connect: the source opens [`STREAMS`] data connections, each with a hello (`wire`); the
//!    target takes each stream of a session once and answers one byte.
//! 3. Pieces go to whichever stream takes more; a flush is a mark on every stream, acknowledged by
//!    the receiver after everything before it was written. Nothing is compressed, encrypted or
//!    checksummed here: landing compares checksums where that is wanted.
//! 4. Revoking takes the session's lock, which the receivers hold around every write to the pool,
//!    and shuts the sockets down: after it returns nothing is written.
//!
//! Pages in device memory pass through pinned buffers at either end, a megabyte each: copies from
//! the GPU run ahead of the sockets, copies to it behind them, and nobody waits for one but a
//! flush, a revocation, and who has no other buffer.
//!
//! A hostile peer without the secret gets a closed connection; with it, at most its session ended:
//! a frame's head has a fixed size and is checked against the pool before a byte of its payload is
//! read, and its payload is read straight into the pages that it names.

mod memory;
mod source;
mod target;
mod wire;

pub use source::TcpSource;
pub use target::{TcpConfig, TcpTarget};

/// Data connections a session.
pub const STREAMS: u8 = 2;

/// Slices that one system call takes, IOV_MAX.
const SLICES: usize = 1024;
