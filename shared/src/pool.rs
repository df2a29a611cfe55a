//! The page pool: who holds which page, and nothing about what is in it.
//!
//! Life of a page:
//! 1. **free** until [`Pool::reserve`] counts it into a [`Credit`];
//! 2. **granted** while it is part of a credit: a number, no particular page yet;
//! 3. **owned** from [`Credit::draw`] on: one [`Owned`] guard, which alone may write it;
//! 4. **sealed** by [`Owned::seal`]: shared by clones of [`Sealed`], never written again;
//!    it is **idle** while the radix cache alone holds it;
//! 5. **quarantined** by [`Owned::quarantine`], when a writer may still reach it after its link
//!    was lost: nobody reads or reuses it before that writer's end is proven.
//!
//! Dropping the last guard of a page makes it free; there is no other way back. Guards may be
//! dropped on any thread: the state is behind one lock, held for a few instructions.
//!
//! Invariant, at every moment: free + granted + owned + sealed + quarantined == total.

mod cached;
mod free;

pub(crate) use cached::CachedRun;

use crate::ids::PageId;
use free::FreeMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Handle of a pool; clones are the same pool.
#[derive(Clone)]
pub struct Pool(Arc<Mutex<State>>);

struct State {
    map: FreeMap,
    pages: Box<[Holds]>,
    counts: Counts,
}

/// Who holds a sealed page.
#[derive(Clone, Copy, Default)]
struct Holds {
    /// [`Sealed`] guards.
    guards: u32,
    /// The radix cache has it.
    cached: bool,
}

/// How many pages are where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Pages of the pool.
    pub total: u32,
    /// Neither held nor promised.
    pub free: u32,
    /// Promised to credits.
    pub granted: u32,
    /// With one writer.
    pub owned: u32,
    /// Full or final, shared.
    pub sealed: u32,
    /// The part of `sealed` that the radix cache alone holds: what eviction can free.
    pub idle: u32,
    /// Waiting for the proven end of a writer.
    pub quarantined: u32,
}

impl Counts {
    /// Whether every page is accounted for exactly once.
    pub const fn audit(&self) -> bool {
        let held = self.owned + self.sealed + self.quarantined;
        self.free + self.granted + held == self.total && self.idle <= self.sealed
    }
}

impl Pool {
    /// A pool of pages `0..pages`, all free.
    pub fn new(pages: u32) -> Self {
        Self(Arc::new(Mutex::new(State {
            map: FreeMap::new(pages),
            pages: vec![Holds::default(); pages as usize].into(),
            counts: Counts {
                total: pages,
                free: pages,
                granted: 0,
                owned: 0,
                sealed: 0,
                idle: 0,
                quarantined: 0,
            },
        })))
    }

    /// Promises `n` pages, or none if fewer are free. Idle pages do not count: evict them first
    /// ([`RadixCache::reserve`](crate::radix::RadixCache::reserve) does both).
    pub fn reserve(&self, n: u32) -> Option<Credit> {
        let mut state = self.lock();
        state.counts.free = state.counts.free.checked_sub(n)?;
        state.counts.granted += n;
        drop(state);
        Some(Credit { pool: self.clone(), len: n })
    }

    /// Sealed pages that only the radix cache holds.
    pub fn idle(&self) -> u32 {
        self.lock().counts.idle
    }

    /// Pages that a credit can have at most right now: free ones and those that eviction can free.
    pub fn available(&self) -> u32 {
        let counts = self.counts();
        counts.free + counts.idle
    }

    /// Where every page is, at one moment.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// No section under the lock panics half-way, so a poisoned lock still guards a whole state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts().fmt(f)
    }
}

impl State {
    fn free(&mut self, page: PageId) {
        self.map.give(page);
        self.counts.free += 1;
    }

    fn hold(&mut self, page: PageId) {
        let holds = &mut self.pages[page.get() as usize];
        if holds.cached && holds.guards == 0 {
            self.counts.idle -= 1;
        }
        holds.guards += 1;
    }

    fn let_go(&mut self, page: PageId) {
        let holds = &mut self.pages[page.get() as usize];
        holds.guards -= 1;
        match (holds.guards, holds.cached) {
            (0, true) => self.counts.idle += 1,
            (0, false) => {
                self.counts.sealed -= 1;
                self.free(page);
            }
            _ => {}
        }
    }

    /// Ends the cache's hold; true if the page became free by it.
    fn uncache(&mut self, page: PageId) -> bool {
        let holds = &mut self.pages[page.get() as usize];
        holds.cached = false;
        let last = holds.guards == 0;
        if last {
            self.counts.idle -= 1;
            self.counts.sealed -= 1;
            self.free(page);
        }
        last
    }
}

/// A promise of pages: a number, no particular pages. What is left of it returns on drop.
#[derive(Debug)]
pub struct Credit {
    pool: Pool,
    len: u32,
}

impl Credit {
    /// Pages still promised.
    pub const fn len(&self) -> u32 {
        self.len
    }
    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The pool that made the promise.
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Turns `n` promised pages into pages, lowest ids first, so that they are few long runs.
    ///
    /// # Panics
    /// If fewer than `n` are left: a bug of the caller, who can ask [`Self::len`].
    pub fn draw(&mut self, n: u32) -> Vec<Owned> {
        self.take(n);
        let mut state = self.pool.lock();
        state.counts.granted -= n;
        state.counts.owned += n;
        let ids = state.map.take(n);
        drop(state);
        let owned = |page| Owned(Guard { pool: self.pool.clone(), page, kind: Kind::Owned });
        ids.into_iter().map(owned).collect()
    }

    /// Moves `n` promised pages into a credit of their own.
    ///
    /// # Panics
    /// If fewer than `n` are left, as in [`Self::draw`].
    pub fn split(&mut self, n: u32) -> Self {
        self.take(n);
        Self { pool: self.pool.clone(), len: n }
    }

    /// Adds another credit of the same pool to this one.
    ///
    /// # Panics
    /// If it is another pool's.
    pub fn merge(&mut self, mut other: Self) {
        assert!(self.pool.same(&other.pool), "credits of two pools merged");
        self.len += mem::take(&mut other.len);
    }

    fn take(&mut self, n: u32) {
        assert!(n <= self.len, "{n} pages drawn from a credit of {}", self.len);
        self.len -= n;
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.counts.granted -= self.len;
        state.counts.free += self.len;
    }
}

/// One hold of one page; what drop does goes by the kind.
struct Guard {
    pool: Pool,
    page: PageId,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Owned,
    Sealed,
    Quarantined,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        match self.kind {
            Kind::Owned => state.counts.owned -= 1,
            Kind::Quarantined => state.counts.quarantined -= 1,
            Kind::Sealed => return state.let_go(self.page),
        }
        state.free(self.page);
    }
}

/// A page with one writer: the holder.
pub struct Owned(Guard);

/// A shared, immutable page; clones hold the same page.
pub struct Sealed(Guard);

/// A page that a lost writer may still reach. Drop it when that writer's end is proven.
pub struct Quarantined(Guard);

impl Owned {
    /// The page.
    pub const fn id(&self) -> PageId {
        self.0.page
    }

    /// Ends writing: from here on the page is shared and immutable.
    pub fn seal(self) -> Sealed {
        let mut guard = self.0;
        guard.kind = Kind::Sealed;
        let mut state = guard.pool.lock();
        state.counts.owned -= 1;
        state.counts.sealed += 1;
        state.pages[guard.page.get() as usize] = Holds { guards: 1, cached: false };
        drop(state);
        Sealed(guard)
    }

    /// Sets the page apart, because its writer was lost and may still write.
    pub fn quarantine(self) -> Quarantined {
        let mut guard = self.0;
        guard.kind = Kind::Quarantined;
        let mut state = guard.pool.lock();
        state.counts.owned -= 1;
        state.counts.quarantined += 1;
        drop(state);
        Quarantined(guard)
    }
}

impl Sealed {
    /// The page.
    pub const fn id(&self) -> PageId {
        self.0.page
    }
    /// The pool that the page is of.
    pub(crate) const fn pool(&self) -> &Pool {
        &self.0.pool
    }
}

impl Clone for Sealed {
    fn clone(&self) -> Self {
        self.0.pool.lock().hold(self.0.page);
        Self(Guard { pool: self.0.pool.clone(), page: self.0.page, kind: Kind::Sealed })
    }
}

impl Quarantined {
    /// The page.
    pub const fn id(&self) -> PageId {
        self.0.page
    }
}

macro_rules! debug_as_page {
    ($($guard:ident),*) => {$(
        impl fmt::Debug for $guard {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($guard), "({})"), self.0.page)
            }
        }
    )*};
}
debug_as_page!(Owned, Sealed, Quarantined);
