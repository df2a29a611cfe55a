//! The radix cache: which sealed pages hold the keys and values of which token prefix.
//!
//! Keys are (salt, tokens) in whole pages. A node's edge is a long run of pages, split only where
//! keys part or a match ended, so each edge's pages have one usage. Matching compares token slices;
//! no page is hashed.
//!
//! Who holds what:
//! 1. [`RadixCache::insert`] takes guards and turns them into the cache's own hold;
//! 2. [`RadixCache::match_prefix`] gives new guards out: while any of them lives, that page stays;
//! 3. a page that the cache alone holds is *idle*; [`RadixCache::evict`] frees idle pages, leaves
//!    first, in the policy's order;
//! 4. dropping the cache ends its holds; pages that are held elsewhere live on.
//!
//! Invariants: every idle page can be evicted (`Pool::idle` is what eviction can free), and no
//! held page is ever freed. A holder holds its whole prefix, as a match gives it; where one does
//! not (it inserted a page below another's copy of the same prefix), [`RadixCache::evict`] as its
//! last resort forgets the held pages below an idle one: they stay with their holders.

mod tree;

use crate::eviction::{Eviction, Inserted};
use crate::ids::TokenId;
use crate::pool::{CachedRun, Credit, Pool, Sealed};
use std::fmt;
use std::time::Duration;
use tree::Tree;

/// Prefix index over the sealed pages of one pool.
pub struct RadixCache {
    tree: Tree,
    /// Set by the first insert: all pages of a cache are of one pool.
    pool: Option<Pool>,
    pages: u32,
}

impl RadixCache {
    /// An empty cache of pages of `page_tokens` tokens.
    ///
    /// # Panics
    /// If `page_tokens` is 0.
    pub fn new(page_tokens: u32, policy: Box<dyn Eviction>) -> Self {
        assert!(page_tokens > 0, "a page holds at least one token");
        Self { tree: Tree::new(page_tokens as usize, policy), pool: None, pages: 0 }
    }

    /// Guards of the pages of the longest cached prefix of `tokens`, first page first; counts as a
    /// use. A caller that must compute at least one token passes all but the last.
    pub fn match_prefix(&mut self, salt: &str, tokens: &[TokenId], now: Duration) -> Vec<Sealed> {
        let path = self.tree.walk_and_split(salt, tokens);
        let pages = path.iter().map(|&slot| self.tree.run(slot).len()).sum();
        let mut held = Vec::with_capacity(pages);
        for slot in path {
            let run = self.tree.run(slot);
            run.hold(0..run.len(), &mut held);
            self.tree.matched(slot, now);
        }
        held
    }

    /// Pages of the longest cached prefix of `tokens`; does not count as a use.
    pub fn peek(&self, salt: &str, tokens: &[TokenId]) -> u32 {
        self.tree.walk(salt, tokens).iter().map(|&(_, pages)| pages as u32).sum()
    }

    /// Names of the tree's edges that the longest cached prefix of `tokens` lies on, from the top;
    /// they hold until the tree changes. Does not count as a use.
    pub fn path(&self, salt: &str, tokens: &[TokenId]) -> Vec<usize> {
        self.tree.walk(salt, tokens).into_iter().map(|(slot, _)| slot).collect()
    }

    /// Caches `pages` as those of the first `pages.len()` whole pages of `tokens`; the number of
    /// pages that are newly cached. Where a page is already cached, that one stays and the given
    /// guard is dropped.
    ///
    /// # Panics
    /// If `tokens` is shorter than the pages, or they are of another pool than those before.
    pub fn insert(
        &mut self,
        salt: &str,
        tokens: &[TokenId],
        mut pages: Vec<Sealed>,
        by: Inserted,
    ) -> u32 {
        let Some(first) = pages.first() else { return 0 };
        let pool = self.pool.get_or_insert_with(|| first.pool().clone());
        assert!(pages.iter().all(|page| page.pool().same(pool)), "pages of two pools cached");
        let pool = pool.clone();
        let tokens = &tokens[..pages.len() * self.tree.page_tokens()];

        let path = self.tree.walk_and_split(salt, tokens);
        let known = path.iter().map(|&slot| self.tree.run(slot).len()).sum();
        path.iter().for_each(|&slot| self.tree.inserted(slot, by));
        let new = pages.split_off(known);
        if new.is_empty() {
            return 0;
        }
        let added = new.len() as u32;
        let rest = tokens[known * self.tree.page_tokens()..].into();
        self.tree.attach(salt, path.last().copied(), (rest, CachedRun::new(&pool, new)), by);
        self.pages += added;
        added
    }

    /// As [`Self::insert`], and replaces each given guard by one of the page that is now cached:
    /// for a holder that goes on reading. Nothing may still read or write through the old ids.
    ///
    /// # Panics
    /// As [`Self::insert`].
    pub fn adopt(
        &mut self,
        salt: &str,
        tokens: &[TokenId],
        pages: &mut Vec<Sealed>,
        by: Inserted,
    ) -> u32 {
        let given = std::mem::take(pages);
        let tokens = &tokens[..given.len() * self.tree.page_tokens()];
        let added = self.insert(salt, tokens, given, by);
        for (slot, _) in self.tree.walk(salt, tokens) {
            let run = self.tree.run(slot);
            run.hold(0..run.len(), pages);
        }
        added
    }

    /// Frees at least `n` idle pages, or all of them; the number freed. More than `n` only where
    /// pages idle above held ones (see the module's invariants).
    pub fn evict(&mut self, n: u32) -> u32 {
        let idle = self.pool.as_ref().map_or(0, Pool::idle);
        let target = n.min(idle);
        let mut freed = self.tree.evict_leaves(target);
        self.pages -= freed;
        if freed < target {
            let (more, forgotten) = self.tree.evict_buried(target - freed);
            self.pages -= forgotten;
            freed += more;
        }
        freed
    }

    /// Promises `n` pages of `pool`, evicting what is missing; `None` if that is not enough, and
    /// then nothing was evicted.
    pub fn reserve(&mut self, pool: &Pool, n: u32) -> Option<Credit> {
        let counts = pool.counts();
        if counts.free + counts.idle < n {
            return None;
        }
        self.evict(n.saturating_sub(counts.free));
        pool.reserve(n)
    }

    /// Frees all idle pages; the number freed.
    pub fn clear(&mut self) -> u32 {
        self.evict(u32::MAX)
    }

    /// Pages that are cached, idle or held.
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// Tree nodes: how finely the cached prefixes branch.
    pub fn nodes(&self) -> usize {
        self.tree.nodes()
    }
}

impl fmt::Debug for RadixCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RadixCache({} pages in {} nodes)", self.pages(), self.nodes())
    }
}
