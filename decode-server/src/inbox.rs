//! What the engine thread is told. The sockets' tasks put these into one bounded queue.

use link::Sender;
use shared::ids::{Epoch, TicketId};
use shared::pool::Owned;
use shared::wire::messages::{
    DecodeToGateway, DecodeToPrefill, GatewayToDecode, Handoff, RequestKey,
};
use tokio::sync::oneshot;

/// Events that may wait for the engine: socket tasks stop reading when it is full.
pub(crate) const INBOX: usize = 4096;

/// One event.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most of what is heard is requests")]
pub(crate) enum Event {
    /// A gateway has joined.
    GatewayUp(Epoch, Sender<DecodeToGateway>),
    /// It says something.
    Gateway(Epoch, GatewayToDecode),
    /// Its link is gone, and so are its clients.
    GatewayLost(Epoch),
    /// A self-test wants up to this many pages to write to.
    Scratch(u32, oneshot::Sender<Vec<Owned>>),
    /// A prefill incarnation has joined, by a confirmed transport.
    WriterUp(Epoch, Sender<DecodeToPrefill>),
    /// It asks for the pages of a ticket.
    Open(Epoch, TicketId, RequestKey),
    /// It has written them.
    Handoff(Epoch, Box<Handoff>),
    /// It will not.
    Closed(Epoch, TicketId),
    /// Its link is gone; it may still write.
    WriterLost(Epoch),
    /// It can write no more.
    WriterEnded(Epoch),
    /// Take nothing new, and end when nothing is left.
    Drain,
}
