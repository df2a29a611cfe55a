//! Head norms, rotation, and the write of keys and values, one run of tokens in one page at a time.

use super::batch::PageRun;
use super::element::Element;
use super::norm::inverse_rms;
use super::simd::{Kernel, LANES, Simd};
use super::tile::Tile;
use crate::ops::KvShape;

/// Gains of the query and key norms.
#[derive(Clone, Copy)]
pub struct Gains<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub eps: f32,
}

/// The tokens of `run`; `page` is their page's layer.
pub struct Run<'a, E> {
    pub run: PageRun,
    /// Their rows of `qkv`.
    pub qkv: Tile<'a>,
    pub shape: KvShape,
    pub heads: usize,
    pub gains: Option<Gains<'a>>,
    /// `[position][head_dim]`.
    pub rope: &'a [f32],
    pub page: &'a mut [E],
}

impl<E: Element> Kernel for Run<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let KvShape { kv_heads, head_dim: dim, page_tokens, .. } = self.shape;
        let (keys, values) = self.page.split_at_mut(self.shape.layer_len() / 2);
        for token in 0..self.run.len {
            let position = self.run.position + token;
            let angles = &self.rope[position * dim..][..dim];
            let slot = position % page_tokens;
            let (q, kv) = self.qkv.row(token).split_at_mut(self.heads * dim);
            let (k, v) = kv.split_at_mut(kv_heads * dim);
            for q in q.chunks_exact_mut(dim) {
                norm(simd, q, self.gains.map(|g| (g.q, g.eps)));
                rotate(q, angles);
            }
            for (head, (k, v)) in k.chunks_exact_mut(dim).zip(v.chunks_exact(dim)).enumerate() {
                norm(simd, k, self.gains.map(|g| (g.k, g.eps)));
                rotate(k, angles);
                let at = self.shape.head_at(head) + slot * dim;
                write(simd, k, &mut keys[at..][..dim]);
                write(simd, v, &mut values[at..][..dim]);
            }
        }
    }
}

#[inline(always)]
fn norm<S: Simd>(simd: S, x: &mut [f32], gain: Option<(&[f32], f32)>) {
    if let Some((gain, eps)) = gain {
        let scale = inverse_rms(simd, x, eps);
        x.iter_mut().zip(gain).for_each(|(x, gain)| *x *= scale * gain);
    }
}

/// `angles`: cosines, then sines.
#[inline(always)]
fn rotate(x: &mut [f32], angles: &[f32]) {
    let (a, b) = x.split_at_mut(angles.len() / 2);
    let (cos, sin) = angles.split_at(angles.len() / 2);
    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[inline(always)]
fn write<S: Simd, E: Element>(simd: S, from: &[f32], to: &mut [E]) {
    let ((lanes, rest), (to, to_rest)) = (from.as_chunks::<LANES>(), to.as_chunks_mut());
    for (from, to) in lanes.iter().zip(to) {
        E::store(simd, simd.load(from), to);
    }
    for (from, to) in rest.iter().zip(to_rest) {
        *to = E::from_f32(*from);
    }
}
