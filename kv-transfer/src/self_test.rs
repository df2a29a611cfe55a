//! The bandwidth self-test of a join: whole pages into scratch pages that the target granted.

use crate::{Link, OpId, PutOp, TransferError};
use shared::ids::PageId;
use std::time::{Duration, Instant};

/// How much to move, and what to expect.
#[derive(Clone, Copy, Debug)]
pub struct SelfTest {
    /// Bytes to move at least, timed after one warm-up round.
    pub bytes: u64,
    /// Slowest acceptable rate, megabytes (10^6 bytes) a second; 0 accepts any.
    pub floor_mb_s: u64,
    /// Longest time for all of it.
    pub limit: Duration,
}

impl Default for SelfTest {
    fn default() -> Self {
        Self { bytes: 32 << 20, floor_mb_s: 0, limit: Duration::from_secs(2) }
    }
}

/// What a self-test measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bandwidth {
    /// Megabytes (10^6 bytes) a second, flush included.
    pub mb_s: u64,
}

/// Moves `pages`, (source, target) pairs of `page_bytes` each, again and again. The caller owns
/// the pages at both ends; the link must have nothing outstanding.
///
/// # Errors
/// [`TransferError::TooSlow`] below the floor, [`TransferError::Deadline`], or what broke the link.
/// The link is then to be closed.
pub fn self_test(
    link: &mut dyn Link,
    pages: &[(PageId, PageId)],
    page_bytes: usize,
    test: SelfTest,
) -> Result<Bandwidth, TransferError> {
    if pages.is_empty() {
        return Err(TransferError::malformed("self-test pages", "none", "at least one pair"));
    }
    let deadline = Instant::now() + test.limit;
    round(link, pages, page_bytes, deadline, test.limit)?;
    let start = Instant::now();
    let mut moved = 0_u64;
    while moved < test.bytes {
        round(link, pages, page_bytes, deadline, test.limit)?;
        moved += (pages.len() * page_bytes) as u64;
    }
    let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    let mb_s = moved / micros;
    if mb_s < test.floor_mb_s {
        let transport = link.kind().name();
        return Err(TransferError::TooSlow {
            transport,
            got_mb_s: mb_s,
            floor_mb_s: test.floor_mb_s,
        });
    }
    Ok(Bandwidth { mb_s })
}

/// One put of all pages and its flush.
fn round(
    link: &mut dyn Link,
    pages: &[(PageId, PageId)],
    page_bytes: usize,
    deadline: Instant,
    limit: Duration,
) -> Result<(), TransferError> {
    let (id, pages, bytes) = (OpId::new(0), pages.to_vec(), 0..page_bytes);
    link.put(PutOp::new(id, pages, bytes, Box::new(())));
    link.flush(OpId::new(1));
    let mut events = Vec::new();
    while link.outstanding() > 0 {
        link.progress(Duration::from_millis(1), &mut events)?;
        for event in events.drain(..) {
            event.result().clone()?;
        }
        if Instant::now() > deadline {
            let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            return Err(TransferError::Deadline { limit_ms });
        }
    }
    Ok(())
}
