//! What is said on each arrow of the ring. Field order is the wire order; golden bytes hold it.
//!
//! A connection is bound to the epochs of both ends by its session keys, so messages name an epoch
//! only where they speak of a third server.

use super::frame::FrameKind;
use crate::ids::{Attempt, Epoch, PageId, RequestId, ServerId, TicketId, TokenId};
use crate::request::{Finish, Read, Request, Token};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The set of messages that flow one way along one arrow.
pub trait Message: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Frame kind that carries it.
    const KIND: FrameKind;
}

/// One try at one request: names it on every arrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestKey {
    /// The request.
    pub id: RequestId,
    /// Which try.
    pub attempt: Attempt,
}

impl std::fmt::Display for RequestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.id, self.attempt)
    }
}

/// Gateway to decode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "most of what is said here is requests")]
pub enum GatewayToDecode {
    /// Asks for a ticket; the whole request comes along, so that decode knows its needs.
    Reserve {
        /// Which request.
        key: RequestKey,
        /// The prefill incarnation that will write.
        writer: Epoch,
        /// What is asked.
        request: Request,
    },
    /// Ends a request at any stage; answered by `Cancelled` (or crossed by its end).
    Cancel(RequestKey),
    /// Drops all cached pages that no request holds; answered by `Flushed`.
    FlushCache,
}

impl GatewayToDecode {
    /// The request that it is about, if it is about one.
    pub const fn key(&self) -> Option<RequestKey> {
        match self {
            Self::Reserve { key, .. } | Self::Cancel(key) => Some(*key),
            Self::FlushCache => None,
        }
    }
}

/// Decode to gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DecodeToGateway {
    /// Pages are promised.
    Ticket {
        /// Which request.
        key: RequestKey,
        /// The grant, to be passed to prefill.
        ticket: TicketId,
    },
    /// No pages, or not here.
    Refused {
        /// Which request.
        key: RequestKey,
        /// Why.
        refusal: Refusal,
    },
    /// What one step made, for every request of this gateway.
    Tokens(Vec<Emitted>),
    /// The request ended without a result.
    Failed {
        /// Which request.
        key: RequestKey,
        /// Why.
        fault: Fault,
    },
    /// Pages ran out and this request gave its own back: replay it with the tokens so far.
    Retracted(RequestKey),
    /// Answer to `Cancel`: nothing more follows for this request.
    Cancelled(RequestKey),
    /// Answer to `FlushCache`.
    Flushed,
    /// Sent whenever it changed, at most once a reporting interval.
    Load(Load),
}

/// New tokens of one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Emitted {
    /// Which request.
    pub key: RequestKey,
    /// Prompt tokens that were not computed.
    pub cached_tokens: u32,
    /// In order; none only of a prompt that was only read.
    pub tokens: Vec<Token>,
    /// How it ended; set on the last.
    pub finish: Option<Finish>,
    /// Where prefill's time went; set on the first of an attempt.
    pub times: Option<PrefillTimes>,
}

/// Gateway to prefill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "most of what is said here is requests")]
pub enum GatewayToPrefill {
    /// Compute this prompt.
    Prefill {
        /// Which request.
        key: RequestKey,
        /// What is asked.
        request: Request,
        /// Where its pages go; absent when one token at most is wanted.
        target: Option<Target>,
    },
    /// Ends a request at any stage; answered by `Cancelled` (or crossed by its end).
    Cancel(RequestKey),
    /// Drops all cached pages that no request holds; answered by `Flushed`.
    FlushCache,
}

impl GatewayToPrefill {
    /// The request that it is about, if it is about one.
    pub const fn key(&self) -> Option<RequestKey> {
        match self {
            Self::Prefill { key, .. } | Self::Cancel(key) => Some(*key),
            Self::FlushCache => None,
        }
    }
}

/// A decode server and its promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Which server.
    pub decode: ServerId,
    /// Which incarnation of it.
    pub epoch: Epoch,
    /// Its promise.
    pub ticket: TicketId,
}

/// Prefill to gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PrefillToGateway {
    /// Not queued. Of one that is queued the next word is what came of it.
    Refused {
        /// Which request.
        key: RequestKey,
        /// Why.
        refusal: Refusal,
    },
    /// The request ended without a result.
    Failed {
        /// Which request.
        key: RequestKey,
        /// Why.
        fault: Fault,
    },
    /// What was read of the prompt in a step. All of it comes before the result or the handoff.
    Read {
        /// Which request.
        key: RequestKey,
        /// What.
        read: Read,
    },
    /// The result, where no decode is needed: one token or none, and how it ended.
    Result(Emitted),
    /// Answer to `Cancel`: nothing more follows for this request.
    Cancelled(RequestKey),
    /// Answer to `FlushCache`.
    Flushed,
    /// The decode incarnations that pages can be written to; sent whenever it changed.
    Joined(Vec<Epoch>),
    /// Sent whenever it changed, at most once a reporting interval.
    Load(Load),
}

/// Why a request was not taken. Nothing was spent on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Not enough free pages now; try again when the load says so.
    NoPages,
    /// The queue or ticket table is full.
    QueueFull,
    /// It can never fit this server.
    TooLarge {
        /// Pages it would take at its longest.
        pages: u32,
        /// Pages of the pool.
        pool: u32,
    },
    /// Prefill has no working link to that decode incarnation.
    NoLink(String),
    /// The server is going down.
    Draining,
}

impl Refusal {
    /// Every [`Self::name`].
    pub const NAMES: [&str; 5] = ["no_pages", "queue_full", "too_large", "no_link", "draining"];

    /// Its class, in metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoPages => "no_pages",
            Self::QueueFull => "queue_full",
            Self::TooLarge { .. } => "too_large",
            Self::NoLink(_) => "no_link",
            Self::Draining => "draining",
        }
    }
}

/// A request that failed, or an operation of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What the gateway may do about it.
    pub kind: FaultKind,
    /// For people: what happened, where.
    pub message: String,
}

/// Classes of [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultKind {
    /// The other server of the pair is gone or silent.
    PeerLost,
    /// The ticket was revoked or had expired; another may be had.
    Revoked,
    /// A deadline passed.
    Deadline,
    /// Pages arrived damaged.
    Checksum,
    /// The server is going down.
    Draining,
    /// A bug.
    Internal,
}

/// How busy a server is; what routing and admission go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Pages that a new request could get: free, or cached and held by no one.
    pub pages_available: u32,
    /// Requests waiting.
    pub queued: u32,
    /// Tokens of prompt waiting (prefill) or context tokens running (decode).
    pub tokens: u32,
    /// Requests being computed.
    pub running: u32,
    /// Pages that wait for the proven end of a writer.
    pub pages_quarantined: u32,
    /// It takes no new requests and ends with its last one.
    pub draining: bool,
}

/// Prefill to decode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PrefillToDecode {
    /// First message. Sent only after every writer of an earlier connection of this process is
    /// destroyed, so it proves their end.
    Join,
    /// The transports that this side could connect: answers `Offer`. Opaque here; see
    /// `kv_transfer::Sources`.
    Answer(Vec<u8>),
    /// The self-test of the chosen transport passed; pages may be opened.
    Joined {
        /// What it reached.
        megabytes_per_second: u64,
    },
    /// The request is about to be computed: name its pages.
    Open {
        /// The grant.
        ticket: TicketId,
        /// Whose.
        key: RequestKey,
    },
    /// All pages are visible at the target.
    Handoff(Box<Handoff>),
    /// No write of this ticket is in flight and none follows; its pages are decode's again.
    Closed {
        /// The grant.
        ticket: TicketId,
        /// Why there is no handoff.
        fault: Fault,
    },
}

/// What prefill made of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Handoff {
    /// The grant.
    pub ticket: TicketId,
    /// Whose.
    pub key: RequestKey,
    /// First token of the output.
    pub first: Token,
    /// Prompt tokens that prefill did not compute.
    pub cached_tokens: u32,
    /// xxh3 of each shipped page, in order; empty when checksums are off.
    pub checksums: Vec<u64>,
    /// Where its time went.
    pub times: PrefillTimes,
}

/// Phases of a request at prefill, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefillTimes {
    /// From arrival to the first chunk.
    pub queued_us: u64,
    /// From the first chunk to the first token.
    pub computed_us: u64,
    /// From the first token to all pages visible at the target: the exposed transfer.
    pub exposed_us: u64,
}

/// Decode to prefill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DecodeToPrefill {
    /// The transports that reach this pool. Opaque here; see `kv_transfer::Targets`.
    Offer(Vec<u8>),
    /// The transport that was chosen.
    Verdict {
        /// Which and why; opaque here.
        verdict: Vec<u8>,
        /// Pages that the self-test may write, until `Joined`.
        scratch: Vec<PageRun>,
    },
    /// No transport works.
    NotJoined {
        /// Which were tried and why not.
        reason: String,
    },
    /// Pages to write.
    Opened {
        /// The grant.
        ticket: TicketId,
        /// Leading full pages of the prompt that decode already holds and has pinned.
        held: u32,
        /// Target pages of the rest, in order.
        runs: Vec<PageRun>,
    },
    /// Write nothing: the ticket expired, was cancelled, or is unknown.
    Revoked {
        /// The grant.
        ticket: TicketId,
    },
}

/// Adjacent pages: `start..start + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// First page.
    pub start: PageId,
    /// How many.
    pub count: u32,
}

impl PageRun {
    /// Packs page ids, keeping their order.
    pub fn pack(pages: impl IntoIterator<Item = PageId>) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        for page in pages {
            match runs.last_mut() {
                Some(run) if run.start.get() + run.count == page.get() => run.count += 1,
                _ => runs.push(Self { start: page, count: 1 }),
            }
        }
        runs
    }

    /// Unpacks runs that must name at most `limit` pages, each below `pages`.
    ///
    /// # Errors
    /// A sentence with the offending numbers.
    pub fn unpack(runs: &[Self], pages: u32, limit: u32) -> Result<Vec<PageId>, String> {
        let total: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
        if total > u64::from(limit) {
            return Err(format!("{total} pages named, at most {limit} expected"));
        }
        if let Some(run) = runs
            .iter()
            .find(|run| u64::from(run.start.get()) + u64::from(run.count) > u64::from(pages))
        {
            return Err(format!("{run:?} is outside a pool of {pages} pages"));
        }
        let ids = runs.iter().flat_map(|run| run.start.get()..run.start.get() + run.count);
        Ok(ids.map(PageId::new).collect())
    }
}

macro_rules! messages {
    ($($name:ident)*) => {$(
        impl Message for $name {
            const KIND: FrameKind = FrameKind::$name;
        }
    )*};
}
messages! {
    GatewayToDecode DecodeToGateway GatewayToPrefill PrefillToGateway PrefillToDecode
    DecodeToPrefill
}

/// The tokens of an [`Emitted`], by id.
pub fn token_ids(tokens: &[Token]) -> Vec<TokenId> {
    tokens.iter().map(|token| token.id).collect()
}
