//! A step's batch on the CPU, with the work lists of the paged ops made once.

use crate::ops::{HostBatch, KvShape, Segment};

/// New tokens of one segment that fall into one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Index of the first in the step's tokens.
    pub first: usize,
    /// How many.
    pub len: usize,
    /// Position of the first in its sequence.
    pub position: usize,
    /// The page.
    pub page: u32,
}

/// A batch that has been checked.
#[derive(Debug)]
pub struct CpuBatch {
    pub(super) host: HostBatch,
}

impl CpuBatch {
    /// # Panics
    /// If segments do not tile the tokens or a sampled index is out of bounds.
    pub(super) fn new(host: HostBatch) -> Self {
        let mut next = 0;
        for segment in &host.segments {
            assert!(segment.len > 0 && segment.first == next, "{segment:?} at {next}");
            next += segment.len;
        }
        assert_eq!(next, host.tokens.len(), "segments tile the tokens");
        assert!(host.sampled.iter().all(|&i| (i as usize) < next), "sampled tokens exist");
        Self { host }
    }

    /// The page table of a segment.
    pub(super) fn table(&self, segment: &Segment, page_tokens: usize) -> &[u32] {
        let pages = (segment.start + segment.len).div_ceil(page_tokens);
        &self.host.pages[segment.table..][..pages]
    }

    /// The new tokens, page by page.
    pub(super) fn page_runs(&self, shape: &KvShape) -> Vec<PageRun> {
        let size = shape.page_tokens;
        let mut runs = Vec::with_capacity(self.host.segments.len());
        for segment in &self.host.segments {
            let table = self.table(segment, size);
            let (mut position, end) = (segment.start, segment.start + segment.len);
            while position < end {
                let len = (size - position % size).min(end - position);
                let first = segment.first + position - segment.start;
                runs.push(PageRun { first, len, position, page: table[position / size] });
                position += len;
            }
        }
        runs
    }
}
