//! [`Cpu`]: the op trait over the kernels of this folder.

use super::activation::SiluMul as SiluKernel;
use super::arena::Arena;
use super::attention::{Keys, row, tile};
use super::batch::CpuBatch;
use super::element::Element;
use super::linear::{Product, linear};
use super::memory::PageMemory;
use super::norm::Norm;
use super::packed::Packed;
use super::paired::{Paired, tiled};
use super::pool::Pool;
use super::quantised::Quantised;
use super::rope::{Gains, Run};
use super::simd::Level;
use super::simd::tiles::Tiles;
use super::tile::Tile;
use crate::ops::{
    Attention, Embed, Gather, HostBatch, HostMatrix, KvShape, Linear, OpError, Ops, RmsNorm,
    RopeWrite, SiluMul, Weights,
};
use half::bf16;
use std::marker::PhantomData;
use std::sync::Arc;
use std::vec;

/// Elements below which an op is not worth a fork and join.
const SERIAL: usize = 8 << 10;

/// Tokens of a segment up to which attention streams from the pages.
const ROW_TOKENS: usize = 2;

/// The CPU backend.
pub struct Cpu {
    pool: Pool,
    arena: Arena,
    level: Level,
}

/// A weight matrix in panels.
pub enum Matrix {
    /// Single precision.
    F32(Packed<f32>),
    /// bfloat16.
    Bf16(Packed<bf16>),
    /// bfloat16, for tiles.
    Paired(Paired, Tiles),
    /// As a file has it, in 4 or 8 bits.
    Quantised(Quantised),
}

/// Activations: rows of `width` f32.
pub struct Tensor {
    data: Vec<f32>,
    width: usize,
}

/// Element type of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvElement {
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
}

/// The paged cache: each page's layers are the parts of the memory.
pub struct CpuPages {
    memory: Arc<PageMemory>,
    shape: KvShape,
    element: KvElement,
}

impl CpuPages {
    /// Sees `memory` as pages of `shape`.
    ///
    /// # Panics
    /// If its parts are not layers of that shape, or heads are no multiple of 16 elements.
    pub fn new(memory: Arc<PageMemory>, shape: KvShape, element: KvElement) -> Self {
        let size = match element {
            KvElement::F32 => 4,
            KvElement::Bf16 => 2,
        };
        let parts = memory.shape();
        assert_eq!((parts.parts, parts.part_bytes), (shape.layers, shape.layer_len() * size));
        assert!(shape.head_dim.is_multiple_of(16), "head_dim {}", shape.head_dim);
        Self { memory, shape, element }
    }
}

impl Cpu {
    /// A backend on `threads` threads, the caller included.
    pub fn new(threads: usize) -> Self {
        Self::with_level(threads, Level::detect())
    }

    /// A backend that uses no more than `level`.
    pub fn with_level(threads: usize, level: Level) -> Self {
        Self { pool: Pool::new(threads), arena: Arena::default(), level }
    }

    /// Its threads, for work beside the ops: loading, hashing, measuring.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Reads a matrix and does nothing with it but sum it: the floor of [`Ops::linear`].
    pub fn sum(&self, matrix: &Matrix) -> f64 {
        matrix.sum(&self.pool, self.level)
    }

    /// Consecutive items for each thread: those of a row go to the same one in op after op, if it
    /// comes in time, and find in its cache what it has written.
    fn shares<T>(&self, mut items: Vec<T>) -> impl Iterator<Item = vec::IntoIter<T>> {
        let each = items.len().div_ceil(self.pool.threads()).max(1);
        std::iter::from_fn(move || {
            let rest = items.split_off(each.min(items.len()));
            let share = std::mem::replace(&mut items, rest);
            (!share.is_empty()).then(|| share.into_iter())
        })
    }

    /// Rows of an item when `rows` rows of `width` are spread over the threads.
    fn rows_per_item(&self, rows: usize, width: usize) -> usize {
        if rows * width < SERIAL {
            return rows.max(1);
        }
        rows.div_ceil(4 * self.pool.threads()).max(1)
    }
}

impl Tensor {
    fn rows(&self, rows: usize) -> &[f32] {
        &self.data[..rows * self.width]
    }
    fn rows_mut(&mut self, rows: usize) -> &mut [f32] {
        &mut self.data[..rows * self.width]
    }
}

impl Ops for Cpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type Batch = CpuBatch;
    type Pages = CpuPages;

    fn matrix(&self, host: HostMatrix) -> Result<Matrix, OpError> {
        let HostMatrix { rows, cols, weights } = host;
        let at = (&self.pool, &self.arena);
        Ok(match weights {
            Weights::F32(w) => Matrix::F32(Packed::pack(at, (rows, cols), &w)?),
            Weights::Bf16(w) => match self.level.tiles() {
                Some(tiles) => Matrix::Paired(Paired::pack(at, (rows, cols), &w)?, tiles),
                None => Matrix::Bf16(Packed::pack(at, (rows, cols), &w)?),
            },
            Weights::Blocks(w) => Matrix::Quantised(Quantised::pack(at, (rows, cols), &w)?),
        })
    }

    fn vector(&self, host: Vec<f32>) -> Result<Vec<f32>, OpError> {
        Ok(host)
    }

    fn tensor(&self, rows: usize, width: usize) -> Result<Tensor, OpError> {
        Ok(Tensor { data: vec![0.0; rows * width], width })
    }

    fn batch(&self, host: HostBatch) -> Result<CpuBatch, OpError> {
        Ok(CpuBatch::new(host))
    }

    fn download(&self, tensor: &Tensor, rows: usize, into: &mut Vec<f32>) -> Result<(), OpError> {
        let from = tensor.rows(rows);
        into.resize(from.len(), 0.0);
        let rows = from.chunks_exact(tensor.width).zip(into.chunks_exact_mut(tensor.width));
        self.pool.for_each(rows, |(from, into)| into.copy_from_slice(from));
        Ok(())
    }

    fn embed(&self, args: Embed<'_, Self>) -> Result<(), OpError> {
        let tokens = &args.batch.host.tokens;
        let out = args.out.data.chunks_exact_mut(args.out.width).zip(tokens);
        self.pool.for_each(out, |(out, &token)| match args.table {
            Matrix::F32(table) => table.row(token as usize, out),
            Matrix::Bf16(table) => table.row(token as usize, out),
            Matrix::Paired(table, _) => table.row(token as usize, out),
            Matrix::Quantised(table) => table.row(token as usize, out),
        });
        Ok(())
    }

    fn rms_norm(&self, args: RmsNorm<'_, Self>) -> Result<(), OpError> {
        let (gain, eps) = (args.gain.as_slice(), args.eps);
        let width = args.x.width;
        assert_eq!((gain.len(), args.out.width), (width, width), "rms_norm");
        let item = self.rows_per_item(args.rows, width) * width;
        let x = args.x.rows(args.rows).chunks(item);
        let out = args.out.rows_mut(args.rows).chunks_mut(item);
        self.pool.for_each(x.zip(out), |(x, out)| self.level.run(Norm { x, gain, eps, out }));
        Ok(())
    }

    fn linear(&self, args: Linear<'_, Self>) -> Result<(), OpError> {
        let (x, width) = (args.x.rows(args.rows), args.out.width);
        let (bias, add) = (args.bias.map(Vec::as_slice), args.add);
        let out = Tile::new(args.out.rows_mut(args.rows), width);
        let (pool, level) = (&self.pool, self.level);
        match args.weight {
            Matrix::F32(weight) => linear(pool, level, &Product { x, weight, bias, add }, out),
            Matrix::Bf16(weight) => linear(pool, level, &Product { x, weight, bias, add }, out),
            Matrix::Paired(weight, tiles) => {
                tiled((pool, level, *tiles), &Product { x, weight, bias, add }, out);
            }
            Matrix::Quantised(weight) => {
                linear(pool, level, &Product { x, weight, bias, add }, out);
            }
        }
        Ok(())
    }

    fn rope_write(&self, args: RopeWrite<'_, Self>) -> Result<(), OpError> {
        match args.pages.element {
            KvElement::F32 => self.rope_write_as::<f32>(args),
            KvElement::Bf16 => self.rope_write_as::<bf16>(args),
        }
        Ok(())
    }

    fn attention(&self, args: Attention<'_, Self>) -> Result<(), OpError> {
        match args.pages.element {
            KvElement::F32 => self.attention_as::<f32>(args),
            KvElement::Bf16 => self.attention_as::<bf16>(args),
        }
        Ok(())
    }

    fn silu_mul(&self, args: SiluMul<'_, Self>) -> Result<(), OpError> {
        let width = args.out.width;
        assert_eq!(args.gate_up.width, 2 * width, "silu_mul");
        let rows = self.rows_per_item(args.rows, width);
        let gate_up = args.gate_up.rows(args.rows).chunks(rows * 2 * width);
        let out = args.out.rows_mut(args.rows).chunks_mut(rows * width);
        self.pool.for_each_in(self.shares(gate_up.zip(out).collect()), |(gate_up, out)| {
            self.level.run(SiluKernel { gate_up, width, out });
        });
        Ok(())
    }

    fn gather(&self, args: Gather<'_, Self>) -> Result<(), OpError> {
        let width = args.x.width;
        let out = args.out.data.chunks_exact_mut(width);
        for (out, &token) in out.zip(&args.batch.host.sampled) {
            out.copy_from_slice(&args.x.data[token as usize * width..][..width]);
        }
        Ok(())
    }
}

impl Cpu {
    fn rope_write_as<E: Element>(&self, args: RopeWrite<'_, Self>) {
        let CpuPages { memory, shape, .. } = args.pages;
        let (heads, rope, layer) = (args.heads, args.rope.as_slice(), args.layer);
        let width = args.qkv.width;
        assert_eq!(width, (heads + 2 * shape.kv_heads) * shape.head_dim, "rope_write");
        let gains = args.norm.map(|n| Gains { q: n.q, k: n.k, eps: n.eps });
        let mut qkv = Tile::new(args.qkv.rows_mut(args.batch.host.tokens.len()), width);
        let runs = args.batch.page_runs(shape);
        let items: Vec<_> = runs.into_iter().map(|run| (run, qkv.take_rows(run.len))).collect();
        self.pool.for_each_in(self.shares(items), |(run, qkv)| {
            let mut part = memory.part_mut(run.page, layer);
            let page = part.elements_mut::<E>();
            self.level.run(Run { run, qkv, shape: *shape, heads, gains, rope, page });
        });
    }

    fn attention_as<E: Element>(&self, args: Attention<'_, Self>) {
        let Attention { qkv, heads, scale, batch, layer, pages, out } = args;
        let CpuPages { memory, shape, .. } = pages;
        let (width, group) = (out.width, heads / shape.kv_heads);
        assert_eq!(width, heads * shape.head_dim, "attention");
        let mut rest = Tile::new(out.rows_mut(batch.host.tokens.len()), width);
        let mut items = Vec::with_capacity(batch.host.segments.len());
        for segment in &batch.host.segments {
            let mut of_segment = Vec::new();
            let table = batch.table(segment, shape.page_tokens);
            let tokens = if segment.len <= ROW_TOKENS { 1 } else { tile::tokens_of(group) };
            for offset in (0..segment.len).step_by(tokens) {
                let rows = rest.take_rows(tokens.min(segment.len - offset));
                for (head, out) in rows.columns(group * shape.head_dim).enumerate() {
                    let keys = Keys { memory, shape: *shape, layer, head, table };
                    let q = &qkv.data[(segment.first + offset) * qkv.width..];
                    of_segment.push((keys, q, segment.start + offset, out));
                }
            }
            items.push(of_segment);
        }
        // Later tiles see more keys: the largest first, so that the threads end together.
        let in_order = |share: vec::IntoIter<Vec<_>>| {
            share.flat_map(|items| items.into_iter().rev()).collect::<Vec<_>>().into_iter()
        };
        self.pool.for_each_in(self.shares(items).map(in_order), |(keys, q, start, mut out)| {
            let (stride, column) = (qkv.width, keys.head * out.width());
            let element = PhantomData::<E>;
            if out.rows() == 1 {
                let (q, out) = (&q[column..][..out.width()], out.row(0));
                self.level.run(row::Row { keys, visible: start + 1, q, scale, out, element });
            } else {
                let q = tile::Queries { rows: q, stride, column, group };
                self.level.run(tile::Tile { keys, start, q, scale, out, element });
            }
        });
    }
}
