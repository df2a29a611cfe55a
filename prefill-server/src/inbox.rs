//! What the engine thread is told. Sockets' tasks and push threads put these into one bounded
//! queue.

use kv_transfer::{OpId, Pusher, TransferError};
use link::Sender;
use shared::ids::{Epoch, TicketId};
use shared::pool::Owned;
use shared::wire::messages::{GatewayToPrefill, PageRun, PrefillToDecode, PrefillToGateway};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Events that may wait for the engine: socket tasks stop reading when it is full.
pub(crate) const INBOX: usize = 4096;

/// A decode incarnation that pages can be written to.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) sender: Sender<PrefillToDecode>,
    pub(crate) pusher: Arc<Pusher>,
}

/// One event.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most of what is heard is requests")]
pub(crate) enum Event {
    /// A gateway has joined.
    GatewayUp(Epoch, Sender<PrefillToGateway>),
    /// It says something.
    Gateway(Epoch, GatewayToPrefill),
    /// Its link is gone, and so are its clients.
    GatewayLost(Epoch),
    /// A self-test wants up to this many pages to read from.
    Scratch(u32, oneshot::Sender<Vec<Owned>>),
    /// A decode incarnation has joined.
    PeerUp(Epoch, Peer),
    /// It names the pages of a ticket.
    Opened { peer: Epoch, ticket: TicketId, held: u32, runs: Vec<PageRun> },
    /// It has taken the ticket back.
    Revoked { peer: Epoch, ticket: TicketId },
    /// Its link is gone, and this side's writer is destroyed.
    PeerLost(Epoch),
    /// A put or flush has ended.
    Pushed { peer: Epoch, op: OpId, result: Result<(), TransferError> },
    /// Take nothing new, and end when nothing is left.
    Drain,
}
