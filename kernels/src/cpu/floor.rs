//! The floor of any kernel that reads weights: all their bytes, summed plainly by all threads.
//!
//! A measurement, not an op: decode is judged by how near it comes to this.

use super::backend::Matrix;
use super::element::{Element, GROUP};
use super::pool::Pool;
use super::quantised::Line;
use super::simd::{Kernel, Level, Simd, Wide};
use std::sync::Mutex;

/// Groups or lines of one work item: 128 KiB of bf16.
const ITEM: usize = 4096;

struct Sum<'a, E>(&'a [[E; GROUP]]);

impl<E: Element> Kernel for Sum<'_, E> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let wide = simd.wide();
        let mut sums = [wide.splat(0.0); 4];
        let (fours, rest) = self.0.as_chunks::<4>();
        for four in fours {
            for (sum, group) in sums.iter_mut().zip(four) {
                *sum = wide.add(*sum, E::load_group(wide, group));
            }
        }
        let tail = rest.iter().flatten().map(|x| x.to_f32()).sum::<f32>();
        sums.into_iter().map(|sum| total(wide, sum)).sum::<f32>() + tail
    }
}

#[inline(always)]
fn total<W: Wide>(wide: W, v: W::V) -> f32 {
    let mut all = [0.0; GROUP];
    wide.store(v, &mut all);
    all.iter().sum()
}

/// Adds up what `kernel` makes of runs of lines.
fn sum<'a, T: Sync + 'a, K: Kernel<Output = f32>>(
    (pool, level): (&Pool, Level),
    lines: &'a [T],
    kernel: impl Fn(&'a [T]) -> K + Sync,
) -> f64 {
    let total = Mutex::new(0.0);
    pool.for_each(lines.chunks(ITEM), |lines| {
        let sum = f64::from(level.run(kernel(lines)));
        *total.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += sum;
    });
    total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Of words there is no sum that means anything; wrapping ones are as cheap.
struct SumLines<'a>(&'a [Line]);

impl Kernel for SumLines<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let wide = simd.wide();
        let mut sums = [wide.splat_word(0); 4];
        for four in self.0.as_chunks::<4>().0 {
            for (sum, line) in sums.iter_mut().zip(four) {
                *sum = wide.add_words(*sum, wide.load_words(line));
            }
        }
        let all = sums.into_iter().reduce(|a, b| wide.add_words(a, b));
        all.map_or(0.0, |all| total(wide, wide.as_floats(all)))
    }
}

impl Matrix {
    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(m) => size_of_val(m.groups(0..m.rows.div_ceil(GROUP))),
            Self::Bf16(m) => size_of_val(m.groups(0..m.rows.div_ceil(GROUP))),
            Self::Paired(m, _) => size_of_val(m.lines()),
            Self::Quantised(m) => size_of_val(m.lines()),
        }
    }

    pub(super) fn sum(&self, pool: &Pool, level: Level) -> f64 {
        let at = (pool, level);
        match self {
            Self::F32(m) => sum(at, m.groups(0..m.rows.div_ceil(GROUP)), Sum),
            Self::Bf16(m) => sum(at, m.groups(0..m.rows.div_ceil(GROUP)), Sum),
            Self::Paired(m, _) => sum(at, m.lines(), SumLines),
            Self::Quantised(m) => sum(at, m.lines(), SumLines),
        }
    }
}
