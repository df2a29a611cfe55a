//! Products of a few rows by `cuda/project.cu`, which reads the weights once, with the norm before
//! and the addition after in the same kernel.
#![expect(unsafe_code, reason = "kernel launches")]

use super::compile::Arch;
use super::device::Device;
use super::module::{Arg, Entry, Kernel, Shape, joined};
use crate::ops::OpError;
use std::cell::RefCell;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::{HashMap, HashSet};
use std::thread;

/// Most rows that products of few rows have a kernel for: beyond, cuBLASLt is faster
/// (`bench/gpu/project.cu`, on an H100).
pub const ROWS_MAX: usize = 32;
/// Tiles of 16 outputs a warp, and warps that share the inputs.
const TILES: usize = 2;
const WARPS: usize = 8;
/// Blocks that share the inputs where outputs are few.
const SPLIT: usize = 4;

/// Shapes of a projection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Projection {
    pub rows: usize,
    /// Of `y`: half of the weight's rows, if gated.
    pub outputs: usize,
    pub inputs: usize,
    /// `y = silu(gate) * up`.
    pub gated: bool,
}

/// A projection that there will be, of whatever number of rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub projection: Projection,
    /// Whether it norms.
    pub norm: bool,
}

/// Device addresses of its operands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub x: u64,
    pub weight: u64,
    pub y: u64,
    /// Added last; may be `y`.
    pub residual: Option<u64>,
    /// f32.
    pub bias: Option<u64>,
    /// bf16, and what is added to the mean square: `x` is normed first.
    pub norm: Option<(u64, f32)>,
}

/// How a projection is cut: `Cut` of `cuda/project_body.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cut {
    /// Of 8 rows each.
    columns: usize,
    split: usize,
    stages: usize,
    norm: bool,
}

impl Cut {
    fn of(projection: &Projection, norm: bool, split: bool) -> Self {
        let &Projection { rows, outputs, inputs, gated } = projection;
        let groups = outputs.div_ceil(if gated { 8 } else { 16 } * TILES);
        let split = split && !norm && groups <= 100 && inputs >= 32 * WARPS * SPLIT;
        let split = if split { SPLIT } else { 1 };
        // All of a warp's inputs in flight, where they fit.
        let stages = inputs.div_ceil(32 * WARPS * split).clamp(2, 4);
        Self { columns: rows.div_ceil(8).next_power_of_two(), split, stages, norm }
    }

    fn definitions(&self) -> Vec<String> {
        let &Self { columns, split, stages, norm } = self;
        let cut = format!("WARPS_N=1 WARPS_K={WARPS} TILES={TILES} BLOCKS_PER_SM=2");
        let own =
            format!("COLUMNS={columns} SPLIT={split} STAGES={stages} NORM={}", u8::from(norm));
        [cut, own].iter().flat_map(|text| text.split(' ').map(str::to_owned)).collect()
    }

    /// `Cut::shared_bytes`.
    fn shared(&self, inputs: usize) -> usize {
        let &Self { columns, split, stages, norm } = self;
        let sums = TILES * columns * 512;
        let warps = WARPS * (stages * TILES * 1024).max(sums);
        let x = WARPS * stages * columns * 512;
        let meet = if split > 1 { (TILES * columns).div_ceil(split) * split * 512 } else { 0 };
        let norms = if norm { (WARPS + split) * columns * 32 + 2 * inputs } else { 0 };
        warps + x + meet + norms
    }
}

/// The kernels, by cut.
pub(super) struct Projections {
    device: Device,
    splits: bool,
    kernels: RefCell<HashMap<Cut, Kernel>>,
}

impl Projections {
    /// Loads the kernels for projections of any number of rows with these outputs and inputs, all
    /// at once: each is compiled by itself the first time.
    pub fn load(device: &Device, planned: &[Planned]) -> Result<Self, OpError> {
        let splits = device.arch() != Arch::Sm80;
        let sizes = planned.iter().flat_map(|planned| {
            [8, 16, ROWS_MAX].map(|rows| (Projection { rows, ..planned.projection }, planned.norm))
        });
        let taken = sizes.filter(|(projection, _)| Self::take(projection));
        let cuts: HashSet<_> =
            taken.map(|(projection, norm)| Cut::of(&projection, norm, splits)).collect();
        let load = |cut: Cut| Ok((cut, load(device, &cut)?));
        let kernels = thread::scope(|scope| {
            let threads: Vec<_> =
                cuts.into_iter().map(|cut| scope.spawn(move || load(cut))).collect();
            threads.into_iter().map(joined).collect::<Result<_, OpError>>()
        });
        Ok(Self { device: device.clone(), splits, kernels: RefCell::new(kernels?) })
    }

    /// Whether it takes such a product.
    pub fn take(projection: &Projection) -> bool {
        let &Projection { rows, outputs, inputs, gated } = projection;
        let whole = outputs.is_multiple_of(if gated { 8 } else { 16 });
        // Each warp of each block has inputs.
        let deep = inputs.is_multiple_of(32) && inputs >= 32 * WARPS;
        (1..=ROWS_MAX).contains(&rows) && whole && deep
    }

    /// Enqueues `y = norm(x)·Wᵀ + bias + residual`.
    ///
    /// # Safety
    /// The operands have the projection's shapes and live until the stream has passed this.
    pub unsafe fn run(&self, projection: &Projection, operands: &Operands) -> Result<(), OpError> {
        let &Projection { rows, outputs, inputs, gated } = projection;
        let cut = Cut::of(projection, operands.norm.is_some(), self.splits);
        let shared = cut.shared(inputs);
        let mut kernels = self.kernels.borrow_mut();
        let kernel = match kernels.entry(cut) {
            Occupied(entry) => entry.into_mut(),
            Vacant(entry) => entry.insert(load(&self.device, &cut)?),
        };
        let groups = outputs.div_ceil(if gated { 8 } else { 16 } * TILES);
        let grid = (groups * cut.split, 1);
        let shape = Shape { grid, threads: 32 * WARPS, shared, cluster: cut.split };
        let (gain, eps) = operands.norm.unwrap_or((0, 0.0));
        let arguments = [
            Arg::Wide(operands.x),
            Arg::Wide(operands.weight),
            Arg::Wide(operands.y),
            Arg::Wide(operands.residual.unwrap_or(0)),
            Arg::Wide(operands.bias.unwrap_or(0)),
            Arg::Wide(gain),
            Arg::Count(rows as u32),
            Arg::Count(outputs as u32),
            Arg::Count(inputs as u32),
            Arg::Number(eps),
            Arg::Count(gated.into()),
            Arg::Wide(0),
            Arg::Count(0),
        ];
        // SAFETY: the kernel's arguments in order; the rest is the caller's promise.
        unsafe { kernel.launch(shape, &arguments) }
    }
}

fn load(device: &Device, cut: &Cut) -> Result<Kernel, OpError> {
    let (stem, name, definitions) = ("project", "project_rows", &cut.definitions()[..]);
    let shared = device.shared_max()?;
    Kernel::load(device, Entry { stem, name, definitions, shared, overlaps: true })
}

/// Definitions of all cuts that models of usual sizes come to.
#[cfg(test)]
pub(super) fn definitions_tried(split: bool) -> Vec<Vec<String>> {
    // Hidden, intermediate, and the width of queries, keys and values.
    let models = [(576, 1536, 960), (1024, 3072, 4096), (2560, 9728, 6144), (4096, 12_288, 6144)];
    let mut cuts = std::collections::HashSet::new();
    for (hidden, intermediate, qkv) in models {
        for rows in [1, 8, 9, 16, 17, 32] {
            for (outputs, inputs, gated, norm) in [
                (qkv, hidden, false, true),
                (hidden, hidden, false, false),
                (intermediate, hidden, true, true),
                (hidden, intermediate, false, false),
            ] {
                let projection = Projection { rows, outputs, inputs, gated };
                if Projections::take(&projection) {
                    cuts.insert(Cut::of(&projection, norm, split));
                }
            }
        }
    }
    cuts.iter().map(Cut::definitions).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_those_that_were_measured() {
        let cut = |rows, outputs, inputs, gated, norm| {
            let projection = Projection { rows, outputs, inputs, gated };
            assert!(Projections::take(&projection), "{projection:?}");
            let Cut { columns, split, stages, .. } = Cut::of(&projection, norm, true);
            (columns, split, stages)
        };
        // Qwen3-0.6B's qkv, o, gate_up and down.
        assert_eq!(cut(1, 4096, 1024, false, true), (1, 1, 4));
        assert_eq!(cut(8, 1024, 2048, false, false), (1, 4, 2));
        assert_eq!(cut(9, 3072, 1024, true, true), (2, 1, 4));
        assert_eq!(cut(32, 1024, 3072, false, false), (4, 4, 3));
    }

    #[test]
    fn what_it_does_not_take() {
        let take = |rows, outputs, inputs, gated| {
            Projections::take(&Projection { rows, outputs, inputs, gated })
        };
        assert!(take(32, 16, 256, false) && take(1, 8, 256, true));
        assert!(!take(33, 16, 256, false), "rows");
        assert!(!take(0, 16, 256, false), "no rows");
        assert!(!take(1, 24, 256, false), "outputs");
        assert!(!take(1, 16, 224, false) && !take(1, 16, 264, false), "inputs");
    }

    /// `Cut::shared_bytes` of `cuda/project_body.cuh`, worked out by hand.
    #[test]
    fn shared_memory_is_what_the_kernel_lays_out() {
        let plain = Cut { columns: 1, split: 4, stages: 3, norm: false };
        assert_eq!(plain.shared(3072), 8 * 3 * 2048 + 8 * 3 * 512 + 2048);
        let normed = Cut { columns: 4, split: 1, stages: 2, norm: true };
        assert_eq!(normed.shared(1024), 8 * 4096 + 8 * 2 * 2048 + (8 + 1) * 128 + 2048);
    }
}
