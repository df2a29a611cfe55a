//! Pure: page pairs and a byte range of each page → few large runs.
//!
//! Copies are counted, not bytes (DESIGN 4): pages that are neighbours in both pools become one
//! run when they are shipped whole, since pools are page-major.

use crate::TransferError;
use shared::ids::PageId;
use shared::kv::KvGeometry;
use std::ops::Range;

/// The pools at both ends, as far as a plan needs them.
#[derive(Clone, Copy, Debug)]
pub struct Pools {
    /// Shape of a page, equal on both ends.
    pub geometry: KvGeometry,
    /// Pages in the source's pool.
    pub source_pages: u32,
    /// Pages in the target's pool.
    pub target_pages: u32,
}

/// One contiguous copy: contiguous in the source's pool and in the target's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First source page.
    pub source: PageId,
    /// First target page.
    pub target: PageId,
    /// Adjacent pages; more than 1 only when `bytes` is the whole page.
    pub pages: u32,
    /// The bytes of each page.
    pub bytes: Range<usize>,
}

impl Run {
    /// Bytes that the run copies.
    pub fn len(&self) -> usize {
        self.pages as usize * self.bytes.len()
    }
    /// Never true of a planned run.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Pools {
    /// Checks every page and the range of bytes, and merges neighbours. Keeps the order of pages.
    ///
    /// # Errors
    /// [`TransferError::PageOutOfBounds`] or [`TransferError::RangeOutOfBounds`]; nothing of the
    /// operation may then be moved.
    pub fn plan(
        &self,
        pages: &[(PageId, PageId)],
        bytes: &Range<usize>,
    ) -> Result<Vec<Run>, TransferError> {
        let page_bytes = self.geometry.page_bytes();
        let (start, end) = (bytes.start, bytes.end);
        if start >= end || end > page_bytes {
            return Err(TransferError::RangeOutOfBounds { start, end, page_bytes });
        }
        let whole = *bytes == (0..page_bytes);
        let mut runs: Vec<Run> = Vec::new();
        for &(source, target) in pages {
            check_page("source", source, self.source_pages)?;
            check_page("target", target, self.target_pages)?;
            match runs.last_mut() {
                Some(run) if whole && run.continues_at(source, target) => run.pages += 1,
                _ => runs.push(Run { source, target, pages: 1, bytes: bytes.clone() }),
            }
        }
        Ok(runs)
    }
}

impl Run {
    fn continues_at(&self, source: PageId, target: PageId) -> bool {
        source.get() == self.source.get() + self.pages
            && target.get() == self.target.get() + self.pages
    }
}

fn check_page(side: &'static str, page: PageId, pages: u32) -> Result<(), TransferError> {
    if page.get() < pages {
        Ok(())
    } else {
        Err(TransferError::PageOutOfBounds { side, page, pages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::kv::KvDtype;

    const POOLS: Pools = Pools {
        geometry: KvGeometry {
            layers: 4,
            kv_heads: 1,
            head_dim: 8,
            page_tokens: 4,
            dtype: KvDtype::Bf16,
        },
        source_pages: 40,
        target_pages: 50,
    };

    fn plan(pages: &[(u32, u32)], bytes: &Range<usize>) -> Result<Vec<Run>, TransferError> {
        let pages: Vec<_> = pages.iter().map(|&(s, t)| (PageId::new(s), PageId::new(t))).collect();
        POOLS.plan(&pages, bytes)
    }

    fn check(pages: &[(u32, u32)], bytes: Range<usize>, want: &[(u32, u32, u32)]) {
        let runs = plan(pages, &bytes).unwrap();
        let got: Vec<_> = runs.iter().map(|r| (r.source.get(), r.target.get(), r.pages)).collect();
        assert_eq!(got, want, "{pages:?} {bytes:?}");
    }

    #[test]
    fn neighbours_in_both_pools_merge() {
        let whole = 0..POOLS.geometry.page_bytes();
        check(&[], whole.clone(), &[]);
        check(&[(3, 7), (4, 8), (5, 9)], whole.clone(), &[(3, 7, 3)]);
        check(&[(3, 7), (4, 9)], whole.clone(), &[(3, 7, 1), (4, 9, 1)]);
        check(&[(3, 7), (5, 8)], whole.clone(), &[(3, 7, 1), (5, 8, 1)]);
        check(&[(4, 8), (3, 7)], whole.clone(), &[(4, 8, 1), (3, 7, 1)]);
        check(&[(39, 49)], whole, &[(39, 49, 1)]);
        check(&[(3, 7), (4, 8)], POOLS.geometry.layers_range(&(1..3)), &[(3, 7, 1), (4, 8, 1)]);
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        let page = POOLS.geometry.page_bytes();
        let error = |pages: &[(u32, u32)], bytes| plan(pages, &bytes).unwrap_err();
        assert_eq!(
            error(&[(0, 0), (40, 1)], 0..page).to_string(),
            "source page p40: that pool has 40 pages"
        );
        assert_eq!(
            error(&[(0, 50)], 0..page).to_string(),
            "target page p50: that pool has 50 pages"
        );
        assert!(matches!(error(&[(u32::MAX, 0)], 0..1), TransferError::PageOutOfBounds { .. }));
        for bytes in [0..page + 1, 8..8, usize::MAX - 1..usize::MAX] {
            assert!(matches!(error(&[], bytes), TransferError::RangeOutOfBounds { .. }));
        }
    }

    proptest! {
        /// Beside the naive model: unrolled runs are the pairs, in order, and no two could merge.
        #[test]
        fn runs_unroll_to_the_pairs(pairs in prop::collection::vec((0u32..40, 0u32..50), 0..60)) {
            let runs = plan(&pairs, &(0..POOLS.geometry.page_bytes())).unwrap();
            let unrolled: Vec<(u32, u32)> = runs
                .iter()
                .flat_map(|r| (0..r.pages).map(|i| (r.source.get() + i, r.target.get() + i)))
                .collect();
            prop_assert_eq!(unrolled, pairs);
            for pair in runs.windows(2) {
                prop_assert!(!pair[0].continues_at(pair[1].source, pair[1].target));
            }
        }
    }
}
