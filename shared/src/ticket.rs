//! Decode's ledger of tickets: its grants of target pages, each to one writer for one request.
//!
//! Life of a ticket:
//! 1. **Granted** ([`Tickets::grant`]): pages are promised, nobody may write yet. It ends without a
//!    trace when it expires, is revoked or cancelled, or its writer is lost;
//! 2. **Opened** ([`Tickets::open`]): its writer knows the pages and may write them at any time.
//!    From here on decode cannot take them back. It ends by
//!    - the Handoff ([`Tickets::land`]): the pages are complete,
//!    - Closed ([`Tickets::close`]): nothing in flight, nothing follows,
//!    - the writer's proven end ([`Tickets::writer_ended`]);
//! 3. **Quarantined** ([`Tickets::writer_lost`]): the link is gone, the writer may live and write.
//!    The request fails at once, its pages stay apart until one of the three ends above.
//!
//! A cancelled request whose ticket is opened keeps its pages in the same way; its end then
//! says [`Ended::Cancelled`].
//!
//! Invariants: an opened ticket's pages are never free before one of its three ends; only the
//! writer that a ticket names can open or end it; the table never holds more than its limit.

use crate::ids::{Attempt, Epoch, RequestId, TicketId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// What a server keeps with a ticket, and how it comes apart when the writer is lost.
pub trait Quarantine {
    /// What must stay until the writer's end is proven: pages it may still write.
    type Held;
    /// What the server needs at once, to fail the request.
    type Rest;
    /// Takes it apart.
    fn quarantine(self) -> (Self::Rest, Self::Held);
}

/// The ledger; `R` is the server's own part of a ticket: the request, its credit, its pages.
pub struct Tickets<R: Quarantine> {
    entries: BTreeMap<TicketId, Entry<R>>,
    /// Granted tickets by when they expire.
    expiry: BTreeSet<(Duration, TicketId)>,
    first: u64,
    next: u64,
    limit: usize,
    counts: TicketCounts,
}

struct Entry<R: Quarantine> {
    writer: Epoch,
    request: RequestId,
    attempt: Attempt,
    state: State<R, R::Held>,
}

enum State<R, H> {
    Live(R, Phase),
    /// Quarantined.
    Held(H),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Granted { expires: Duration },
    Opened { cancelled: bool },
}

/// How many tickets are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TicketCounts {
    /// Not opened yet.
    pub granted: usize,
    /// With a writer.
    pub opened: usize,
    /// Waiting for a lost writer's proven end.
    pub quarantined: usize,
}

/// Why a ticket cannot be opened or landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpen {
    /// This server never granted it.
    #[error("never granted here")]
    Unknown,
    /// It was granted, and expired, was revoked or has ended.
    #[error("expired, revoked or ended")]
    Gone,
    /// It was granted to another writer.
    #[error("granted to writer {0}")]
    ForeignWriter(Epoch),
    /// It was granted for another request or attempt.
    #[error("granted for {0} {1}")]
    OtherRequest(RequestId, Attempt),
    /// To open: it is open already.
    #[error("already open")]
    AlreadyOpen,
    /// To land: it was never opened.
    #[error("not opened")]
    NeverOpened,
    /// Its writer's link was lost, and the request has failed.
    #[error("quarantined")]
    Quarantined,
}

/// An opened ticket that came to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended<R> {
    /// The request is still wanted.
    Wanted(R),
    /// The request was cancelled in the meantime: drop it.
    Cancelled(R),
}

impl<R> Ended<R> {
    /// The payload, unless cancelled.
    pub fn wanted(self) -> Option<R> {
        match self {
            Self::Wanted(payload) => Some(payload),
            Self::Cancelled(_) => None,
        }
    }
}

/// What a cancel met.
#[derive(Debug, PartialEq, Eq)]
pub enum Cancelled<R> {
    /// A ticket that was not opened: it is gone, this was its payload.
    Granted(R),
    /// An opened one: its pages wait for the writer.
    Opened,
    /// No ticket of that request and attempt.
    Unknown,
}

/// What became of a lost or ended writer's tickets.
pub struct Lost<R: Quarantine> {
    /// Payloads of tickets that it had not opened.
    pub revoked: Vec<R>,
    /// What is left of wanted requests whose tickets it had opened.
    pub failed: Vec<R::Rest>,
    /// Tickets that went into quarantine.
    pub quarantined: usize,
    /// Tickets whose pages came back.
    pub freed: usize,
}

impl<R: Quarantine> Tickets<R> {
    /// An empty ledger of at most `limit` tickets, the first of which will be `first`.
    pub const fn new(first: TicketId, limit: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            expiry: BTreeSet::new(),
            first: first.get(),
            next: first.get(),
            limit,
            counts: TicketCounts { granted: 0, opened: 0, quarantined: 0 },
        }
    }

    /// Grants `payload` to `writer` for one attempt of a request, until `expires`.
    ///
    /// # Errors
    /// The payload, if the table is full.
    pub fn grant(
        &mut self,
        writer: Epoch,
        (request, attempt): (RequestId, Attempt),
        payload: R,
        expires: Duration,
    ) -> Result<TicketId, R> {
        if self.entries.len() >= self.limit {
            return Err(payload);
        }
        let ticket = TicketId::new(self.next);
        self.next += 1;
        let state = State::Live(payload, Phase::Granted { expires });
        self.entries.insert(ticket, Entry { writer, request, attempt, state });
        self.expiry.insert((expires, ticket));
        self.counts.granted += 1;
        Ok(ticket)
    }

    /// The writer asks for the pages: from here on they are its to write. The payload is given to
    /// be worked on in place (draw pages from its credit, pin held ones).
    ///
    /// # Errors
    /// [`NotOpen`]; nothing has changed then.
    pub fn open(
        &mut self,
        ticket: TicketId,
        writer: Epoch,
        request: RequestId,
        attempt: Attempt,
    ) -> Result<&mut R, NotOpen> {
        let absent = self.absent(ticket);
        let entry = self.entries.get_mut(&ticket).ok_or(absent)?;
        entry.check(writer)?;
        if (entry.request, entry.attempt) != (request, attempt) {
            return Err(NotOpen::OtherRequest(entry.request, entry.attempt));
        }
        match &mut entry.state {
            State::Live(payload, phase) => {
                let Phase::Granted { expires } = *phase else { return Err(NotOpen::AlreadyOpen) };
                *phase = Phase::Opened { cancelled: false };
                self.expiry.remove(&(expires, ticket));
                self.counts.granted -= 1;
                self.counts.opened += 1;
                Ok(payload)
            }
            State::Held(_) => Err(NotOpen::Quarantined),
        }
    }

    /// Payloads of the tickets that are granted or opened, oldest first.
    pub fn live(&self) -> impl Iterator<Item = &R> {
        self.entries.values().filter_map(|entry| match &entry.state {
            State::Live(payload, _) => Some(payload),
            State::Held(_) => None,
        })
    }

    /// The payload of a ticket that is granted or opened.
    pub fn get_mut(&mut self, ticket: TicketId) -> Option<&mut R> {
        match &mut self.entries.get_mut(&ticket)?.state {
            State::Live(payload, _) => Some(payload),
            State::Held(_) => None,
        }
    }

    /// The Handoff came: all pages are complete and the writer is done with them.
    ///
    /// # Errors
    /// [`NotOpen`]. A quarantined ticket ends by it all the same and its pages come back, since its
    /// writer is done; any other stays as it was.
    pub fn land(&mut self, ticket: TicketId, writer: Epoch) -> Result<Ended<R>, NotOpen> {
        let entry = self.entries.get(&ticket).ok_or(self.absent(ticket))?;
        entry.check(writer)?;
        if let State::Live(_, Phase::Granted { .. }) = entry.state {
            return Err(NotOpen::NeverOpened);
        }
        self.end(ticket).ok_or(NotOpen::Quarantined)
    }

    /// The writer will not write any more, and has not finished: the payload, unless the ticket is
    /// unknown, another writer's or quarantined (its pages come back then).
    pub fn close(&mut self, ticket: TicketId, writer: Epoch) -> Option<Ended<R>> {
        self.entries.get(&ticket)?.check(writer).ok()?;
        self.end(ticket)
    }

    /// Takes back a ticket that is not opened yet.
    pub fn revoke(&mut self, ticket: TicketId) -> Option<R> {
        match self.entries.get(&ticket)?.state {
            State::Live(_, Phase::Granted { .. }) => self.end(ticket).and_then(Ended::wanted),
            State::Live(..) | State::Held(_) => None,
        }
    }

    /// The client is gone, or the gateway sends the request round again. One pass over the table.
    pub fn cancel(&mut self, request: RequestId, attempt: Attempt) -> Cancelled<R> {
        let ours = |entry: &Entry<R>| (entry.request, entry.attempt) == (request, attempt);
        let live = |entry: &Entry<R>| matches!(entry.state, State::Live(..));
        let found = self.entries.iter_mut().find(|(_, entry)| ours(entry) && live(entry));
        let Some((&ticket, entry)) = found else { return Cancelled::Unknown };
        if let State::Live(_, Phase::Opened { cancelled }) = &mut entry.state {
            *cancelled = true;
            return Cancelled::Opened;
        }
        self.revoke(ticket).map_or(Cancelled::Unknown, Cancelled::Granted)
    }

    /// A gateway is gone, and so are its clients: cancels every request of it.
    pub fn cancel_gateway(&mut self, gateway: Epoch) {
        let ours = self.entries.values().filter(|entry| entry.request.gateway() == gateway);
        let keys: Vec<_> = ours.map(|entry| (entry.request, entry.attempt)).collect();
        for (request, attempt) in keys {
            drop(self.cancel(request, attempt));
        }
    }

    /// Takes back the granted tickets whose time has come, earliest first.
    pub fn expire(&mut self, now: Duration) -> Vec<(TicketId, R)> {
        let mut expired = Vec::new();
        while let Some(&(expires, ticket)) = self.expiry.first()
            && expires <= now
        {
            let payload = self.revoke(ticket).expect("every ticket in `expiry` is granted");
            expired.push((ticket, payload));
        }
        expired
    }

    /// When the next granted ticket expires.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.expiry.first().map(|&(expires, _)| expires)
    }

    /// The link to `writer` is gone, the writer may not be: its granted tickets are revoked, its
    /// opened ones go into quarantine.
    pub fn writer_lost(&mut self, writer: Epoch) -> Lost<R> {
        let mut lost = Lost::default();
        for ticket in self.of(writer) {
            if let Some(payload) = self.revoke(ticket) {
                lost.revoked.push(payload);
                continue;
            }
            let Some(entry) = self.entries.remove(&ticket) else { continue };
            let held = match entry.state {
                State::Live(payload, phase) => {
                    let (rest, held) = payload.quarantine();
                    self.counts.opened -= 1;
                    self.counts.quarantined += 1;
                    lost.quarantined += 1;
                    if phase != (Phase::Opened { cancelled: true }) {
                        lost.failed.push(rest);
                    }
                    held
                }
                State::Held(held) => held,
            };
            self.entries.insert(ticket, Entry { state: State::Held(held), ..entry });
        }
        lost
    }

    /// The end of `writer` is proven: nothing of it can be in flight. All its tickets end,
    /// quarantined or not.
    pub fn writer_ended(&mut self, writer: Epoch) -> Lost<R> {
        let mut lost = Lost::default();
        for ticket in self.of(writer) {
            if let Some(payload) = self.revoke(ticket) {
                lost.revoked.push(payload);
                continue;
            }
            lost.failed.extend(self.end(ticket).and_then(Ended::wanted).map(|p| p.quarantine().0));
            lost.freed += 1;
        }
        lost
    }

    /// How many tickets are in which state.
    pub const fn counts(&self) -> TicketCounts {
        self.counts
    }

    /// What to say of a ticket that is not in the table.
    const fn absent(&self, ticket: TicketId) -> NotOpen {
        let issued = self.first <= ticket.get() && ticket.get() < self.next;
        if issued { NotOpen::Gone } else { NotOpen::Unknown }
    }

    /// Tickets of a writer, oldest first.
    fn of(&self, writer: Epoch) -> Vec<TicketId> {
        let ours = self.entries.iter().filter(|(_, entry)| entry.writer == writer);
        ours.map(|(&ticket, _)| ticket).collect()
    }

    /// Removes a ticket; its payload, unless quarantined.
    fn end(&mut self, ticket: TicketId) -> Option<Ended<R>> {
        match self.entries.remove(&ticket)?.state {
            State::Live(payload, Phase::Granted { expires }) => {
                self.counts.granted -= 1;
                self.expiry.remove(&(expires, ticket));
                Some(Ended::Wanted(payload))
            }
            State::Live(payload, Phase::Opened { cancelled }) => {
                self.counts.opened -= 1;
                Some(if cancelled { Ended::Cancelled(payload) } else { Ended::Wanted(payload) })
            }
            State::Held(held) => {
                self.counts.quarantined -= 1;
                drop(held);
                None
            }
        }
    }
}

impl<R: Quarantine> fmt::Debug for Tickets<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tickets({:?} of {})", self.counts, self.limit)
    }
}

impl<R: Quarantine> Entry<R> {
    fn check(&self, writer: Epoch) -> Result<(), NotOpen> {
        if self.writer == writer { Ok(()) } else { Err(NotOpen::ForeignWriter(self.writer)) }
    }
}

impl<R: Quarantine> Default for Lost<R> {
    fn default() -> Self {
        Self { revoked: Vec::new(), failed: Vec::new(), quarantined: 0, freed: 0 }
    }
}
