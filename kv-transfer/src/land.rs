//! The target's half: checking what landed.
//!
//! The source computes one checksum a shipped page and the Handoff carries them in page order;
//! the target computes the same over its pages after the Handoff, that is, after the flush.

use crate::TransferError;
use shared::ids::PageId;
use shared::kv::PageStore;
use std::ops::Range;
use xxhash_rust::xxh3::Xxh3Default;

/// Bytes read from the store at a time: cache-resident, and a bound however large a page is.
const CHUNK: usize = 64 << 10;

/// xxh3 (64 bits) of each page's `bytes`, in the order given.
///
/// # Panics
/// As [`PageStore::read`]: on a page or a range that the store does not have.
pub fn checksums(store: &dyn PageStore, pages: &[PageId], bytes: &Range<usize>) -> Vec<u64> {
    let mut buffer = vec![0; CHUNK.min(bytes.len())];
    pages.iter().map(|&page| checksum(store, page, bytes, &mut buffer)).collect()
}

fn checksum(store: &dyn PageStore, page: PageId, bytes: &Range<usize>, buffer: &mut [u8]) -> u64 {
    let mut hash = Xxh3Default::new();
    let mut at = bytes.start;
    while at < bytes.end {
        let end = bytes.end.min(at + buffer.len());
        let chunk = &mut buffer[..end - at];
        store.read(page, at..end, chunk);
        hash.update(chunk);
        at = end;
    }
    hash.digest()
}

/// Compares what landed in `pages` with the checksums that the source sent, one a page.
///
/// # Errors
/// [`TransferError::Checksum`] names the first page that differs; [`TransferError::Malformed`] or
/// [`TransferError::PageOutOfBounds`] if the lists cannot be compared.
pub fn verify(
    store: &dyn PageStore,
    pages: &[PageId],
    bytes: &Range<usize>,
    want: &[u64],
) -> Result<(), TransferError> {
    if want.len() != pages.len() {
        let count = format!("{} for {} pages", want.len(), pages.len());
        return Err(TransferError::malformed("checksums", &count, "one a landed page"));
    }
    let page_bytes = store.geometry().page_bytes();
    if bytes.start >= bytes.end || bytes.end > page_bytes {
        let (start, end) = (bytes.start, bytes.end);
        return Err(TransferError::RangeOutOfBounds { start, end, page_bytes });
    }
    let mut buffer = vec![0; CHUNK.min(bytes.len())];
    for (&page, &want) in pages.iter().zip(want) {
        if page.get() >= store.pages() {
            return Err(TransferError::PageOutOfBounds {
                side: "target",
                page,
                pages: store.pages(),
            });
        }
        let got = checksum(store, page, bytes, &mut buffer);
        if got != want {
            return Err(TransferError::Checksum { page, want, got });
        }
    }
    Ok(())
}
