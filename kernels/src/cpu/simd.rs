//! Eight lanes of f32: AVX2 with FMA where the CPU has them, plain arrays elsewhere. Products have
//! sixteen lanes (`wide`), which are one register where the CPU has AVX-512 with VNNI.
//!
//! A kernel is written once, generic over [`Simd`], as a [`Kernel`] whose `run` is
//! `#[inline(always)]`; [`Level::run`] compiles it into a function with the features enabled.
//! Loads and stores take arrays by reference, so no kernel does pointer arithmetic.
//!
//! **Invariant:** an [`Avx2`] exists only where detection saw AVX2 and FMA, and AVX-VNNI if it is
//! one with it; an [`Avx512`] where it saw AVX2, FMA and AVX-512. Every intrinsic here rests on
//! such a proof.
#![expect(unsafe_code, reason = "the SIMD fence: intrinsics behind a proof of their features")]

pub mod tiles;
mod wide;

use half::bf16;
#[cfg(target_arch = "x86_64")]
use tiles::Amx;
use tiles::Tiles;
pub use wide::{Arrays, ROWS_MOST, Wide};
#[cfg(target_arch = "x86_64")]
pub use wide::{Avx2, Avx512};

/// Lanes of a vector.
pub const LANES: usize = 8;

/// Arithmetic on eight lanes.
pub trait Simd: Copy + Send + Sync {
    /// Eight f32.
    type V: Copy;
    /// The same CPU's sixteen lanes.
    type Wide: Wide;
    /// These.
    fn wide(self) -> Self::Wide;
    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// From memory.
    fn load(self, from: &[f32; LANES]) -> Self::V;
    /// To memory.
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    /// Eight consecutive bf16, widened.
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V;
    /// Rounded to nearest even.
    fn store_bf16(self, v: Self::V, to: &mut [bf16; LANES]);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the CPU can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where one is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where one is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    fn round(self, v: Self::V) -> Self::V;
    /// `2^n` of integral lanes in `-126..=127`.
    fn exp2i(self, n: Self::V) -> Self::V;
    /// Sum of the lanes.
    fn sum(self, v: Self::V) -> f32;
    /// The largest of the lanes, none of which is NaN.
    fn largest(self, v: Self::V) -> f32;
    /// `v` in the lanes whose bit is set, the first lane's the lowest, and `other` elsewhere.
    fn pick(self, bits: u8, v: Self::V, other: Self::V) -> Self::V;
    /// Integral lanes in `-8191..=8191` as `128 * high + low`: of each four lanes the high digits,
    /// then the low ones, each a byte of a word in `-64..=64`, the first lane in the lowest.
    fn digits(self, v: Self::V) -> [[u32; 2]; LANES / 4];
    /// Hints that the cache line `ahead` bytes after `from` is read soon.
    fn prefetch<T>(self, from: &T, ahead: usize);

    /// `e^v`, relative error below 3e-7; tiny instead of zero below -87, huge instead of infinite
    /// above 88. Range reduction by ln 2 in two parts, then Cephes' polynomial for `expf`.
    #[inline(always)]
    fn exp(self, v: Self::V) -> Self::V {
        let v = self.max(self.splat(-87.0), v);
        let v = self.min(self.splat(88.0), v);
        let n = self.round(self.mul(v, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(n, self.splat(-0.693_359_4), v);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.fma(p, r, self.splat(c));
        }
        let e = self.fma(p, self.mul(r, r), self.add(r, self.splat(1.0)));
        self.mul(e, self.exp2i(n))
    }
}

/// Code to compile for a [`Simd`]; `run` must be `#[inline(always)]`.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Runs it.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// What this CPU can do.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    /// Nothing assumed.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(X86<Avx2<false>>),
    /// These and AVX-VNNI, as desktops and laptops have it that have no AVX-512.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(X86<Avx2<true>>),
    /// These and AVX-512 F, BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512(X86<Avx512>),
    /// These and AMX.
    #[cfg(target_arch = "x86_64")]
    Amx(X86<Avx512>, Amx),
    /// Nothing assumed, with tiles in plain loops: for tests.
    PlainTiles,
}

impl Level {
    /// The best of this CPU.
    pub fn detect() -> Self {
        Self::all().pop().unwrap_or(Self::Portable)
    }

    /// All that this CPU can do, the best last.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(Self::Avx2(X86(Avx2(()))));
            if is_x86_feature_detected!("avxvnni") {
                all.push(Self::AvxVnni(X86(Avx2(()))));
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(Self::Avx512(X86(Avx512(()))));
                all.extend(Amx::detect().map(|amx| Self::Amx(X86(Avx512(())), amx)));
            }
        }
        all
    }

    /// The level of that name, if this CPU can do it.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|level| level.name() == name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Amx(..) => "amx",
            Self::PlainTiles => "plain tiles",
        }
    }

    /// Its tiles, if it has any.
    pub fn tiles(self) -> Option<Tiles> {
        match self {
            Self::Portable => None,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) | Self::AvxVnni(_) | Self::Avx512(_) => None,
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_, amx) => Some(Tiles::Amx(amx)),
            Self::PlainTiles => Some(Tiles::Plain),
        }
    }

    /// Runs `kernel` compiled for this level.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable => kernel.run(Portable),
            Self::PlainTiles => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `proof` exists, so the CPU has AVX2 and FMA.
            Self::Avx2(proof) => unsafe { run_avx2(proof, kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `proof` exists, so the CPU has these and AVX-VNNI.
            Self::AvxVnni(proof) => unsafe { run_avx_vnni(proof, kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `proof` exists, so the CPU has these and AVX-512 F, BW, VL and VNNI.
            Self::Avx512(proof) | Self::Amx(proof, _) => unsafe { run_avx512(proof, kernel) },
        }
    }

    /// Rows of which a product takes a block, at most.
    pub fn rows_most(self) -> usize {
        self.run(RowsMost).0
    }

    /// Rows of which a product of words takes a block, at most.
    pub fn word_rows_most(self) -> usize {
        self.run(RowsMost).1
    }
}

/// Rows of a block, of f32 and of words.
struct RowsMost;

impl Kernel for RowsMost {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (usize, usize) {
        (S::Wide::ROWS, S::Wide::WORD_ROWS)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(proof: X86<Avx2<false>>, kernel: K) -> K::Output {
    kernel.run(proof)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn run_avx_vnni<K: Kernel>(proof: X86<Avx2<true>>, kernel: K) -> K::Output {
    kernel.run(proof)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn run_avx512<K: Kernel>(proof: X86<Avx512>, kernel: K) -> K::Output {
    kernel.run(proof)
}

/// Plain arrays; the compiler vectorises what it can.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; LANES];
    type Wide = Arrays;
    #[inline(always)]
    fn wide(self) -> Arrays {
        Arrays
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        *from
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V {
        from.map(bf16::to_f32)
    }
    #[inline(always)]
    fn store_bf16(self, v: Self::V, to: &mut [bf16; LANES]) {
        *to = v.map(bf16::from_f32);
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self, v: Self::V) -> Self::V {
        v.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn exp2i(self, n: Self::V) -> Self::V {
        n.map(|n| f32::from_bits((n as i32).wrapping_add(127).cast_unsigned() << 23))
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn pick(self, bits: u8, v: Self::V, other: Self::V) -> Self::V {
        std::array::from_fn(|i| if bits >> i & 1 == 1 { v[i] } else { other[i] })
    }
    #[inline(always)]
    fn digits(self, v: Self::V) -> [[u32; 2]; LANES / 4] {
        let fours = v.as_chunks::<4>().0;
        std::array::from_fn(|i| {
            let of = |digit: fn(i32) -> i32| {
                u32::from_le_bytes(fours[i].map(|x| digit((x as i32).wrapping_add(64)) as u8))
            };
            [of(|moved| moved >> 7), of(|moved| (moved & 127) - 64)]
        })
    }
    #[inline(always)]
    fn prefetch<T>(self, _: &T, _: usize) {}
}

#[cfg(target_arch = "x86_64")]
pub use x86::X86;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Avx2, Avx512, LANES, Simd, Wide};
    use half::bf16;
    use std::arch::x86_64::*;

    /// What exists only where the CPU has AVX2 and FMA.
    pub trait Proof: Wide {}
    impl<const VNNI: bool> Proof for Avx2<VNNI> {}
    impl Proof for Avx512 {}

    /// Vectors of 256 bits, beside the wide ones of `W`.
    #[derive(Clone, Copy, Debug)]
    pub struct X86<W>(pub(super) W);

    /// One intrinsic whose only precondition is its CPU feature.
    macro_rules! intrinsic {
        ($call:expr) => {
            // SAFETY: `W` proves AVX2 and FMA; the operands are values.
            unsafe { $call }
        };
    }

    impl<W: Proof> Simd for X86<W> {
        type V = __m256;
        type Wide = W;
        #[inline(always)]
        fn wide(self) -> W {
            self.0
        }
        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            intrinsic!(_mm256_set1_ps(x))
        }
        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> __m256 {
            // SAFETY: AVX2 is proven; `from` is 32 readable bytes; the load needs no alignment.
            unsafe { _mm256_loadu_ps(from.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, v: __m256, to: &mut [f32; LANES]) {
            // SAFETY: AVX2 is proven; `to` is 32 writable bytes; the store needs no alignment.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn load_bf16(self, from: &[bf16; LANES]) -> __m256 {
            // SAFETY: AVX2 is proven; `from` is 16 readable bytes (bf16 is a transparent u16).
            unsafe {
                let half = _mm_loadu_si128(from.as_ptr().cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
            }
        }
        #[inline(always)]
        fn store_bf16(self, v: __m256, to: &mut [bf16; LANES]) {
            // SAFETY: AVX2 is proven; `to` is 16 writable bytes.
            unsafe {
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
                let top = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
                let low = _mm256_castsi256_si128(top);
                let high = _mm256_extracti128_si256::<1>(top);
                _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packus_epi32(low, high));
            }
        }
        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            intrinsic!(_mm256_add_ps(a, b))
        }
        #[inline(always)]
        fn sub(self, a: __m256, b: __m256) -> __m256 {
            intrinsic!(_mm256_sub_ps(a, b))
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            intrinsic!(_mm256_mul_ps(a, b))
        }
        #[inline(always)]
        fn div(self, a: __m256, b: __m256) -> __m256 {
            intrinsic!(_mm256_div_ps(a, b))
        }
        #[inline(always)]
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            intrinsic!(_mm256_fmadd_ps(a, b, c))
        }
        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            intrinsic!(_mm256_max_ps(a, b))
        }
        #[inline(always)]
        fn min(self, a: __m256, b: __m256) -> __m256 {
            intrinsic!(_mm256_min_ps(a, b))
        }
        #[inline(always)]
        fn round(self, v: __m256) -> __m256 {
            intrinsic!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v))
        }
        #[inline(always)]
        fn exp2i(self, n: __m256) -> __m256 {
            intrinsic!({
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            })
        }
        #[inline(always)]
        fn sum(self, v: __m256) -> f32 {
            intrinsic!({
                let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            })
        }
        #[inline(always)]
        fn largest(self, v: __m256) -> f32 {
            intrinsic!({
                let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
            })
        }
        #[inline(always)]
        fn pick(self, bits: u8, v: __m256, other: __m256) -> __m256 {
            intrinsic!({
                let lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let set = _mm256_and_si256(_mm256_set1_epi32(bits.into()), lanes);
                let set = _mm256_cmpeq_epi32(set, lanes);
                _mm256_blendv_ps(other, v, _mm256_castsi256_ps(set))
            })
        }
        #[inline(always)]
        fn digits(self, v: __m256) -> [[u32; 2]; LANES / 4] {
            let bytes = intrinsic!({
                let moved = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(64));
                let high = _mm256_srai_epi32::<7>(moved);
                let low = _mm256_and_si256(moved, _mm256_set1_epi32(127));
                let low = _mm256_sub_epi32(low, _mm256_set1_epi32(64));
                // High digits in the first byte of each word, low ones in the second.
                let high = _mm256_and_si256(high, _mm256_set1_epi32(255));
                let both = _mm256_or_si256(high, _mm256_slli_epi32::<8>(low));
                _mm256_shuffle_epi8(both, _mm256_set1_epi64x(0x0d09_0501_0c08_0400))
            });
            let (first, second) = intrinsic!((
                _mm256_extract_epi64::<0>(bytes).cast_unsigned(),
                _mm256_extract_epi64::<2>(bytes).cast_unsigned()
            ));
            [first, second].map(|four| [four as u32, (four >> 32) as u32])
        }
        #[inline(always)]
        fn prefetch<T>(self, from: &T, ahead: usize) {
            let address = std::ptr::from_ref(from).cast::<i8>().wrapping_add(ahead);
            // SAFETY: a prefetch is a hint: it faults on no address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address) }
        }
    }
}
