//! The demo model as shipped on less than this CPU has: most people's has no AVX-512.

use super::speed::{PAGE_TOKENS, step};
use crate::numbers::{Random, median, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use anyhow::ensure;
use checkpoint::Checkpoint;
use kernels::cpu::simd::Level;
use model::{CpuEngine, EngineConfig, WeightFormat};
use shared::kv::KvDtype;
use std::time::Instant;

pub const GROUP: Group = Group {
    name: "levels",
    title: "The demo model as shipped, bare engine, by what of the CPU is used",
    rows: &[
        Row {
            name: "decode-avx2",
            what: "one sequence, no more than AVX2",
            unit: "tok/s",
            bar: Bar::AtLeast(100.0),
        },
        Row {
            name: "prefill-avx2",
            what: "256 tokens, no more than AVX2",
            unit: "tok/s",
            bar: Bar::AtLeast(500.0),
        },
    ],
    measure,
    slow: false,
};

const STEPS: usize = 32;
const PREFILL: usize = 256;

/// An engine, and the seconds that its rounds took: of a step of one token, and of a prompt.
struct Side {
    level: Level,
    engine: CpuEngine,
    times: Vec<(f64, f64)>,
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let checkpoint = Checkpoint::open(place.demo()?)?;
    let load = |level| -> anyhow::Result<Side> {
        let (dtype, weights) = (KvDtype::Bf16, WeightFormat::Auto);
        let (pages, page_tokens) = (64, PAGE_TOKENS);
        let config =
            EngineConfig { dtype, weights, pages, page_tokens, threads: None, memory: None };
        let engine = CpuEngine::load_at(&checkpoint, config, level, &mut |_, _| {})?;
        Ok(Side { level, engine, times: vec![] })
    };
    let vectors = Level::all().into_iter().filter(|level| level.name() != "portable");
    let mut sides = vectors.map(load).collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!sides.is_empty(), "this CPU has no AVX2");
    let mut random = Random::new(256);
    for round in 0..=place.rounds(9) {
        for side in &mut sides {
            let times = side.round(&mut random)?;
            // The first round touches everything for the first time.
            if round > 0 {
                side.times.push(times);
            }
        }
    }
    let mut found = Findings::new("level,decode_s,prefill_s");
    for Side { level, times, .. } in &sides {
        let name = level.name();
        found.raw.extend(times.iter().map(|(decode, all)| format!("{name},{decode:.6},{all:.6}")));
        let decode = 1.0 / median(times.iter().map(|times| times.0).collect());
        let prefill = PREFILL as f64 / median(times.iter().map(|times| times.1).collect());
        let (shown, prompt) = (short(decode), short(prefill));
        found.note(format!("{name}: decode {shown} tok/s, prefill {prompt} tok/s"));
        if name == "avx2" {
            found.set("decode-avx2", decode);
            found.set("prefill-avx2", prefill);
        }
    }
    Ok(found)
}

impl Side {
    fn round(&mut self, random: &mut Random) -> anyhow::Result<(f64, f64)> {
        let start = Instant::now();
        step(&mut self.engine, random, (0, PREFILL))?;
        let prefill = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for made in 0..STEPS {
            step(&mut self.engine, random, (PREFILL + made, 1))?;
        }
        Ok((start.elapsed().as_secs_f64() / STEPS as f64, prefill))
    }
}
