//! What a sampler needs of a row of logits, at vector speed.

use super::simd::{Kernel, LANES, Level, Simd};

/// Terms summed in f32 before their sum is added in f64: no error grows with the vocabulary.
const RUN: usize = 2048;

/// Maxima and exponentials of long rows, on the calling thread.
#[derive(Clone, Copy, Debug)]
pub struct Softmax {
    level: Level,
}

impl Softmax {
    /// For this CPU.
    pub fn detect() -> Self {
        Self { level: Level::detect() }
    }

    /// Using no more than `level`.
    pub fn with_level(level: Level) -> Self {
        Self { level }
    }

    /// The largest of `x`, NaN skipped; `f32::MIN` if none is larger.
    pub fn max(&self, x: &[f32]) -> f32 {
        self.level.run(Max(x))
    }

    /// `out[i] = e^((x[i] - max) * scale)`, below e^-87 as that; returns their sum.
    ///
    /// # Panics
    /// If `out` has another length than `x`.
    pub fn exp_sum(&self, x: &[f32], (max, scale): (f32, f32), out: &mut [f32]) -> f64 {
        assert_eq!(x.len(), out.len(), "exp_sum");
        let runs = x.chunks(RUN).zip(out.chunks_mut(RUN));
        runs.map(|(x, out)| f64::from(self.level.run(Terms { x, max, scale, out }))).sum()
    }

    /// Minus infinity wherever bit `i % 32` of word `i / 32` is not set or there is no such word.
    pub fn rule_out(&self, words: &[u32], x: &mut [f32]) {
        self.level.run(RuleOut { words, x });
    }
}

struct RuleOut<'a> {
    words: &'a [u32],
    x: &'a mut [f32],
}

impl Kernel for RuleOut<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let none = simd.splat(f32::NEG_INFINITY);
        let mut bytes = self.words.iter().flat_map(|word| word.to_le_bytes());
        let (lanes, rest) = self.x.as_chunks_mut::<LANES>();
        for x in lanes {
            simd.store(simd.pick(bytes.next().unwrap_or(0), simd.load(x), none), x);
        }
        let byte = bytes.next().unwrap_or(0);
        let out = rest.iter_mut().enumerate().filter(|(bit, _)| byte >> bit & 1 == 0);
        out.for_each(|(_, x)| *x = f32::NEG_INFINITY);
    }
}

struct Max<'a>(&'a [f32]);

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (lanes, rest) = self.0.as_chunks::<LANES>();
        let mut best = simd.splat(f32::MIN);
        for x in lanes {
            best = simd.max(simd.load(x), best);
        }
        let mut all = [0.0; LANES];
        simd.store(best, &mut all);
        all.iter().chain(rest).fold(f32::MIN, |a, &b| if b > a { b } else { a })
    }
}

struct Terms<'a> {
    x: &'a [f32],
    max: f32,
    scale: f32,
    out: &'a mut [f32],
}

impl Kernel for Terms<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let by = (simd.splat(self.max), simd.splat(self.scale));
        let (lanes, rest) = self.x.as_chunks::<LANES>();
        let (outs, out_rest) = self.out.as_chunks_mut::<LANES>();
        let mut sums = simd.splat(0.0);
        for (x, out) in lanes.iter().zip(outs) {
            let terms = terms(simd, x, by);
            sums = simd.add(sums, terms);
            simd.store(terms, out);
        }
        let mut last = [self.max; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let mut tail = [0.0; LANES];
        simd.store(terms(simd, &last, by), &mut tail);
        out_rest.copy_from_slice(&tail[..rest.len()]);
        simd.sum(sums) + out_rest.iter().sum::<f32>()
    }
}

#[inline(always)]
fn terms<S: Simd>(simd: S, x: &[f32; LANES], (max, scale): (S::V, S::V)) -> S::V {
    simd.exp(simd.mul(simd.sub(simd.load(x), max), scale))
}
