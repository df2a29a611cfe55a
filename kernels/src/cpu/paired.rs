//! bf16 weights for tiles: panels of 16 outputs in lines of 16 words, a word two inputs of an
//! output.
//!
//! A tile of weights is then 16 lines as they lie in memory. Rows of f32 are split into three parts
//! of bf16 that add up to them, so that products are as exact as those of f32 with
//! [`Packed`](super::packed::Packed) weights. All numbers of rows are on tiles, and a row's result
//! is the same among any others.

use super::arena::{Arena, Region};
use super::element::{GROUP, Plain};
use super::linear::{Place, Product, Runs, SHARES};
use super::pool::Pool;
use super::quantised::Line;
use super::simd::tiles::{HALVES, Halves, PARTS, PartSums, TILE, Tiles};
use super::simd::{Kernel, Level, Simd, Wide};
use super::tile::Tile;
use crate::ops::OpError;
use half::bf16;
use std::ops::{Deref, DerefMut};

/// A matrix in such panels, inputs filled up with zeros to whole tiles.
pub struct Paired {
    rows: usize,
    cols: usize,
    data: Region<u32>,
}

impl Paired {
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
        source: &[bf16],
    ) -> Result<Self, OpError> {
        assert!(rows > 0 && cols > 0 && source.len() == rows * cols, "{rows}x{cols}");
        let panel_words = cols.div_ceil(HALVES) * TILE * GROUP;
        let mut data = arena.zeroed(rows.div_ceil(GROUP) * panel_words)?;
        let panels = data.chunks_exact_mut(panel_words);
        pool.for_each(panels.zip(source.chunks(GROUP * cols)), |(panel, source)| {
            for (output, weights) in source.chunks_exact(cols).enumerate() {
                let lines = panel.as_chunks_mut::<GROUP>().0;
                for (line, pair) in lines.iter_mut().zip(weights.chunks(2)) {
                    let bits = |i: usize| pair.get(i).map_or(0, |x| u32::from(x.to_bits()));
                    line[output] = bits(0) | bits(1) << 16;
                }
            }
        });
        Ok(Self { rows, cols, data })
    }

    /// Everything a product reads.
    pub fn lines(&self) -> &[Line] {
        self.data.as_chunks().0
    }

    fn panel(&self, panel: usize) -> &[Line] {
        let lines = self.cols.div_ceil(HALVES) * TILE;
        &self.lines()[panel * lines..][..lines]
    }

    /// One row of the matrix, widened.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {}", self.rows);
        for (pair, line) in out.chunks_mut(2).zip(self.panel(row / GROUP)) {
            let word = line[row % GROUP];
            let both = [word << 16, word & 0xffff_0000].map(f32::from_bits);
            pair.copy_from_slice(&both[..pair.len()]);
        }
    }
}

/// Bytes of weights of one work item, at most: an eighth of a second-level cache.
const ITEM_BYTES: usize = 256 << 10;

/// Blocks of rows of one work item, at most: a block's outputs of an item are written in order.
const ITEM_BLOCKS: usize = 8;

/// Computes `product` into `out`, or adds it, on `tiles`.
pub fn tiled(
    (pool, level, tiles): (&Pool, Level, Tiles),
    product: &Product<'_, Paired>,
    out: Tile<'_>,
) {
    let &Product { x, weight, bias, add } = product;
    let (outputs, inputs) = (weight.rows, weight.cols);
    assert_eq!((x.len(), out.width()), (out.rows() * inputs, outputs), "tiled");
    if out.rows() == 0 {
        return;
    }
    let block = out.rows().min(TILE);
    let rows = &PartRows::new((pool, level), x, (inputs, block));
    let most = (ITEM_BYTES / size_of_val(weight.panel(0))).max(1);
    let parts = out.rows().div_ceil(block * ITEM_BLOCKS);
    let each = outputs.div_ceil(GROUP).div_ceil(pool.threads());
    let lists = out.columns(each * GROUP).enumerate().map(|(index, mut own)| {
        (0..parts).flat_map(move |part| {
            let rows = own.take_rows(block * ITEM_BLOCKS);
            let runs = Runs::new((index * each, rows), most, SHARES.div_ceil(parts));
            runs.map(move |(panel, out)| (part * ITEM_BLOCKS, panel, out))
        })
    });
    pool.for_each_in(lists, |(first, panel, out)| {
        level.run(Item { weight, bias, add, tiles, rows, block, first, panel, out });
    });
}

/// A run of panels times some blocks of rows.
struct Item<'a> {
    weight: &'a Paired,
    bias: Option<&'a [f32]>,
    add: bool,
    tiles: Tiles,
    rows: &'a PartRows,
    /// Rows of a block.
    block: usize,
    /// First block.
    first: usize,
    /// First panel.
    panel: usize,
    out: Tile<'a>,
}

impl Kernel for Item<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (wide, open) = (simd.wide(), self.tiles.parts(self.block));
        let bias = self.bias.map(|bias| &bias[self.panel * GROUP..][..self.out.width()]);
        let mut sums = PartSums([[[0.0; GROUP]; TILE]; PARTS]);
        for (index, row) in (0..self.out.rows()).step_by(self.block).enumerate() {
            let x = self.rows.block(self.first + index);
            let count = self.block.min(self.out.rows() - row);
            for number in 0..self.out.width().div_ceil(GROUP) {
                let panel = self.weight.panel(self.panel + number).as_chunks().0;
                open.multiply(x, panel, &mut sums);
                let at = Place { row, column: number * GROUP, bias, add: self.add };
                let sums = (0..count).map(|m| {
                    let [first, second, third] = [0, 1, 2].map(|part| wide.load(&sums.0[part][m]));
                    wide.add(first, wide.add(second, third))
                });
                at.put(simd, sums, &mut self.out);
            }
        }
    }
}

/// Rows in parts, for tiles: `[block][step][part][row]`, the last block filled up.
struct PartRows {
    data: Aligned<bf16>,
    /// [`Halves`] of a block.
    each: usize,
}

impl PartRows {
    fn new((pool, level): (&Pool, Level), x: &[f32], (width, block): (usize, usize)) -> Self {
        let each = width.div_ceil(HALVES) * PARTS * block;
        let mut data = Aligned::zeroed(x.len().div_ceil(width * block) * each * HALVES);
        let blocks = data.as_chunks_mut().0.chunks_exact_mut(each).zip(x.chunks(width * block));
        pool.for_each(blocks, |(to, x)| level.run(Split { x, width, block, to }));
        Self { data, each }
    }

    fn block(&self, index: usize) -> &[Halves] {
        &self.data.as_chunks().0[index * self.each..][..self.each]
    }
}

/// Splits a block of rows.
struct Split<'a> {
    x: &'a [f32],
    width: usize,
    block: usize,
    to: &'a mut [Halves],
}

impl Kernel for Split<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (row, x) in self.x.chunks_exact(self.width).enumerate() {
            for (x, to) in x.chunks(HALVES).zip(self.to.chunks_exact_mut(PARTS * self.block)) {
                let (first, others) = to.split_at_mut(self.block);
                let (second, third) = others.split_at_mut(self.block);
                let [first, second, third] = [first, second, third].map(|part| &mut part[row]);
                for (i, &x) in x.iter().enumerate() {
                    // Cut, not rounded: each part has the next eight bits, and the third the last.
                    let top = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
                    let rest = x - top(x);
                    let parts = [x, rest, rest - top(rest)];
                    let [a, b, c] = parts.map(|x| bf16::from_bits((x.to_bits() >> 16) as u16));
                    (first[i], second[i], third[i]) = (a, b, c);
                }
            }
        }
    }
}

/// Elements from a cache line on.
pub struct Aligned<T> {
    data: Vec<T>,
    skip: usize,
}

impl<T: Plain> Aligned<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        const LINE: usize = 64;
        let most = LINE / size_of::<T>();
        let data = vec![T::default(); len + most];
        let skip = data.as_ptr().align_offset(LINE).min(most);
        let mut aligned = Self { data, skip };
        aligned.data.truncate(skip + len);
        aligned
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[self.skip..]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[self.skip..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::ops::{HostMatrix, Weights};
    use crate::parity::{Random, linear, norm_error};

    /// Parts add up to what was split, and lie where tiles read them; the rest is zero.
    #[test]
    fn parts_of_rows_add_up() {
        for (rows, width, block) in [(1, 1, 1), (16, 64, 16), (21, 33, 16), (5, 576, 5)] {
            let element = |i: usize| {
                let sign = if i.is_multiple_of(3) { -1.0 } else { 1.0 };
                let bits = (i as u32).wrapping_mul(0x9e37_79b9) >> 9 | 0x3f80_0000;
                sign * f32::from_bits(bits) * 10_f32.powi(i as i32 % 41 - 20)
            };
            let x: Vec<f32> = (0..rows * width).map(element).collect();
            let split = PartRows::new((&Pool::new(2), Level::detect()), &x, (width, block));
            for row in 0..rows.next_multiple_of(block) {
                for i in 0..width.next_multiple_of(HALVES) {
                    let step = &split.block(row / block)[i / HALVES * PARTS * block..];
                    let part = |part: usize| step[part * block + row % block][i % HALVES].to_f32();
                    let parts = [0, 1, 2].map(part);
                    let expect = if row < rows && i < width { x[row * width + i] } else { 0.0 };
                    assert_eq!(parts[0] + (parts[1] + parts[2]), expect, "row {row}, {i}");
                    assert!(parts[1].abs() <= parts[0].abs() / 128.0, "{parts:?}");
                }
            }
        }
        for bad in [f32::INFINITY, f32::NAN, f32::from_bits(0x7f80_0001)] {
            let split = PartRows::new((&Pool::new(1), Level::detect()), &[bad], (1, 1));
            assert!(split.block(0)[1][0].is_nan(), "what is not finite is no number");
        }
    }

    #[test]
    fn rows_come_back() {
        let at = (&Pool::new(2), &Arena::default());
        for (rows, cols) in [(1, 1), (16, 3), (17, 5), (50, 33), (3, 64)] {
            let source: Vec<_> =
                (0..rows * cols).map(|i| bf16::from_f32(i as f32 % 251.0)).collect();
            let paired = Paired::pack(at, (rows, cols), &source).unwrap();
            for row in 0..rows {
                let mut out = vec![f32::NAN; cols];
                paired.row(row, &mut out);
                let expect = source[row * cols..][..cols].iter().map(|x| x.to_f32());
                assert_eq!(out, expect.collect::<Vec<_>>(), "{rows}x{cols} row {row}");
            }
        }
    }

    /// A level with tiles, and the same without.
    type Pair = (Level, Level);
    const PLAIN: Pair = (Level::PlainTiles, Level::Portable);

    fn amx() -> Pair {
        let [.., avx512, amx] = Level::all()[..] else { panic!("a CPU with AMX") };
        assert_eq!((amx.name(), avx512.name()), ("amx", "avx512"), "needs AMX");
        (amx, avx512)
    }

    /// Rows times a matrix, and added to what was there.
    fn products(level: Level, host: &HostMatrix, x: &[f32], onto: &[f32]) -> Vec<f32> {
        let cpu = Cpu::with_level(3, level);
        let bias = onto[..host.rows].to_vec();
        linear(&cpu, x, host, Some(&bias), Some(&onto[..x.len() / host.cols * host.rows]))
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// Alone, in a batch, among a prompt's rows: a row's bits are the same.
    fn a_row_is_the_same_in_any_batch((level, without): Pair) {
        let mut random = Random(4);
        for (inputs, outputs) in [(576, 70), (33, 17), (1, 1), (1536, 100)] {
            let w = random.vec(outputs * inputs).into_iter().map(bf16::from_f32).collect();
            let host = HostMatrix { rows: outputs, cols: inputs, weights: Weights::Bf16(w) };
            let (x, onto) = (random.vec(150 * inputs), vec![0.25; 150 * outputs]);
            let all = products(level, &host, &x, &onto);
            for size in [1, 2, 8, 15, 17, 40] {
                for (index, x) in x.chunks(size * inputs).enumerate().step_by(3) {
                    let few = products(level, &host, x, &onto);
                    let same = &all[index * size * outputs..][..few.len()];
                    assert_eq!(bits(&few), bits(same), "{inputs}x{outputs}, {size} rows");
                }
            }
            let error = norm_error(&all, &products(without, &host, &x, &onto));
            assert!(error < 1e-6, "{inputs}x{outputs}: off by {error}");
        }
    }

    #[test]
    fn a_row_is_the_same_in_any_batch_on_plain_tiles() {
        a_row_is_the_same_in_any_batch(PLAIN);
    }

    #[test]
    #[ignore = "needs AMX"]
    fn a_row_is_the_same_in_any_batch_on_amx() {
        a_row_is_the_same_in_any_batch(amx());
    }

    #[test]
    fn memory_for_tiles_is_on_cache_lines() {
        for len in [0, 1, 16, 1000] {
            let (words, halves) = (Aligned::<u32>::zeroed(len), Aligned::<bf16>::zeroed(len));
            assert_eq!((words.len(), halves.len()), (len, len));
            let starts = [words.as_ptr() as usize, halves.as_ptr() as usize];
            assert_eq!(starts.map(|start| start % 64), [0, 0]);
        }
    }
}
