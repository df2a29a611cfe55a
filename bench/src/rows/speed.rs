//! Speed of the demo model, bf16, one sequence: through the ring, and the bare engine, beside the
//! machine's floor.
//!
//! Each round takes, one after the other: plain parallel sums of all weight bytes (the floor of a
//! decode step), a streamed answer of the ring, steps of the bare engine in this process, and a
//! prompt of 256 tokens to each. Only one of them works at a time.

use crate::fleet::{Fleet, Plan};
use crate::numbers::{Random, median, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use anyhow::{Context, ensure};
use checkpoint::Checkpoint;
use model::engine::{Batch, Engine, Input, Row as SequenceRow, Sample};
use model::{CpuEngine, EngineConfig, WeightFormat};
use serde_json::{Value, json};
use shared::ids::{PageId, TokenId};
use shared::kv::KvDtype;
use shared::request::Sampling;
use std::hint::black_box;
use std::time::Instant;

pub const GROUP: Group = Group {
    name: "speed",
    title: "Speed of the demo model on the CPU, bf16, batch 1",
    rows: &[
        Row {
            name: "decode-ring",
            what: "bytes of weights × tokens/s, streamed through the ring, of the read bandwidth",
            unit: "ratio",
            bar: Bar::AtLeast(0.85),
        },
        Row {
            name: "decode-bare",
            what: "bytes of weights × tokens/s of the bare engine, of the read bandwidth",
            unit: "ratio",
            bar: Bar::AtLeast(0.85),
        },
        Row {
            name: "prefill-ring",
            what: "256 tokens by TTFT through the ring",
            unit: "tok/s",
            bar: Bar::AtLeast(500.0),
        },
        Row {
            name: "prefill-bare",
            what: "256 tokens in the bare engine",
            unit: "tok/s",
            bar: Bar::AtLeast(500.0),
        },
    ],
    measure,
    slow: false,
};

const PREFILL: usize = 256;
/// Of the bare engine's pool.
pub const PAGE_TOKENS: u32 = 16;
/// Tokens of an answer of the ring, and steps of the bare engine.
const STEPS: u32 = 64;
const SUMS: usize = 8;
/// Tokens before the first step, at both.
const CONTEXT: usize = 16;

/// Random ids of the demo model's vocabulary, none of them special.
pub fn prompt(random: &mut Random, count: usize) -> Vec<u32> {
    random.ids(count, 1_000, 40_000)
}

/// A greedy request that makes exactly `tokens`.
pub fn greedy(prompt: &[u32], tokens: u32) -> Value {
    let sampling = json!({"temperature": 0, "max_new_tokens": tokens, "ignore_eos": true});
    json!({"input_ids": prompt, "sampling_params": sampling})
}

/// Seconds: of one sum of all weights, of a token, of 256 tokens.
struct Round {
    floor: f64,
    decode_ring: f64,
    decode_bare: f64,
    prefill_ring: f64,
    prefill_bare: f64,
}

struct Sides {
    fleet: Fleet,
    engine: CpuEngine,
    random: Random,
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let fleet = Fleet::start(place, &Plan::new(place.demo()?, "bf16"))?;
    let checkpoint = Checkpoint::open(place.demo()?)?;
    let (dtype, page_tokens) = (KvDtype::Bf16, PAGE_TOKENS);
    let weights = WeightFormat::Bf16;
    let config =
        EngineConfig { dtype, weights, pages: 64, page_tokens, threads: None, memory: None };
    let engine = CpuEngine::load(&checkpoint, config, &mut |_, _| {})?;
    let mut sides = Sides { fleet, engine, random: Random::new(64) };
    sides.round()?; // touches everything for the first time
    let rounds = (0..place.rounds(11)).map(|_| sides.round());
    let rounds = rounds.collect::<anyhow::Result<Vec<_>>>()?;
    let mut found =
        Findings::new("floor_s,decode_ring_s,decode_bare_s,prefill_ring_s,prefill_bare_s");
    found.raw.extend(rounds.iter().map(|r| {
        let times = [r.floor, r.decode_ring, r.decode_bare, r.prefill_ring, r.prefill_bare];
        times.map(|time| format!("{time:.6}")).join(",")
    }));
    let of = |pick: fn(&Round) -> f64| median(rounds.iter().map(pick).collect());
    let bytes = sides.engine.weight_bytes() as f64;
    let bandwidth = short(bytes / of(|r| r.floor) / 1e9);
    found.note(format!("floor: {:.1} MB of weights at {bandwidth} GB/s", bytes / 1e6));
    let per_s = |time: f64| short(1.0 / time);
    let (ring, bare) = (of(|r| r.decode_ring), of(|r| r.decode_bare));
    found.note(format!("decode: ring {} tok/s, bare engine {} tok/s", per_s(ring), per_s(bare)));
    let (ring, bare) = (of(|r| r.prefill_ring), of(|r| r.prefill_bare));
    let speeds = [ring, bare].map(|time| short(PREFILL as f64 / time));
    found.note(format!("prefill: ring {} tok/s, bare engine {} tok/s", speeds[0], speeds[1]));
    found.set("decode-ring", of(|r| r.floor / r.decode_ring));
    found.set("decode-bare", of(|r| r.floor / r.decode_bare));
    found.set("prefill-ring", PREFILL as f64 / ring);
    found.set("prefill-bare", PREFILL as f64 / bare);
    Ok(found)
}

impl Sides {
    fn round(&mut self) -> anyhow::Result<Round> {
        let floor = self.timed(SUMS, |sides, _| {
            black_box(sides.engine.sum_weights());
            Ok(())
        })?;
        let short_prompt = prompt(&mut self.random, CONTEXT);
        let streamed = self.fleet.client.stream(&greedy(&short_prompt, STEPS))?;
        let all = streamed.answer["meta_info"]["completion_tokens"].as_u64();
        ensure!(all == Some(STEPS.into()), "{all:?} tokens came");
        let tokens = u64::from(STEPS).checked_sub(streamed.tokens_first).context("a late start")?;
        let decode_ring = streamed.rest.as_secs_f64() / tokens as f64;
        let decode_bare =
            self.timed(STEPS as usize, |sides, made| sides.step((CONTEXT + made, 1)))?;
        let long_prompt = prompt(&mut self.random, PREFILL);
        let prefill_ring = self.fleet.client.stream(&greedy(&long_prompt, 2))?.first;
        let prefill_bare = self.timed(1, |sides, _| sides.step((0, PREFILL)))?;
        let prefill_ring = prefill_ring.as_secs_f64();
        Ok(Round { floor, decode_ring, decode_bare, prefill_ring, prefill_bare })
    }

    /// Seconds of one call, averaged over `count`.
    fn timed(
        &mut self,
        count: usize,
        mut call: impl FnMut(&mut Self, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<f64> {
        let start = Instant::now();
        for number in 0..count {
            call(self, number)?;
        }
        Ok(start.elapsed().as_secs_f64() / count as f64)
    }

    fn step(&mut self, tokens: (usize, usize)) -> anyhow::Result<()> {
        step(&mut self.engine, &mut self.random, tokens)
    }
}

/// One step of a sequence that has `start` tokens and takes `new` more.
pub fn step(
    engine: &mut CpuEngine,
    random: &mut Random,
    (start, new): (usize, usize),
) -> anyhow::Result<()> {
    let pages = (start + new).div_ceil(PAGE_TOKENS as usize) as u32;
    let tokens = prompt(random, new).into_iter().map(TokenId::new).collect();
    let sample = Sample::new(Sampling::GREEDY, 0);
    let pages = (0..pages).map(PageId::new).collect();
    let input = Input::Tokens(tokens);
    let row = SequenceRow { input, start: start as u32, pages, sample: Some(sample), reads: None };
    engine.launch(&Batch { rows: vec![row] })?;
    black_box(engine.collect()?);
    Ok(())
}
