//! Multiply-adds a second of products of few and of many rows, at each level of this CPU
//! that has vectors.
//!
//! `cargo run --release -p kernels --example products -- [THREADS]`
#![expect(clippy::print_stdout, reason = "a measurement prints")]

use half::bf16;
use kernels::cpu::simd::Level;
use kernels::cpu::{Cpu, Tensor};
use kernels::ops::{Blocks, Embed, HostBatch, HostMatrix, Linear, OpError, Ops, Segment, Weights};
use std::time::{Duration, Instant};

const OUTPUTS: usize = 3072;
const INPUTS: usize = 576;
/// Inputs that share a scale.
const GROUP: usize = 32;
const ROWS: [usize; 9] = [1, 2, 4, 8, 12, 16, 64, 256, 1024];
const CALLS: u32 = 60;
/// No more calls begin after this.
const LONG: Duration = Duration::from_millis(200);

fn main() -> Result<(), OpError> {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    println!(
        "{OUTPUTS} outputs of {INPUTS} inputs, threads: {threads}, 1e9 multiply-adds a second"
    );
    println!("{:>20} {:>8}", "rows", ROWS.map(|rows| format!("{rows:>8}")).concat());
    for (name, weights) in [("bf16", halves()), ("4 bits", blocks(15)), ("8 bits", blocks(127))] {
        for level in Level::all().into_iter().filter(|level| level.name() != "portable") {
            let rates = rates(&Cpu::with_level(threads, level), weights.clone())?;
            println!("{name:>8} {:>11} {}", level.name(), rates.concat());
        }
    }
    Ok(())
}

fn halves() -> Weights {
    let value = |i: usize| bf16::from_f32((i * 7919 % 1000) as f32 / 500.0 - 1.0);
    Weights::Bf16((0..OUTPUTS * INPUTS).map(value).collect())
}

fn blocks(most: usize) -> Weights {
    let groups = OUTPUTS * INPUTS / GROUP;
    let values = (0..OUTPUTS * INPUTS).map(|i| (i * 7919 % (most + 1)) as i8).collect();
    let (scales, mins) = (vec![0.0078125; groups], vec![-0.0625; groups]);
    Weights::Blocks(Blocks { group: GROUP, scales, mins, values })
}

/// An embedding of rows: all that brings numbers into a tensor.
fn rows_of(cpu: &Cpu, rows: usize) -> Result<Tensor, OpError> {
    let weights = (0..rows * INPUTS).map(|i| (i * 31 % 1999) as f32 / 1000.0 - 1.0).collect();
    let weights = Weights::F32(weights);
    let table = cpu.matrix(HostMatrix { rows, cols: INPUTS, weights })?;
    let tokens = (0..rows as u32).collect();
    let segments = vec![Segment { first: 0, len: rows, start: 0, table: 0 }];
    let batch = HostBatch { tokens, segments, ..HostBatch::default() };
    let mut x = cpu.tensor(rows, INPUTS)?;
    cpu.embed(Embed { table: &table, batch: &cpu.batch(batch)?, out: &mut x })?;
    Ok(x)
}

fn rates(cpu: &Cpu, weights: Weights) -> Result<[String; ROWS.len()], OpError> {
    let weight = cpu.matrix(HostMatrix { rows: OUTPUTS, cols: INPUTS, weights })?;
    let most = ROWS[ROWS.len() - 1];
    let (x, mut out) = (rows_of(cpu, most)?, cpu.tensor(most, OUTPUTS)?);
    let mut rates = ROWS.map(|_| String::new());
    for (rate, rows) in rates.iter_mut().zip(ROWS) {
        let (start, mut best) = (Instant::now(), f64::INFINITY);
        for _ in 0..CALLS {
            if best.is_finite() && start.elapsed() > LONG {
                break;
            }
            let begun = Instant::now();
            let (x, weight, out) = (&x, &weight, &mut out);
            cpu.linear(Linear { rows, x, weight, bias: None, add: false, out })?;
            best = best.min(begun.elapsed().as_secs_f64());
        }
        *rate = format!("{:>8.1}", (rows * INPUTS * OUTPUTS) as f64 / best / 1e9);
    }
    Ok(rates)
}
