//! Rows in fixed point, for products of integers: 14 bits and a scale for each group of inputs.
//!
//! An element is two digits, `128 * high + low`, each from -64 to 64: CPUs multiply bytes, and the
//! products of two such with unsigned bytes fit the 16 bits that AVX2 has for their sum. With both
//! digits an element is off by 2⁻¹⁴ of the largest of its group at most, a bf16 by 2⁻⁹ of itself.
//! A row's digits depend on that row alone, and so do its products.

use super::pool::Pool;
use super::simd::{Kernel, LANES, Level, Simd};

/// Digits of an element, the higher first.
pub const DIGITS: usize = 2;

/// Inputs of a word: one in each byte.
pub const INPUTS: usize = 4;

/// The largest size of an element: both digits 63.
const MOST: f32 = 8_127.0;

/// Elements of rows below which packing them is not worth a fork and join.
const SERIAL: usize = 8 << 10;

/// Rows of one matrix, in blocks.
pub struct FixedRows {
    /// For each block `[word of inputs][digit][row]`.
    words: Vec<u32>,
    /// For each block `[group][row]`.
    groups: Vec<Group>,
    width: usize,
    group: usize,
    /// Rows of a block; the last may have fewer.
    block: usize,
}

/// What is known of a row's group of inputs.
#[derive(Clone, Copy, Default)]
pub struct Group {
    /// An element is this times its digits; NaN if one is not finite.
    pub scale: f32,
    /// The sum of the elements.
    pub total: f32,
    /// The sum of their digits.
    pub digits: i32,
}

/// One block of [`FixedRows`], of `M` rows.
pub struct FixedBlock<'a, const M: usize> {
    /// `[word of inputs]`.
    pub words: &'a [[[u32; M]; DIGITS]],
    /// `[group]`.
    pub groups: &'a [[Group; M]],
}

impl FixedRows {
    /// Rows of `width`, in groups of `group`, a multiple of 8.
    pub fn new(
        (pool, level): (&Pool, Level),
        x: &[f32],
        (width, group, block): (usize, usize, usize),
    ) -> Self {
        let words = vec![0; x.len() / INPUTS * DIGITS];
        let groups = vec![Group::default(); x.len() / group];
        let mut rows = Self { words, groups, width, group, block };
        let words = rows.words.chunks_mut(block * width / INPUTS * DIGITS);
        let groups = rows.groups.chunks_mut(block * (width / group));
        let blocks = x.chunks(block * width).zip(words.zip(groups));
        // A block alone is cut by its groups, so that each thread has a part of it.
        let parts = if x.len() < SERIAL { 1 } else { pool.threads() };
        let each = (width / group).div_ceil(parts);
        let parts = blocks.flat_map(|(x, (words, groups))| {
            let count = x.len() / width;
            let words = words.chunks_mut(each * group / INPUTS * DIGITS * count);
            let groups = groups.chunks_mut(each * count);
            let parts = words.zip(groups).enumerate();
            parts.map(move |(part, (words, groups))| Pack {
                x,
                width,
                group,
                first: part * each * group,
                words,
                groups,
            })
        });
        match x.len() < SERIAL {
            true => parts.for_each(|part| level.run(part)),
            false => pool.for_each(parts, |part| level.run(part)),
        }
        rows
    }

    /// Block `index`, which has `M` rows.
    #[inline(always)]
    pub fn block<const M: usize>(&self, index: usize) -> FixedBlock<'_, M> {
        let (words, groups) = (self.width / INPUTS * DIGITS, self.width / self.group);
        let words = &self.words[index * self.block * words..][..M * words];
        let groups = &self.groups[index * self.block * groups..][..M * groups];
        let words = words.as_chunks::<M>().0.as_chunks::<DIGITS>().0;
        FixedBlock { words, groups: groups.as_chunks().0 }
    }
}

/// Fills in some groups of one block.
struct Pack<'a> {
    /// All of the block's rows.
    x: &'a [f32],
    width: usize,
    group: usize,
    /// First input of a row.
    first: usize,
    words: &'a mut [u32],
    groups: &'a mut [Group],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let count = self.x.len() / self.width;
        let group_words = self.group / INPUTS * DIGITS * count;
        for (row, x) in self.x.chunks_exact(self.width).enumerate() {
            let words = self.words.chunks_exact_mut(group_words);
            let groups = self.groups.chunks_exact_mut(count);
            for ((x, words), groups) in
                x[self.first..].chunks_exact(self.group).zip(words).zip(groups)
            {
                groups[row] = pack(simd, x, words, (row, count));
            }
        }
    }
}

/// Packs a group of row `row` of `count`.
#[inline(always)]
fn pack<S: Simd>(simd: S, x: &[f32], words: &mut [u32], (row, count): (usize, usize)) -> Group {
    let mut sizes = simd.splat(0.0);
    let eights = x.as_chunks::<LANES>().0;
    for eight in eights {
        let v = simd.load(eight);
        sizes = simd.max(simd.max(v, simd.sub(simd.splat(0.0), v)), sizes);
    }
    let size = simd.largest(sizes);
    let inverse = if size < f32::MIN_POSITIVE { 0.0 } else { MOST / size };
    let mut total = simd.splat(0.0);
    for (eight, words) in eights.iter().zip(words.chunks_exact_mut(2 * DIGITS * count)) {
        let v = simd.round(simd.mul(simd.load(eight), simd.splat(inverse)));
        total = simd.add(total, v);
        let [[high, low], [next_high, next_low]] = simd.digits(v);
        words[row] = high;
        words[row + count] = low;
        words[row + 2 * count] = next_high;
        words[row + 3 * count] = next_low;
    }
    // What is not finite must not look like a number: it makes the total NaN, and so the scale.
    let total = simd.sum(total);
    let scale = size / MOST + 0.0 * total;
    Group { scale, total: scale * total, digits: total as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digits, scales and totals of `M` rows give back what was packed.
    fn check<const M: usize>(level: Level, width: usize) {
        let group = 16;
        let element = |i: usize| ((i * 7919 % 1000) as f32 - 499.0) * 10_f32.powi(i as i32 % 7 - 3);
        let mut x: Vec<f32> = (0..M * width).map(element).collect();
        x[..group].fill(0.0);
        let rows = FixedRows::new((&Pool::new(2), level), &x, (width, group, M));
        let FixedBlock { words, groups } = rows.block::<M>(0);
        for (m, x) in x.chunks_exact(width).enumerate() {
            for (g, x) in x.chunks_exact(group).enumerate() {
                let Group { scale, total, digits } = groups[g][m];
                let mut sum = 0;
                for (i, x) in x.iter().enumerate() {
                    let word = &words[g * group / INPUTS + i / INPUTS];
                    let digit = |d: usize| i32::from(word[d][m].to_le_bytes()[i % 4].cast_signed());
                    let whole = 128 * digit(0) + digit(1);
                    sum += whole;
                    assert!((scale * whole as f32 - x).abs() <= scale * 0.502, "{level:?} {x}");
                }
                assert_eq!((digits, total), (sum, scale * sum as f32), "{level:?}");
            }
        }
    }

    #[test]
    fn digits_are_what_was_packed() {
        for level in Level::all() {
            check::<1>(level, 48);
            check::<4>(level, 48);
            // Enough to be shared out, in uneven parts.
            check::<4>(level, 2_064);
        }
    }

    #[test]
    fn what_is_not_finite_does_not_look_like_a_number() {
        for level in Level::all() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = [1.0; 32];
                x[9] = bad;
                let rows = FixedRows::new((&Pool::new(1), level), &x, (32, 16, 1));
                let scales = rows.groups.iter().map(|group| group.scale.is_nan());
                assert_eq!(scales.collect::<Vec<_>>(), [true, false], "{level:?} {bad}");
            }
        }
    }
}
