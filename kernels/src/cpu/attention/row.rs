//! Decode: the query heads of one token that share a key head, straight from the pages.

use super::{Keys, Online};
use crate::cpu::element::{Element, GROUP};
use crate::cpu::gemm::block_rows;
use crate::cpu::simd::{Kernel, LANES, Simd};
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
            for run in self.keys.runs(range.clone()) {
                for (token, key) in run.keys::<E>().chunks_exact(dim).enumerate() {
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
            for run in self.keys.runs(range.clone()) {
                accumulate::<S, E, M>(simd, run.values(), (&scores, run.offset), self.out);
            }
            first = range.end;
        }
        for (online, out) in online.iter().zip(self.out.chunks_exact_mut(dim)) {
            online.finish(out);
        }
    }
}

/// The products of one key with each query.
#[inline(always)]
fn dots<S: Simd, E: Element, const M: usize>(simd: S, q: &[f32], key: &[E]) -> [f32; M] {
    let lanes = key.as_chunks::<LANES>().0;
    let queries = q.as_chunks::<LANES>().0;
    let mut sums = [simd.splat(0.0); M];
    for (i, key) in lanes.iter().enumerate() {
        let key = E::load(simd, key);
        for (m, sum) in sums.iter_mut().enumerate() {
            *sum = simd.fma(key, simd.load(&queries[m * lanes.len() + i]), *sum);
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
    let dim = out.len() / M;
    for column in (0..dim).step_by(GROUP) {
        let mut sums = [[simd.splat(0.0); 2]; M];
        for (token, value) in values.chunks_exact(dim).enumerate() {
            let value = value[column..][..GROUP].as_chunks::<LANES>().0;
            let (low, high) = (E::load(simd, &value[0]), E::load(simd, &value[1]));
            for m in 0..M {
                let weight = simd.splat(weights[m][offset + token]);
                sums[m] = [simd.fma(weight, low, sums[m][0]), simd.fma(weight, high, sums[m][1])];
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            let out = out[m * dim + column..][..GROUP].as_chunks_mut::<LANES>().0;
            for (out, sum) in out.iter_mut().zip(sums) {
                let sum = simd.add(simd.load(out), sum);
                simd.store(sum, out);
            }
        }
    }
}
