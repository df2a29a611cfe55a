//! `y = x·Wᵀ + b` over packed weights: each weight is read once a step from memory, whatever the
//! number of rows.
//!
//! Work is dealt in runs of panels, small enough to stay in the second-level cache while the row
//! blocks pass over them, so with few rows a thread streams its weights at memory speed and with
//! many it computes from cache. Runs shrink towards the end, so that the threads end together.

use super::element::GROUP;
use super::gemm::{BLOCK, PackedRows, Panels, RowBlock, Sums, block, store};
use super::pool::Pool;
use super::simd::{Kernel, Level, Simd};
use super::tile::Tile;

/// Bytes of weights of one work item, at most: half of a second-level cache.
const ITEM_BYTES: usize = 256 << 10;

/// Blocks of rows from which on weights that take work to come by are widened once for all.
const WIDENED_FROM: usize = 3;

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
    let rows = out.rows();
    assert_eq!((x.len(), out.width()), (rows * inputs, outputs), "linear");
    if rows == 0 {
        return;
    }
    let rows = &PackedRows::new(x, inputs, weight.group());
    let most = (ITEM_BYTES / weight.panel_bytes()).max(1);
    let items = Runs { out, next: 0, most, shares: 4 * pool.threads() };
    pool.for_each(items, |(first, out)| level.run(Item { weight, bias, add, rows, first, out }));
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
struct Item<'a, W> {
    weight: &'a W,
    bias: Option<&'a [f32]>,
    add: bool,
    rows: &'a PackedRows<'a>,
    /// First panel.
    first: usize,
    out: Tile<'a>,
}

impl<W: Panels> Kernel for Item<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let panels = self.out.width().div_ceil(GROUP);
        if self.rows.blocks().len() >= WIDENED_FROM
            && let Some(groups) = self.weight.widen(simd, self.first..self.first + panels)
        {
            let cols = self.weight.shape().1;
            return self.run_over(simd, panels, &Widened { groups, cols });
        }
        let (weight, first) = (self.weight, self.first);
        self.run_over(simd, panels, &From { weight, first });
    }
}

impl<W> Item<'_, W> {
    #[inline(always)]
    fn run_over<S: Simd>(mut self, simd: S, panels: usize, weight: &impl Blocks) {
        let bias = self.bias.map(|bias| &bias[self.first * GROUP..][..self.out.width()]);
        let mut row = 0;
        for (count, x) in self.rows.blocks() {
            for panel in 0..panels {
                let at = Place { row, column: panel * GROUP, bias, add: self.add };
                let out = &mut self.out;
                match count {
                    1 => at.put(simd, weight.block::<S, 1, 4>(simd, panel, x), out),
                    2 => at.put(simd, weight.block::<S, 2, 2>(simd, panel, x), out),
                    3 => at.put(simd, weight.block::<S, 3, 2>(simd, panel, x), out),
                    4 => at.put(simd, weight.block::<S, 4, 1>(simd, panel, x), out),
                    5 => at.put(simd, weight.block::<S, 5, 1>(simd, panel, x), out),
                    _ => at.put(simd, weight.block::<S, BLOCK, 1>(simd, panel, x), out),
                }
            }
            row += count;
        }
    }
}

/// The panels of one item, counted from its first.
trait Blocks {
    fn block<S: Simd, const M: usize, const U: usize>(
        &self,
        simd: S,
        panel: usize,
        rows: RowBlock<'_>,
    ) -> Sums<S::V, M>;
}

/// As they are stored.
struct From<'a, W> {
    weight: &'a W,
    first: usize,
}

impl<W: Panels> Blocks for From<'_, W> {
    #[inline(always)]
    fn block<S: Simd, const M: usize, const U: usize>(
        &self,
        simd: S,
        panel: usize,
        rows: RowBlock<'_>,
    ) -> Sums<S::V, M> {
        self.weight.block::<S, M, U>(simd, self.first + panel, rows)
    }
}

/// Widened, in the cache.
struct Widened {
    groups: Vec<[f32; GROUP]>,
    cols: usize,
}

impl Blocks for Widened {
    #[inline(always)]
    fn block<S: Simd, const M: usize, const U: usize>(
        &self,
        simd: S,
        panel: usize,
        rows: RowBlock<'_>,
    ) -> Sums<S::V, M> {
        let groups = &self.groups[panel * self.cols..][..self.cols];
        block::<S, f32, M, U>(simd, rows.x.as_chunks::<M>().0, groups)
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

impl Place<'_> {
    #[inline(always)]
    fn put<S: Simd, const M: usize>(self, simd: S, sums: Sums<S::V, M>, out: &mut Tile<'_>) {
        let width = (out.width() - self.column).min(GROUP);
        for (m, sums) in sums.into_iter().enumerate() {
            let to = &mut out.row(self.row + m)[self.column..][..width];
            let mut before = [0.0; GROUP];
            before[..width].copy_from_slice(to);
            store(simd, sums, to);
            if self.add {
                to.iter_mut().zip(before).for_each(|(y, before)| *y += before);
            }
            if let Some(bias) = self.bias {
                to.iter_mut().zip(&bias[self.column..]).for_each(|(y, b)| *y += b);
            }
        }
    }
}
