//! Time to first token of a prompt whose first 1,500 tokens are cached, against the same uncached.

use crate::fleet::client::Streamed;
use crate::fleet::{Fleet, Plan};
use crate::numbers::{Random, median, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use crate::rows::speed;
use anyhow::ensure;

pub const GROUP: Group = Group {
    name: "prefix",
    title: "Prefix hit of 1,500 tokens, demo model, bf16, streamed through the ring",
    rows: &[Row {
        name: "prefix-hit",
        what: "TTFT with 1,500 tokens cached of TTFT with none, median over prompts",
        unit: "ratio",
        bar: Bar::AtMost(0.15),
    }],
    measure,
    slow: false,
};

const PREFIX: usize = 1_500;
/// What the second prompt has of its own.
const SUFFIX: usize = 32;
const PAGE: u64 = 16;

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let plan = Plan::new(place.demo()?, "bf16").set("page_size", PAGE as i64);
    let fleet = Fleet::start(place, &plan)?;
    let mut random = Random::new(1_500);
    let mut found = Findings::new("cold_s,hit_s,cached_tokens");
    let mut ask = |prefix: &[u32]| -> anyhow::Result<Streamed> {
        let prompt = [prefix, &speed::prompt(&mut random, SUFFIX)].concat();
        Ok(fleet.client.stream(&speed::greedy(&prompt, 2))?)
    };
    ask(&[])?;
    let mut prefixes = Random::new(1_501);
    let (mut colds, mut hits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..place.rounds(7) {
        let prefix = speed::prompt(&mut prefixes, PREFIX);
        let (cold, hit) = (ask(&prefix)?, ask(&prefix)?);
        let cached = |answer: &Streamed| answer.answer["meta_info"]["cached_tokens"].as_u64();
        ensure!(cached(&cold) == Some(0), "the cold prompt had {:?} cached", cached(&cold));
        let whole_pages = PREFIX as u64 / PAGE * PAGE;
        ensure!(cached(&hit) == Some(whole_pages), "the hit had {:?} cached", cached(&hit));
        let (cold, hit) = (cold.first.as_secs_f64(), hit.first.as_secs_f64());
        found.raw.push(format!("{cold:.6},{hit:.6},{whole_pages}"));
        ratios.push(hit / cold);
        colds.push(cold);
        hits.push(hit);
    }
    let (cold, hit) = (short(median(colds)), short(median(hits)));
    let total = PREFIX + SUFFIX;
    found.note(format!("TTFT of {total} tokens: cold {cold} s, hit {hit} s (medians)"));
    found.set("prefix-hit", median(ratios));
    Ok(found)
}
