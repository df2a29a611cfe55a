//! Attention over pages: a kernel for steps of single tokens, one for chunks of prompts (on Hopper
//! by its own instructions), both for the head sizes of real models, and one for any shape.
#![expect(unsafe_code, reason = "kernel launches")]

use super::backend::{Cuda, CudaTensor};
use super::batch::CudaBatch;
use super::compile::Arch;
use super::device::{Device, DeviceMemory};
use super::module::{Arg, Kernel, Shape, TensorMap};
use super::pages::CudaPages;
use super::plan::{Limits, Plan, shared_bytes, stages};
use crate::ops::{Attention, KvShape, OpError};
use std::cell::{OnceCell, RefCell};
use std::f32::consts::LOG2_E;

/// Longest head of `cuda/attention.cu`.
const DIM_MAX: usize = 256;
/// Query rows of a work item of `cuda/prefill_attention.cu`.
const QUERY_TILE: usize = 128;
/// Threads of a block of the two fast kernels.
const FAST_THREADS: usize = 256;
/// Threads of a block of `cuda/prefill_wgmma.cuh`.
const WGMMA_THREADS: usize = 384;

/// What the fast kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heads {
    kv: KvShape,
    heads: usize,
}

impl Heads {
    fn group(&self) -> usize {
        self.heads / self.kv.kv_heads
    }

    fn are_fast(&self) -> bool {
        let KvShape { head_dim, page_tokens, .. } = self.kv;
        let pages = page_tokens.is_multiple_of(16) && page_tokens <= 64;
        matches!(head_dim, 64 | 128) && pages && (1..=8).contains(&self.group())
    }

    fn definitions(&self) -> Vec<String> {
        let KvShape { head_dim, page_tokens, .. } = self.kv;
        vec![format!("HEAD_DIM={head_dim}"), format!("PAGE_TOKENS={page_tokens}")]
    }
}

pub(super) struct AttentionKernels {
    device: Device,
    any: Kernel,
    /// For the model's shape, loaded at its first step.
    fast: RefCell<Option<Fast>>,
}

impl AttentionKernels {
    pub fn load(device: &Device) -> Result<Self, OpError> {
        let any = Kernel::load(device, "attention", "attention")?;
        Ok(Self { device: device.clone(), any, fast: RefCell::new(None) })
    }

    pub fn run(&self, args: &Attention<'_, Cuda>) -> Result<(), OpError> {
        let heads = Heads { kv: *args.pages.shape(), heads: args.heads };
        let kv = heads.kv;
        assert_eq!(args.out.width(), args.heads * kv.head_dim, "attention");
        assert_eq!(args.qkv.width(), (args.heads + 2 * kv.kv_heads) * kv.head_dim, "attention");
        check(args.batch, args.pages, [args.qkv, args.out]);
        if !heads.are_fast() {
            return self.run_any(args, &heads);
        }
        let mut fast = self.fast.borrow_mut();
        if fast.as_ref().is_none_or(|fast| fast.heads != heads) {
            *fast = Some(Fast::load(&self.device, heads)?);
        }
        let Some(fast) = fast.as_mut() else { unreachable!("set above") };
        match args.batch.host.segments.iter().all(|segment| segment.len == 1) {
            true => fast.decode(args),
            false => fast.prefill(args),
        }
    }

    fn run_any(&self, args: &Attention<'_, Cuda>, heads: &Heads) -> Result<(), OpError> {
        let &Attention { qkv, scale, batch, layer, pages, ref out, .. } = args;
        let kv = heads.kv;
        assert!(kv.head_dim <= DIM_MAX, "head_dim {}", kv.head_dim);
        let arguments = [
            Arg::Wide(qkv.address()),
            Arg::Wide(batch.positions()),
            Arg::Wide(batch.table_at()),
            Arg::Wide(batch.tables()),
            Arg::Wide(pages.address()),
            Arg::Wide(pages.page_stride()),
            Arg::Wide(pages.layer_at(layer)),
            Arg::Wide(out.address()),
            Arg::Number(scale),
            Arg::Count(heads.heads as u32),
            Arg::Count(kv.kv_heads as u32),
            Arg::Count(kv.page_tokens as u32),
            Arg::Count(kv.head_dim as u32),
        ];
        let grid = (batch.host.tokens.len(), heads.heads);
        let shape = Shape { grid, threads: 128, shared: 0 };
        // SAFETY: the kernel's arguments in order; tensors have the rows, tables the entries and
        // the pool the pages, as checked above.
        unsafe { self.any.launch(shape, &arguments) }
    }
}

/// The kernels for one shape, and what decode keeps from launch to launch.
struct Fast {
    device: Device,
    heads: Heads,
    decode: Kernel,
    decode_shared: usize,
    prefill: Kernel,
    /// Where the device has it.
    wgmma: Option<Wgmma>,
    plan: Plan,
    limits: Limits,
    partials: DeviceMemory,
    partial_sums: DeviceMemory,
    /// Zero between launches.
    arrived: DeviceMemory,
}

impl Fast {
    fn load(device: &Device, heads: Heads) -> Result<Self, OpError> {
        let (dim, group) = (heads.kv.head_dim, heads.group());
        let stages = stages(dim, group, device.shared_max()?);
        let stages = stages.ok_or_else(|| {
            OpError::Device(format!(
                "decode attention of {group} × {dim}: too little shared memory"
            ))
        })?;
        let decode_shared = shared_bytes(dim, group, stages);
        let mut definitions = heads.definitions();
        let prefill = ("prefill_attention", "prefill_attention");
        let prefill = Kernel::load_with(device, prefill, &definitions, prefill_shared(&heads))?;
        let wgmma = match device.arch() {
            Arch::Sm90a => Some(Wgmma::load(device, &heads, &definitions)?),
            Arch::Sm80 | Arch::Sm100a => None,
        };
        definitions.extend([format!("GROUP={group}"), format!("STAGES={stages}")]);
        let decode = ("decode_attention", "decode_attention");
        let decode = Kernel::load_with(device, decode, &definitions, decode_shared)?;
        let blocks = device.multiprocessors()?;
        let limits = Limits { blocks, kv_heads: heads.kv.kv_heads as u32, rows: 0 };
        let partials = device.allocate(limits.partials() * group * dim * 4)?;
        let partial_sums = device.allocate(limits.partials() * group * 8)?;
        Ok(Self {
            device: device.clone(),
            heads,
            decode,
            decode_shared,
            prefill,
            wgmma,
            plan: Plan::new(limits),
            limits,
            partials,
            partial_sums,
            arrived: device.upload(&[0_u32])?,
        })
    }

    /// Makes room for `rows` rows.
    fn fit(&mut self, rows: usize) -> Result<(), OpError> {
        if rows > self.limits.rows as usize {
            self.limits.rows = rows.next_power_of_two() as u32;
            self.arrived = self.device.upload(&vec![0_u32; self.limits.arrived()])?;
            self.plan = Plan::new(self.limits);
        }
        Ok(())
    }

    fn decode(&mut self, args: &Attention<'_, Cuda>) -> Result<(), OpError> {
        let &Attention { qkv, scale, batch, layer, pages, ref out, .. } = args;
        self.fit(batch.host.segments.len())?;
        let work = made(&batch.decode, || DecodeWork::new(self, batch))?;
        let at = |words: usize| Arg::Wide(work.memory.address() + 4 * words as u64);
        let arguments = [
            Arg::Wide(pages.address()),
            Arg::Wide(qkv.address()),
            Arg::Wide(out.address()),
            at(work.tables_at),
            at(work.workers_at),
            at(0),
            Arg::Wide(self.partials.address()),
            Arg::Wide(self.partial_sums.address()),
            Arg::Wide(self.arrived.address()),
            Arg::Count(work.table_stride as u32),
            Arg::Count(self.heads.kv.kv_heads as u32),
            Arg::Count(layer as u32),
            Arg::Count(self.heads.kv.layers as u32),
            Arg::Number(scale * LOG2_E),
        ];
        let grid = (self.limits.blocks as usize, 1);
        let shape = Shape { grid, threads: FAST_THREADS, shared: self.decode_shared };
        // SAFETY: the kernel's arguments in order; the plan is of this batch and this grid; buffers
        // are of the plan's limits; tensors, tables and pages were checked by the caller.
        unsafe { self.decode.launch(shape, &arguments) }
    }

    fn prefill(&self, args: &Attention<'_, Cuda>) -> Result<(), OpError> {
        let &Attention { qkv, heads, scale, batch, layer, pages, ref out } = args;
        let work = made(&batch.prefill, || PrefillWork::new(&self.device, batch))?;
        if let Some(wgmma) = &self.wgmma {
            return wgmma.run(args, &self.heads.kv, work);
        }
        let at = |words: usize| Arg::Wide(work.memory.address() + 4 * words as u64);
        let arguments = [
            Arg::Wide(qkv.address()),
            Arg::Wide(pages.address()),
            Arg::Wide(batch.tables()),
            at(0),
            at(work.tiles_at),
            Arg::Wide(out.address()),
            Arg::Count(work.tiles as u32),
            Arg::Count(heads as u32),
            Arg::Count(self.heads.kv.kv_heads as u32),
            Arg::Count(layer as u32),
            Arg::Count(self.heads.kv.layers as u32),
            Arg::Number(scale),
        ];
        let grid = (work.tiles * heads, 1);
        let shape = Shape { grid, threads: FAST_THREADS, shared: prefill_shared(&self.heads) };
        // SAFETY: the kernel's arguments in order; work items are of this batch; tensors, tables
        // and pages were checked by the caller.
        unsafe { self.prefill.launch(shape, &arguments) }
    }
}

/// Prefill attention by Hopper's own instructions.
struct Wgmma {
    kernel: Kernel,
    blocks: usize,
    shared: usize,
    /// The work item that is drawn next; 0 between launches.
    next: DeviceMemory,
}

impl Wgmma {
    fn load(device: &Device, heads: &Heads, definitions: &[String]) -> Result<Self, OpError> {
        // `kWgmmaShared` of `cuda/prefill_wgmma.cuh`.
        let shared = heads.kv.head_dim / 64 * 98_304 + 1168;
        let name = ("prefill_attention", "prefill_attention_wgmma");
        let kernel = Kernel::load_with(device, name, definitions, shared)?;
        let blocks = device.multiprocessors()? as usize;
        Ok(Self { kernel, blocks, shared, next: device.upload(&[0_u32])? })
    }

    fn run(
        &self,
        args: &Attention<'_, Cuda>,
        kv: &KvShape,
        work: &PrefillWork,
    ) -> Result<(), OpError> {
        let &Attention { qkv, heads, scale, batch, layer, pages, ref out } = args;
        let (dim, width) = (kv.head_dim as u64, qkv.width() as u64);
        let box_tokens = 1 << kv.page_tokens.trailing_zeros();
        let eights = pages.tokens() * (kv.layers * 2 * kv.kv_heads) as u64 / 8;
        // SAFETY: both tensors are as large as said, and live until the stream has passed this.
        let (query_map, pool_map) = unsafe {
            let rows = qkv.rows() as u64;
            let query =
                TensorMap::new(qkv.address(), [width, rows], &[width * 2], [64, QUERY_TILE as u32]);
            let (sizes, strides) = ([64, 8, dim / 64, eights], [dim * 2, 128, dim * 16]);
            let boxes = [64, 8, kv.head_dim as u32 / 64, box_tokens / 8];
            (query?, TensorMap::new(pages.address(), sizes, &strides, boxes)?)
        };
        let at = |words: usize| Arg::Wide(work.memory.address() + 4 * words as u64);
        let arguments = [
            Arg::Map(&query_map),
            Arg::Map(&pool_map),
            Arg::Wide(batch.tables()),
            at(0),
            at(work.tiles_at),
            Arg::Wide(out.address()),
            Arg::Wide(self.next.address()),
            Arg::Count(work.tiles as u32),
            Arg::Count(heads as u32),
            Arg::Count(kv.kv_heads as u32),
            Arg::Count(layer as u32),
            Arg::Count(kv.layers as u32),
            Arg::Number(scale),
        ];
        let grid = (self.blocks.min(work.tiles * heads), 1);
        let shape = Shape { grid, threads: WGMMA_THREADS, shared: self.shared };
        // SAFETY: the kernel's arguments in order; work items are of this batch; launches do not
        // overlap; tensors, tables and pages were checked by the caller.
        unsafe { self.kernel.launch(shape, &arguments) }
    }
}

fn prefill_shared(heads: &Heads) -> usize {
    512 * heads.kv.head_dim
}

/// A batch's plan for decode, uploaded: items, then workers, then page tables of equal length.
pub(super) struct DecodeWork {
    memory: DeviceMemory,
    workers_at: usize,
    tables_at: usize,
    table_stride: usize,
}

impl DecodeWork {
    fn new(fast: &mut Fast, batch: &CudaBatch) -> Result<Self, OpError> {
        let segments = &batch.host.segments;
        let lengths: Vec<_> = segments.iter().map(|segment| segment.start as u32 + 1).collect();
        fast.plan.update(&lengths);
        let items = fast.plan.items().iter().flat_map(|item| {
            let range = [item.chunk_begin, item.chunk_end, item.length];
            let slots = [item.slot, item.first_slot, item.pieces];
            [&[item.row, item.head][..], &range, &slots].concat()
        });
        let mut words: Vec<u32> = items.collect();
        let workers_at = words.len();
        words.extend(fast.plan.workers());
        // A mode's workers may be fewer than the kernel reads ahead.
        words.resize(workers_at + fast.limits.workers(), fast.plan.items().len() as u32);
        let tables_at = words.len();
        let pages_of = |length: u32| (length as usize).div_ceil(fast.heads.kv.page_tokens);
        let table_stride = lengths.iter().map(|&length| pages_of(length)).max().unwrap_or(0);
        for (segment, &length) in segments.iter().zip(&lengths) {
            let end = words.len() + table_stride;
            words.extend(&batch.host.pages[segment.table..][..pages_of(length)]);
            words.resize(end, 0);
        }
        let memory = fast.device.upload(&words)?;
        Ok(Self { memory, workers_at, tables_at, table_stride })
    }
}

/// A batch's work items for prefill, uploaded: segments, then tiles, longest first.
pub(super) struct PrefillWork {
    memory: DeviceMemory,
    tiles_at: usize,
    tiles: usize,
}

impl PrefillWork {
    fn new(device: &Device, batch: &CudaBatch) -> Result<Self, OpError> {
        let segments = &batch.host.segments;
        let mut words: Vec<u32> = segments
            .iter()
            .flat_map(|s| [s.first, s.len, s.start, s.table].map(|n| n as u32))
            .collect();
        let tiles_at = words.len();
        let mut tiles: Vec<_> = segments
            .iter()
            .enumerate()
            .flat_map(|(index, s)| {
                let end = move |tile: usize| s.start + s.len.min((tile + 1) * QUERY_TILE);
                (0..s.len.div_ceil(QUERY_TILE)).map(move |tile| (end(tile), index, tile))
            })
            .collect();
        tiles.sort_by_key(|&(end, ..)| std::cmp::Reverse(end));
        words.extend(tiles.iter().flat_map(|&(_, index, tile)| [index as u32, tile as u32]));
        Ok(Self { memory: device.upload(&words)?, tiles_at, tiles: tiles.len() })
    }
}

/// What the first layer of a step made, or makes now.
fn made<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T, OpError>) -> Result<&T, OpError> {
    match cell.get() {
        Some(value) => Ok(value),
        None => make().map(|value| cell.get_or_init(|| value)),
    }
}

/// # Panics
/// If tables do not cover the batch's tokens, name foreign pages, or tensors are too small.
pub(super) fn check(batch: &CudaBatch, pages: &CudaPages, tensors: [&CudaTensor; 2]) {
    batch.check(pages.shape());
    pages.check(&batch.host.pages);
    let tokens = batch.host.tokens.len();
    assert!(tensors.iter().all(|tensor| tensor.rows() >= tokens), "{tokens} tokens");
}
