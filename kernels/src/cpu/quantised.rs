//! Weights that stay quantised: panels of 16 outputs in lines of 16 words, lane = output.
//!
//! A panel is its groups of inputs one after another, and a group is read front to back:
//! 1. one line of scales and minimums, both halves, the scale below; or, where one of them is no
//!    half, a line of scales and a line of minimums in f32;
//! 2. lines of values, unsigned: a byte of a word holds an input of 8 bits, to which 128 is added,
//!    or in its low half one of 4 bits, and in its high half the one four inputs further.
//!
//! So a product streams lines in order, and multiplies the bytes of all lanes by four inputs of a
//! row, which are [in fixed point](super::fixed). Values are kept in 4 bits if all of a matrix are
//! in `0..=15`; nothing is rounded on the way in.

use super::arena::{Arena, Region};
use super::element::GROUP;
use super::fixed::{DIGITS, FixedBlock, FixedRows, INPUTS};
use super::gemm::{AHEAD, Panels, Sums};
use super::pool::Pool;
use super::simd::{Level, Simd, Wide};
use crate::ops::{Blocks, OpError};
use half::f16;

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

/// What is added to a value of 8 bits, so that it is unsigned.
const SIGN: i32 = 128;

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
        self.heads() + self.group / inputs_of(self.narrow)
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
            for (line, out) in values.iter().zip(out.chunks_exact_mut(inputs_of(self.narrow))) {
                for (i, x) in out.iter_mut().enumerate() {
                    let byte = line[lane].to_le_bytes()[i % INPUTS];
                    let value = match self.narrow {
                        true => i32::from(byte >> (i / INPUTS * 4) & 15),
                        false => i32::from(byte) - SIGN,
                    };
                    *x = scale * value as f32 + min;
                }
            }
        }
    }

    #[inline(always)]
    fn scales<W: Wide>(&self, wide: W, heads: &[Line]) -> (W::V, W::V) {
        match heads {
            [scales, mins] => {
                (wide.as_floats(wide.load_words(scales)), wide.as_floats(wide.load_words(mins)))
            }
            _ => wide.halves(wide.load_words(&heads[0])),
        }
    }

    #[inline(always)]
    fn product<S: Simd, const M: usize>(
        &self,
        simd: S,
        panel: usize,
        rows: &FixedBlock<'_, M>,
    ) -> Sums<S, M> {
        let wide = simd.wide();
        let mut sums = [wide.splat(0.0); M];
        let lines = self.panel(panel).chunks_exact(self.group_lines());
        let words = rows.words.chunks_exact(self.group / INPUTS);
        for ((lines, words), groups) in lines.zip(words).zip(rows.groups) {
            let (heads, values) = lines.split_at(self.heads());
            heads.iter().for_each(|line| simd.prefetch(line, AHEAD));
            let mut dots: [Dots<S::Wide>; M] = std::array::from_fn(|m| {
                let low = if self.narrow { 0 } else { groups[m].digits.wrapping_mul(-SIGN) };
                [wide.splat_word(0), wide.splat_word(low.cast_unsigned())]
            });
            if self.narrow {
                for (line, words) in values.iter().zip(words.as_chunks::<2>().0) {
                    simd.prefetch(line, AHEAD);
                    let line = wide.load_words(line);
                    multiply(wide, &mut dots, wide.low_nibbles(line), &words[0]);
                    multiply(wide, &mut dots, wide.high_nibbles(line), &words[1]);
                }
            } else {
                for (line, words) in values.iter().zip(words) {
                    simd.prefetch(line, AHEAD);
                    multiply(wide, &mut dots, wide.load_words(line), words);
                }
            }
            let (scales, mins) = self.scales(wide, heads);
            for m in 0..M {
                let dot = wide.join_digits(dots[m][0], dots[m][1]);
                let sum = wide.fma(wide.splat(groups[m].total), mins, sums[m]);
                sums[m] = wide.fma(wide.mul(dot, wide.splat(groups[m].scale)), scales, sum);
            }
        }
        sums
    }
}

/// Of a row's digits, the dots with a panel.
type Dots<W> = [<W as Wide>::I; DIGITS];

/// Four inputs of `M` rows times a panel.
#[inline(always)]
fn multiply<W: Wide, const M: usize>(
    wide: W,
    dots: &mut [Dots<W>; M],
    weights: W::I,
    words: &[[u32; M]; DIGITS],
) {
    for (m, dots) in dots.iter_mut().enumerate() {
        for (digit, dot) in dots.iter_mut().enumerate() {
            *dot = wide.dot(*dot, weights, wide.splat_word(words[digit][m]));
        }
    }
}

impl Panels for Quantised {
    type Rows<'a> = FixedRows;

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn panel_bytes(&self) -> usize {
        self.panel_lines() * size_of::<Line>()
    }

    fn rows_most(&self, level: Level) -> usize {
        level.word_rows_most()
    }

    fn rows(&self, at: (&Pool, Level), x: &[f32], block: usize) -> FixedRows {
        FixedRows::new(at, x, (self.cols, self.group, block))
    }

    #[inline(always)]
    fn block<S: Simd, const M: usize, const U: usize>(
        &self,
        simd: S,
        panel: usize,
        (rows, index): (&FixedRows, usize),
    ) -> Sums<S, M> {
        self.product(simd, panel, &rows.block(index))
    }
}

fn scale_words(wide: bool, scale: f32, min: f32) -> impl Iterator<Item = u32> {
    let half = |x: f32| u32::from(f16::from_f32(x).to_bits());
    let words =
        if wide { [scale.to_bits(), min.to_bits()] } else { [half(scale) | half(min) << 16, 0] };
    words.into_iter().take(1 + usize::from(wide))
}

fn words_of(narrow: bool, values: &[i8]) -> impl Iterator<Item = u32> {
    values.chunks_exact(inputs_of(narrow)).map(move |values| {
        let (first, second) = values.split_at(INPUTS);
        let byte = |i: usize| match narrow {
            true => first[i].cast_unsigned() | second[i].cast_unsigned() << 4,
            false => first[i].cast_unsigned().wrapping_add(SIGN as u8),
        };
        u32::from_le_bytes(std::array::from_fn(byte))
    })
}

/// Inputs of a word of values.
fn inputs_of(narrow: bool) -> usize {
    if narrow { 2 * INPUTS } else { INPUTS }
}
