//! [`Cuda`]: the op trait over the kernels of this folder.
#![expect(unsafe_code, reason = "kernel launches")]

use super::attention::{AttentionKernels, check};
use super::batch::{CudaBatch, DRAWN, Frame, ROWS_MAX, Spare, Writer};
use super::device::{Device, DeviceMemory};
use super::graph::Graph;
use super::heads::Heads;
use super::linear::{Operands, Product, Products};
use super::module::{Arg, Entry, Kernel, Shape, joined};
use super::pages::CudaPages;
use super::project::{self, Planned, Projection, Projections};
use super::sample::{Draw, Fetch, Sampler};
use super::stage::Stages;
use crate::ops::{
    Attention, Embed, Gather, HostBatch, HostMatrix, Linear, NormGated, NormLinear, OpError, Ops,
    Pieces, RmsNorm, RopeWrite, SiluMul, Weights,
};
use half::bf16;
use std::cell::RefCell;
use std::thread;

/// Threads of a block of the kernels that take 8 elements a thread.
const THREADS: usize = 256;
/// Elements that one thread of them takes.
const EIGHT: usize = 8;

/// What a backend is made for.
#[derive(Clone, Copy, Debug)]
pub struct CudaShape {
    /// Of its attention.
    pub heads: Heads,
    /// Tokens that can be drawn.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
}

impl CudaShape {
    /// The projections of a layer.
    fn projections(&self) -> [Planned; 4] {
        let Heads { kv, heads } = self.heads;
        let planned = |outputs, inputs, gated, norm| Planned {
            projection: Projection { rows: 0, outputs, inputs, gated },
            norm,
        };
        let (hidden, q) = (self.hidden, heads * kv.head_dim);
        [
            planned(q + 2 * kv.kv_heads * kv.head_dim, hidden, false, true),
            planned(hidden, q, false, false),
            planned(self.intermediate, hidden, true, true),
            planned(hidden, self.intermediate, false, false),
        ]
    }
}

/// The CUDA backend.
pub struct Cuda {
    device: Device,
    products: Products,
    projections: Projections,
    attention: AttentionKernels,
    sampler: Sampler,
    writer: RefCell<Writer>,
    spare: Spare,
    stages: Stages,
    rows: Kernel,
    norm: Kernel,
    rope: Kernel,
    silu: Kernel,
    bias: Kernel,
}

/// A step of decode as it was recorded.
pub struct Recorded {
    graph: Graph,
    rows: usize,
}

impl Recorded {
    /// Most rows that it takes.
    pub fn rows(&self) -> usize {
        self.rows
    }
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
    /// If they are logits, which only products write, and only the sampler and the host read.
    pub(super) fn address(&self) -> u64 {
        assert!(!self.wide, "logits are no activations");
        self.memory.address()
    }
    /// # Panics
    /// If they are activations.
    pub(super) fn logits(&self) -> u64 {
        assert!(self.wide, "activations are no logits");
        self.memory.address()
    }
    /// Fills it with NaN.
    #[cfg(test)]
    pub(super) fn poison(&self) {
        self.memory.write(0, &vec![0xff_u8; self.memory.len()]).expect("a write");
    }
    /// Rows that it has room for.
    pub fn rows(&self) -> usize {
        self.rows
    }
    pub(super) fn width(&self) -> usize {
        self.width
    }
}

impl Cuda {
    /// Compiles (or finds in the cache) and loads the kernels for a device and a model.
    ///
    /// # Errors
    /// [`OpError::Device`] naming the library that is missing or what the compiler said.
    pub fn new(device: &Device, shape: &CudaShape) -> Result<Self, OpError> {
        let writer = Writer::new(shape.heads, device.multiprocessors()?);
        let kernel = |stem, name| Kernel::load(device, Entry::plain(stem, name));
        let (heads, limits) = (shape.heads, writer.limits());
        // The first time kernels are compiled, which takes seconds each.
        let (attention, sampler, projections) = thread::scope(|scope| {
            let attention = scope.spawn(|| AttentionKernels::load(device, heads, limits));
            let sampler = scope.spawn(|| Sampler::load(device, shape.vocab));
            let projections = Projections::load(device, &shape.projections());
            Ok::<_, OpError>((joined(attention)?, joined(sampler)?, projections?))
        })?;
        Ok(Self {
            products: Products::new(device)?,
            projections,
            attention,
            sampler,
            writer: RefCell::new(writer),
            spare: Spare::default(),
            stages: Stages::default(),
            rows: kernel("rows", "rows")?,
            norm: kernel("norm", "rms_norm")?,
            rope: kernel("rope", "rope_write")?,
            silu: kernel("silu", "silu_mul")?,
            bias: kernel("bias", "add_bias")?,
            device: device.clone(),
        })
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// [`Ops::batch`] whose sampled tokens' successors are drawn as `draws` say, one each. A token
    /// may be [`DRAWN`] with a row of the step before.
    ///
    /// # Errors
    /// As [`Ops::batch`].
    pub fn step(&self, host: HostBatch, draws: &[Draw]) -> Result<CudaBatch, OpError> {
        CudaBatch::new(&self.device, &mut self.writer.borrow_mut(), &self.spare, (host, draws))
    }

    /// Draws the successors of the batch's sampled tokens from `logits`.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// If there are more than [`ROWS_MAX`].
    pub fn draw(&self, logits: &CudaTensor, batch: &CudaBatch) -> Result<(), OpError> {
        self.sampler.draw(logits, batch)
    }

    /// Room for results on the host.
    ///
    /// # Errors
    /// [`OpError::Memory`].
    pub fn results(&self) -> Result<Fetch, OpError> {
        Fetch::new(&self.device)
    }

    /// Enqueues the copy of the first `rows` results of the draw before to `into`.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn fetch(&self, rows: usize, into: &mut Fetch) -> Result<(), OpError> {
        self.sampler.fetch(rows, into)
    }

    /// Says that no matrix is uploaded any more: gives back what they were staged in, once the
    /// copies have ended.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn loaded(&self) -> Result<(), OpError> {
        self.device.synchronize()?;
        self.stages.clear();
        Ok(())
    }

    /// Room for the batches of recorded steps, with page tables of `pages` entries in all.
    ///
    /// # Errors
    /// [`OpError::Memory`].
    pub fn frame(&self, pages: usize) -> Result<Frame, OpError> {
        let masks = ROWS_MAX * self.sampler.mask_words();
        Frame::new(&self.device, &self.writer.borrow(), (pages, masks))
    }

    /// Records what `enqueue` does with a batch of `rows` rows in `frame`, each a single token that
    /// is sampled. It is run once before, on padding, so that nothing is left to be loaded.
    ///
    /// All memory that it touches must stay until the recorded step has been replayed for the last
    /// time: weights, pages and activations of whoever replays it.
    ///
    /// # Errors
    /// [`OpError`] from `enqueue`, or if it allocates or waits.
    pub fn record(
        &self,
        frame: &mut Frame,
        rows: usize,
        mut enqueue: impl FnMut(&CudaBatch) -> Result<(), OpError>,
    ) -> Result<Recorded, OpError> {
        let batch = frame.batch(&mut self.writer.borrow_mut(), rows)?;
        enqueue(&batch)?;
        self.device.synchronize()?;
        Ok(Recorded { graph: Graph::record(&self.device, || enqueue(&batch))?, rows })
    }

    /// Enqueues a recorded step for a batch of at most its rows.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// If `host` has more rows, is no batch of single tokens that are all sampled, or a page table
    /// does not cover its row.
    pub fn replay(
        &self,
        (frame, recorded): (&mut Frame, &Recorded),
        (host, draws): (&HostBatch, &[Draw]),
        pages: &CudaPages,
    ) -> Result<(), OpError> {
        super::batch::check_tables(host, pages.shape().page_tokens);
        pages.check(&host.pages);
        frame.fill(&mut self.writer.borrow_mut(), recorded.rows, (host, draws))?;
        // SAFETY: `record`'s contract; the frame was just filled for this step.
        unsafe { recorded.graph.launch() }
    }

    fn copy_rows(&self, table: u64, index: (u64, usize), out: &CudaTensor) -> Result<(), OpError> {
        let (index, count) = index;
        assert!(count <= out.rows, "{count} rows into {}", out.rows);
        let shape = Shape::plain((count, 1), threads_for(out.width));
        let arguments = [
            Arg::Wide(table),
            Arg::Wide(index),
            Arg::Wide(self.sampler.drawn()),
            Arg::Wide(out.address()),
            Arg::Count(out.width as u32),
        ];
        // SAFETY: the kernel's arguments in order; `index` has `count` entries, each a row of the
        // table by the batch's check and the engine's; `out` has the rows.
        unsafe { self.rows.launch(shape, &arguments) }
    }

    /// Of a kernel that takes 8 elements a thread, over rows of `width`.
    fn eights(rows: usize, width: usize) -> Shape {
        Shape::plain((width.div_ceil(EIGHT * THREADS), rows), THREADS)
    }

    /// What a product of equal weights asks of the library; `None` if it does not go there.
    ///
    /// # Panics
    /// If there are no weights, or shapes differ.
    pub(super) fn library_product(
        &self,
        rows: usize,
        weights: &[&CudaMatrix],
        (x, out): (&CudaTensor, &CudaTensor),
    ) -> Option<(&Products, Product)> {
        let (outputs, inputs) = (weights[0].rows, weights[0].cols);
        let equal = weights.iter().all(|weight| (weight.rows, weight.cols) == (outputs, inputs));
        assert!(equal, "weights of one shape");
        let projection = Projection { rows, outputs, inputs, gated: false };
        let ours = !out.wide && Projections::take(&projection);
        (!ours).then(|| (&self.products, product(rows, weights[0], (x, out))))
    }

    /// `norm(x)·Wᵀ + bias` in one kernel, where it takes the shape.
    fn project_normed(
        &self,
        projection: &Projection,
        args: &NormLinear<'_, Self>,
    ) -> Result<(), OpError> {
        let NormLinear { x, gain, eps, weight, bias, out, .. } = args;
        assert!(projection.rows <= x.rows && projection.rows <= out.rows, "{projection:?}");
        assert_eq!((gain.len(), x.width), (weight.cols, weight.cols), "{projection:?}");
        assert!(bias.is_none_or(|bias| bias.len() == projection.outputs), "{projection:?}");
        let operands = project::Operands {
            x: x.address(),
            weight: weight.memory.address(),
            y: out.address(),
            residual: None,
            bias: bias.map(|bias| bias.0.address()),
            norm: Some((gain.0.address(), *eps)),
        };
        // SAFETY: shapes were checked above and by the caller.
        unsafe { self.projections.run(projection, &operands) }
    }
}

/// Whole warps for `width` elements, 16 a thread.
fn threads_for(width: usize) -> usize {
    width.div_ceil(2 * EIGHT).next_multiple_of(32).min(512)
}

/// Blocks a token of `rope_write`, as measured: a block has lanes for so many heads at once, and
/// few tokens have no time for a second round; many are held up by the number of blocks.
fn rope_blocks(tokens: usize, heads: usize, head_dim: usize) -> usize {
    let lanes = head_dim.div_ceil(EIGHT).next_power_of_two();
    if tokens > 256 { 1 } else { (heads * lanes).div_ceil(THREADS) }
}

/// Rows of the products that the library is asked for are multiples of it.
pub const LIBRARY_ROWS: usize = 64;

/// What the library is asked for: many rows are rounded up where the tensors have them, so that
/// there are few shapes to plan. What the rows behind hold is nobody's.
fn product(rows: usize, weight: &CudaMatrix, (x, out): (&CudaTensor, &CudaTensor)) -> Product {
    let more = rows.next_multiple_of(LIBRARY_ROWS);
    let rounds = rows > project::ROWS_MAX && more <= x.rows.min(out.rows);
    let rows = if rounds { more } else { rows };
    Product { rows, outputs: weight.rows, inputs: weight.cols, wide: out.wide }
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
            Weights::Blocks(blocks) => {
                self.device.upload(&blocks.widened().map(bf16::from_f32).collect::<Vec<_>>())
            }
        }?;
        assert_eq!(memory.len(), rows * cols * size_of::<bf16>(), "{rows} × {cols}");
        Ok(CudaMatrix { memory, rows, cols })
    }

    fn matrix_of<E: From<OpError> + Send>(&self, pieces: &Pieces<'_, E>) -> Result<CudaMatrix, E> {
        let &Pieces { rows, cols, lens, read, .. } = pieces;
        let (device, stages) = (&self.device, &self.stages);
        let memory = self.device.allocate(rows * cols * size_of::<bf16>())?;
        let longest = lens.iter().copied().max().unwrap_or(0) * size_of::<bf16>();
        let mut end = 0;
        let work = lens.iter().enumerate().map(|(piece, &len)| {
            end += len;
            (piece, end - len, len)
        });
        assert_eq!(lens.iter().sum::<usize>(), rows * cols, "pieces of {rows} × {cols}");
        pieces.share(
            work,
            || Ok(stages.take(device, longest)?),
            |stage, (piece, at, len)| {
                stage.copy(&memory, at * size_of::<bf16>(), len, |out| read(piece, out))
            },
        )?;
        self.device.synchronize()?;
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
        self.step(host, &[])
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
        let outside = batch.host.tokens.iter().find(|&&token| {
            let drawn = token & DRAWN != 0;
            (token & !DRAWN) as usize >= if drawn { ROWS_MAX } else { table.rows }
        });
        assert!(outside.is_none(), "token {outside:?} of {}", table.rows);
        self.copy_rows(table.memory.address(), (batch.tokens(), batch.host.tokens.len()), out)
    }

    fn rms_norm(&self, args: RmsNorm<'_, Self>) -> Result<(), OpError> {
        let RmsNorm { rows, x, gain, eps, out } = args;
        let width = x.width;
        assert_eq!((gain.len(), out.width), (width, width), "rms_norm");
        assert!(rows <= x.rows && rows <= out.rows, "rms_norm of {rows} rows");
        let shape = Shape::plain((rows, 1), threads_for(width));
        let arguments = [
            Arg::Wide(x.address()),
            Arg::Wide(gain.0.address()),
            Arg::Wide(out.address()),
            Arg::Count(width as u32),
            Arg::Number(eps),
        ];
        // SAFETY: the kernel's arguments in order; all rows exist, as checked above.
        unsafe { self.norm.launch(shape, &arguments) }
    }

    fn linear(&self, args: Linear<'_, Self>) -> Result<(), OpError> {
        let Linear { rows, x, weight, bias, add, out } = args;
        assert_eq!((x.width, out.width), (weight.cols, weight.rows), "linear");
        assert!(rows <= x.rows && rows <= out.rows, "linear of {rows} rows");
        assert!(bias.is_none_or(|bias| bias.len() == out.width), "linear's bias");
        let wide = out.wide;
        let projection =
            Projection { rows, outputs: weight.rows, inputs: weight.cols, gated: false };
        let (weight_at, y) = (weight.memory.address(), out.memory.address());
        let bias = bias.map(|bias| bias.0.address());
        if !wide && Projections::take(&projection) {
            let residual = add.then_some(y);
            let (x, weight) = (x.address(), weight_at);
            let operands = project::Operands { x, weight, y, residual, bias, norm: None };
            // SAFETY: shapes were checked above.
            return unsafe { self.projections.run(&projection, &operands) };
        }
        let product = product(rows, weight, (x, out));
        let operands = Operands { x: x.address(), weight: weight_at, out: y, add };
        // SAFETY: shapes were checked above.
        unsafe { self.products.run(product, operands) }?;
        let Some(bias) = bias else { return Ok(()) };
        let arguments = [Arg::Wide(out.address()), Arg::Wide(bias), Arg::Count(out.width as u32)];
        // SAFETY: as above.
        unsafe { self.bias.launch(Self::eights(rows, out.width), &arguments) }
    }

    fn norm_linear(&self, args: NormLinear<'_, Self>) -> Result<(), OpError> {
        let (rows, weight) = (args.rows, args.weight);
        let projection =
            Projection { rows, outputs: weight.rows, inputs: weight.cols, gated: false };
        assert_eq!(args.out.width, weight.rows, "norm_linear");
        if !args.out.wide && Projections::take(&projection) {
            return self.project_normed(&projection, &args);
        }
        let NormLinear { rows, x, gain, eps, normed, weight, bias, out } = args;
        self.rms_norm(RmsNorm { rows, x, gain, eps, out: normed })?;
        self.linear(Linear { rows, x: normed, weight, bias, add: false, out })
    }

    fn norm_gated(&self, args: NormGated<'_, Self>) -> Result<(), OpError> {
        let NormGated { rows, x, gain, eps, normed, weight, gate_up, out } = args;
        let (outputs, inputs, bias) = (weight.rows / 2, weight.cols, None);
        let projection = Projection { rows, outputs, inputs, gated: true };
        assert_eq!(2 * out.width, weight.rows, "norm_gated");
        if Projections::take(&projection) {
            let args = NormLinear { rows, x, gain, eps, normed, weight, bias, out };
            return self.project_normed(&projection, &args);
        }
        self.rms_norm(RmsNorm { rows, x, gain, eps, out: normed })?;
        self.linear(Linear { rows, x: normed, weight, bias, add: false, out: gate_up })?;
        self.silu_mul(SiluMul { rows, gate_up, out })
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
        let blocks = rope_blocks(tokens, all_heads, kv.head_dim);
        let shape = Shape::plain((tokens, blocks), THREADS);
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
        let shape = Self::eights(rows, out.width);
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
