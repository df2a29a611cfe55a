//! The radix cache's side of the pool: a hold of many pages under one guard.

use super::{Guard, Kind, Pool, Sealed};
use crate::ids::PageId;
use std::ops::Range;

/// The radix cache's hold of consecutive pages, apart from every [`Sealed`] guard.
pub(crate) struct CachedRun {
    pool: Pool,
    pages: Vec<PageId>,
}

impl CachedRun {
    /// Turns guards of one pool, none of them cached yet, into the cache's hold.
    pub(crate) fn new(pool: &Pool, sealed: Vec<Sealed>) -> Self {
        let mut pages = Vec::with_capacity(sealed.len());
        let mut state = pool.lock();
        for one in &sealed {
            let holds = &mut state.pages[one.id().get() as usize];
            debug_assert!(!holds.cached, "{one:?} is cached twice");
            holds.cached = true;
            pages.push(one.id());
        }
        drop(state);
        drop(sealed);
        Self { pool: pool.clone(), pages }
    }

    pub(crate) const fn len(&self) -> usize {
        self.pages.len()
    }

    /// Guards of the pages in `range`, appended to `into`.
    pub(crate) fn hold(&self, range: Range<usize>, into: &mut Vec<Sealed>) {
        let pages = &self.pages[range];
        let mut state = self.pool.lock();
        pages.iter().for_each(|&page| state.hold(page));
        drop(state);
        let guard = |&page| Sealed(Guard { pool: self.pool.clone(), page, kind: Kind::Sealed });
        into.extend(pages.iter().map(guard));
    }

    /// Splits as [`Vec::split_off`] does.
    pub(crate) fn split_off(&mut self, at: usize) -> Self {
        Self { pool: self.pool.clone(), pages: self.pages.split_off(at) }
    }

    /// Frees idle pages from the end, at most `most`; stops at the first held one.
    pub(crate) fn free_tail(&mut self, most: u32) -> u32 {
        let mut state = self.pool.lock();
        let idle = |page: &&PageId| state.pages[page.get() as usize].guards == 0;
        let n = self.pages.iter().rev().take(most as usize).take_while(idle).count();
        for page in self.pages.drain(self.pages.len() - n..) {
            state.uncache(page);
        }
        n as u32
    }

    /// Index of the first idle page.
    pub(crate) fn first_idle(&self) -> Option<usize> {
        let state = self.pool.lock();
        self.pages.iter().position(|page| state.pages[page.get() as usize].guards == 0)
    }

    /// Ends the cache's hold of the pages from `at` on; the number of pages that became free.
    pub(crate) fn release_from(&mut self, at: usize) -> u32 {
        let mut state = self.pool.lock();
        self.pages.drain(at..).map(|page| u32::from(state.uncache(page))).sum()
    }
}

impl Drop for CachedRun {
    fn drop(&mut self) {
        self.release_from(0);
    }
}
