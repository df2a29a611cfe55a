//! The bar of the radix cache: a 100,000-token prompt is matched in a tree of a million tokens
//! within 1 ms. Prints the median of 201 matches in µs; exits 1 above the bar.
//!
//! `cargo run --release -p shared --example radix_bar`

use shared::eviction::EvictionPolicy;
use shared::ids::TokenId;
use shared::pool::{Owned, Pool};
use shared::radix::RadixCache;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const PAGE: u32 = 16;
const PROMPT: usize = 100_000;
const PROMPTS: u32 = 10;
const BAR_US: u128 = 1_000;

/// Prompt `number`: every one leaves the first after 3,200 tokens times its number.
fn prompt(number: u32) -> Vec<TokenId> {
    let shared = number as usize * 3_200;
    let own = |i: usize| if i < shared { 0 } else { number };
    (0..PROMPT).map(|i| TokenId::new((i as u32 * 31 + own(i) * 104_729) % 150_000)).collect()
}

fn main() -> ExitCode {
    let pool = Pool::new(100_000);
    let mut cache = RadixCache::new(PAGE, EvictionPolicy::Lru.build());
    let mut number = 0;
    while cache.pages() * PAGE < PROMPTS * PROMPT as u32 {
        let pages = PROMPT as u32 / PAGE;
        let mut credit = pool.reserve(pages).expect("the pool is large enough");
        let pages = credit.draw(pages).into_iter().map(Owned::seal).collect();
        let added = cache.insert("", &prompt(number), pages, Duration::from_secs(number.into()));
        assert!(added > 0, "prompts differ");
        number += 1;
    }
    let wanted = prompt(number / 2);
    let mut micros: Vec<_> = (0..201)
        .map(|i| {
            let start = Instant::now();
            let held = cache.match_prefix("", &wanted, Duration::from_secs(1_000 + i));
            let took = start.elapsed().as_micros();
            assert_eq!(held.len(), PROMPT / PAGE as usize, "the whole prompt is cached");
            took
        })
        .collect();
    micros.sort_unstable();
    let median = micros[micros.len() / 2];
    println!("{median} µs: 100,000 tokens in a tree of {} (bar: {BAR_US})", cache.pages() * PAGE);
    if median <= BAR_US { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
