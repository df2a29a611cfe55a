//! Weights as the kernels read them: panels of 16 outputs, `[panel][input][16]`.
//!
//! One step over the inputs of a panel reads one group of 16 weights and multiplies it into 16
//! sums, so a product needs no sum across lanes, a panel streams from memory in order, and the same
//! layout serves one row or a thousand. The last panel is padded with zeros.

use super::arena::{Arena, Region};
use super::element::{Element, GROUP};
use super::gemm::{PackedRows, Panels, Sums, block};
use super::pool::Pool;
use super::simd::{Level, Simd};
use crate::ops::OpError;

/// A matrix in panels.
pub struct Packed<E> {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    data: Region<E>,
}

impl<E: Element> Packed<E> {
    /// Packs `[rows][cols]` into memory of `arena`.
    ///
    /// # Errors
    /// [`OpError::Memory`].
    ///
    /// # Panics
    /// If `source` is not `rows * cols` long, or either is 0.
    pub fn pack(
        (pool, arena): (&Pool, &Arena),
        (rows, cols): (usize, usize),
        source: &[E],
    ) -> Result<Self, OpError> {
        assert!(rows > 0 && cols > 0 && source.len() == rows * cols, "{rows}x{cols}");
        let len = rows.div_ceil(GROUP) * GROUP * cols;
        let mut data = arena.zeroed(len)?;
        let panels = data.chunks_exact_mut(GROUP * cols);
        let sources = source.chunks(GROUP * cols);
        pool.for_each(panels.zip(sources), |(panel, source)| {
            for (column, weights) in source.chunks_exact(cols).enumerate() {
                let slot = E::slot(column);
                for (group, &weight) in panel.as_chunks_mut::<GROUP>().0.iter_mut().zip(weights) {
                    group[slot] = weight;
                }
            }
        });
        Ok(Self { rows, cols, data })
    }

    /// Panels `panels` (half-open), as one slice of groups.
    pub fn groups(&self, panels: std::ops::Range<usize>) -> &[[E; GROUP]] {
        let panel = GROUP * self.cols;
        self.data[panels.start * panel..panels.end * panel].as_chunks().0
    }

    /// One row of the matrix, widened.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {}", self.rows);
        let (panel, slot) = (row / GROUP, E::slot(row % GROUP));
        for (x, group) in out.iter_mut().zip(self.groups(panel..panel + 1)) {
            *x = group[slot].to_f32();
        }
    }
}

impl<E: Element> Panels for Packed<E> {
    type Rows<'a> = PackedRows<'a>;

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn panel_bytes(&self) -> usize {
        self.cols * size_of::<[E; GROUP]>()
    }

    fn rows<'a>(&self, _: (&Pool, Level), x: &'a [f32], block: usize) -> PackedRows<'a> {
        PackedRows::new(x, self.cols, block)
    }

    #[inline(always)]
    fn block<S: Simd, const M: usize, const U: usize>(
        &self,
        simd: S,
        panel: usize,
        (rows, index): (&PackedRows<'_>, usize),
    ) -> Sums<S, M> {
        block::<S, E, M, U>(simd, rows.block(index), self.groups(panel..panel + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn check<E: Element>() {
        let at = (&Pool::new(2), &Arena::default());
        for (rows, cols) in [(1, 1), (16, 3), (17, 5), (50, 33)] {
            let source: Vec<E> = (0..rows * cols).map(|i| E::from_f32(i as f32 % 251.0)).collect();
            let packed = Packed::pack(at, (rows, cols), &source).unwrap();
            for row in 0..rows {
                let mut out = vec![f32::NAN; cols];
                packed.row(row, &mut out);
                let expect: Vec<f32> =
                    source[row * cols..][..cols].iter().map(|x| x.to_f32()).collect();
                assert_eq!(out, expect, "{rows}x{cols} row {row}");
            }
        }
    }

    #[test]
    fn rows_come_back() {
        check::<f32>();
        check::<bf16>();
    }
}
