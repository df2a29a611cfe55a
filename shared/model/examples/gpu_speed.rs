//! Speed of the bare engine on a GPU.
//!
//! `cargo run --release -p model --example gpu_speed -- MODEL [ROUNDS]`
//!
//! Steps from launch to collected tokens, so what the host does is in them. Medians of rounds.
#![expect(clippy::print_stdout, reason = "a measurement prints")]

use checkpoint::Checkpoint;
use kernels::cuda::Device;
use model::engine::{Batch, Engine, Row, Sample};
use model::{CudaConfig, CudaEngine};
use shared::ids::{PageId, TokenId};
use shared::request::Sampling;
use std::error::Error;
use std::time::Instant;

const PAGE_TOKENS: u32 = 16;
const PAGES: u32 = 8192;

/// (sequences, tokens before, new tokens).
const STEPS: [(u32, u32, u32); 9] = [
    (1, 302, 1),
    (1, 512, 1),
    (8, 302, 1),
    (64, 363, 1),
    (256, 395, 1),
    (1, 0, 512),
    (1, 0, 2048),
    (1, 0, 8192),
    (16, 0, 2048),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("usage: gpu_speed MODEL [ROUNDS]")?;
    let rounds = args.next().map_or(Ok(15), |n| n.parse::<usize>())?;
    let begun = Instant::now();
    let device = Device::open(0)?;
    let checkpoint = Checkpoint::open(&model)?;
    let config = CudaConfig { pages: PAGES, page_tokens: PAGE_TOKENS, threads: None };
    let mut engine = CudaEngine::load(&device, &checkpoint, &config, &mut |_, _| {})?;
    println!("{}: loaded in {:.2} s", device.name(), begun.elapsed().as_secs_f64());
    println!("sequences,tokens_before,new_tokens,step_ms,new_tokens_a_second");
    for (rows, start, new) in STEPS {
        let mut times = Vec::new();
        for round in 0..=rounds {
            let time = step(&mut engine, (rows, start, new))?;
            if round > 0 {
                times.push(time);
            }
        }
        times.sort_by(f64::total_cmp);
        let time = times[times.len() / 2];
        let rate = f64::from(rows * new) / time;
        println!("{rows},{start},{new},{:.3},{rate:.0}", time * 1e3);
    }
    Ok(())
}

/// Seconds of one step.
fn step(
    engine: &mut CudaEngine,
    (rows, start, new): (u32, u32, u32),
) -> Result<f64, Box<dyn Error>> {
    let each = (start + new).div_ceil(PAGE_TOKENS);
    let row = |row: u32| Row {
        tokens: (0..new).map(|i| TokenId::new(100 + (row * 977 + i * 31) % 20_000)).collect(),
        start,
        // Scattered: 2,731 has no factor in common with the number of pages.
        pages: (row * each..(row + 1) * each).map(|i| PageId::new(i * 2731 % PAGES)).collect(),
        sample: Some(Sample { sampling: Sampling::GREEDY, output_index: 0, logprobs: None }),
    };
    let batch = Batch { rows: (0..rows).map(row).collect() };
    let begun = Instant::now();
    engine.launch(&batch)?;
    std::hint::black_box(engine.collect()?);
    Ok(begun.elapsed().as_secs_f64())
}
