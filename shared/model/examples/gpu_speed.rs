//! Speed of the bare engine on a GPU.
//!
//! `cargo run --release -p model --example gpu_speed -- MODEL [ROUNDS]`
//!
//! `step_ms` is from launch to collected tokens, so what the host does is in it. `overlapped_ms` is
//! what a step of decode takes when the next one is launched before it is collected, as a server
//! does. Medians of rounds.
#![expect(clippy::print_stdout, reason = "a measurement prints")]

use checkpoint::Checkpoint;
use kernels::cuda::Device;
use model::cuda::{CudaConfig, CudaEngine, PoolSize};
use model::engine::{Batch, Engine, Input, Row, Sample};
use shared::ids::{PageId, TokenId};
use shared::request::Sampling;
use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

const PAGE_TOKENS: u32 = 16;
const PAGES: u32 = 8192;
/// Steps of an overlapped round.
const CHAIN: usize = 16;

/// (sequences, tokens before, new tokens).
const STEPS: [(u32, u32, u32); 13] = [
    (1, 302, 1),
    (1, 512, 1),
    (8, 302, 1),
    (16, 302, 1),
    (32, 302, 1),
    (64, 363, 1),
    (128, 363, 1),
    (256, 395, 1),
    (1, 0, 512),
    (1, 0, 2048),
    (1, 0, 8192),
    (16, 0, 512),
    (16, 0, 2048),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("usage: gpu_speed MODEL [ROUNDS]")?;
    let rounds = args.next().map_or(Ok(15), |n| n.parse::<usize>())?;
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let begun = Instant::now();
    let device = Device::open(0)?;
    let checkpoint = Checkpoint::open(&model)?;
    let config = CudaConfig {
        pool: PoolSize { fraction: 0.9, pages_max: Some(PAGES) },
        page_tokens: PAGE_TOKENS,
        threads: None,
        decode_rows: 256,
        step_tokens: 32_768,
        parts: None,
    };
    let mut engine = CudaEngine::load(&device, &checkpoint, &config, &mut |_, _| {})?;
    println!("{}: loaded in {:.2} s", device.name(), begun.elapsed().as_secs_f64());
    println!("sequences,tokens_before,new_tokens,step_ms,overlapped_ms,new_tokens_a_second");
    for (rows, start, new) in STEPS {
        let median = |engine: &mut CudaEngine, run: Run| {
            let mut times = Vec::new();
            for round in 0..=rounds {
                let time = run(engine, (rows, start, new))?;
                if round > 0 {
                    times.push(time);
                }
            }
            times.sort_by(f64::total_cmp);
            Ok::<_, Box<dyn Error>>(times[times.len() / 2])
        };
        let alone = median(&mut engine, step)?;
        let overlapped = if new == 1 { median(&mut engine, chain)? } else { f64::NAN };
        let rate = f64::from(rows * new) / alone.min(overlapped);
        println!("{rows},{start},{new},{:.3},{:.3},{rate:.0}", alone * 1e3, overlapped * 1e3);
    }
    Ok(())
}

type Shape = (u32, u32, u32);
type Run = fn(&mut CudaEngine, Shape) -> Result<f64, Box<dyn Error>>;

fn batch((rows, start, new): Shape, drawn: bool) -> Batch {
    let each = (start + new).div_ceil(PAGE_TOKENS);
    let tokens =
        |row: u32| (0..new).map(move |i| TokenId::new(100 + (row * 977 + i * 31) % 20_000));
    let row = |row: u32| Row {
        input: match drawn {
            true => Input::Drawn(row as usize),
            false => Input::Tokens(tokens(row).collect()),
        },
        start,
        // Scattered: 2,731 has no factor in common with the number of pages.
        pages: (row * each..(row + 1) * each).map(|i| PageId::new(i * 2731 % PAGES)).collect(),
        sample: Some(Sample::new(Sampling::GREEDY, 0)),
        reads: None,
    };
    Batch { rows: (0..rows).map(row).collect() }
}

/// Seconds of one step.
fn step(engine: &mut CudaEngine, shape: Shape) -> Result<f64, Box<dyn Error>> {
    let batch = batch(shape, false);
    let begun = Instant::now();
    engine.launch(&batch)?;
    black_box(engine.collect()?);
    Ok(begun.elapsed().as_secs_f64())
}

/// Seconds a step of several, each launched before the one before it is collected.
fn chain(engine: &mut CudaEngine, shape: Shape) -> Result<f64, Box<dyn Error>> {
    engine.launch(&batch(shape, false))?;
    let begun = Instant::now();
    for _ in 0..CHAIN {
        engine.launch(&batch(shape, true))?;
        black_box(engine.collect()?);
    }
    let time = begun.elapsed().as_secs_f64();
    engine.collect()?;
    Ok(time / CHAIN as f64)
}
