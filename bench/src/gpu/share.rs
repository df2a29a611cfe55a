//! `tandem-bench roofline`: where the time of a step goes.
//!
//! Every part is recorded alone, with all its layers, and the step as the model's forward pass
//! enqueues it; what the parts do not add up to is what one kernel costs the next (or, below zero,
//! what they gain by overlapping). The last line is the step as the engine runs it: recorded where
//! all rows are single tokens, else kernel by kernel, with the copies of the batch and the tokens.

use super::floor::{Ceilings, Work, of_step, work};
use super::geometry::{Geometry, Named};
use super::op::Op;
use super::report::write;
use super::stand::{Drawing, PAGE_TOKENS, Stand};
use super::{GpuOptions, Shape};
use crate::numbers::{median, short};
use anyhow::Context;
use clap::Args;
use kernels::cuda::{Cuda, CudaBatch, ROWS_MAX};
use kernels::ops::OpError;
use model::forward::{Pass, Scratch, Step};
use serde::Serialize;
use std::process::ExitCode;

/// In the order of a step.
const PARTS: [Op; 10] = [
    Op::Embed,
    Op::Qkv,
    Op::RopeWrite,
    Op::Attention,
    Op::Out,
    Op::GateUp,
    Op::Down,
    Op::Gather,
    Op::Head,
    Op::Draw,
];

/// Options of `tandem-bench roofline`.
#[derive(Args)]
pub struct Share {
    /// Whose shapes.
    #[arg(long, default_value = "qwen3-0.6b")]
    model: Named,
    /// Sequences of the steps of decode.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64,256")]
    rows: Vec<usize>,
    /// Tokens before the new one, for each of `--rows`.
    #[arg(long, value_delimiter = ',', default_value = "302,302,363,395")]
    context: Vec<usize>,
    /// Steps of prefill, as tokens × sequences.
    #[arg(long, value_delimiter = ',', default_value = "8192x1,2048x16", value_parser = prompts)]
    prefill: Vec<Shape>,
    /// Draw by top-p 0.95 instead of taking the best.
    #[arg(long)]
    top_p: bool,
    #[command(flatten)]
    gpu: GpuOptions,
}

fn prompts(text: &str) -> Result<Shape, String> {
    let (new, sequences) = text.split_once('x').ok_or("want TOKENSxSEQUENCES")?;
    let number = |text: &str| match text.parse::<usize>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{text} is no number above 0")),
    };
    let shape = Shape::prefill(number(sequences)?, number(new)?);
    match shape.sequences {
        0..=ROWS_MAX => Ok(shape),
        sequences => Err(format!("{sequences} sequences; at most {ROWS_MAX} draw tokens")),
    }
}

/// One part of one step, or the step.
#[derive(Debug, Serialize)]
struct Part {
    model: &'static str,
    sequences: usize,
    tokens_before: usize,
    new_tokens: usize,
    part: String,
    /// All layers.
    us: f64,
    /// Of the recorded step.
    share: f64,
    floor_us: Option<f64>,
}

impl Share {
    /// Measures, prints, writes.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let shapes = self.shapes()?;
        let (device, ceilings) = (self.gpu.open()?, self.gpu.ceilings());
        let geometry = self.model.geometry();
        let (cuda, mut stand) = Stand::new(&device, geometry, &shapes)?;
        let most = |of: fn(&Shape) -> usize| shapes.iter().map(of).max().unwrap_or(1);
        let (tokens, sampled) = (most(Shape::tokens), most(|shape| shape.sequences));
        let scratch = Scratch::new(&cuda, &geometry.sizes, tokens, sampled)?;
        println!("{}, {}, medians of {}", device.name(), geometry.name, self.gpu.rounds);
        let mut measured = Measured { cuda, scratch, ceilings, options: self, rows: Vec::new() };
        shapes.iter().try_for_each(|shape| measured.step(&mut stand, shape))?;
        write(self.gpu.json.as_deref(), &measured.rows)?;
        Ok(ExitCode::SUCCESS)
    }

    fn shapes(&self) -> anyhow::Result<Vec<Shape>> {
        let (rows, context) = (&self.rows, &self.context);
        anyhow::ensure!(
            rows.len() == context.len(),
            "--rows has {} numbers and --context {}; want one for each",
            rows.len(),
            context.len()
        );
        let outside = rows.iter().find(|rows| !(1..=ROWS_MAX).contains(*rows));
        anyhow::ensure!(outside.is_none(), "--rows {outside:?}; want 1 to {ROWS_MAX}");
        let decode =
            rows.iter().zip(context).map(|(&rows, &before)| Shape::decode(rows, before + 1));
        Ok(decode.chain(self.prefill.iter().copied()).collect())
    }

    fn drawing(&self) -> Drawing {
        if self.top_p { Drawing::TopP } else { Drawing::Greedy }
    }
}

struct Measured<'o> {
    cuda: Cuda,
    scratch: Scratch<Cuda>,
    ceilings: Ceilings,
    options: &'o Share,
    rows: Vec<Part>,
}

impl Measured<'_> {
    fn step(&mut self, stand: &mut Stand, shape: &Shape) -> anyhow::Result<()> {
        let geometry = stand.geometry;
        let rounds = self.options.gpu.rounds;
        let what = |doing: &str| format!("{doing} {shape}");
        let whole = self.recorded(stand, shape).with_context(|| what("recording"))?;
        let engine = self.as_engine(stand, shape).with_context(|| what("running"))?;
        println!("\n{shape}");
        println!("{:<22} {:>9} {:>7} {:>9} {:>8}", "part", "µs", "share", "floor µs", "× floor");
        let (mut sum, mut floors) = (0.0, 0.0);
        // Where all tokens are sampled, none are gathered.
        let parts = PARTS.into_iter().filter(|op| *op != Op::Gather || shape.new > 1);
        for op in parts {
            let case = (op, shape, self.options.drawing());
            let layers = if op.is_of_layers() { geometry.layers } else { 1 };
            let us = stand.time(&self.cuda, case, rounds)? * layers as f64;
            let floor = work(op, &geometry, shape).floor_us(&self.ceilings) * layers as f64;
            (sum, floors) = (sum + us, floors + floor);
            self.line(&geometry, shape, (&op.to_string(), us, whole), Some(floor));
        }
        let least: Work = of_step(&geometry, shape);
        let least = least.floor_us(&self.ceilings);
        self.line(&geometry, shape, ("sum of the parts", sum, whole), Some(floors));
        self.line(&geometry, shape, ("not explained", whole - sum, whole), None);
        self.line(&geometry, shape, ("step, recorded", whole, whole), Some(least));
        self.line(&geometry, shape, ("step, as the engine", engine, whole), Some(least));
        Ok(())
    }

    fn line(
        &mut self,
        geometry: &Geometry,
        shape: &Shape,
        (part, us, whole): (&str, f64, f64),
        floor_us: Option<f64>,
    ) {
        let share = us / whole;
        let floor = floor_us.map_or_else(String::new, short);
        let ratio = floor_us.map_or_else(String::new, |floor| format!("{:.2}", us / floor));
        let percent = 100.0 * share;
        println!("{part:<22} {:>9} {percent:>6.1}% {floor:>9} {ratio:>8}", short(us));
        self.rows.push(Part {
            model: geometry.name,
            sequences: shape.sequences,
            tokens_before: shape.before,
            new_tokens: shape.new,
            part: part.to_owned(),
            us,
            share,
            floor_us,
        });
    }

    /// µs of the forward pass and the drawing, recorded.
    fn recorded(&mut self, stand: &mut Stand, shape: &Shape) -> Result<f64, OpError> {
        let Self { cuda, scratch, options, .. } = self;
        let draws = options.drawing().draws(shape.sequences);
        let batch = cuda.step(stand.host(shape, 0), &draws)?;
        let (cuda, rounds) = (&*cuda, options.gpu.rounds);
        Ok(median(cuda.time_recorded(rounds, || forward(cuda, stand, scratch, &batch, shape))?))
    }

    /// µs of the step as the engine runs it, the copies in it, steps following each other.
    fn as_engine(&mut self, stand: &mut Stand, shape: &Shape) -> Result<f64, OpError> {
        let Self { cuda, scratch, options, .. } = self;
        let (cuda, rounds, rows) = (&*cuda, options.gpu.rounds, shape.sequences);
        let draws = options.drawing().draws(rows);
        let host = stand.host(shape, 0);
        let mut results = cuda.results()?;
        if shape.new > 1 {
            return Ok(median(cuda.time(rounds, || {
                let batch = cuda.step(host.clone(), &draws)?;
                forward(cuda, stand, scratch, &batch, shape)?;
                cuda.fetch(rows, &mut results)
            })?));
        }
        let mut frame = cuda.frame(rows * (shape.before + 1).div_ceil(PAGE_TOKENS))?;
        let recorded =
            cuda.record(&mut frame, rows, |batch| forward(cuda, stand, scratch, batch, shape))?;
        Ok(median(cuda.time(rounds, || {
            cuda.replay((&mut frame, &recorded), (&host, &draws), &stand.pages)?;
            cuda.fetch(rows, &mut results)
        })?))
    }
}

fn forward(
    cuda: &Cuda,
    stand: &Stand,
    scratch: &mut Scratch<Cuda>,
    batch: &CudaBatch,
    shape: &Shape,
) -> Result<(), OpError> {
    let step = Step { tokens: shape.tokens(), sampled: shape.sequences };
    let pass = Pass { batch, step, pages: &stand.pages };
    stand.model.forward(cuda, &pass, scratch, |_| Ok(()))?;
    cuda.draw(&scratch.logits, batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_prefill_are_tokens_times_sequences() {
        assert_eq!(prompts("2048x16"), Ok(Shape::prefill(16, 2048)));
        for bad in ["2048", "x", "0x1", "1x0", "-1x2", "16x257"] {
            assert!(prompts(bad).is_err(), "{bad}");
        }
    }
}
