//! `y = x·Wᵀ + b` over packed weights: each weight is read once a step from memory, whatever the
//! number of rows.
//!
//! Each thread has a part of the panels and takes it in runs, small enough to stay in the
//! second-level cache while the row blocks pass over them, so with few rows a thread streams its
//! weights at memory speed and with many it computes from cache. Its runs follow each other in
//! memory, so that what is fetched ahead at the end of one is the start of the next. They shrink
//! towards the end, and who is done helps others, so that the threads end together.

use super::element::GROUP;
use super::gemm::{Panels, block_rows};
use super::pool::Pool;
use super::simd::{Kernel, Level, ROWS_MOST, Simd, Wide};
use super::tile::Tile;

/// Bytes of weights of one work item, at most: half of a second-level cache.
const ITEM_BYTES: usize = 256 << 10;

/// A run of panels is at most this part of what is left of a thread's own.
pub const SHARES: usize = 3;

/// What a product reads.
pub struct Product<'a, W> {
    /// `[rows][inputs]`.
    pub x: &'a [f32],
    /// The weights.
    pub weight: &'a W,
    /// One a weight row.
    pub bias: Option<&'a [f32]>,
    /// Whether the output is added to.
    pub add: bool,
}

/// Computes `product` into `out`, or adds it, `[rows][outputs]`.
pub fn linear<W: Panels>(pool: &Pool, level: Level, product: &Product<'_, W>, out: Tile<'_>) {
    let &Product { x, weight, bias, add } = product;
    let (outputs, inputs) = weight.shape();
    assert_eq!((x.len(), out.width()), (out.rows() * inputs, outputs), "linear");
    if out.rows() == 0 {
        return;
    }
    let block = block_rows(out.rows(), weight.rows_most(level));
    let rows = &weight.rows((pool, level), x, block);
    let most = (ITEM_BYTES / weight.panel_bytes()).max(1);
    let part = outputs.div_ceil(GROUP).div_ceil(pool.threads());
    let parts = out.columns(part * GROUP).enumerate();
    let parts = parts.map(|(index, out)| Runs::new((index * part, out), most, SHARES));
    pool.for_each_in(parts, |(first, out)| {
        level.run(Item { weight, bias, add, rows, block, first, out });
    });
}

/// Deals columns of `out` in runs of whole panels, with the number of each run's first panel.
pub struct Runs<'a> {
    out: Tile<'a>,
    /// First panel not dealt yet.
    next: usize,
    /// Panels of a run, at most.
    most: usize,
    /// A run is this part of what is left.
    shares: usize,
}

impl<'a> Runs<'a> {
    /// Deals `out` in runs of `most` panels at most, else of one in `shares` of what is left.
    pub fn new((next, out): (usize, Tile<'a>), most: usize, shares: usize) -> Self {
        Self { out, next, most, shares }
    }
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
struct Item<'a, 'x, W: Panels> {
    weight: &'a W,
    bias: Option<&'a [f32]>,
    add: bool,
    rows: &'a W::Rows<'x>,
    /// Rows of a block; the last may have fewer.
    block: usize,
    /// First panel.
    first: usize,
    out: Tile<'a>,
}

impl<W: Panels> Kernel for Item<'_, '_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let bias = self.bias.map(|bias| &bias[self.first * GROUP..][..self.out.width()]);
        let (weight, out) = (self.weight, &mut self.out);
        for (index, row) in (0..out.rows()).step_by(self.block).enumerate() {
            let count = self.block.min(out.rows() - row);
            let x = (self.rows, index);
            for number in 0..out.width().div_ceil(GROUP) {
                let at = Place { row, column: number * GROUP, bias, add: self.add };
                let panel = self.first + number;
                match count {
                    1 => at.put(simd, weight.block::<S, 1, 4>(simd, panel, x), out),
                    2 => at.put(simd, weight.block::<S, 2, 2>(simd, panel, x), out),
                    3 => at.put(simd, weight.block::<S, 3, 2>(simd, panel, x), out),
                    4 => at.put(simd, weight.block::<S, 4, 1>(simd, panel, x), out),
                    5 => at.put(simd, weight.block::<S, 5, 1>(simd, panel, x), out),
                    6 => at.put(simd, weight.block::<S, 6, 1>(simd, panel, x), out),
                    7 => at.put(simd, weight.block::<S, 7, 2>(simd, panel, x), out),
                    _ => at.put(simd, weight.block::<S, ROWS_MOST, 2>(simd, panel, x), out),
                }
            }
        }
    }
}

/// Where a block's sums go.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub row: usize,
    pub column: usize,
    /// Of all columns.
    pub bias: Option<&'a [f32]>,
    /// Whether they are added.
    pub add: bool,
}

impl Place<'_> {
    /// Puts sums of consecutive rows.
    #[inline(always)]
    pub fn put<S: Simd>(
        self,
        simd: S,
        sums: impl IntoIterator<Item = <S::Wide as Wide>::V>,
        out: &mut Tile<'_>,
    ) {
        let width = (out.width() - self.column).min(GROUP);
        for (m, sums) in sums.into_iter().enumerate() {
            let to = &mut out.row(self.row + m)[self.column..][..width];
            if let Ok(to) = <&mut [f32; GROUP]>::try_from(&mut *to) {
                self.put_all(simd.wide(), sums, to);
            } else {
                let mut all = [0.0; GROUP];
                all[..width].copy_from_slice(to);
                self.put_all(simd.wide(), sums, &mut all);
                to.copy_from_slice(&all[..width]);
            }
        }
    }

    #[inline(always)]
    fn put_all<W: Wide>(self, wide: W, mut sums: W::V, to: &mut [f32; GROUP]) {
        if self.add {
            sums = wide.add(wide.load(to), sums);
        }
        wide.store(sums, to);
        if let Some(bias) = self.bias {
            to.iter_mut().zip(&bias[self.column..]).for_each(|(y, b)| *y += b);
        }
    }
}
