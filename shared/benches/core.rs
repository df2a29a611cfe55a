//! The pure core's costs: `cargo bench -p shared --bench core`.
//!
//! The tree of the radix benches holds a million tokens in 16-token pages: ten documents of
//! 100,000 tokens, cut up by prompts that leave them after a random number of pages.

use divan::{Bencher, black_box};
use shared::eviction::{EvictionPolicy, Inserted};
use shared::ids::TokenId;
use shared::page_hash::PageHasher;
use shared::pool::{Pool, Sealed};
use shared::radix::RadixCache;
use std::time::Duration;

const PAGE: u32 = 16;
const DOCUMENT: usize = 100_000;
const POOL: u32 = 80_000;

fn main() {
    divan::main();
}

/// Document `number`; after `branch` tokens it goes its own way.
fn document(number: u32, branch: usize) -> Vec<TokenId> {
    let token = |i: usize| {
        let own = if i < branch { 0 } else { branch as u32 + 1 };
        TokenId::new((number * 7919 + i as u32 * 31 + own * 104_729) % 150_000)
    };
    (0..DOCUMENT).map(token).collect()
}

fn sealed(pool: &Pool, tokens: usize) -> Vec<Sealed> {
    let n = tokens as u32 / PAGE;
    let mut credit = pool.reserve(n).expect("the pool is large enough");
    credit.draw(n).into_iter().map(shared::pool::Owned::seal).collect()
}

/// A million tokens; `cuts` prompts have split them.
fn tree(pool: &Pool, cuts: usize) -> RadixCache {
    let mut cache = RadixCache::new(PAGE, EvictionPolicy::Lru.build());
    let mut now = Duration::ZERO;
    for number in 0..10 {
        let tokens = document(number, DOCUMENT);
        cache.insert("", &tokens, sealed(pool, DOCUMENT), Inserted { at: now, priority: 0 });
        for cut in 0..cuts / 10 {
            now += Duration::from_millis(1);
            let branch = cut * 7919 * PAGE as usize % DOCUMENT;
            cache.match_prefix("", &document(number, branch), now);
        }
    }
    cache
}

#[divan::bench(args = [0, 1_000, 60_000])]
fn radix_match_100k_of_1m(bencher: Bencher, cuts: usize) {
    let pool = Pool::new(POOL);
    let mut cache = tree(&pool, cuts);
    let tokens = document(5, DOCUMENT);
    bencher.bench_local(|| cache.match_prefix("", black_box(&tokens), Duration::from_secs(9)));
}

#[divan::bench(args = [0, 1_000, 60_000])]
fn radix_peek_100k_of_1m(bencher: Bencher, cuts: usize) {
    let pool = Pool::new(POOL);
    let cache = tree(&pool, cuts);
    let tokens = document(5, DOCUMENT);
    bencher.bench_local(|| cache.peek("", black_box(&tokens)));
}

#[divan::bench]
fn radix_insert_100k_into_1m(bencher: Bencher) {
    let pool = Pool::new(POOL);
    let mut cache = tree(&pool, 1_000);
    let tokens = document(77, DOCUMENT);
    let pages = || sealed(&pool, DOCUMENT);
    bencher.with_inputs(pages).bench_local_values(|pages| {
        let by = Inserted { at: Duration::from_secs(9), priority: 0 };
        let added = cache.insert("", &tokens, pages, by);
        cache.evict(added)
    });
}

#[divan::bench(args = [1, 64, 6_250])]
fn radix_evict_of_1m(bencher: Bencher, pages: u32) {
    let pool = Pool::new(POOL);
    bencher
        .with_inputs(|| tree(&pool, 1_000))
        .bench_local_refs(|cache| assert_eq!(cache.evict(black_box(pages)), pages));
}

#[divan::bench(args = [1, 64, 6_250])]
fn pool_draw_and_return(bencher: Bencher, pages: u32) {
    let pool = Pool::new(POOL);
    bencher.bench_local(|| pool.reserve(black_box(pages)).map(|mut credit| credit.draw(pages)));
}

#[divan::bench]
fn page_hash_100k(bencher: Bencher) {
    let hasher = PageHasher::new(&[1; 32], "tenant");
    let tokens = document(1, DOCUMENT);
    bencher.bench_local(|| hasher.pages(black_box(&tokens), PAGE));
}
