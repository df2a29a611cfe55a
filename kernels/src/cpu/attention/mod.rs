//! Causal attention over paged keys and values, with the softmax kept online: per query row the
//! running maximum and sum, and an output rescaled when the maximum grows (Milakov and Gimelshein
//! 2018; Dao et al. 2022).
//!
//! Two kernels share the bookkeeping below. [`row`] takes one token's query heads of one key head
//! and streams keys and values from the pages: decode. [`tile`] takes many tokens and copies each
//! block of keys and values to scratch in panels first: prefill.

pub mod row;
pub mod tile;

use super::element::Element;
use super::memory::{PageMemory, PartRef};
use super::simd::{LANES, Simd};
use crate::ops::KvShape;
use std::ops::Range;

/// One key head of one sequence in the pages of one layer.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    pub memory: &'a PageMemory,
    pub shape: KvShape,
    pub layer: usize,
    pub head: usize,
    /// Pages of the sequence.
    pub table: &'a [u32],
}

/// Tokens of a [`Keys`] that lie in one page.
pub struct KeyRun<'a> {
    /// Index of the first token within the range asked for.
    pub offset: usize,
    part: PartRef<'a>,
    /// Elements of the part that hold the keys; the values lie half a part further.
    at: Range<usize>,
}

impl KeyRun<'_> {
    /// `[token][head_dim]`.
    #[inline(always)]
    pub fn keys<E: Element>(&self) -> &[E] {
        &self.part.elements()[self.at.clone()]
    }
    /// `[token][head_dim]`.
    #[inline(always)]
    pub fn values<E: Element>(&self) -> &[E] {
        let all = self.part.elements();
        &all[all.len() / 2..][self.at.clone()]
    }
}

impl<'a> Keys<'a> {
    /// The tokens at positions `range`, page by page; each page's layer is borrowed while its run
    /// lives.
    pub fn runs(self, range: Range<usize>) -> impl Iterator<Item = KeyRun<'a>> {
        let KvShape { page_tokens, head_dim, .. } = self.shape;
        let pages = range.start / page_tokens..range.end.div_ceil(page_tokens);
        pages.map(move |page| {
            let first = page * page_tokens;
            let (from, to) = (range.start.max(first), range.end.min(first + page_tokens));
            let slot =
                |position: usize| self.shape.head_at(self.head) + (position - first) * head_dim;
            let part = self.memory.part(self.table[page], self.layer);
            KeyRun { offset: from - range.start, part, at: slot(from)..slot(to) }
        })
    }
}

/// The online softmax of one query row.
#[derive(Clone, Copy)]
pub struct Online {
    max: f32,
    sum: f32,
}

impl Online {
    /// Before any key.
    pub const EMPTY: Self = Self { max: f32::MIN, sum: 0.0 };

    /// Turns a block's scores into weights relative to the new maximum; returns what earlier
    /// outputs are multiplied by.
    #[inline(always)]
    pub fn weigh<S: Simd>(&mut self, simd: S, scores: &mut [f32]) -> f32 {
        let (lanes, rest) = scores.as_chunks_mut::<LANES>();
        let mut maxima = simd.splat(self.max);
        for scores in &*lanes {
            maxima = simd.max(simd.load(scores), maxima);
        }
        let mut all = [0.0; LANES];
        simd.store(maxima, &mut all);
        let max = all.iter().chain(&*rest).fold(self.max, |a, &b| a.max(b));

        let mut sums = simd.splat(0.0);
        for scores in lanes {
            let weights = simd.exp(simd.sub(simd.load(scores), simd.splat(max)));
            sums = simd.add(sums, weights);
            simd.store(weights, scores);
        }
        let mut sum = simd.sum(sums);
        for score in rest {
            *score = (*score - max).exp();
            sum += *score;
        }
        let kept = (self.max - max).exp();
        self.sum = self.sum * kept + sum;
        self.max = max;
        kept
    }

    /// Divides an output by the sum of its weights.
    #[inline(always)]
    pub fn finish(&self, out: &mut [f32]) {
        let scale = 1.0 / self.sum;
        out.iter_mut().for_each(|x| *x *= scale);
    }
}
