//! Sixteen lanes, one an output of a panel: a register of AVX-512, two of AVX2, plain arrays.
//!
//! Products of matrices use these; what needs sums across lanes uses the eight of
//! [`Simd`](super::Simd).

use half::{bf16, f16};

/// Lanes of a wide vector.
pub const WIDE: usize = 16;

/// Arithmetic on sixteen lanes.
pub trait Wide: Copy + Send + Sync {
    /// Rows whose sums a product keeps in registers, at most [`ROWS_MOST`].
    const ROWS: usize;
    /// The same of a product of words, whose sums take three times as many.
    const WORD_ROWS: usize = Self::ROWS;
    /// Sixteen f32.
    type V: Copy;
    /// Sixteen words of 32 bits.
    type I: Copy;
    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// From memory.
    fn load(self, from: &[f32; WIDE]) -> Self::V;
    /// To memory.
    fn store(self, v: Self::V, to: &mut [f32; WIDE]);
    /// bf16, widened: those of even index, then those of odd index.
    fn load_bf16(self, from: &[bf16; WIDE]) -> Self::V;
    /// bf16, widened, in order.
    fn load_bf16_in_order(self, from: &[bf16; WIDE]) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the CPU can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// From memory.
    fn load_words(self, from: &[u32; WIDE]) -> Self::I;
    /// The f32 of the same bits.
    fn as_floats(self, words: Self::I) -> Self::V;
    /// Each word's low and high half as a finite f16, widened.
    fn halves(self, words: Self::I) -> (Self::V, Self::V);
    /// Words added, wrapping.
    fn add_words(self, a: Self::I, b: Self::I) -> Self::I;
    /// All words `x`.
    fn splat_word(self, x: u32) -> Self::I;
    /// Each byte's low four bits.
    fn low_nibbles(self, words: Self::I) -> Self::I;
    /// Each byte's high four bits.
    fn high_nibbles(self, words: Self::I) -> Self::I;
    /// To each word of `sums` the products of its four unsigned bytes with the signed bytes of `x`,
    /// which are in `-64..=64`.
    fn dot(self, sums: Self::I, bytes: Self::I, x: Self::I) -> Self::I;
    /// Each `128 * high + low`, signed, as f32.
    fn join_digits(self, high: Self::I, low: Self::I) -> Self::V;
}

/// The largest [`Wide::ROWS`].
pub const ROWS_MOST: usize = 8;

#[inline(always)]
fn zip<T: Copy>(a: [T; WIDE], b: [T; WIDE], f: impl Fn(T, T) -> T) -> [T; WIDE] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Plain arrays.
#[derive(Clone, Copy, Debug)]
pub struct Arrays;

impl Wide for Arrays {
    const ROWS: usize = 6;
    type V = [f32; WIDE];
    type I = [u32; WIDE];
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; WIDE]
    }
    #[inline(always)]
    fn load(self, from: &[f32; WIDE]) -> Self::V {
        *from
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; WIDE]) {
        *to = v;
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; WIDE]) -> Self::V {
        std::array::from_fn(|i| from[2 * (i % 8) + i / 8].to_f32())
    }
    #[inline(always)]
    fn load_bf16_in_order(self, from: &[bf16; WIDE]) -> Self::V {
        from.map(bf16::to_f32)
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn load_words(self, from: &[u32; WIDE]) -> Self::I {
        *from
    }
    #[inline(always)]
    fn as_floats(self, words: Self::I) -> Self::V {
        words.map(f32::from_bits)
    }
    #[inline(always)]
    fn halves(self, words: Self::I) -> (Self::V, Self::V) {
        let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
        (words.map(half), words.map(|word| half(word >> 16)))
    }
    #[inline(always)]
    fn add_words(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, u32::wrapping_add)
    }
    #[inline(always)]
    fn splat_word(self, x: u32) -> Self::I {
        [x; WIDE]
    }
    #[inline(always)]
    fn low_nibbles(self, words: Self::I) -> Self::I {
        words.map(|word| word & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn high_nibbles(self, words: Self::I) -> Self::I {
        words.map(|word| word >> 4 & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn dot(self, sums: Self::I, bytes: Self::I, x: Self::I) -> Self::I {
        let product = |(byte, x): (u8, u8)| i32::from(byte) * i32::from(x.cast_signed());
        std::array::from_fn(|i| {
            let pairs = bytes[i].to_le_bytes().into_iter().zip(x[i].to_le_bytes());
            sums[i].wrapping_add_signed(pairs.map(product).sum())
        })
    }
    #[inline(always)]
    fn join_digits(self, high: Self::I, low: Self::I) -> Self::V {
        std::array::from_fn(|i| (high[i] << 7).wrapping_add(low[i]).cast_signed() as f32)
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{WIDE, Wide};
    use half::bf16;
    use std::arch::x86_64::*;

    /// Proof that the CPU has AVX2 and FMA; and AVX-VNNI, if `VNNI`.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx2<const VNNI: bool>(pub(in super::super) ());

    /// Proof that it has these and AVX-512 F, BW, VL and VNNI.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx512(pub(in super::super) ());

    /// One intrinsic whose only precondition is its CPU feature.
    macro_rules! intrinsic {
        ($call:expr) => {
            // SAFETY: `self` proves the feature; the operands are values.
            unsafe { $call }
        };
    }

    /// The same intrinsics on both halves. No closure: one that is not inlined has not the features
    /// that its caller was compiled with, and each of its intrinsics is a call.
    macro_rules! both {
        (|$half:ident| $call:expr, $v:expr) => {{
            let halves = $v;
            [
                {
                    let $half = halves[0];
                    intrinsic!($call)
                },
                {
                    let $half = halves[1];
                    intrinsic!($call)
                },
            ]
        }};
    }

    /// The f16 in each upper half as f32: exponent and mantissa moved into place, and a factor that
    /// mends the exponent's bias.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn widen(top: __m256i) -> __m256 {
        let sign = _mm256_and_si256(top, _mm256_set1_epi32(i32::MIN));
        let rest = _mm256_srli_epi32::<3>(_mm256_andnot_si256(sign, top));
        let bias = _mm256_set1_ps(f32::from_bits((127 + 112) << 23));
        let size = _mm256_mul_ps(_mm256_castsi256_ps(rest), bias);
        _mm256_or_ps(size, _mm256_castsi256_ps(sign))
    }

    impl<const VNNI: bool> Wide for Avx2<VNNI> {
        /// 12 sums, 2 weights and 1 broadcast fit 16 registers.
        const ROWS: usize = 6;
        /// 8 dots and 4 sums, 2 weights and 1 broadcast.
        const WORD_ROWS: usize = 2;
        type V = [__m256; 2];
        type I = [__m256i; 2];
        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            [intrinsic!(_mm256_set1_ps(x)); 2]
        }
        #[inline(always)]
        fn load(self, from: &[f32; WIDE]) -> Self::V {
            // SAFETY: AVX2 is proven; `from` is 64 readable bytes; loads need no alignment.
            unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
        }
        #[inline(always)]
        fn store(self, v: Self::V, to: &mut [f32; WIDE]) {
            // SAFETY: AVX2 is proven; `to` is 64 writable bytes; stores need no alignment.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
            }
        }
        #[inline(always)]
        fn load_bf16(self, from: &[bf16; WIDE]) -> Self::V {
            // SAFETY: AVX2 is proven; `from` is 32 readable bytes (bf16 is a transparent u16).
            unsafe {
                let pairs = _mm256_loadu_si256(from.as_ptr().cast());
                let even = _mm256_slli_epi32::<16>(pairs);
                let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
                [_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)]
            }
        }
        #[inline(always)]
        fn load_bf16_in_order(self, from: &[bf16; WIDE]) -> Self::V {
            // SAFETY: AVX2 is proven; `from` is 32 readable bytes (bf16 is a transparent u16).
            let halves = unsafe {
                let from = from.as_ptr().cast::<__m128i>();
                [_mm_loadu_si128(from), _mm_loadu_si128(from.add(1))]
            };
            let words = both!(|half| _mm256_cvtepu16_epi32(half), halves);
            both!(|half| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half)), words)
        }
        #[inline(always)]
        fn add(self, a: Self::V, b: Self::V) -> Self::V {
            intrinsic!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
        }
        #[inline(always)]
        fn mul(self, a: Self::V, b: Self::V) -> Self::V {
            intrinsic!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
        }
        #[inline(always)]
        fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            intrinsic!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
        }
        #[inline(always)]
        fn load_words(self, from: &[u32; WIDE]) -> Self::I {
            let from = from.as_ptr();
            // SAFETY: AVX2 is proven; `from` is 64 readable bytes; loads need no alignment.
            unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())] }
        }
        #[inline(always)]
        fn as_floats(self, words: Self::I) -> Self::V {
            both!(|half| _mm256_castsi256_ps(half), words)
        }
        #[inline(always)]
        fn halves(self, words: Self::I) -> (Self::V, Self::V) {
            let top = intrinsic!(_mm256_set1_epi32(0xffff_0000_u32 as i32));
            let low = both!(|half| widen(_mm256_slli_epi32::<16>(half)), words);
            (low, both!(|half| widen(_mm256_and_si256(half, top)), words))
        }
        #[inline(always)]
        fn add_words(self, a: Self::I, b: Self::I) -> Self::I {
            intrinsic!([_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
        }
        #[inline(always)]
        fn splat_word(self, x: u32) -> Self::I {
            [intrinsic!(_mm256_set1_epi32(x.cast_signed())); 2]
        }
        #[inline(always)]
        fn low_nibbles(self, words: Self::I) -> Self::I {
            let low = intrinsic!(_mm256_set1_epi8(15));
            both!(|half| _mm256_and_si256(half, low), words)
        }
        #[inline(always)]
        fn high_nibbles(self, words: Self::I) -> Self::I {
            self.low_nibbles(both!(|half| _mm256_srli_epi32::<4>(half), words))
        }
        #[inline(always)]
        fn dot(self, sums: Self::I, bytes: Self::I, x: Self::I) -> Self::I {
            if VNNI {
                return both!(|i| _mm256_dpbusd_avx_epi32(sums[i], bytes[i], x[i]), [0, 1]);
            }
            // A pair is at most 2 * 255 * 64, which 16 bits hold.
            let pairs = both!(|i| _mm256_maddubs_epi16(bytes[i], x[i]), [0, 1]);
            self.add_words(sums, both!(|half| _mm256_madd_epi16(half, _mm256_set1_epi16(1)), pairs))
        }
        #[inline(always)]
        fn join_digits(self, high: Self::I, low: Self::I) -> Self::V {
            let whole = self.add_words(both!(|half| _mm256_slli_epi32::<7>(half), high), low);
            both!(|half| _mm256_cvtepi32_ps(half), whole)
        }
    }

    /// Where the halves of the widened lanes come from: the high ones, since the low are zero.
    const EVEN_THEN_ODD: [u16; 2 * WIDE] = {
        let (mut from, mut lane) = ([0; 2 * WIDE], 0);
        while lane < WIDE {
            from[2 * lane + 1] = (2 * (lane % 8) + lane / 8) as u16;
            lane += 1;
        }
        from
    };

    impl Wide for Avx512 {
        /// Eight chains of multiply-adds hide their latency on two ports.
        const ROWS: usize = 8;
        type V = __m512;
        type I = __m512i;
        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            intrinsic!(_mm512_set1_ps(x))
        }
        #[inline(always)]
        fn load(self, from: &[f32; WIDE]) -> __m512 {
            // SAFETY: AVX-512 F is proven; `from` is 64 readable bytes, of any alignment.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, v: __m512, to: &mut [f32; WIDE]) {
            // SAFETY: AVX-512 F is proven; `to` is 64 writable bytes, of any alignment.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn load_bf16(self, from: &[bf16; WIDE]) -> __m512 {
            // SAFETY: AVX-512 F and BW are proven; `from` is 32 readable bytes and the table 64.
            // The upper half of the widened register, which is undefined, is not picked.
            unsafe {
                let all = _mm512_castsi256_si512(_mm256_loadu_si256(from.as_ptr().cast()));
                let order = _mm512_loadu_si512(EVEN_THEN_ODD.as_ptr().cast());
                let wide = _mm512_maskz_permutexvar_epi16(0xaaaa_aaaa, order, all);
                _mm512_castsi512_ps(wide)
            }
        }
        #[inline(always)]
        fn load_bf16_in_order(self, from: &[bf16; WIDE]) -> __m512 {
            // SAFETY: AVX-512 F is proven; `from` is 32 readable bytes (bf16 is a transparent u16).
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
            }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            intrinsic!(_mm512_add_ps(a, b))
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            intrinsic!(_mm512_mul_ps(a, b))
        }
        #[inline(always)]
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            intrinsic!(_mm512_fmadd_ps(a, b, c))
        }
        #[inline(always)]
        fn load_words(self, from: &[u32; WIDE]) -> __m512i {
            // SAFETY: AVX-512 F is proven; `from` is 64 readable bytes, of any alignment.
            unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
        }
        #[inline(always)]
        fn as_floats(self, words: __m512i) -> __m512 {
            intrinsic!(_mm512_castsi512_ps(words))
        }
        #[inline(always)]
        fn halves(self, words: __m512i) -> (__m512, __m512) {
            intrinsic!((
                _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)),
                _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(words)))
            ))
        }
        #[inline(always)]
        fn add_words(self, a: __m512i, b: __m512i) -> __m512i {
            intrinsic!(_mm512_add_epi32(a, b))
        }
        #[inline(always)]
        fn splat_word(self, x: u32) -> __m512i {
            intrinsic!(_mm512_set1_epi32(x.cast_signed()))
        }
        #[inline(always)]
        fn low_nibbles(self, words: __m512i) -> __m512i {
            intrinsic!(_mm512_and_si512(words, _mm512_set1_epi32(0x0f0f_0f0f)))
        }
        #[inline(always)]
        fn high_nibbles(self, words: __m512i) -> __m512i {
            self.low_nibbles(intrinsic!(_mm512_srli_epi32::<4>(words)))
        }
        #[inline(always)]
        fn dot(self, sums: __m512i, bytes: __m512i, x: __m512i) -> __m512i {
            intrinsic!(_mm512_dpbusd_epi32(sums, bytes, x))
        }
        #[inline(always)]
        fn join_digits(self, high: __m512i, low: __m512i) -> __m512 {
            let whole = self.add_words(intrinsic!(_mm512_slli_epi32::<7>(high)), low);
            intrinsic!(_mm512_cvtepi32_ps(whole))
        }
    }
}
