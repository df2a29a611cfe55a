//! Weights that stay quantised: panels of 16 outputs in lines of 16 words, lane = output.
//!
//! A panel is its groups of inputs one after another, and a group is read front to back:
//! 1. one line of scales and minimums, both halves, the scale below; or, where one of them is no
//!    half, a line of scales and a line of minimums in f32;
//! 2. lines of values: a word holds eight inputs of 4 bits or four of 8, the first in its top bits.
//!
//! So a product streams lines in order, and takes a value by a shift of all lanes. Values are kept
//! in 4 bits if all of a matrix are in `0..=15`; nothing is rounded on the way in.

use super::arena::{Arena, Region};
use super::element::GROUP;
use super::gemm::{AHEAD, Panels, RowBlock, Sums};
use super::pool::Pool;
use super::simd::{LANES, Simd};
use crate::ops::{Blocks, OpError};
use half::f16;
use std::ops::Range;

/// One word of each of a panel's outputs: a cache line.
pub type Line = [u32; GROUP];

/// A quantised matrix in panels.
pub struct Quantised {
    rows: usize,
    cols: usize,
    /// Inputs that share a scale.
    group: usize,
    /// Whether values have 4 bits; else 8.
    narrow: bool,
    /// Whether scales and minimums are f32; else halves.
    wide_scales: bool,
    data: Region<u32>,
}

/// Values of 4 bits in a word.
const NIBBLES: usize = 8;
/// Values of 8 bits in a word.
const BYTES: usize = 4;

/// The top value of each word, of which there are `N`, and the rest moved up.
#[inline(always)]
fn take<S: Simd, const N: usize>(simd: S, words: S::I) -> (S::V, S::I) {
    match N {
        NIBBLES => (simd.top_nibble(words), simd.shift_left::<4>(words)),
        _ => (simd.top_byte(words), simd.shift_left::<8>(words)),
    }
}

impl Quantised {
    /// Packs `[rows][cols]` into memory of `arena`.
    ///
    /// # Errors
    /// [`OpError::Memory`].
    ///
    /// # Panics
    /// If there are no elements, the lengths of `blocks` do not agree, or a group is no multiple of
    /// eight inputs that divides `cols`.
    pub fn pack(
        (pool, arena): (&Pool, &Arena),
        (rows, cols): (usize, usize),
        blocks: &Blocks,
    ) -> Result<Self, OpError> {
        let Blocks { group, scales, mins, values } = blocks;
        assert!(group.is_multiple_of(8) && cols.is_multiple_of(*group), "{group} of {cols}");
        assert!(rows > 0 && cols > 0 && values.len() == rows * cols, "{rows}x{cols}");
        assert_eq!((scales.len(), mins.len()), (values.len() / group, values.len() / group));
        let half = |x: &f32| x.is_finite() && f16::from_f32(*x).to_f32() == *x;
        let mut packed = Self {
            rows,
            cols,
            group: *group,
            narrow: values.iter().all(|value| (0..16).contains(value)),
            wide_scales: !(scales.iter().all(half) && mins.iter().all(half)),
            data: arena.zeroed(0)?,
        };
        packed.data = arena.zeroed(rows.div_ceil(GROUP) * packed.panel_lines() * GROUP)?;
        let (panel_lines, group_lines) = (packed.panel_lines(), packed.group_lines());
        let (narrow, wide_scales) = (packed.narrow, packed.wide_scales);
        let groups = cols / group;
        let panels = packed.data.chunks_exact_mut(panel_lines * GROUP).enumerate();
        pool.for_each(panels, |(panel, data)| {
            for lane in 0..GROUP.min(rows - panel * GROUP) {
                let row = panel * GROUP + lane;
                let lines = data.as_chunks_mut::<GROUP>().0.chunks_exact_mut(group_lines);
                for (index, lines) in (row * groups..).zip(lines) {
                    let (scale, min) = (scales[index], mins[index]);
                    let values = &values[index * group..][..*group];
                    let words = lines.iter_mut().map(|line| &mut line[lane]);
                    let all = scale_words(wide_scales, scale, min).chain(words_of(narrow, values));
                    words.zip(all).for_each(|(word, value)| *word = value);
                }
            }
        });
        Ok(packed)
    }

    fn heads(&self) -> usize {
        1 + usize::from(self.wide_scales)
    }

    fn group_lines(&self) -> usize {
        self.heads() + self.group / if self.narrow { NIBBLES } else { BYTES }
    }

    fn panel_lines(&self) -> usize {
        self.cols / self.group * self.group_lines()
    }

    /// Everything a product reads.
    pub fn lines(&self) -> &[Line] {
        self.data.as_chunks().0
    }

    fn panel(&self, panel: usize) -> &[Line] {
        &self.lines()[panel * self.panel_lines()..][..self.panel_lines()]
    }

    /// One row of the matrix.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {}", self.rows);
        let lane = row % GROUP;
        let groups = self.panel(row / GROUP).chunks_exact(self.group_lines());
        for (lines, out) in groups.zip(out.chunks_exact_mut(self.group)) {
            let (heads, values) = lines.split_at(self.heads());
            let (scale, min) = match heads {
                [scale, min] => (f32::from_bits(scale[lane]), f32::from_bits(min[lane])),
                _ => {
                    let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
                    (half(heads[0][lane]), half(heads[0][lane] >> 16))
                }
            };
            let inputs = self.group / values.len();
            for (line, out) in values.iter().zip(out.chunks_exact_mut(inputs)) {
                let mut word = line[lane];
                for x in out {
                    let value = if self.narrow {
                        (word >> 28) as f32
                    } else {
                        f32::from((word >> 24) as u8 as i8)
                    };
                    *x = scale * value + min;
                    word <<= 32 / inputs;
                }
            }
        }
    }

    #[inline(always)]
    fn scales<S: Simd>(&self, simd: S, heads: &[Line]) -> [[S::V; 2]; 2] {
        if let [scales, mins] = heads {
            let (scales, mins) = (load(simd, scales), load(simd, mins));
            return [scales.map(|x| simd.as_floats(x)), mins.map(|x| simd.as_floats(x))];
        }
        let [low, high] = load(simd, &heads[0]);
        let ((low_scale, low_min), (high_scale, high_min)) = (simd.halves(low), simd.halves(high));
        [[low_scale, high_scale], [low_min, high_min]]
    }

    #[inline(always)]
    fn product<S: Simd, const N: usize, const M: usize, const U: usize>(
        &self,
        simd: S,
        panel: usize,
        rows: RowBlock<'_>,
    ) -> Sums<S::V, M> {
        let mut sums = [[simd.splat(0.0); 2]; M];
        let groups = self.panel(panel).chunks_exact(self.group_lines());
        let (xs, totals) = (rows.x.as_chunks::<M>().0, rows.totals.as_chunks::<M>().0);
        for ((lines, xs), totals) in groups.zip(xs.chunks_exact(self.group)).zip(totals) {
            let (heads, values) = lines.split_at(self.heads());
            heads.iter().for_each(|line| simd.prefetch(line, AHEAD));
            let mut chains = [[[simd.splat(0.0); 2]; M]; U];
            for (line, xs) in values.iter().zip(xs.as_chunks::<N>().0) {
                simd.prefetch(line, AHEAD);
                let [mut low, mut high] = load(simd, line);
                for k in 0..N {
                    let (first, second);
                    (first, low) = take::<S, N>(simd, low);
                    (second, high) = take::<S, N>(simd, high);
                    for (sum, &x) in chains[k % U].iter_mut().zip(&xs[k]) {
                        let x = simd.splat(x);
                        *sum = [simd.fma(x, first, sum[0]), simd.fma(x, second, sum[1])];
                    }
                }
            }
            let [scales, mins] = self.scales(simd, heads);
            for m in 0..M {
                let total = simd.splat(totals[m]);
                for half in 0..2 {
                    let mut dot = chains[0][m][half];
                    for chain in &chains[1..] {
                        dot = simd.add(dot, chain[m][half]);
                    }
                    let sum = simd.fma(dot, scales[half], sums[m][half]);
                    sums[m][half] = simd.fma(total, mins[half], sum);
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn widen_as<S: Simd, const N: usize>(
        &self,
        simd: S,
        panel: usize,
        out: &mut Vec<[f32; GROUP]>,
    ) {
        for lines in self.panel(panel).chunks_exact(self.group_lines()) {
            let (heads, values) = lines.split_at(self.heads());
            let [scales, mins] = self.scales(simd, heads);
            for line in values {
                let mut words = load(simd, line);
                for _ in 0..N {
                    let mut group = [0.0; GROUP];
                    for (half, to) in group.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                        let value;
                        (value, words[half]) = take::<S, N>(simd, words[half]);
                        simd.store(simd.fma(value, scales[half], mins[half]), to);
                    }
                    out.push(group);
                }
            }
        }
    }
}

impl Panels for Quantised {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn panel_bytes(&self) -> usize {
        self.panel_lines() * size_of::<Line>()
    }

    fn group(&self) -> Option<usize> {
        Some(self.group)
    }

    #[inline(always)]
    fn block<S: Simd, const M: usize, const U: usize>(
        &self,
        simd: S,
        panel: usize,
        rows: RowBlock<'_>,
    ) -> Sums<S::V, M> {
        match self.narrow {
            true => self.product::<S, NIBBLES, M, U>(simd, panel, rows),
            false => self.product::<S, BYTES, M, U>(simd, panel, rows),
        }
    }

    #[inline(always)]
    fn widen<S: Simd>(&self, simd: S, panels: Range<usize>) -> Option<Vec<[f32; GROUP]>> {
        let mut out = Vec::with_capacity(panels.len() * self.cols);
        for panel in panels {
            match self.narrow {
                true => self.widen_as::<S, NIBBLES>(simd, panel, &mut out),
                false => self.widen_as::<S, BYTES>(simd, panel, &mut out),
            }
        }
        Some(out)
    }
}

#[inline(always)]
fn load<S: Simd>(simd: S, line: &Line) -> [S::I; 2] {
    let (halves, _) = line.as_chunks::<LANES>();
    [simd.load_words(&halves[0]), simd.load_words(&halves[1])]
}

fn scale_words(wide: bool, scale: f32, min: f32) -> impl Iterator<Item = u32> {
    let half = |x: f32| u32::from(f16::from_f32(x).to_bits());
    let words =
        if wide { [scale.to_bits(), min.to_bits()] } else { [half(scale) | half(min) << 16, 0] };
    words.into_iter().take(1 + usize::from(wide))
}

fn words_of(narrow: bool, values: &[i8]) -> impl Iterator<Item = u32> {
    let (inputs, bits) = if narrow { (NIBBLES, 4) } else { (BYTES, 8) };
    values.chunks_exact(inputs).map(move |values| {
        let word = |word: u32, &value: &i8| word << bits | u32::from(value.cast_unsigned());
        values.iter().fold(0, word)
    })
}
