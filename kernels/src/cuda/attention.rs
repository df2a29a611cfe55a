//! Attention over pages: a kernel for steps of single tokens, one for chunks of prompts (on Hopper
//! by its own instructions), both for the head sizes of real models, and one for any shape.
#![expect(unsafe_code, reason = "kernel launches")]

use super::backend::{Cuda, CudaTensor};
use super::batch::{CudaBatch, QUERY_TILE, Work, check_tables};
use super::compile::Arch;
use super::device::{Device, DeviceMemory};
use super::heads::Heads;
use super::module::{Arg, Entry, Kernel, Shape, TensorMap, joined};
use super::pages::CudaPages;
use super::plan::{Limits, shared_bytes, stages};
use crate::ops::{Attention, KvShape, OpError};
use std::f32::consts::LOG2_E;
use std::thread;

/// Longest head of `cuda/attention.cu`.
const DIM_MAX: usize = 256;
/// Threads of a block of the two fast kernels.
const FAST_THREADS: usize = 256;
/// Threads of a block of `cuda/prefill_wgmma.cuh`.
const WGMMA_THREADS: usize = 384;

/// The kernels for a model's shape.
pub(super) struct AttentionKernels {
    heads: Heads,
    any: Kernel,
    fast: Option<(Decode, Prefill)>,
}

impl AttentionKernels {
    /// `limits` bound the plans that decode attention will be given.
    pub fn load(device: &Device, heads: Heads, limits: Limits) -> Result<Self, OpError> {
        let entry = Entry { overlaps: false, ..Entry::plain("attention", "attention") };
        let any = Kernel::load(device, entry)?;
        let load = || {
            thread::scope(|scope| {
                let decode = scope.spawn(|| Decode::load(device, heads, limits));
                let prefill = Prefill::load(device, heads);
                Ok::<_, OpError>((joined(decode)?, prefill?))
            })
        };
        let fast = heads.are_fast().then(load).transpose()?;
        Ok(Self { heads, any, fast })
    }

    pub fn run(&self, args: &Attention<'_, Cuda>) -> Result<(), OpError> {
        let Heads { kv, heads } = self.heads;
        assert_eq!((args.pages.shape(), args.heads), (&kv, heads), "attention's shape");
        assert_eq!(args.out.width(), heads * kv.head_dim, "attention");
        assert_eq!(args.qkv.width(), (heads + 2 * kv.kv_heads) * kv.head_dim, "attention");
        check(args.batch, args.pages, [args.qkv, args.out]);
        match (args.batch.work, &self.fast) {
            (Work::Decode, Some((decode, _))) => decode.run(args),
            (Work::Prefill { tiles }, Some((_, prefill))) => prefill.run(args, tiles),
            _ => self.run_any(args),
        }
    }

    fn run_any(&self, args: &Attention<'_, Cuda>) -> Result<(), OpError> {
        let &Attention { qkv, heads, scale, batch, layer, pages, ref out } = args;
        let kv = self.heads.kv;
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
            Arg::Count(heads as u32),
            Arg::Count(kv.kv_heads as u32),
            Arg::Count(kv.page_tokens as u32),
            Arg::Count(kv.head_dim as u32),
        ];
        let shape = Shape::plain((batch.host.tokens.len(), heads), 128);
        // SAFETY: the kernel's arguments in order; tensors have the rows, tables the entries and
        // the pool the pages, as checked above.
        unsafe { self.any.launch(shape, &arguments) }
    }
}

/// Split-KV decode attention, and what it keeps from launch to launch.
struct Decode {
    kernel: Kernel,
    blocks: usize,
    shared: usize,
    partials: DeviceMemory,
    partial_sums: DeviceMemory,
    /// Zero between launches.
    arrived: DeviceMemory,
}

impl Decode {
    fn load(device: &Device, heads: Heads, limits: Limits) -> Result<Self, OpError> {
        let (dim, group) = (heads.kv.head_dim, heads.group());
        let stages = stages(dim, group, device.shared_max()?);
        let stages = stages.ok_or_else(|| {
            let text = format!("decode attention of {group} × {dim}: too little shared memory");
            OpError::Device(text)
        })?;
        let shared = shared_bytes(dim, group, stages);
        let mut definitions = heads.definitions();
        definitions.extend([format!("GROUP={group}"), format!("STAGES={stages}")]);
        let (stem, name, definitions) = ("decode_attention", "decode_attention", &definitions[..]);
        let entry = Entry { stem, name, definitions, shared, overlaps: true };
        Ok(Self {
            kernel: Kernel::load(device, entry)?,
            blocks: limits.blocks as usize,
            shared,
            partials: device.allocate(limits.partials() * group * dim * 4)?,
            partial_sums: device.allocate(limits.partials() * group * 8)?,
            arrived: device.upload(&vec![0_u32; limits.arrived()])?,
        })
    }

    fn run(&self, args: &Attention<'_, Cuda>) -> Result<(), OpError> {
        let &Attention { qkv, scale, batch, layer, pages, ref out, .. } = args;
        let kv = pages.shape();
        let arguments = [
            Arg::Wide(pages.address()),
            Arg::Wide(qkv.address()),
            Arg::Wide(out.address()),
            Arg::Wide(batch.tables()),
            Arg::Wide(batch.workers()),
            Arg::Wide(batch.items()),
            Arg::Wide(self.partials.address()),
            Arg::Wide(self.partial_sums.address()),
            Arg::Wide(self.arrived.address()),
            Arg::Count(kv.kv_heads as u32),
            Arg::Count(layer as u32),
            Arg::Count(kv.layers as u32),
            Arg::Number(scale * LOG2_E),
        ];
        let grid = (self.blocks, 1);
        let shape = Shape { grid, threads: FAST_THREADS, shared: self.shared, cluster: 1 };
        // SAFETY: the kernel's arguments in order; the plan is of this batch and this grid; buffers
        // are of the plan's limits; tensors, tables and pages were checked by the caller.
        unsafe { self.kernel.launch(shape, &arguments) }
    }
}

/// Attention of chunks of prompts.
struct Prefill {
    kernel: Kernel,
    shared: usize,
    /// Where the device has it.
    wgmma: Option<Wgmma>,
}

impl Prefill {
    fn load(device: &Device, heads: Heads) -> Result<Self, OpError> {
        let definitions = &heads.definitions()[..];
        let shared = 512 * heads.kv.head_dim;
        let (stem, name) = ("prefill_attention", "prefill_attention");
        let entry = Entry { stem, name, definitions, shared, overlaps: false };
        let kernel = Kernel::load(device, entry)?;
        let wgmma = match device.arch() {
            Arch::Sm90a => Some(Wgmma::load(device, &heads, definitions)?),
            Arch::Sm80 | Arch::Sm100a => None,
        };
        Ok(Self { kernel, shared, wgmma })
    }

    fn run(&self, args: &Attention<'_, Cuda>, tiles: usize) -> Result<(), OpError> {
        if let Some(wgmma) = &self.wgmma {
            return wgmma.run(args, tiles);
        }
        let &Attention { qkv, heads, scale, batch, layer, pages, ref out } = args;
        let kv = pages.shape();
        let arguments = [
            Arg::Wide(qkv.address()),
            Arg::Wide(pages.address()),
            Arg::Wide(batch.tables()),
            Arg::Wide(batch.segments()),
            Arg::Wide(batch.tiles()),
            Arg::Wide(out.address()),
            Arg::Count(tiles as u32),
            Arg::Count(heads as u32),
            Arg::Count(kv.kv_heads as u32),
            Arg::Count(layer as u32),
            Arg::Count(kv.layers as u32),
            Arg::Number(scale),
        ];
        let grid = (tiles * heads, 1);
        let shape = Shape { grid, threads: FAST_THREADS, shared: self.shared, cluster: 1 };
        // SAFETY: the kernel's arguments in order; work items are of this batch; tensors, tables
        // and pages were checked by the caller.
        unsafe { self.kernel.launch(shape, &arguments) }
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
        let (stem, name) = ("prefill_attention", "prefill_attention_wgmma");
        let entry = Entry { stem, name, definitions, shared, overlaps: false };
        let kernel = Kernel::load(device, entry)?;
        let blocks = device.multiprocessors()? as usize;
        Ok(Self { kernel, blocks, shared, next: device.upload(&[0_u32])? })
    }

    fn run(&self, args: &Attention<'_, Cuda>, tiles: usize) -> Result<(), OpError> {
        let &Attention { qkv, heads, scale, batch, layer, pages, ref out } = args;
        let kv: &KvShape = pages.shape();
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
        let arguments = [
            Arg::Map(&query_map),
            Arg::Map(&pool_map),
            Arg::Wide(batch.tables()),
            Arg::Wide(batch.segments()),
            Arg::Wide(batch.tiles()),
            Arg::Wide(out.address()),
            Arg::Wide(self.next.address()),
            Arg::Count(tiles as u32),
            Arg::Count(heads as u32),
            Arg::Count(kv.kv_heads as u32),
            Arg::Count(layer as u32),
            Arg::Count(kv.layers as u32),
            Arg::Number(scale),
        ];
        let grid = (self.blocks.min(tiles * heads), 1);
        let shape = Shape { grid, threads: WGMMA_THREADS, shared: self.shared, cluster: 1 };
        // SAFETY: the kernel's arguments in order; work items are of this batch; launches do not
        // overlap; tensors, tables and pages were checked by the caller.
        unsafe { self.kernel.launch(shape, &arguments) }
    }
}

/// # Panics
/// If tables do not cover the batch's tokens, name foreign pages, or tensors are too small.
pub(super) fn check(batch: &CudaBatch, pages: &CudaPages, tensors: [&CudaTensor; 2]) {
    check_tables(&batch.host, pages.shape().page_tokens);
    pages.check(&batch.host.pages);
    let tokens = batch.host.tokens.len();
    assert!(tensors.iter().all(|tensor| tensor.rows() >= tokens), "{tokens} tokens");
}
