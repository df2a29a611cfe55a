//! The op trait and its arguments.
//!
//! All tensors are row-major `[rows][width]`; a row is a token of the step. Matrices are
//! `[out][in]` as checkpoints store them, so `linear` is `y = x·Wᵀ`.

use half::bf16;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// A device that could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// An allocation failed.
    #[error("memory: {bytes} bytes could not be allocated; lower the pool or take a smaller model")]
    Memory {
        /// What was asked for.
        bytes: usize,
    },
    /// The device reported an error; the backend is unusable.
    #[error("device: {0}")]
    Device(String),
}

/// Elements of a weight matrix in host memory.
#[derive(Clone, Debug)]
pub enum Weights {
    /// Single precision.
    F32(Vec<f32>),
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// Quantised, in groups of inputs.
    Blocks(Blocks),
}

/// A quantised weight matrix: element `i` is `scales[g] * values[i] + mins[g]`, where `g` is
/// `i / group`.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// Neighbouring inputs that share a scale and a minimum: a multiple of 8 that divides a row.
    pub group: usize,
    /// One a group.
    pub scales: Vec<f32>,
    /// One a group.
    pub mins: Vec<f32>,
    /// One an element. The CPU backend keeps them in 4 bits if all are in `0..=15`.
    pub values: Vec<i8>,
}

impl Blocks {
    /// All elements; product and sum are each rounded.
    pub fn widened(&self) -> impl Iterator<Item = f32> + '_ {
        let groups = self.values.chunks_exact(self.group).zip(self.scales.iter().zip(&self.mins));
        groups.flat_map(|(values, (scale, min))| {
            values.iter().map(move |&value| scale * f32::from(value) + min)
        })
    }
}

/// A weight matrix in host memory, `[rows][cols]`.
#[derive(Clone, Debug)]
pub struct HostMatrix {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// `rows * cols` elements.
    pub weights: Weights,
}

/// Fills in the elements of a piece.
pub type ReadPiece<'a, E> = dyn Fn(usize, &mut [bf16]) -> Result<(), E> + Sync + 'a;

/// A bf16 matrix that is read piece by piece, on several threads.
pub struct Pieces<'a, E> {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Elements of the pieces, which follow each other and are the whole matrix.
    pub lens: &'a [usize],
    /// Threads that read.
    pub threads: usize,
    /// Reads one.
    pub read: &'a ReadPiece<'a, E>,
}

impl<E: Send> Pieces<'_, E> {
    /// Hands all of `work` out to the threads; the first error ends it. A thread keeps what `begin`
    /// made for it.
    pub fn share<W: Send, T>(
        &self,
        work: impl Iterator<Item = W> + Send,
        begin: impl Fn() -> Result<T, E> + Sync,
        each: impl Fn(&mut T, W) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        share(self.threads.min(self.lens.len()), work, begin, each)
    }
}

/// Hands all of `work` out to `threads` threads; the first error ends it. A thread keeps what
/// `begin` made for it.
///
/// # Errors
/// The first of `begin` or `each`.
pub fn share<W: Send, T, E: Send>(
    threads: usize,
    work: impl Iterator<Item = W> + Send,
    begin: impl Fn() -> Result<T, E> + Sync,
    each: impl Fn(&mut T, W) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let work = Mutex::new(work);
    let next = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        let mut own = begin()?;
        while let Some(item) = next() {
            each(&mut own, item)?;
        }
        Ok(())
    };
    if threads <= 1 {
        return run();
    }
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().try_for_each(join)
    })
}

/// One sequence's share of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of its first new token in [`HostBatch::tokens`].
    pub first: usize,
    /// New tokens, at least one.
    pub len: usize,
    /// Tokens already in its pages; also the position of its first new token.
    pub start: usize,
    /// Index of its page table in [`HostBatch::pages`]; it covers `start + len` tokens.
    pub table: usize,
}

/// A ragged batch: prompt chunks and decode rows mixed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostBatch {
    /// New tokens of all segments, in order.
    pub tokens: Vec<u32>,
    /// The segments; they tile `tokens`.
    pub segments: Vec<Segment>,
    /// Page tables, one after another.
    pub pages: Vec<u32>,
    /// Indices into `tokens` of those whose logits are wanted, ascending.
    pub sampled: Vec<u32>,
}

/// Shape of the paged cache: page `[layer][K|V][kv_head][token][head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer layers.
    pub layers: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
}

impl KvShape {
    /// Elements of one layer (keys and values) of a page.
    pub const fn layer_len(&self) -> usize {
        2 * self.kv_heads * self.page_tokens * self.head_dim
    }
    /// Offset within a layer of a page, in elements, of `[token][head_dim]` of one key head; the
    /// value head of the same index lies `layer_len() / 2` further.
    pub const fn head_at(&self, head: usize) -> usize {
        head * self.page_tokens * self.head_dim
    }
}

/// `out[t] = table[tokens[t]]`.
pub struct Embed<'a, O: Ops> {
    /// `[vocab][hidden]`.
    pub table: &'a O::Matrix,
    /// The step's tokens.
    pub batch: &'a O::Batch,
    /// `[tokens][hidden]`.
    pub out: &'a mut O::Tensor,
}

/// `out = x / rms(x) * gain`.
pub struct RmsNorm<'a, O: Ops> {
    /// Rows in use.
    pub rows: usize,
    /// `[rows][width]`.
    pub x: &'a O::Tensor,
    /// `[width]`.
    pub gain: &'a O::Vector,
    /// Added to the mean square.
    pub eps: f32,
    /// The normed rows.
    pub out: &'a mut O::Tensor,
}

/// `out = x·Wᵀ + bias`, or `out += …`.
pub struct Linear<'a, O: Ops> {
    /// Rows in use.
    pub rows: usize,
    /// `[rows][in]`.
    pub x: &'a O::Tensor,
    /// `[out][in]`.
    pub weight: &'a O::Matrix,
    /// `[out]`.
    pub bias: Option<&'a O::Vector>,
    /// Whether `out` is added to and not replaced: the residual stream.
    pub add: bool,
    /// `[rows][out]`.
    pub out: &'a mut O::Tensor,
}

/// `out = norm(x)·Wᵀ + bias`, with [`RmsNorm`]'s norm.
pub struct NormLinear<'a, O: Ops> {
    /// Rows in use.
    pub rows: usize,
    /// `[rows][in]`.
    pub x: &'a O::Tensor,
    /// `[in]`, of the norm.
    pub gain: &'a O::Vector,
    /// Added to the mean square.
    pub eps: f32,
    /// Room for the normed rows, `[rows][in]`; undefined afterwards.
    pub normed: &'a mut O::Tensor,
    /// `[out][in]`.
    pub weight: &'a O::Matrix,
    /// `[out]`.
    pub bias: Option<&'a O::Vector>,
    /// `[rows][out]`.
    pub out: &'a mut O::Tensor,
}

/// `out = silu(gate) * up` where `(gate, up) = norm(x)·Wᵀ`.
pub struct NormGated<'a, O: Ops> {
    /// Rows in use.
    pub rows: usize,
    /// `[rows][in]`.
    pub x: &'a O::Tensor,
    /// `[in]`, of the norm.
    pub gain: &'a O::Vector,
    /// Added to the mean square.
    pub eps: f32,
    /// Room for the normed rows, `[rows][in]`; undefined afterwards.
    pub normed: &'a mut O::Tensor,
    /// `[2 * out][in]`: gates, then ups.
    pub weight: &'a O::Matrix,
    /// Room for gates and ups, `[rows][2 * out]`; undefined afterwards.
    pub gate_up: &'a mut O::Tensor,
    /// `[rows][out]`.
    pub out: &'a mut O::Tensor,
}

/// Norms of single query and key heads (Qwen3), before the rotation.
pub struct HeadNorm<'a, O: Ops> {
    /// `[head_dim]`, for queries.
    pub q: &'a O::Vector,
    /// `[head_dim]`, for keys.
    pub k: &'a O::Vector,
    /// Added to the mean square.
    pub eps: f32,
}

/// Head norm (if any), rotation, and the write of keys and values to the pages.
///
/// The rotation pairs element `i` with `i + head_dim / 2` (the "half" form). Queries stay in `qkv`;
/// its keys and values need not survive.
pub struct RopeWrite<'a, O: Ops> {
    /// `[tokens][(heads + 2 * kv_heads) * head_dim]`: queries, keys, values.
    pub qkv: &'a mut O::Tensor,
    /// Query heads.
    pub heads: usize,
    /// Head norms.
    pub norm: Option<HeadNorm<'a, O>>,
    /// `[position][head_dim]`: cosines of the `head_dim / 2` angles, then sines.
    pub rope: &'a O::Vector,
    /// Segments and page tables.
    pub batch: &'a O::Batch,
    /// Layer whose part of the pages is written.
    pub layer: usize,
    /// The cache.
    pub pages: &'a O::Pages,
}

/// Causal attention of the new tokens over everything of their sequence that is in the pages.
pub struct Attention<'a, O: Ops> {
    /// As [`RopeWrite`] left it; only the queries are read.
    pub qkv: &'a O::Tensor,
    /// Query heads; head `h` reads key head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// Segments and page tables.
    pub batch: &'a O::Batch,
    /// Layer of the pages.
    pub layer: usize,
    /// The cache.
    pub pages: &'a O::Pages,
    /// `[tokens][heads * head_dim]`.
    pub out: &'a mut O::Tensor,
}

/// `out = silu(gate) * up`.
pub struct SiluMul<'a, O: Ops> {
    /// Rows in use.
    pub rows: usize,
    /// `[rows][2 * width]`: gate, then up.
    pub gate_up: &'a O::Tensor,
    /// `[rows][width]`.
    pub out: &'a mut O::Tensor,
}

/// `out[i] = x[sampled[i]]`.
pub struct Gather<'a, O: Ops> {
    /// `[tokens][width]`.
    pub x: &'a O::Tensor,
    /// Names the sampled tokens.
    pub batch: &'a O::Batch,
    /// `[sampled][width]`.
    pub out: &'a mut O::Tensor,
}

/// A backend. One thread owns it; calls may return before the work is done, and are done in order.
///
/// # Errors
/// Every method: [`OpError`] if memory is short (allocating ones) or the device failed.
#[expect(clippy::missing_errors_doc, reason = "said once, on the trait")]
pub trait Ops: Sized {
    /// A weight matrix, in whatever order the backend likes.
    type Matrix;
    /// A vector of f32: gains, biases, tables.
    type Vector;
    /// Activations.
    type Tensor;
    /// A step's batch.
    type Batch;
    /// The paged cache; shared, since transports read and write it beside the ops.
    type Pages;

    /// Uploads a matrix.
    fn matrix(&self, host: HostMatrix) -> Result<Self::Matrix, OpError>;
    /// Reads a matrix and uploads it.
    fn matrix_of<E: From<OpError> + Send>(
        &self,
        pieces: &Pieces<'_, E>,
    ) -> Result<Self::Matrix, E> {
        let &Pieces { rows, cols, lens, read, .. } = pieces;
        let mut weights = vec![bf16::ZERO; rows * cols];
        let mut rest = &mut weights[..];
        let work = lens.iter().map(|&len| rest.split_off_mut(..len).unwrap_or_default());
        let work = work.enumerate().collect::<Vec<_>>().into_iter();
        pieces.share(work, || Ok(()), |(), (piece, out)| read(piece, out))?;
        Ok(self.matrix(HostMatrix { rows, cols, weights: Weights::Bf16(weights) })?)
    }
    /// Uploads a vector.
    fn vector(&self, host: Vec<f32>) -> Result<Self::Vector, OpError>;
    /// Allocates activations; their contents are undefined.
    fn tensor(&self, rows: usize, width: usize) -> Result<Self::Tensor, OpError>;
    /// Allocates what logits go to, by [`Ops::linear`] without a bias: in f32, since two tokens
    /// that are a bf16 step apart are not alike.
    fn logits(&self, rows: usize, vocab: usize) -> Result<Self::Tensor, OpError> {
        self.tensor(rows, vocab)
    }
    /// Uploads a batch.
    fn batch(&self, host: HostBatch) -> Result<Self::Batch, OpError>;
    /// Waits for all work before it, then copies the first `rows` rows to `into`.
    fn download(
        &self,
        tensor: &Self::Tensor,
        rows: usize,
        into: &mut Vec<f32>,
    ) -> Result<(), OpError>;

    /// See [`Embed`].
    fn embed(&self, args: Embed<'_, Self>) -> Result<(), OpError>;
    /// See [`RmsNorm`].
    fn rms_norm(&self, args: RmsNorm<'_, Self>) -> Result<(), OpError>;
    /// See [`Linear`].
    fn linear(&self, args: Linear<'_, Self>) -> Result<(), OpError>;
    /// See [`RopeWrite`].
    fn rope_write(&self, args: RopeWrite<'_, Self>) -> Result<(), OpError>;
    /// See [`Attention`].
    fn attention(&self, args: Attention<'_, Self>) -> Result<(), OpError>;
    /// See [`SiluMul`].
    fn silu_mul(&self, args: SiluMul<'_, Self>) -> Result<(), OpError>;
    /// See [`Gather`].
    fn gather(&self, args: Gather<'_, Self>) -> Result<(), OpError>;

    /// See [`NormLinear`]; a backend may do it in one pass over the weights.
    fn norm_linear(&self, args: NormLinear<'_, Self>) -> Result<(), OpError> {
        let NormLinear { rows, x, gain, eps, normed, weight, bias, out } = args;
        self.rms_norm(RmsNorm { rows, x, gain, eps, out: normed })?;
        self.linear(Linear { rows, x: normed, weight, bias, add: false, out })
    }

    /// See [`NormGated`]; a backend may do it in one pass over the weights.
    fn norm_gated(&self, args: NormGated<'_, Self>) -> Result<(), OpError> {
        let NormGated { rows, x, gain, eps, normed, weight, gate_up, out } = args;
        self.norm_linear(NormLinear {
            rows,
            x,
            gain,
            eps,
            normed,
            weight,
            bias: None,
            out: gate_up,
        })?;
        self.silu_mul(SiluMul { rows, gate_up, out })
    }
}
