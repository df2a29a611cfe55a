//! Decode: the query heads of one token that share a key head, straight from the pages.

use super::{Keys, Online};
use crate::cpu::element::{Element, GROUP};
use crate::cpu::gemm::{LINE, block_rows};
use crate::cpu::simd::{Kernel, LANES, Simd, Wide};
use std::marker::PhantomData;

/// Keys whose scores are held at a time.
const KEYS: usize = 128;

/// Most query heads at a time: their sums, of 16 columns, fit the 16 registers of AVX2.
const HEADS: usize = 6;

/// Attention of one token to the first `visible` keys.
pub struct Row<'a, E> {
    pub keys: Keys<'a>,
    /// Keys that the token sees, itself included.
    pub visible: usize,
    /// `[head][head_dim]`, the heads of this key head.
    pub q: &'a [f32],
    pub scale: f32,
    /// As `q`.
    pub out: &'a mut [f32],
    pub element: PhantomData<E>,
}

impl<E: Element> Kernel for Row<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let dim = self.keys.shape.head_dim;
        let size = block_rows(self.q.len() / dim, HEADS) * dim;
        for (q, out) in self.q.chunks(size).zip(self.out.chunks_mut(size)) {
            let part = Row { q, out, ..self };
            match part.q.len() / dim {
                1 => part.heads::<S, 1>(simd),
                2 => part.heads::<S, 2>(simd),
                3 => part.heads::<S, 3>(simd),
                4 => part.heads::<S, 4>(simd),
                5 => part.heads::<S, 5>(simd),
                _ => part.heads::<S, HEADS>(simd),
            }
        }
    }
}

impl<E: Element> Row<'_, E> {
    #[inline(always)]
    fn heads<S: Simd, const M: usize>(self, simd: S) {
        let dim = self.keys.shape.head_dim;
        let mut online = [Online::EMPTY; M];
        let mut scores = [[0.0; KEYS]; M];
        self.out.fill(0.0);
        let mut first = 0;
        while first < self.visible {
            let range = first..self.visible.min(first + KEYS);
            let runs: Vec<_> = self.keys.runs(range.clone()).collect();
            // Since the last step all weights have passed through the caches: keys are far away.
            runs.iter().for_each(|run| fetch(simd, run.keys::<E>()));
            for run in &runs {
                let values = run.values::<E>().chunks_exact(dim);
                for (token, (key, value)) in run.keys().chunks_exact(dim).zip(values).enumerate() {
                    fetch(simd, value);
                    let dots = dots::<S, E, M>(simd, self.q, key);
                    for (scores, dot) in scores.iter_mut().zip(dots) {
                        scores[run.offset + token] = dot * self.scale;
                    }
                }
            }
            for (m, out) in self.out.chunks_exact_mut(dim).enumerate() {
                let kept = online[m].weigh(simd, &mut scores[m][..range.len()]);
                out.iter_mut().for_each(|x| *x *= kept);
            }
            for run in &runs {
                accumulate::<S, E, M>(simd, run.values(), (&scores, run.offset), self.out);
            }
            first = range.end;
        }
        for (online, out) in online.iter().zip(self.out.chunks_exact_mut(dim)) {
            online.finish(out);
        }
    }
}

/// Hints that all of `elements` is read soon.
#[inline(always)]
fn fetch<S: Simd, E>(simd: S, elements: &[E]) {
    elements.iter().step_by(LINE / size_of::<E>()).for_each(|first| simd.prefetch(first, 0));
}

/// The products of one key with each query.
#[inline(always)]
fn dots<S: Simd, E: Element, const M: usize>(simd: S, q: &[f32], key: &[E]) -> [f32; M] {
    let key = key.as_chunks::<LANES>().0;
    let queries: [_; M] =
        std::array::from_fn(|m| &q.as_chunks::<LANES>().0[m * key.len()..][..key.len()]);
    let mut sums = [simd.splat(0.0); M];
    for (i, key) in key.iter().enumerate() {
        let key = E::load(simd, key);
        for m in 0..M {
            sums[m] = simd.fma(key, simd.load(&queries[m][i]), sums[m]);
        }
    }
    sums.map(|sum| simd.sum(sum))
}

/// Adds the values of a run, weighted, to each output.
#[inline(always)]
fn accumulate<S: Simd, E: Element, const M: usize>(
    simd: S,
    values: &[E],
    (weights, offset): (&[[f32; KEYS]; M], usize),
    out: &mut [f32],
) {
    let (dim, wide) = (out.len() / M, simd.wide());
    let tokens = values.len() / dim;
    let weights: [_; M] = std::array::from_fn(|m| &weights[m][offset..][..tokens]);
    for column in (0..dim).step_by(GROUP) {
        let mut sums = [wide.splat(0.0); M];
        for (token, value) in values.chunks_exact(dim).take(tokens).enumerate() {
            let value = E::load_wide(wide, &value[column..].as_chunks().0[0]);
            for m in 0..M {
                sums[m] = wide.fma(wide.splat(weights[m][token]), value, sums[m]);
            }
        }
        for (m, sum) in sums.into_iter().enumerate() {
            let out = &mut out[m * dim + column..].as_chunks_mut().0[0];
            wide.store(wide.add(wide.load(out), sum), out);
        }
    }
}
