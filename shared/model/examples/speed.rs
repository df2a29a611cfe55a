//! Speed of the bare engine beside the machine's floor, for some weight formats in one run.
//!
//! `cargo run --release -p model --example speed -- MODEL [ROUNDS] [WEIGHTS[@LEVEL],..] [THREADS]`
//!
//! A format may name what of the CPU to use at most: `portable`, `avx2`, `avxvnni`, `avx512`,
//! `amx`. Each round times, for each format in alternation: one plain parallel sum of all weight
//! bytes (the floor), decode steps of one sequence, decode steps of eight, and prefills. Medians of
//! rounds; other load on the machine moves both sides, so read the ratio.
#![expect(clippy::print_stdout, reason = "a measurement prints")]

use checkpoint::Checkpoint;
use kernels::cpu::simd::Level;
use model::engine::{Batch, Engine, Input, Row, Sample};
use model::{CpuEngine, EngineConfig};
use shared::ids::{PageId, TokenId};
use shared::kv::KvDtype;
use shared::request::Sampling;
use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

const PREFILLS: [usize; 2] = [256, 1500];
const PAGE_TOKENS: u32 = 16;
const STEPS: u32 = 8;
const SHORT: u32 = 64;
const LONG: u32 = 1500;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("usage: speed MODEL [ROUNDS] [WEIGHTS,..]")?;
    let rounds = args.next().map_or(Ok(15), |n| n.parse())?;
    let formats = args.next().unwrap_or_else(|| "bf16,auto".to_owned());
    let threads = args.next().map(|n| n.parse()).transpose()?;
    let checkpoint = Checkpoint::open(&model)?;
    let sides = formats.split(',').map(|name| Side::load(&checkpoint, name, threads));
    let mut sides = sides.collect::<Result<Vec<_>, _>>()?;
    for round in 0..=rounds {
        for side in &mut sides {
            let times = side.round()?;
            if round > 0 {
                side.times.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
            }
        }
    }
    sides.into_iter().for_each(Side::report);
    Ok(())
}

/// An engine, and the seconds that its rounds took: floor, batch 1, batch 1 after a long text,
/// batch 8, prefills.
struct Side {
    name: String,
    engine: CpuEngine,
    times: [Vec<f64>; 6],
}

impl Side {
    fn load(
        checkpoint: &Checkpoint,
        name: &str,
        threads: Option<usize>,
    ) -> Result<Self, Box<dyn Error>> {
        let (weights, level) = name.split_once('@').unwrap_or((name, ""));
        let level = match level {
            "" => Level::detect(),
            name => Level::named(name).ok_or_else(|| format!("{name}: not on this CPU"))?,
        };
        let config = EngineConfig {
            dtype: KvDtype::Bf16,
            weights: weights.parse()?,
            pages: 1024,
            page_tokens: PAGE_TOKENS,
            threads,
            memory: None,
        };
        let begun = Instant::now();
        let engine = CpuEngine::load_at(checkpoint, config, level, &mut |_, _| {})?;
        println!("{name}: loaded in {:.2} s", begun.elapsed().as_secs_f64());
        Ok(Self { name: name.to_owned(), engine, times: Default::default() })
    }

    fn round(&mut self) -> Result<[f64; 6], Box<dyn Error>> {
        let engine = &mut self.engine;
        Ok([
            timed(1, || {
                black_box(engine.sum_weights());
                Ok(())
            })?,
            timed(STEPS, || step(engine, 1, (SHORT, 1)))?,
            timed(STEPS, || step(engine, 1, (LONG, 1)))?,
            timed(STEPS, || step(engine, 8, (SHORT, 1)))?,
            timed(1, || step(engine, 1, (0, PREFILLS[0])))?,
            timed(1, || step(engine, 1, (0, PREFILLS[1])))?,
        ])
    }

    fn report(self) {
        let bytes = self.engine.weight_bytes() as f64;
        let [floor, one, long, eight, prefills @ ..] = self.times.map(median);
        println!("{}: {:.1} MB of weights a token", self.name, bytes / 1e6);
        println!("  floor: {:.2} GB/s, {:.2} ms", bytes / floor / 1e9, floor * 1e3);
        println!("  decode, batch 1: {:.1} tok/s, {:.2} of the floor", 1.0 / one, floor / one);
        println!("  decode after {LONG} tokens: {:.1} tok/s", 1.0 / long);
        let rate = 8.0 / eight;
        println!("  decode, batch 8: {rate:.1} tok/s, {:.2} x batch 1", 8.0 * one / eight);
        for (tokens, time) in PREFILLS.into_iter().zip(prefills) {
            println!("  prefill, {tokens} tokens: {:.0} tok/s", tokens as f64 / time);
        }
    }
}

/// Seconds of one call, averaged over `times`.
fn timed(
    times: u32,
    mut call: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    let begun = Instant::now();
    for _ in 0..times {
        call()?;
    }
    Ok(begun.elapsed().as_secs_f64() / f64::from(times))
}

/// One step of `rows` sequences that have `start` tokens and take `new` more.
fn step(
    engine: &mut CpuEngine,
    rows: u32,
    (start, new): (u32, usize),
) -> Result<(), Box<dyn Error>> {
    let each = (start + new as u32).div_ceil(PAGE_TOKENS);
    let row = |row: u32| Row {
        input: Input::Tokens((0..new as u32).map(|i| TokenId::new(100 + i)).collect()),
        start,
        pages: (row * each..(row + 1) * each).map(PageId::new).collect(),
        sample: Some(Sample::new(Sampling::GREEDY, 0)),
        reads: None,
    };
    engine.launch(&Batch { rows: (0..rows).map(row).collect() })?;
    black_box(engine.collect()?);
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
