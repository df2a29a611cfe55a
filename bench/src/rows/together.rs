//! Eight requests at once whose prompts have 1,500 tokens in common, against one of them alone.

use crate::fleet::client::Streamed;
use crate::fleet::{Fleet, Plan};
use crate::numbers::{Random, median, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use crate::rows::speed;
use anyhow::{Context, ensure};
use std::thread;
use std::time::Instant;

pub const GROUP: Group = Group {
    name: "together",
    title: "8 requests at once with 1,500 tokens in common, demo model, bf16, through the ring",
    rows: &[
        Row {
            name: "together-computed",
            what: "times that the common whole pages were computed, most of all rounds",
            unit: "times",
            bar: Bar::AtMost(1.0),
        },
        Row {
            name: "together-ttft",
            what: "time to the last first token of TTFT of one such prompt alone, median of rounds",
            unit: "ratio",
            bar: Bar::AtMost(1.3),
        },
    ],
    measure,
    slow: false,
};

const COMMON: usize = 1_500;
/// What each prompt has of its own.
const SUFFIX: usize = 32;
const PAGE: u64 = 16;
const REQUESTS: usize = 8;

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let plan = Plan::new(place.demo()?, "bf16").set("page_size", PAGE as i64);
    let fleet = Fleet::start(place, &plan)?;
    let mut random = Random::new(1_502);
    let mut found = Findings::new("alone_s,together_s,common_tokens_computed");
    let whole = COMMON as u64 / PAGE * PAGE;
    let ask = |prompt: &[u32]| -> anyhow::Result<Streamed> {
        Ok(fleet.client.stream(&speed::greedy(prompt, 2))?)
    };
    ask(&speed::prompt(&mut random, SUFFIX))?;
    let (mut times, mut ratios) = (0.0_f64, Vec::new());
    for _ in 0..place.rounds(7) {
        let alone = ask(&speed::prompt(&mut random, COMMON + SUFFIX))?.first.as_secs_f64();
        let common = speed::prompt(&mut random, COMMON);
        let prompts: Vec<_> = (0..REQUESTS)
            .map(|_| [&common[..], &speed::prompt(&mut random, SUFFIX)].concat())
            .collect();
        let start = Instant::now();
        let answers = thread::scope(|scope| {
            let asks: Vec<_> = prompts
                .iter()
                .map(|prompt| {
                    scope.spawn(|| {
                        let sent = start.elapsed();
                        ask(prompt).map(|answer| (sent + answer.first, answer))
                    })
                })
                .collect();
            let join = |ask: thread::ScopedJoinHandle<'_, _>| {
                ask.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            asks.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
        })?;
        let last = answers.iter().map(|(first, _)| *first).max().context("eight answers")?;
        let mut computed = 0;
        for (_, Streamed { answer, .. }) in &answers {
            let cached = answer["meta_info"]["cached_tokens"].as_u64().context("cached_tokens")?;
            ensure!(cached <= whole, "{cached} tokens cached of {whole} in common");
            computed += whole - cached;
        }
        let together = last.as_secs_f64();
        found.raw.push(format!("{alone:.6},{together:.6},{computed}"));
        times = times.max(computed as f64 / whole as f64);
        ratios.push(together / alone);
    }
    let total = COMMON + SUFFIX;
    let range = (ratios.iter().copied().fold(f64::MAX, f64::min), median(ratios.clone()));
    found.note(format!("of {total} tokens; least ratio {}", short(range.0)));
    found.set("together-computed", times);
    found.set("together-ttft", range.1);
    Ok(found)
}
