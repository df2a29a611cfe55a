//! How elements are stored, and how stored bytes become numbers.
//!
//! Block formats, per 32 elements, little endian: `Q8_0` is f16 d, 32 × i8, w = d·q; `Q4_1` is
//! f16 d, f16 m, 16 bytes of nibbles, w = d·q + m, low nibbles first. The product and the sum are
//! each rounded to f32 (no fused multiply-add), as ggml's reference does: `bf16` results are equal
//! bit for bit to those of gguf-py followed by a rounding to nearest even.

use crate::tensor::Element;
use half::{bf16, f16};
use std::fmt;

/// Elements in one block of a quantised format.
const BLOCK: usize = 32;

/// How a tensor's elements are stored in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// 34 bytes per 32 elements: f16 scale, i8 values.
    Q8_0,
    /// 20 bytes per 32 elements: f16 scale and minimum, 4-bit values.
    Q4_1,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Dtype {
    /// What a refusal lists.
    pub(crate) const KNOWN: &str = "known are F32, F16, BF16, Q8_0 and Q4_1";

    /// (elements, bytes) of the smallest unit that can be read alone.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (BLOCK, 34),
            Self::Q4_1 => (BLOCK, 20),
        }
    }

    /// Bytes of `elements` in a row; `None` if they end inside a block or overflow.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let (per, bytes) = self.block();
        elements.is_multiple_of(per).then(|| (elements / per).checked_mul(bytes))?
    }

    /// Turns whole blocks into elements. `bytes` and `out` must agree in length.
    pub(crate) fn decode<T: Element>(self, bytes: &[u8], out: &mut [T]) {
        debug_assert_eq!(self.bytes(out.len()), Some(bytes.len()), "caller sized both");
        match self {
            Self::F32 => each(bytes, out, |b| T::from_f32(f32::from_le_bytes(b))),
            Self::F16 => each(bytes, out, |b| T::from_f32(f16::from_le_bytes(b).to_f32())),
            Self::BF16 => each(bytes, out, |b| T::from_bf16(bf16::from_le_bytes(b))),
            Self::Q8_0 => blocks(bytes, out, q8_0),
            Self::Q4_1 => blocks(bytes, out, q4_1),
        }
    }
}

fn each<T, const N: usize>(bytes: &[u8], out: &mut [T], decode: impl Fn([u8; N]) -> T) {
    for (from, to) in bytes.as_chunks::<N>().0.iter().zip(out) {
        *to = decode(*from);
    }
}

fn blocks<T: Element, const N: usize>(
    bytes: &[u8],
    out: &mut [T],
    decode: impl Fn(&[u8; N], &mut [T; BLOCK]),
) {
    for (from, to) in bytes.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        decode(from, to);
    }
}

fn half_at<const N: usize>(block: &[u8; N], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q8_0<T: Element>(block: &[u8; 34], out: &mut [T; BLOCK]) {
    let scale = half_at(block, 0);
    for (to, &q) in out.iter_mut().zip(&block[2..]) {
        *to = T::from_f32(scale * f32::from(q.cast_signed()));
    }
}

fn q4_1<T: Element>(block: &[u8; 20], out: &mut [T; BLOCK]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((low, high), &q) in low.iter_mut().zip(high).zip(&block[4..]) {
        let weight = |nibble: u8| T::from_f32(scale * f32::from(nibble) + min);
        (*low, *high) = (weight(q & 15), weight(q >> 4));
    }
}
