//! `tandem-bench kernels`: every op of the engine, alone, at the shapes that it meets.

use super::floor::{Ceilings, work};
use super::geometry::Named;
use super::op::{Op, Weight};
use super::report::{Row, write};
use super::stand::{Drawing, Stand};
use super::{GpuOptions, Shape};
use clap::Args;
use kernels::cuda::{Cuda, Device, PROJECT_ROWS_MAX};
use std::process::ExitCode;

/// Rows of steps of decode.
const DECODE: [usize; 7] = [1, 8, 16, 32, 64, 128, 256];
/// Tokens of steps of prefill.
const PREFILL: [usize; 2] = [2048, 8192];
/// Rows of what is done once a step.
const ONCE: [usize; 4] = [1, 8, 64, 256];

const ATTENTION: [Shape; 9] = [
    Shape::decode(1, 512),
    Shape::decode(1, 4096),
    Shape::decode(8, 512),
    Shape::decode(8, 4096),
    Shape::decode(64, 512),
    Shape::decode(64, 4096),
    Shape::decode(256, 512),
    Shape::prefill(8, 2048),
    Shape::prefill(1, 16_384),
];

/// Options of `tandem-bench kernels`.
#[derive(Args)]
pub struct PerOp {
    /// Whose shapes.
    #[arg(long, value_delimiter = ',', default_value = "qwen3-0.6b,qwen3-8b")]
    model: Vec<Named>,
    /// Only ops whose names contain this.
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    gpu: GpuOptions,
}

impl PerOp {
    /// Measures, prints, writes.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let (device, ceilings) = (self.gpu.open()?, self.gpu.ceilings());
        println!("{}, medians of {} replays", device.name(), self.gpu.rounds);
        let mut rows = Vec::new();
        for named in &self.model {
            self.one(&device, &ceilings, *named, &mut rows)?;
        }
        write(self.gpu.json.as_deref(), &rows)?;
        Ok(ExitCode::SUCCESS)
    }

    fn one(
        &self,
        device: &Device,
        ceilings: &Ceilings,
        named: Named,
        rows: &mut Vec<Row>,
    ) -> anyhow::Result<()> {
        let wanted = |case: &Case| self.only.as_ref().is_none_or(|text| case.name().contains(text));
        let cases: Vec<_> = cases().into_iter().filter(wanted).collect();
        let shapes: Vec<_> = cases.iter().map(|case| case.shape).collect();
        let geometry = named.geometry();
        println!("\n{}\n{}", geometry.name, Row::heading());
        let (cuda, mut stand): (Cuda, Stand) = Stand::new(device, geometry, &shapes)?;
        for case in cases {
            let &Case { op, ref shape, drawing } = &case;
            let us = stand.time(&cuda, (op, shape, drawing), self.gpu.rounds)?;
            let what = (geometry.name, case.name(), op.path(shape));
            let row = Row::new(what, shape, us, (work(op, &geometry, shape), ceilings));
            println!("{row}");
            rows.push(row);
        }
        Ok(())
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
struct Case {
    op: Op,
    shape: Shape,
    drawing: Drawing,
}

impl Case {
    fn greedy(op: Op, shape: Shape) -> Self {
        Self { op, shape, drawing: Drawing::Greedy }
    }

    fn name(&self) -> String {
        match (self.op, self.drawing) {
            (Op::Draw, Drawing::Greedy) => "draw greedy".to_owned(),
            (Op::Draw, Drawing::TopP) => "draw top-p 0.95".to_owned(),
            (op, _) => op.to_string(),
        }
    }
}

fn cases() -> Vec<Case> {
    let decode = DECODE.map(|rows| Shape::decode(rows, 1));
    let prefill = PREFILL.map(|tokens| Shape::prefill(1, tokens));
    let once = ONCE.map(|rows| Shape::decode(rows, 1));
    let few = decode.iter().filter(|shape| shape.tokens() <= PROJECT_ROWS_MAX);
    let mut cases = Vec::new();
    let mut add = |op, shapes: &[Shape]| {
        cases.extend(shapes.iter().map(|&shape| Case::greedy(op, shape)));
    };
    let all = [&decode[..], &prefill[..]].concat();
    let some = [&once[..], &prefill[..]].concat();
    add(Op::Embed, &some);
    add(Op::RmsNorm, &some);
    [Op::Qkv, Op::Out, Op::GateUp, Op::Down].into_iter().for_each(|op| add(op, &all));
    let few: Vec<_> = few.copied().collect();
    Weight::ALL.into_iter().for_each(|weight| add(Op::Library(weight), &few));
    add(Op::RopeWrite, &some);
    add(Op::Attention, &ATTENTION);
    add(Op::SiluMul, &some);
    add(Op::Gather, &once);
    add(Op::Head, &once);
    add(Op::Draw, &once);
    cases.extend(once.map(|shape| Case { op: Op::Draw, shape, drawing: Drawing::TopP }));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_case_is_measured_twice() {
        let mut names: Vec<_> =
            cases().iter().map(|case| format!("{} {}", case.name(), case.shape)).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
