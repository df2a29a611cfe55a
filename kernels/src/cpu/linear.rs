//! `y = x·Wᵀ + b` over packed weights: each weight is read once a step from memory, whatever the
//! number of rows.
//!
//! Work is dealt in runs of panels, small enough to stay in the second-level cache while the row
//! blocks pass over them, so with few rows a thread streams its weights at memory speed and with
//! many it computes from cache. Runs shrink towards the end, so that the threads end together.

use super::element::{Element, GROUP};
use super::gemm::{BLOCK, block, block_rows, pack_rows, store};
use super::packed::Packed;
use super::pool::Pool;
use super::simd::{Kernel, Level, Simd};
use super::tile::Tile;

/// Bytes of weights of one work item, at most: half of a second-level cache.
const ITEM_BYTES: usize = 256 << 10;

/// What a product reads.
pub struct Product<'a, E> {
    /// `[rows][weight.cols]`.
    pub x: &'a [f32],
    /// The weights.
    pub weight: &'a Packed<E>,
    /// One a weight row.
    pub bias: Option<&'a [f32]>,
    /// Whether the output is added to.
    pub add: bool,
}

/// Computes `product` into `out`, or adds it, `[rows][weight.rows]`.
pub fn linear<E: Element>(pool: &Pool, level: Level, product: &Product<'_, E>, out: Tile<'_>) {
    let weight = product.weight;
    let rows = out.rows();
    assert_eq!((product.x.len(), out.width()), (rows * weight.cols, weight.rows), "linear");
    if rows == 0 {
        return;
    }
    let size = block_rows(rows);
    let mut packed = Vec::new();
    let x = if size == 1 {
        product.x
    } else {
        pack_rows(product.x, weight.cols, size, &mut packed);
        &packed
    };
    let most = (ITEM_BYTES / (weight.cols * GROUP * size_of::<E>())).max(1);
    let items = Runs { out, next: 0, most, shares: 4 * pool.threads() };
    pool.for_each(items, |(first, out)| {
        let &Product { bias, add, .. } = product;
        level.run(Item { weight, bias, add, x, size, first, out });
    });
}

/// Deals columns of `out` in runs of whole panels, with the number of each run's first panel.
struct Runs<'a> {
    out: Tile<'a>,
    /// First panel not dealt yet.
    next: usize,
    /// Panels of a run, at most.
    most: usize,
    /// A run is this part of what is left.
    shares: usize,
}

impl<'a> Iterator for Runs<'a> {
    type Item = (usize, Tile<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.out.width().div_ceil(GROUP);
        let (first, panels) = (self.next, left.div_ceil(self.shares).min(self.most));
        self.next += panels;
        (left > 0).then(|| (first, self.out.take_columns(panels * GROUP)))
    }
}

/// A run of panels times all rows.
struct Item<'a, E> {
    weight: &'a Packed<E>,
    bias: Option<&'a [f32]>,
    add: bool,
    x: &'a [f32],
    /// Rows of a block of `x`.
    size: usize,
    /// First panel.
    first: usize,
    out: Tile<'a>,
}

impl<E: Element> Kernel for Item<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let cols = self.weight.cols;
        let bias = self.bias.map(|bias| &bias[self.first * GROUP..][..self.out.width()]);
        let panels = self.out.width().div_ceil(GROUP);
        let groups = self.weight.groups(self.first..self.first + panels);
        let mut row = 0;
        for x in self.x.chunks(self.size * cols) {
            let count = x.len() / cols;
            for (index, panel) in groups.chunks_exact(cols).enumerate() {
                let at = Place { row, column: index * GROUP, bias, add: self.add };
                let out = &mut self.out;
                match count {
                    1 => rows::<S, E, 1, 4>(simd, x, panel, at, out),
                    2 => rows::<S, E, 2, 2>(simd, x, panel, at, out),
                    3 => rows::<S, E, 3, 2>(simd, x, panel, at, out),
                    4 => rows::<S, E, 4, 1>(simd, x, panel, at, out),
                    5 => rows::<S, E, 5, 1>(simd, x, panel, at, out),
                    _ => rows::<S, E, BLOCK, 1>(simd, x, panel, at, out),
                }
            }
            row += count;
        }
    }
}

/// Where a block's sums go.
#[derive(Clone, Copy)]
struct Place<'a> {
    row: usize,
    column: usize,
    bias: Option<&'a [f32]>,
    add: bool,
}

#[inline(always)]
fn rows<S: Simd, E: Element, const M: usize, const U: usize>(
    simd: S,
    x: &[f32],
    panel: &[[E; GROUP]],
    at: Place<'_>,
    out: &mut Tile<'_>,
) {
    let sums = block::<S, E, M, U>(simd, x.as_chunks::<M>().0, panel);
    let width = (out.width() - at.column).min(GROUP);
    for (m, sums) in sums.into_iter().enumerate() {
        let to = &mut out.row(at.row + m)[at.column..][..width];
        let mut before = [0.0; GROUP];
        before[..width].copy_from_slice(to);
        store(simd, sums, to);
        if at.add {
            to.iter_mut().zip(before).for_each(|(y, before)| *y += before);
        }
        if let Some(bias) = at.bias {
            to.iter_mut().zip(&bias[at.column..]).for_each(|(y, b)| *y += b);
        }
    }
}
