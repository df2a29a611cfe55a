//! Ids and operations that every transport shares.

use crate::{Link, TransferError};
use kernels::cuda::stream::Mark;
use shared::ids::PageId;
use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

/// The transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Both roles in one process.
    Loopback,
    /// Plain sockets: the receiver writes.
    Tcp,
    /// UCX shared memory: the writer stores straight into the target's pool.
    Ucx,
    /// CUDA IPC: the writer's kernels store straight into the target's pool in device memory.
    CudaIpc,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Loopback, Self::Tcp, Self::Ucx, Self::CudaIpc];

    /// The name used in configuration, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Tcp => "tcp",
            Self::Ucx => "ucx",
            Self::CudaIpc => "cuda_ipc",
        }
    }

    /// Its number in messages.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Loopback => 0,
            Self::Tcp => 1,
            Self::Ucx => 2,
            Self::CudaIpc => 3,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = TransferError;

    fn from_str(name: &str) -> Result<Self, TransferError> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            TransferError::malformed("transport", name, "loopback, tcp, ucx or cuda_ipc")
        })
    }
}

/// One writer's access to one target, drawn by that target; never reused within its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u64);

impl SessionId {
    /// Wraps the raw number.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// The raw number, for logs and the wire.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// What a target offers to one writer.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Names the session at the target.
    pub session: SessionId,
    /// Goes to the writer over the authenticated control connection. Holds a secret.
    pub bytes: Vec<u8>,
}

/// A connected link, and what the target needs to confirm it.
pub struct Joined {
    /// The way to the peer's pool.
    pub link: Box<dyn Link>,
    /// Bytes for [`crate::Target::confirm`].
    pub reply: Vec<u8>,
}

/// The caller's number for a put or a flush; comes back in its event. Not interpreted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(u64);

impl OpId {
    /// Wraps the caller's number.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// The caller's number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op{}", self.0)
    }
}

/// Bytes of each page of a put that are complete at one time.
#[derive(Clone)]
pub struct Part {
    /// `0..page_bytes`, or a layer range (`KvGeometry::layers_range`).
    pub bytes: Range<usize>,
    /// They are not there before this is reached; absent: they are there.
    pub after: Option<Arc<Mark>>,
}

/// Copy the same bytes of every listed source page into its target page.
pub struct PutOp {
    /// Comes back in the event.
    pub id: OpId,
    /// (source page, target page); neighbours in both pools are merged into one run.
    pub pages: Vec<(PageId, PageId)>,
    /// The bytes of each page to copy, in the order in which they are complete.
    pub parts: Vec<Part>,
    /// Whatever keeps the source pages unchanged; given back by the event.
    pub owner: Box<dyn Any + Send>,
}

impl PutOp {
    /// Of pages whose bytes are all there.
    pub fn new(
        id: OpId,
        pages: Vec<(PageId, PageId)>,
        bytes: Range<usize>,
        owner: Box<dyn Any + Send>,
    ) -> Self {
        Self { id, pages, parts: vec![Part { bytes, after: None }], owner }
    }

    /// The same in one part, there when the last is: parts follow each other in the page.
    pub(crate) fn in_one(mut self) -> Self {
        if let [first, .., last] = &mut self.parts[..] {
            let bytes = first.bytes.start..last.bytes.end;
            self.parts = vec![Part { bytes, after: last.after.take() }];
        }
        self
    }
}

impl fmt::Debug for PutOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<_> = self.parts.iter().map(|part| &part.bytes).collect();
        write!(f, "PutOp({}, {} pages, bytes {bytes:?})", self.id, self.pages.len())
    }
}

/// The end of an operation; exactly one for each that was queued.
pub enum Event {
    /// A put's source pages may be reused (or, on error, were only partly copied, or not at all).
    Put {
        /// The put's number.
        id: OpId,
        /// What the put owned.
        owner: Box<dyn Any + Send>,
        /// Whether every byte was handed over.
        result: Result<(), TransferError>,
    },
    /// Every put queued before this flush is visible at the target, or the error says why not.
    Flush {
        /// The flush's number.
        id: OpId,
        /// Visible, or why not.
        result: Result<(), TransferError>,
    },
}

impl Event {
    /// The operation's number.
    pub const fn id(&self) -> OpId {
        match self {
            Self::Put { id, .. } | Self::Flush { id, .. } => *id,
        }
    }
    /// How it ended.
    pub const fn result(&self) -> &Result<(), TransferError> {
        match self {
            Self::Put { result, .. } | Self::Flush { result, .. } => result,
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Put { .. } => "Put",
            Self::Flush { .. } => "Flush",
        };
        write!(f, "{name}({}, {:?})", self.id(), self.result())
    }
}
