//! [`Cuda`]: the op trait over the kernels of this folder.
#![expect(unsafe_code, reason = "kernel launches")]

use super::attention::{AttentionKernels, check};
use super::batch::CudaBatch;
use super::device::{Device, DeviceMemory};
use super::linear::{Operands, Product, Products};
use super::module::{Arg, Kernel, Shape};
use super::pages::CudaPages;
use crate::ops::{
    Attention, Embed, Gather, HostBatch, HostMatrix, Linear, OpError, Ops, RmsNorm, RopeWrite,
    SiluMul, Weights,
};
use half::bf16;

/// Threads of a block where one element a thread is enough.
const THREADS: usize = 256;

/// The CUDA backend.
pub struct Cuda {
    device: Device,
    products: Products,
    attention: AttentionKernels,
    rows: Kernel,
    norm: Kernel,
    rope: Kernel,
    silu: Kernel,
    bias: Kernel,
}

/// A weight matrix, bf16, row-major.
pub struct CudaMatrix {
    memory: DeviceMemory,
    rows: usize,
    cols: usize,
}

impl CudaMatrix {
    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }
}

/// A vector of f32.
pub struct CudaVector(DeviceMemory);

impl CudaVector {
    fn len(&self) -> usize {
        self.0.len() / size_of::<f32>()
    }
}

/// Activations, bf16, or logits, f32.
pub struct CudaTensor {
    memory: DeviceMemory,
    rows: usize,
    width: usize,
    wide: bool,
}

impl CudaTensor {
    /// # Panics
    /// If they are logits, which only products write and only the host reads.
    pub(super) fn address(&self) -> u64 {
        assert!(!self.wide, "logits are no activations");
        self.memory.address()
    }
    /// Fills it with NaN.
    #[cfg(test)]
    pub(super) fn poison(&self) {
        self.memory.write(0, &vec![0xff_u8; self.memory.len()]).expect("a write");
    }
    pub(super) fn rows(&self) -> usize {
        self.rows
    }
    pub(super) fn width(&self) -> usize {
        self.width
    }
}

impl Cuda {
    /// Compiles and loads the kernels for a device.
    ///
    /// # Errors
    /// [`OpError::Device`] naming the library that is missing or what the compiler said.
    pub fn new(device: &Device) -> Result<Self, OpError> {
        Ok(Self {
            products: Products::new(device)?,
            attention: AttentionKernels::load(device)?,
            rows: Kernel::load(device, "rows", "rows")?,
            norm: Kernel::load(device, "norm", "rms_norm")?,
            rope: Kernel::load(device, "rope", "rope_write")?,
            silu: Kernel::load(device, "silu", "silu_mul")?,
            bias: Kernel::load(device, "bias", "add_bias")?,
            device: device.clone(),
        })
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn copy_rows(&self, table: u64, index: (u64, usize), out: &CudaTensor) -> Result<(), OpError> {
        let (index, count) = index;
        assert!(count <= out.rows, "{count} rows into {}", out.rows);
        let shape = Shape { grid: (count, 1), threads: THREADS, shared: 0 };
        let arguments = [
            Arg::Wide(table),
            Arg::Wide(index),
            Arg::Wide(out.address()),
            Arg::Count(out.width as u32),
        ];
        // SAFETY: the kernel's arguments in order; `index` has `count` entries, each a row of the
        // table by the batch's check and the engine's; `out` has the rows.
        unsafe { self.rows.launch(shape, &arguments) }
    }
}

/// Whole warps for `width` elements, at most [`THREADS`].
fn threads_for(width: usize) -> usize {
    width.next_multiple_of(32).min(THREADS)
}

fn address_or_null(vector: Option<u64>) -> Arg<'static> {
    Arg::Wide(vector.unwrap_or(0))
}

impl Ops for Cuda {
    type Matrix = CudaMatrix;
    type Vector = CudaVector;
    type Tensor = CudaTensor;
    type Batch = CudaBatch;
    type Pages = CudaPages;

    fn matrix(&self, host: HostMatrix) -> Result<CudaMatrix, OpError> {
        let HostMatrix { rows, cols, weights } = host;
        let memory = match weights {
            Weights::Bf16(weights) => self.device.upload(&weights),
            Weights::F32(weights) => {
                self.device.upload(&weights.into_iter().map(bf16::from_f32).collect::<Vec<_>>())
            }
        }?;
        assert_eq!(memory.len(), rows * cols * size_of::<bf16>(), "{rows} × {cols}");
        Ok(CudaMatrix { memory, rows, cols })
    }

    fn vector(&self, host: Vec<f32>) -> Result<CudaVector, OpError> {
        Ok(CudaVector(self.device.upload(&host)?))
    }

    fn tensor(&self, rows: usize, width: usize) -> Result<CudaTensor, OpError> {
        let memory = self.device.allocate(rows * width * size_of::<bf16>())?;
        Ok(CudaTensor { memory, rows, width, wide: false })
    }

    fn logits(&self, rows: usize, vocab: usize) -> Result<CudaTensor, OpError> {
        let memory = self.device.allocate(rows * vocab * size_of::<f32>())?;
        Ok(CudaTensor { memory, rows, width: vocab, wide: true })
    }

    fn batch(&self, host: HostBatch) -> Result<CudaBatch, OpError> {
        CudaBatch::new(&self.device, host)
    }

    fn download(
        &self,
        tensor: &CudaTensor,
        rows: usize,
        into: &mut Vec<f32>,
    ) -> Result<(), OpError> {
        if tensor.wide {
            into.resize(rows * tensor.width, 0.0);
            return tensor.memory.read(0, into);
        }
        let mut halves = vec![bf16::ZERO; rows * tensor.width];
        tensor.memory.read(0, &mut halves)?;
        into.clear();
        into.extend(halves.into_iter().map(bf16::to_f32));
        Ok(())
    }

    fn embed(&self, args: Embed<'_, Self>) -> Result<(), OpError> {
        let Embed { table, batch, out } = args;
        assert_eq!(table.cols, out.width, "embed");
        let outside = batch.host.tokens.iter().find(|&&token| token as usize >= table.rows);
        assert!(outside.is_none(), "token {outside:?} of {}", table.rows);
        self.copy_rows(table.memory.address(), (batch.tokens(), batch.host.tokens.len()), out)
    }

    fn rms_norm(&self, args: RmsNorm<'_, Self>) -> Result<(), OpError> {
        let RmsNorm { rows, x, delta, gain, eps, out } = args;
        let width = x.width;
        assert_eq!((gain.len(), out.width), (width, width), "rms_norm");
        assert!(rows <= x.rows && rows <= out.rows, "rms_norm of {rows} rows");
        assert!(delta.is_none_or(|d| d.width == width && rows <= d.rows), "rms_norm");
        let shape = Shape { grid: (rows, 1), threads: threads_for(width), shared: 0 };
        let arguments = [
            Arg::Wide(x.address()),
            address_or_null(delta.map(CudaTensor::address)),
            Arg::Wide(gain.0.address()),
            Arg::Wide(out.address()),
            Arg::Count(width as u32),
            Arg::Number(eps),
        ];
        // SAFETY: the kernel's arguments in order; all rows exist, as checked above.
        unsafe { self.norm.launch(shape, &arguments) }
    }

    fn linear(&self, args: Linear<'_, Self>) -> Result<(), OpError> {
        let Linear { rows, x, weight, bias, out } = args;
        assert_eq!((x.width, out.width), (weight.cols, weight.rows), "linear");
        assert!(rows <= x.rows && rows <= out.rows, "linear of {rows} rows");
        let wide = out.wide;
        let product = Product { rows, outputs: weight.rows, inputs: weight.cols, wide };
        let (weight, out_at) = (weight.memory.address(), out.memory.address());
        let operands = Operands { x: x.address(), weight, out: out_at };
        // SAFETY: shapes were checked above.
        unsafe { self.products.run(product, operands) }?;
        let Some(bias) = bias else { return Ok(()) };
        assert_eq!(bias.len(), out.width, "linear's bias");
        let shape =
            Shape { grid: (out.width.div_ceil(THREADS), rows), threads: THREADS, shared: 0 };
        let arguments =
            [Arg::Wide(out.address()), Arg::Wide(bias.0.address()), Arg::Count(out.width as u32)];
        // SAFETY: as above.
        unsafe { self.bias.launch(shape, &arguments) }
    }

    fn rope_write(&self, args: RopeWrite<'_, Self>) -> Result<(), OpError> {
        let RopeWrite { qkv, heads, norm, rope, batch, layer, pages } = args;
        let kv = *pages.shape();
        let all_heads = heads + 2 * kv.kv_heads;
        assert_eq!(qkv.width, all_heads * kv.head_dim, "rope_write");
        check(batch, pages, [qkv, qkv]);
        let end = batch.host.segments.iter().map(|segment| segment.start + segment.len).max();
        assert!(end.unwrap_or(0) * kv.head_dim <= rope.len(), "positions of the rope table");
        let gain = |vector: &CudaVector| {
            assert_eq!(vector.len(), kv.head_dim, "head norm");
            vector.0.address()
        };
        let arguments = [
            Arg::Wide(qkv.address()),
            Arg::Wide(batch.positions()),
            Arg::Wide(batch.table_at()),
            Arg::Wide(batch.tables()),
            Arg::Wide(rope.0.address()),
            address_or_null(norm.as_ref().map(|norm| gain(norm.q))),
            address_or_null(norm.as_ref().map(|norm| gain(norm.k))),
            Arg::Number(norm.as_ref().map_or(0.0, |norm| norm.eps)),
            Arg::Wide(pages.address()),
            Arg::Wide(pages.page_stride()),
            Arg::Wide(pages.layer_at(layer)),
            Arg::Count(heads as u32),
            Arg::Count(kv.kv_heads as u32),
            Arg::Count(kv.page_tokens as u32),
            Arg::Count(kv.head_dim as u32),
        ];
        let tokens = batch.host.tokens.len();
        let shape =
            Shape { grid: (tokens, all_heads), threads: threads_for(kv.head_dim), shared: 0 };
        // SAFETY: the kernel's arguments in order; `check` covers tables, pages and rows.
        unsafe { self.rope.launch(shape, &arguments) }
    }

    fn attention(&self, args: Attention<'_, Self>) -> Result<(), OpError> {
        self.attention.run(&args)
    }

    fn silu_mul(&self, args: SiluMul<'_, Self>) -> Result<(), OpError> {
        let SiluMul { rows, gate_up, out } = args;
        assert_eq!(gate_up.width, 2 * out.width, "silu_mul");
        assert!(rows <= gate_up.rows && rows <= out.rows, "silu_mul of {rows} rows");
        let shape =
            Shape { grid: (out.width.div_ceil(THREADS), rows), threads: THREADS, shared: 0 };
        let arguments =
            [Arg::Wide(gate_up.address()), Arg::Wide(out.address()), Arg::Count(out.width as u32)];
        // SAFETY: the kernel's arguments in order; all rows exist, as checked above.
        unsafe { self.silu.launch(shape, &arguments) }
    }

    fn gather(&self, args: Gather<'_, Self>) -> Result<(), OpError> {
        let Gather { x, batch, out } = args;
        assert_eq!(x.width, out.width, "gather");
        assert!(batch.host.tokens.len() <= x.rows, "gather");
        self.copy_rows(x.address(), (batch.sampled(), batch.host.sampled.len()), out)
    }
}
