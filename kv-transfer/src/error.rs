//! The crate's error, with variants by what the caller does next.

use shared::ids::PageId;

/// Why a join, an operation or a landing failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This transport cannot run here; another may.
    #[error("{transport} is not available: {reason}")]
    Unavailable {
        /// The transport's name.
        transport: &'static str,
        /// What is missing and how to get it.
        reason: String,
    },
    /// This transport runs here but must not serve this pair; another may.
    #[error("{transport} refused this pair: {reason}")]
    Refused {
        /// The transport's name.
        transport: &'static str,
        /// What does not match, with both values where there are two.
        reason: String,
    },
    /// Bytes or a name from outside that mean nothing.
    #[error("{field} is {value:?}: want {want}")]
    Malformed {
        /// The field's name.
        field: &'static str,
        /// What it held.
        value: String,
        /// What would be accepted.
        want: &'static str,
    },
    /// A page that one of the pools does not have. Nothing was moved.
    #[error("{side} page {page}: that pool has {pages} pages")]
    PageOutOfBounds {
        /// `source` or `target`.
        side: &'static str,
        /// The page asked for.
        page: PageId,
        /// Pages in that pool.
        pages: u32,
    },
    /// A byte range outside of a page. Nothing was moved.
    #[error("bytes {start}..{end} of a page of {page_bytes} bytes: want a non-empty range within")]
    RangeOutOfBounds {
        /// First byte.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// Bytes of a page.
        page_bytes: usize,
    },
    /// The link is dead: join again.
    #[error("the link is broken: {cause}")]
    Broken {
        /// What was seen.
        cause: String,
    },
    /// The operation did not end in time; its link is broken with it.
    #[error("not done within {limit_ms} ms; the link is given up")]
    Deadline {
        /// The deadline that passed, milliseconds.
        limit_ms: u64,
    },
    /// The link was closed on this side before the operation ended.
    #[error("the link was closed before this ended")]
    Closed,
    /// Landed bytes are not those that were shipped.
    #[error("page {page} landed with checksum {got:016x}, shipped with {want:016x}")]
    Checksum {
        /// The target page.
        page: PageId,
        /// As computed by the source.
        want: u64,
        /// As landed.
        got: u64,
    },
    /// The join's self-test measured too little.
    #[error("{transport} moved {got_mb_s} MB/s in its self-test, below the floor of {floor_mb_s}")]
    TooSlow {
        /// The transport's name.
        transport: &'static str,
        /// Measured, megabytes a second.
        got_mb_s: u64,
        /// Configured floor, megabytes a second.
        floor_mb_s: u64,
    },
    /// Shared memory that the pool needs is not there.
    #[error(
        "{path} has {free} bytes free, the pool needs {need}: \
         make it larger (mount -o remount,size=…) or the pool smaller"
    )]
    NoSharedMemory {
        /// The shared-memory file system.
        path: String,
        /// Bytes asked for.
        need: u64,
        /// Bytes free.
        free: u64,
    },
}

impl TransferError {
    pub(crate) fn malformed(
        field: &'static str,
        value: &(impl ToString + ?Sized),
        want: &'static str,
    ) -> Self {
        Self::Malformed { field, value: value.to_string(), want }
    }
    pub(crate) fn broken(cause: &(impl ToString + ?Sized)) -> Self {
        Self::Broken { cause: cause.to_string() }
    }
}
