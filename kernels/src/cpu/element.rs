//! What lies in memory, and how kernels read the two element types of weights and pages.

use super::simd::{LANES, Simd, Wide};
use half::bf16;

/// Columns of a packed group: a wide vector.
pub const GROUP: usize = 2 * LANES;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for u32 {}
}

/// Types for which every bit pattern is a value and that hold no padding. Sealed: the memory fences
/// rely on it.
pub trait Plain: sealed::Sealed + Copy + Default + Send + Sync + 'static {}

impl Plain for f32 {}
impl Plain for bf16 {}
impl Plain for u32 {}

/// f32 or bf16.
pub trait Element: Plain {
    /// Rounded to nearest even.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Eight consecutive elements.
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V;
    /// Eight consecutive elements, rounded.
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [Self; LANES]);
    /// Sixteen consecutive elements.
    fn load_wide<W: Wide>(wide: W, from: &[Self; GROUP]) -> W::V;
    /// A packed group.
    fn load_group<W: Wide>(wide: W, from: &[Self; GROUP]) -> W::V;
    /// Where column `column` of a group lies, so that [`Self::load_group`] is cheap.
    fn slot(column: usize) -> usize;
}

impl Element for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V {
        simd.load(from)
    }
    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [Self; LANES]) {
        simd.store(v, to);
    }
    #[inline(always)]
    fn load_wide<W: Wide>(wide: W, from: &[Self; GROUP]) -> W::V {
        wide.load(from)
    }
    #[inline(always)]
    fn load_group<W: Wide>(wide: W, from: &[Self; GROUP]) -> W::V {
        wide.load(from)
    }
    #[inline(always)]
    fn slot(column: usize) -> usize {
        column
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V {
        simd.load_bf16(from)
    }
    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [Self; LANES]) {
        simd.store_bf16(v, to);
    }
    #[inline(always)]
    fn load_wide<W: Wide>(wide: W, from: &[Self; GROUP]) -> W::V {
        wide.load_bf16_in_order(from)
    }
    #[inline(always)]
    fn load_group<W: Wide>(wide: W, from: &[Self; GROUP]) -> W::V {
        wide.load_bf16(from)
    }
    #[inline(always)]
    fn slot(column: usize) -> usize {
        2 * (column % LANES) + column / LANES
    }
}
