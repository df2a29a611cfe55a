//! Prefill: a tile of consecutive tokens, all query heads of one key head, block by block of keys.
//!
//! A block's keys are copied transposed and its values as they are, both widened and in the panels
//! of [`super::super::gemm`], so that scores and outputs are products of the same inner loop.

use super::{Keys, Online};
use crate::cpu::element::{Element, GROUP};
use crate::cpu::gemm::{block, block_rows};
use crate::cpu::simd::{Kernel, ROWS_MOST, Simd, Wide};
use crate::cpu::tile::Tile as Out;
use std::marker::PhantomData;

/// Keys of a block.
const KEYS: usize = 64;

/// Query rows of a tile, about.
const ROWS: usize = 144;

/// Tokens of a tile when `group` query heads share a key head.
pub fn tokens_of(group: usize) -> usize {
    ROWS.div_ceil(group)
}

/// Rows of queries, `stride` apart, each with `group` heads of the key head at `column`.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    pub rows: &'a [f32],
    pub stride: usize,
    pub column: usize,
    pub group: usize,
}

/// Attention of as many tokens as `out` has rows; the first sees the keys at `0..=start`.
pub struct Tile<'a, E> {
    pub keys: Keys<'a>,
    pub start: usize,
    pub q: Queries<'a>,
    pub scale: f32,
    /// `[tokens][group * head_dim]`.
    pub out: Out<'a>,
    pub element: PhantomData<E>,
}

/// A block of keys and values in panels, and the work space of one row block.
struct Scratch {
    /// `[key / 16][head_dim][16]`.
    keys: Vec<f32>,
    /// `[head_dim / 16][key][16]`.
    values: Vec<f32>,
    /// `[row of the block][key]`.
    scores: [[f32; KEYS]; ROWS_MOST],
    /// `[key][row of the block]`.
    weights: [f32; KEYS * ROWS_MOST],
}

/// Where a block of keys lies.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    len: usize,
}

impl<E: Element> Kernel for Tile<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let dim = self.keys.shape.head_dim;
        let (tokens, group) = (self.out.rows(), self.q.group);
        let rows = tokens * group;
        let size = block_rows(rows, S::Wide::ROWS);
        let q = self.packed_queries(size);
        let mut acc = vec![0.0; rows * dim];
        let mut online = vec![Online::EMPTY; rows];
        let mut scratch = Scratch {
            keys: vec![0.0; KEYS * dim],
            values: vec![0.0; KEYS * dim],
            scores: [[0.0; KEYS]; ROWS_MOST],
            weights: [0.0; KEYS * ROWS_MOST],
        };
        let visible = self.start + tokens;
        for first in (0..visible).step_by(KEYS) {
            let span = Span { first, len: KEYS.min(visible - first) };
            self.fill(&mut scratch, span);
            let mut row = 0;
            let blocks = q.chunks(size * dim).zip(acc.chunks_mut(size * dim));
            for ((q, acc), online) in blocks.zip(online.chunks_mut(size)) {
                let at = Block { span, row };
                row += online.len();
                if self.start + (row - 1) / group < span.first {
                    continue;
                }
                match online.len() {
                    1 => self.rows::<S, 1>(simd, &mut scratch, at, (q, acc, online)),
                    2 => self.rows::<S, 2>(simd, &mut scratch, at, (q, acc, online)),
                    3 => self.rows::<S, 3>(simd, &mut scratch, at, (q, acc, online)),
                    4 => self.rows::<S, 4>(simd, &mut scratch, at, (q, acc, online)),
                    5 => self.rows::<S, 5>(simd, &mut scratch, at, (q, acc, online)),
                    6 => self.rows::<S, 6>(simd, &mut scratch, at, (q, acc, online)),
                    7 => self.rows::<S, 7>(simd, &mut scratch, at, (q, acc, online)),
                    _ => self.rows::<S, ROWS_MOST>(simd, &mut scratch, at, (q, acc, online)),
                }
            }
        }
        for (row, (acc, online)) in acc.chunks_exact_mut(dim).zip(&online).enumerate() {
            online.finish(acc);
            let head = row % group;
            self.out.row(row / group)[head * dim..][..dim].copy_from_slice(acc);
        }
    }
}

/// A row block against a block of keys.
#[derive(Clone, Copy)]
struct Block {
    span: Span,
    /// First row of the block in the tile.
    row: usize,
}

impl<E: Element> Tile<'_, E> {
    /// Queries, scaled, in row blocks: `[block][head_dim][row of the block]`.
    fn packed_queries(&self, size: usize) -> Vec<f32> {
        let dim = self.keys.shape.head_dim;
        let Queries { rows, stride, column, group } = self.q;
        let mut flat = Vec::with_capacity(self.out.rows() * group * dim);
        for row in rows.chunks(stride).take(self.out.rows()) {
            let heads = &row[column..][..group * dim];
            flat.extend(heads.iter().map(|x| x * self.scale));
        }
        let mut packed = Vec::new();
        crate::cpu::gemm::pack_rows(&flat, dim, size, &mut packed);
        packed
    }

    /// Copies a block of keys and values; what lies past its end becomes zero.
    #[inline(always)]
    fn fill(&self, scratch: &mut Scratch, span: Span) {
        let dim = self.keys.shape.head_dim;
        if span.len < KEYS {
            scratch.keys.fill(0.0);
            scratch.values.fill(0.0);
        }
        for run in self.keys.runs(span.first..span.first + span.len) {
            let tokens = run.keys::<E>().chunks_exact(dim).zip(run.values::<E>().chunks_exact(dim));
            for (key, (k, v)) in (run.offset..).zip(tokens) {
                let panel = &mut scratch.keys[key / GROUP * dim * GROUP..][..dim * GROUP];
                for (to, k) in panel.as_chunks_mut::<GROUP>().0.iter_mut().zip(k) {
                    to[key % GROUP] = k.to_f32();
                }
                for (column, v) in v.chunks_exact(GROUP).enumerate() {
                    let to = &mut scratch.values[(column * KEYS + key) * GROUP..][..GROUP];
                    to.iter_mut().zip(v).for_each(|(to, v)| *to = v.to_f32());
                }
            }
        }
    }

    #[inline(always)]
    fn rows<S: Simd, const M: usize>(
        &self,
        simd: S,
        scratch: &mut Scratch,
        at: Block,
        (q, acc, online): (&[f32], &mut [f32], &mut [Online]),
    ) {
        let (dim, wide) = (self.keys.shape.head_dim, simd.wide());
        let q = q.as_chunks::<M>().0;
        let panels = scratch.keys.as_chunks::<GROUP>().0.chunks_exact(dim);
        for (index, panel) in panels.enumerate() {
            let sums = block::<S, f32, M, 1>(simd, q, panel);
            for (scores, sums) in scratch.scores.iter_mut().zip(sums) {
                wide.store(sums, &mut scores.as_chunks_mut().0[index]);
            }
        }
        let mut kept = [0.0; M];
        for m in 0..M {
            let scores = &mut scratch.scores[m];
            let position = self.start + (at.row + m) / self.q.group;
            let visible = (position + 1).saturating_sub(at.span.first).min(KEYS);
            scores[visible..].fill(f32::MIN);
            kept[m] = online[m].weigh(simd, scores);
            for (to, weight) in scratch.weights.chunks_exact_mut(M).zip(scores.iter()) {
                to[m] = *weight;
            }
        }
        let weights = scratch.weights.as_chunks::<M>().0;
        let panels = scratch.values.as_chunks::<GROUP>().0.chunks_exact(KEYS);
        for (index, panel) in panels.enumerate() {
            let sums = block::<S, f32, M, 1>(simd, &weights[..KEYS], panel);
            for (m, sums) in sums.into_iter().enumerate() {
                let out = &mut acc[m * dim..][..dim].as_chunks_mut().0[index];
                wide.store(wide.fma(wide.load(out), wide.splat(kept[m]), sums), out);
            }
        }
    }
}
