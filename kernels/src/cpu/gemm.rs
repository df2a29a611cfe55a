//! The inner product of everything: a block of a few rows times one packed panel.
//!
//! `M` rows by 16 columns of sums stay in registers; one step over the inputs takes one group of
//! weights and `M` broadcasts. With few rows the sums are split over `U` chains to hide the latency
//! of the multiply-add.

use super::element::{Element, GROUP};
use super::pool::Pool;
use super::simd::{Level, Simd, Wide};
use std::borrow::Cow;

/// Bytes that weights are fetched ahead of their use: some 160 ns at 25 GB/s a core. Every line has
/// to be: with each second one the CPU's own prefetcher loses the stream and a third of the speed
/// goes.
pub const AHEAD: usize = 4096;

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Sums of a block: of each row, all columns.
pub type Sums<S, const M: usize> = [<<S as Simd>::Wide as Wide>::V; M];

/// `sums[m] = Σ_k x[k][m] * panel[k]`, for as many `k` as both have.
#[inline(always)]
pub fn block<S: Simd, E: Element, const M: usize, const U: usize>(
    simd: S,
    x: &[[f32; M]],
    panel: &[[E; GROUP]],
) -> Sums<S, M> {
    let wide = simd.wide();
    let mut chains = [[wide.splat(0.0); M]; U];
    let ((xs, x_rest), (groups, rest)) = (x.as_chunks::<U>(), panel.as_chunks::<U>());
    for (x, group) in xs.iter().zip(groups) {
        for line in (0..size_of_val(group)).step_by(LINE) {
            simd.prefetch(group, AHEAD + line);
        }
        for u in 0..U {
            step(wide, &mut chains[u], &x[u], &group[u]);
        }
    }
    for (x, group) in x_rest.iter().zip(rest) {
        step(wide, &mut chains[0], x, group);
    }
    let mut sums = chains[0];
    for chain in &chains[1..] {
        for (sum, &part) in sums.iter_mut().zip(chain) {
            *sum = wide.add(*sum, part);
        }
    }
    sums
}

#[inline(always)]
fn step<W: Wide, E: Element, const M: usize>(
    wide: W,
    sums: &mut [W::V; M],
    x: &[f32; M],
    group: &[E; GROUP],
) {
    let weights = E::load_group(wide, group);
    for m in 0..M {
        sums[m] = wide.fma(wide.splat(x[m]), weights, sums[m]);
    }
}

/// Rows of blocks of `most` at most: as few blocks as cover `rows`, filled evenly.
pub fn block_rows(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1))
}

/// Rows packed for [`block`]: for each block `[k][m]`, blocks one after another.
pub fn pack_rows(x: &[f32], width: usize, block: usize, out: &mut Vec<f32>) {
    out.clear();
    for rows in x.chunks(block * width) {
        let count = rows.len() / width;
        if count == 1 {
            out.extend_from_slice(rows);
            continue;
        }
        let first = out.len();
        out.resize(first + rows.len(), 0.0);
        for (m, row) in rows.chunks_exact(width).enumerate() {
            for (step, &x) in out[first..].chunks_exact_mut(count).zip(row) {
                step[m] = x;
            }
        }
    }
}

/// What [`linear`](super::linear) multiplies by: weights in panels of 16 outputs.
pub trait Panels: Sync {
    /// Rows in the order in which [`Self::block`] reads them.
    type Rows<'a>: Sync;
    /// Outputs and inputs.
    fn shape(&self) -> (usize, usize);
    /// Bytes that a product reads of one panel.
    fn panel_bytes(&self) -> usize;
    /// Rows of a block, at most.
    fn rows_most(&self, level: Level) -> usize {
        level.rows_most()
    }
    /// Packs rows in blocks of `block`, of which the last may have fewer.
    fn rows<'a>(&self, at: (&Pool, Level), x: &'a [f32], block: usize) -> Self::Rows<'a>;
    /// Block `index`, of `M` rows, times one panel; where that helps in `U` chains of sums.
    fn block<S: Simd, const M: usize, const U: usize>(
        &self,
        simd: S,
        panel: usize,
        rows: (&Self::Rows<'_>, usize),
    ) -> Sums<S, M>;
}

/// Rows for [`block`].
pub struct PackedRows<'a> {
    x: Cow<'a, [f32]>,
    width: usize,
    /// Rows of a block; the last may have fewer.
    block: usize,
}

impl<'a> PackedRows<'a> {
    /// Packs rows of `width`.
    pub fn new(x: &'a [f32], width: usize, block: usize) -> Self {
        if block == 1 {
            return Self { x: Cow::Borrowed(x), width, block };
        }
        let mut packed = Vec::new();
        pack_rows(x, width, block, &mut packed);
        Self { x: Cow::Owned(packed), width, block }
    }

    /// Block `index`, which has `M` rows.
    #[inline(always)]
    pub fn block<const M: usize>(&self, index: usize) -> &[[f32; M]] {
        self.x[index * self.block * self.width..][..M * self.width].as_chunks().0
    }
}
