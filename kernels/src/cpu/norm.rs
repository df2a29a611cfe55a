//! RMS norm, of rows and of single heads.

use super::simd::{Kernel, LANES, Simd};

/// `out = x / rms(x) * gain` for each row.
pub struct Norm<'a> {
    pub x: &'a [f32],
    pub gain: &'a [f32],
    pub eps: f32,
    pub out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.gain.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let scale = inverse_rms(simd, x, self.eps);
            for ((y, x), gain) in out.iter_mut().zip(x).zip(self.gain) {
                *y = x * scale * gain;
            }
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
pub fn inverse_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let (lanes, rest) = x.as_chunks::<LANES>();
    let mut squares = simd.splat(0.0);
    for x in lanes {
        let x = simd.load(x);
        squares = simd.fma(x, x, squares);
    }
    let sum = simd.sum(squares) + rest.iter().map(|x| x * x).sum::<f32>();
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}
