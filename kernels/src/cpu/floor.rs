//! The floor of any kernel that reads weights: all their bytes, summed plainly by all threads.
//!
//! A measurement, not an op: decode is judged by how near it comes to this.

use super::backend::Matrix;
use super::element::{Element, GROUP};
use super::packed::Packed;
use super::pool::Pool;
use super::simd::{Kernel, Level, Simd};
use std::sync::Mutex;

/// Groups of one work item: 128 KiB of bf16.
const ITEM: usize = 4096;

struct Sum<'a, E>(&'a [[E; GROUP]]);

impl<E: Element> Kernel for Sum<'_, E> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.splat(0.0); 8];
        let (fours, rest) = self.0.as_chunks::<4>();
        for four in fours {
            for (i, group) in four.iter().enumerate() {
                let (low, high) = E::load_group(simd, group);
                sums[2 * i] = simd.add(sums[2 * i], low);
                sums[2 * i + 1] = simd.add(sums[2 * i + 1], high);
            }
        }
        let tail = rest.iter().flatten().map(|x| x.to_f32()).sum::<f32>();
        sums.into_iter().map(|sum| simd.sum(sum)).sum::<f32>() + tail
    }
}

fn sum<E: Element>(pool: &Pool, level: Level, matrix: &Packed<E>) -> f64 {
    let total = Mutex::new(0.0);
    let groups = matrix.groups(0..matrix.rows.div_ceil(GROUP));
    pool.for_each(groups.chunks(ITEM), |groups| {
        let sum = f64::from(level.run(Sum(groups)));
        *total.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += sum;
    });
    total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Matrix {
    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(m) => size_of_val(m.groups(0..m.rows.div_ceil(GROUP))),
            Self::Bf16(m) => size_of_val(m.groups(0..m.rows.div_ceil(GROUP))),
        }
    }

    pub(super) fn sum(&self, pool: &Pool, level: Level) -> f64 {
        match self {
            Self::F32(m) => sum(pool, level, m),
            Self::Bf16(m) => sum(pool, level, m),
        }
    }
}
