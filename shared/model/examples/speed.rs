//! Speed of the bare engine beside the machine's floor, in one run.
//!
//! `cargo run --release -p model --example speed -- MODEL [ROUNDS]`
//!
//! Each round times, in alternation: one plain parallel sum of all weight bytes (the floor), decode
//! steps of one sequence, decode steps of eight, and the prefill of 256 tokens. Medians of rounds;
//! other load on the machine moves both sides, so read the ratio.
#![expect(clippy::print_stdout, reason = "a measurement prints")]

use checkpoint::Checkpoint;
use model::engine::{Batch, Engine, Input, Row, Sample};
use model::{CpuEngine, EngineConfig};
use shared::ids::{PageId, TokenId};
use shared::kv::KvDtype;
use shared::request::Sampling;
use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

const PREFILL: usize = 256;
const PAGE_TOKENS: u32 = 16;
const STEPS: u32 = 8;
const SHORT: u32 = 64;
const LONG: u32 = 1500;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("usage: speed MODEL [ROUNDS]")?;
    let rounds = args.next().map_or(Ok(15), |n| n.parse())?;
    let begun = Instant::now();
    let checkpoint = Checkpoint::open(&model)?;
    let config = EngineConfig {
        dtype: KvDtype::Bf16,
        pages: 1024,
        page_tokens: PAGE_TOKENS,
        threads: None,
        memory: None,
    };
    let mut engine = CpuEngine::load(&checkpoint, config, &mut |_, _| {})?;
    println!("load: {:.2} s", begun.elapsed().as_secs_f64());

    let bytes = engine.weight_bytes() as f64;
    let [mut floor, mut one, mut long, mut eight, mut prefill] = [const { Vec::new() }; 5];
    for round in 0..=rounds {
        let times = [
            timed(1, || {
                black_box(engine.sum_weights());
                Ok(())
            })?,
            timed(STEPS, || step(&mut engine, 1, (SHORT, 1)))?,
            timed(STEPS, || step(&mut engine, 1, (LONG, 1)))?,
            timed(STEPS, || step(&mut engine, 8, (SHORT, 1)))?,
            timed(1, || step(&mut engine, 1, (0, PREFILL)))?,
        ];
        if round > 0 {
            let all = [&mut floor, &mut one, &mut long, &mut eight, &mut prefill];
            all.into_iter().zip(times).for_each(|(all, time)| all.push(time));
        }
    }
    let [floor, one, long, eight, prefill] = [floor, one, long, eight, prefill].map(median);
    println!("weights: {:.1} MB a token", bytes / 1e6);
    println!("floor: {:.2} GB/s, {:.2} ms", bytes / floor / 1e9, floor * 1e3);
    println!("decode, batch 1: {:.1} tok/s, {:.2} of the floor", 1.0 / one, floor / one);
    println!("decode after {LONG} tokens: {:.1} tok/s", 1.0 / long);
    println!("decode, batch 8: {:.1} tok/s, step {:.2} x batch 1", 8.0 / eight, eight / one);
    println!("prefill, {PREFILL} tokens: {:.0} tok/s", PREFILL as f64 / prefill);
    Ok(())
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
    };
    engine.launch(&Batch { rows: (0..rows).map(row).collect() })?;
    black_box(engine.collect()?);
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
