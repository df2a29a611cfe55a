//! Moving KV pages from a prefill server's pool straight into a decode server's pool.
//!
//! [`select`] turns what the operator asked for into a server's transports and its pool's memory.
//!
//! One join, then any number of puts (source = prefill, target = decode):
//! 1. The target calls [`Target::accept`] and sends the offer's bytes over the control connection.
//! 2. The source calls [`Source::connect`] with them and sends [`Joined::reply`] back.
//! 3. The target calls [`Target::confirm`] with the reply. A refusal at 2 or 3 carries the reason
//!    and the pair tries its next transport: [`Targets`], [`Offered`], [`Sources`], [`Answered`]
//!    and [`Session`] do these three steps for all transports of a server at once.
//! 4. The source hands the link to a [`Pusher`], one plain thread a peer, and queues puts and
//!    flushes; after the flush's event it sends the Handoff.
//! 5. [`Target::revoke`] ends the session; the [`Proof`] says when its pages may be used again.
//!
//! Invariants, whatever the transport:
//! - *Completion of a put* means that the source pages may be reused, **not** that the peer can
//!   see them. *Completion of a flush* means that every put queued before it is visible at the
//!   target. Puts to the same target bytes land in order only if a flush's event lies between.
//! - *Dropping does not cancel.* A put owns its source pages ([`PutOp::owner`]) until its event;
//!   the event gives them back, also when the link breaks, and then only once nothing can read
//!   them any more.
//! - Page ids and byte ranges are checked against both pools at the source before anything moves,
//!   and again by the target where the target does the writing.
//! - Memory that a peer may write is never a `&[T]` here; it is only copied.
//! - Every queue, buffer and table has a bound. Links never block longer than they are told to.

pub mod cuda_ipc;
mod error;
pub mod fault;
mod host;
mod join;
pub mod land;
pub mod loopback;
mod offer;
pub mod plan;
mod proof;
mod push;
mod queue;
pub mod select;
mod self_test;
mod sessions;
pub mod tcp;
mod types;
pub mod ucx;

pub use error::TransferError;
pub use join::{Answered, Offered, Report, Session, Sources, Targets};
pub use proof::WriterProcess;
pub use push::{PushConfig, Pusher, Unqueued};
pub use self_test::{Bandwidth, SelfTest, self_test};
pub use types::{Event, Joined, Kind, Offer, OpId, Part, PutOp, SessionId};

use std::time::Duration;

/// A transport's receiving half, made once a server over its pool.
pub trait Target: Send + Sync {
    /// Which transport this is.
    fn kind(&self) -> Kind;
    /// Opens a session for one writer. The offer authorises it, so it goes to that peer only.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] when the sessions' bound is reached or a resource is gone.
    fn accept(&self) -> Result<Offer, TransferError>;
    /// Checks the writer's reply; only a confirmed session may be granted pages.
    ///
    /// # Errors
    /// [`TransferError::Refused`] if the writer's bytes did not arrive here by this transport,
    /// [`TransferError::Malformed`] for a reply that is none. The session is then over.
    fn confirm(&self, session: SessionId, reply: &[u8]) -> Result<(), TransferError>;
    /// Ends a session as far as this side can. With [`Proof::Immediate`] no write of it happens
    /// after the call returns. Revoking an unknown session is [`Proof::Immediate`] too.
    fn revoke(&self, session: SessionId) -> Proof;
}

/// What proves that a session's writer can write no more.
#[derive(Debug)]
pub enum Proof {
    /// The receiver does the writing (TCP, loopback), or nobody ever joined: it is over now.
    Immediate,
    /// The writer stores into this memory itself: it must end, its kernels too, or unmap the pool.
    ProcessEnd(WriterProcess),
}

/// A transport's sending half, made once a server over its pool.
pub trait Source: Send + Sync {
    /// Which transport this is.
    fn kind(&self) -> Kind;
    /// Joins the target that made the offer. Blocks for a bounded time.
    ///
    /// # Errors
    /// [`TransferError::Refused`] or [`TransferError::Unavailable`] if this transport cannot serve
    /// the pair, [`TransferError::Malformed`] for an offer that is none.
    fn connect(&self, offer: &[u8]) -> Result<Joined, TransferError>;
}

/// One writer's way to one peer's pool, owned by one thread (see [`Pusher`]).
///
/// Each operation queued has one event, which comes out of [`Link::progress`] or [`Link::close`].
pub trait Link: Send {
    /// Which transport this is.
    fn kind(&self) -> Kind;
    /// Pages in the target's pool; valid target ids are below it.
    fn target_pages(&self) -> u32;
    /// Queues a put. One that is out of bounds ends in an event with the error, moving nothing.
    fn put(&mut self, op: PutOp);
    /// Queues a flush of every put queued so far.
    fn flush(&mut self, id: OpId);
    /// Moves bytes and adds finished operations to `events`; waits at most about `wait` when
    /// there is nothing to do.
    ///
    /// # Errors
    /// The link is broken; what is still outstanding comes out of [`Link::close`].
    fn progress(&mut self, wait: Duration, events: &mut Vec<Event>) -> Result<(), TransferError>;
    /// Operations queued whose events have not come yet.
    fn outstanding(&self) -> usize;
    /// Destroys this writer's access, then ends what was outstanding, with
    /// [`TransferError::Closed`]. After it returns nothing of this link is ever written again
    /// from this side, nor any source page read.
    fn close(self: Box<Self>) -> Vec<Event>;
}
