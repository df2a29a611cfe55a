//! The radix cache: a 100,000-token prompt is matched in a tree of a million tokens.

use crate::numbers::median;
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use anyhow::{Context, ensure};
use shared::eviction::{EvictionPolicy, Inserted};
use shared::ids::TokenId;
use shared::pool::{Owned, Pool};
use shared::radix::RadixCache;
use std::time::{Duration, Instant};

pub const GROUP: Group = Group {
    name: "radix",
    title: "Radix cache",
    rows: &[Row {
        name: "radix-match",
        what: "match of a 100,000-token prompt in a tree of 1,000,000 tokens, median",
        unit: "ms",
        bar: Bar::AtMost(1.0),
    }],
    measure,
    slow: false,
};

const PAGE: u32 = 16;
const PROMPT: usize = 100_000;
const PROMPTS: u32 = 10;

/// Every prompt leaves the first one after 3,200 tokens times its number.
fn prompt(number: u32) -> Vec<TokenId> {
    let shared = number as usize * 3_200;
    let own = |i: usize| if i < shared { 0 } else { number };
    (0..PROMPT).map(|i| TokenId::new((i as u32 * 31 + own(i) * 104_729) % 150_000)).collect()
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let pool = Pool::new(100_000);
    let mut cache = RadixCache::new(PAGE, EvictionPolicy::Lru.build());
    let mut number = 0;
    while cache.pages() * PAGE < PROMPTS * PROMPT as u32 {
        let pages = PROMPT as u32 / PAGE;
        let mut credit = pool.reserve(pages).context("the pool is too small")?;
        let pages = credit.draw(pages).into_iter().map(Owned::seal).collect();
        let by = Inserted { at: Duration::from_secs(number.into()), priority: 0 };
        let added = cache.insert("", &prompt(number), pages, by);
        ensure!(added > 0, "prompts differ");
        number += 1;
    }
    let wanted = prompt(number / 2);
    let mut found = Findings::new("match_ms");
    let mut times = Vec::new();
    for round in 0..place.rounds(201) as u64 {
        let start = Instant::now();
        let held = cache.match_prefix("", &wanted, Duration::from_secs(1_000 + round));
        times.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(held.len() == PROMPT / PAGE as usize, "only {} pages are matched", held.len());
    }
    found.raw.extend(times.iter().map(|ms| format!("{ms:.4}")));
    found.note(format!("{} tokens in the tree, {number} prompts", cache.pages() * PAGE));
    found.set("radix-match", median(times));
    Ok(found)
}
