//! The radix cache beside a map from every page-aligned prefix to its page.

use crate::tokens;
use proptest::prelude::*;
use shared::eviction::{EvictionPolicy, Inserted, Usage};
use shared::ids::{PageId, TokenId};
use shared::pool::{Pool, Sealed};
use shared::radix::RadixCache;
use std::collections::HashMap;
use std::time::Duration;

const PAGE: usize = 2;
const POOL: u32 = 400;
const SALTS: [&str; 2] = ["", "tenant"];

#[derive(Clone, Debug)]
enum Op {
    Insert(usize, Vec<u32>, i32),
    /// Insert and go on holding the given guards: not what is cached where both exist.
    InsertAndKeep(usize, Vec<u32>),
    Adopt(usize, Vec<u32>),
    Match(usize, Vec<u32>),
    Drop(usize),
    Evict(u32),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    // Two letters, so that prefixes meet; odd lengths, so that tails are part-filled.
    let key = || (0..SALTS.len(), prop::collection::vec(0..2_u32, 0..14));
    prop_oneof![
        4 => (key(), -1..2).prop_map(|((salt, key), priority)| Op::Insert(salt, key, priority)),
        1 => key().prop_map(|(salt, key)| Op::InsertAndKeep(salt, key)),
        1 => key().prop_map(|(salt, key)| Op::Adopt(salt, key)),
        4 => key().prop_map(|(salt, key)| Op::Match(salt, key)),
        2 => (0..16_usize).prop_map(Op::Drop),
        2 => (0..12_u32).prop_map(Op::Evict),
        1 => Just(Op::Clear),
    ]
}

type Key = (usize, Vec<TokenId>);

struct Entry {
    page: PageId,
    usage: Usage,
}

struct Both {
    pool: Pool,
    cache: RadixCache,
    policy: EvictionPolicy,
    model: HashMap<Key, Entry>,
    held: Vec<Vec<Sealed>>,
    now: Duration,
}

/// Whole-page prefixes of a key, shortest first.
fn prefixes(salt: usize, key: &[TokenId]) -> impl Iterator<Item = Key> {
    (1..=key.len() / PAGE).map(move |pages| (salt, key[..pages * PAGE].to_vec()))
}

impl Both {
    fn new(policy: EvictionPolicy) -> Self {
        Self {
            pool: Pool::new(POOL),
            cache: RadixCache::new(PAGE as u32, policy.build()),
            policy,
            model: HashMap::new(),
            held: Vec::new(),
            now: Duration::ZERO,
        }
    }

    fn apply(&mut self, op: Op) {
        self.now += Duration::from_secs(1);
        match op {
            Op::Insert(salt, key, priority) => {
                drop(self.insert(salt, &tokens(&key), false, priority));
            }
            Op::InsertAndKeep(salt, key) => {
                let kept = self.insert(salt, &tokens(&key), false, 0);
                self.held.push(kept);
            }
            Op::Adopt(salt, key) => {
                let adopted = self.insert(salt, &tokens(&key), true, 0);
                let expected: Vec<_> =
                    prefixes(salt, &tokens(&key)).map(|prefix| self.model[&prefix].page).collect();
                assert!(adopted.iter().map(Sealed::id).eq(expected));
                self.held.push(adopted);
            }
            Op::Match(salt, key) => self.look_up(salt, &tokens(&key)),
            Op::Drop(at) => {
                if !self.held.is_empty() {
                    self.held.swap_remove(at % self.held.len());
                }
            }
            Op::Evict(n) => self.evict(n),
            Op::Clear => self.evict(u32::MAX),
        }
    }

    /// The guards that the caller has afterwards.
    fn insert(&mut self, salt: usize, key: &[TokenId], adopt: bool, priority: i32) -> Vec<Sealed> {
        let n = (key.len() / PAGE) as u32;
        let Some(mut credit) = self.pool.reserve(n) else { return Vec::new() };
        let mut pages: Vec<_> = credit.draw(n).into_iter().map(|page| page.seal()).collect();
        let mut expected = 0;
        for (prefix, page) in prefixes(salt, key).zip(&pages) {
            let entry = self.model.entry(prefix).or_insert_with(|| {
                expected += 1;
                let usage = Usage { first: self.now, last: self.now, hits: 0, priority };
                Entry { page: page.id(), usage }
            });
            entry.usage.last = self.now;
            entry.usage.priority = entry.usage.priority.max(priority);
        }
        let by = Inserted { at: self.now, priority };
        let added = if adopt {
            self.cache.adopt(SALTS[salt], key, &mut pages, by)
        } else {
            self.cache.insert(SALTS[salt], key, pages.clone(), by)
        };
        assert_eq!(added, expected);
        pages
    }

    fn look_up(&mut self, salt: usize, key: &[TokenId]) {
        let mut expected = Vec::new();
        for prefix in prefixes(salt, key) {
            let Some(entry) = self.model.get_mut(&prefix) else { break };
            expected.push(entry.page);
            entry.usage.last = self.now;
            entry.usage.hits += 1;
        }
        assert_eq!(self.cache.peek(SALTS[salt], key), expected.len() as u32);
        let found = self.cache.match_prefix(SALTS[salt], key, self.now);
        assert!(found.iter().map(Sealed::id).eq(expected));
        self.held.push(found);
    }

    fn is_held(&self, page: PageId) -> bool {
        self.held.iter().flatten().any(|held| held.id() == page)
    }

    fn idle(&self) -> u32 {
        self.model.values().filter(|entry| !self.is_held(entry.page)).count() as u32
    }

    fn has_child(&self, (salt, key): &Key) -> bool {
        let child = |other: &Key| {
            other.0 == *salt && other.1.len() == key.len() + PAGE && other.1.starts_with(key)
        };
        self.model.keys().any(child)
    }

    /// The page that goes next: idle, nothing cached below it, smallest rank.
    fn next_victim(&self) -> Option<Key> {
        let policy = self.policy.build();
        let free =
            |(key, entry): &(&Key, &Entry)| !self.is_held(entry.page) && !self.has_child(key);
        let candidates = self.model.iter().filter(free);
        candidates.min_by_key(|(_, entry)| policy.rank(&entry.usage)).map(|(key, _)| key.clone())
    }

    fn evict(&mut self, n: u32) {
        let target = n.min(self.idle());
        let before = self.pool.counts().free;
        let mut freed = 0;
        while freed < target
            && let Some(victim) = self.next_victim()
        {
            self.model.remove(&victim);
            freed += 1;
        }
        let told = self.cache.evict(n);
        assert_eq!(self.pool.counts().free - before, told);
        if freed == target {
            assert_eq!(told, target);
            return;
        }
        // Only pages above held ones are left: which of them go is the cache's choice.
        assert!(told >= target, "{told} freed of {target}");
        let cache = &self.cache;
        self.model
            .retain(|(salt, key), _| cache.peek(SALTS[*salt], key) as usize == key.len() / PAGE);
    }

    fn check(&self) {
        for (salt, key) in self.model.keys() {
            assert_eq!(self.cache.peek(SALTS[*salt], key) as usize, key.len() / PAGE);
        }
        assert_eq!(self.cache.pages() as usize, self.model.len());
        assert!(self.cache.nodes() <= self.model.len());
        let counts = self.pool.counts();
        assert!(counts.audit(), "{counts:?}");
        assert_eq!(counts.idle, self.idle());
    }
}

proptest! {
    #[test]
    fn agrees_with_a_map_of_prefixes(
        policy in prop::sample::select(&[
            EvictionPolicy::Lru,
            EvictionPolicy::Lfu,
            EvictionPolicy::Priority,
        ][..]),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut both = Both::new(policy);
        for op in ops {
            both.apply(op);
            both.check();
        }
        both.held.clear();
        both.cache.clear();
        prop_assert_eq!(both.pool.counts().free, POOL);
        prop_assert_eq!((both.cache.pages(), both.cache.nodes()), (0, 0));
    }
}

fn cached(pool: &Pool, cache: &mut RadixCache, key: &[u32], now: u64) -> Vec<Sealed> {
    let n = (key.len() / PAGE) as u32;
    let pages: Vec<_> = pool.reserve(n).unwrap().draw(n).into_iter().map(|p| p.seal()).collect();
    let by = Inserted { at: Duration::from_secs(now), priority: 0 };
    cache.insert("", &tokens(key), pages.clone(), by);
    pages
}

#[test]
fn pages_idle_above_held_ones_can_still_be_freed() {
    let pool = Pool::new(8);
    let mut cache = RadixCache::new(PAGE as u32, EvictionPolicy::Lru.build());
    drop(cached(&pool, &mut cache, &[1, 1, 2, 2], 1));
    // Its own copies of the first two pages are not cached, its third is, below the other's.
    let mut kept = cached(&pool, &mut cache, &[1, 1, 2, 2, 3, 3], 2);
    kept.drain(..2);
    assert_eq!((pool.counts().sealed, pool.idle(), cache.pages()), (3, 2, 3));
    let credit = cache.reserve(&pool, 7).unwrap();
    assert_eq!((credit.len(), pool.counts().sealed, cache.pages()), (7, 1, 0));
}

#[test]
fn what_cannot_be_reserved_evicts_nothing() {
    let pool = Pool::new(4);
    let mut cache = RadixCache::new(PAGE as u32, EvictionPolicy::Lru.build());
    let held = cached(&pool, &mut cache, &[1, 1], 1);
    drop(cached(&pool, &mut cache, &[2, 2], 2));
    assert!(cache.reserve(&pool, 4).is_none());
    assert_eq!(cache.pages(), 2);
    assert_eq!(cache.reserve(&pool, 3).unwrap().len(), 3);
    assert_eq!((cache.pages(), held.len()), (1, 1));
}

#[test]
fn dropping_the_cache_leaves_held_pages_to_their_holders() {
    let pool = Pool::new(4);
    let mut cache = RadixCache::new(PAGE as u32, EvictionPolicy::Lru.build());
    let mut held = cached(&pool, &mut cache, &[1, 1, 2, 2], 1);
    drop(held.pop());
    drop(cache);
    assert_eq!((pool.counts().free, pool.counts().sealed, pool.idle()), (3, 1, 0));
}
