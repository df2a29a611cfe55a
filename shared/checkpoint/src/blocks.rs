//! ggml's block formats, taken apart: each is *groups* of elements that share a scale and a
//! minimum, `w = scale·q + min`, whatever the bits are packed like.
//!
//! The product and the sum are each rounded to f32 (no fused multiply-add), as ggml's reference
//! does, so elements are equal to gguf-py's (zeros may differ in sign). Every scale is exact: a
//! scale of a K format is a half times six or eight bits, which fits f32. A format without a
//! minimum has -0, which adds nothing to any number.
//!
//! All numbers are little endian, `d` and `m` are halves. Elements of a block of 32: low nibbles
//! first, then high ones.

use crate::dtype::Dtype;
use half::f16;

/// Elements of the longest block.
pub(crate) const LONGEST: usize = 256;
/// Most groups of a block.
pub(crate) const GROUPS_MAX: usize = 16;

/// Where [`Dtype::unpack`] puts whole groups, in order.
#[derive(Debug)]
pub struct Groups<'a> {
    /// One a group.
    pub scales: &'a mut [f32],
    /// One a group.
    pub mins: &'a mut [f32],
    /// One an element; in `0..=15` of formats of 4 bits.
    pub values: &'a mut [i8],
}

/// Takes one block apart. All four slices are of that block.
pub(crate) fn unpack(dtype: Dtype, block: &[u8], to: &mut Groups<'_>) {
    match dtype {
        Dtype::Q4_0 => q4_0(block, to),
        Dtype::Q4_1 => q4_1(block, to),
        Dtype::Q5_0 => q5_0(block, to),
        Dtype::Q5_1 => q5_1(block, to),
        Dtype::Q8_0 => q8_0(block, to),
        Dtype::Q2_K => q2_k(block, to),
        Dtype::Q3_K => q3_k(block, to),
        Dtype::Q4_K => q4_k(block, to),
        Dtype::Q5_K => q5_k(block, to),
        Dtype::Q6_K => q6_k(block, to),
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => unreachable!("{dtype} has no groups"),
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Low nibbles, then high ones.
fn nibbles(bytes: &[u8], values: &mut [i8]) {
    let (low, high) = values.split_at_mut(bytes.len());
    for ((low, high), &q) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = ((q & 15).cast_signed(), (q >> 4).cast_signed());
    }
}

/// `d`, 16 bytes of nibbles that count from -8.
fn q4_0(block: &[u8], to: &mut Groups<'_>) {
    let d = half_at(block, 0);
    (to.scales[0], to.mins[0]) = (d, -8.0 * d);
    nibbles(&block[2..], to.values);
}

/// `d`, `m`, 16 bytes of nibbles.
fn q4_1(block: &[u8], to: &mut Groups<'_>) {
    (to.scales[0], to.mins[0]) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], to.values);
}

/// Adds 16 where the bit of an element's number is set.
fn fifth_bits(bits: &[u8], values: &mut [i8]) {
    for (index, value) in values.iter_mut().enumerate() {
        *value |= (bits[index / 8] >> (index % 8) & 1).cast_signed() << 4;
    }
}

/// `d`, 32 fifth bits, 16 bytes of nibbles; counts from -16.
fn q5_0(block: &[u8], to: &mut Groups<'_>) {
    (to.scales[0], to.mins[0]) = (half_at(block, 0), -0.0);
    nibbles(&block[6..], to.values);
    fifth_bits(&block[2..6], to.values);
    to.values.iter_mut().for_each(|value| *value -= 16);
}

/// `d`, `m`, 32 fifth bits, 16 bytes of nibbles.
fn q5_1(block: &[u8], to: &mut Groups<'_>) {
    (to.scales[0], to.mins[0]) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[8..], to.values);
    fifth_bits(&block[4..8], to.values);
}

/// `d`, 32 signed bytes.
fn q8_0(block: &[u8], to: &mut Groups<'_>) {
    (to.scales[0], to.mins[0]) = (half_at(block, 0), -0.0);
    to.values.iter_mut().zip(&block[2..]).for_each(|(value, &q)| *value = q.cast_signed());
}

/// Of `Q2_K` and `Q3_K`: bit pairs, in two halves of four runs of 32 elements; pair `r` of a byte
/// belongs to run `r`.
fn pairs(bytes: &[u8], values: &mut [i8]) {
    for (bytes, values) in bytes.chunks_exact(32).zip(values.chunks_exact_mut(128)) {
        for (run, values) in values.chunks_exact_mut(32).enumerate() {
            for (value, &bits) in values.iter_mut().zip(bytes) {
                *value = (bits >> (2 * run) & 3).cast_signed();
            }
        }
    }
}

/// 16 bytes with a scale in the low nibble and a minimum in the high one, 64 of [`pairs`], `d`,
/// `m`.
fn q2_k(block: &[u8], to: &mut Groups<'_>) {
    let (d, m) = (half_at(block, 80), half_at(block, 82));
    for ((scale, min), &bits) in to.scales.iter_mut().zip(to.mins.iter_mut()).zip(&block[..16]) {
        (*scale, *min) = (d * f32::from(bits & 15), -(m * f32::from(bits >> 4)));
    }
    pairs(&block[16..80], to.values);
}

/// 32 bytes of third bits (bit `r` of byte `i` is of element `i` of run `r` of 32, and clear where
/// 4 is taken off), 64 of [`pairs`], 12 with a scale of six bits for each group, which counts from
/// -32, `d`. Of scale `g` the low nibble is in byte `g % 8`, the low ones first, and the upper pair
/// in byte `8 + g % 4`.
fn q3_k(block: &[u8], to: &mut Groups<'_>) {
    let (d, bits) = (half_at(block, 108), &block[96..108]);
    for (group, (scale, min)) in to.scales.iter_mut().zip(to.mins.iter_mut()).enumerate() {
        let low = bits[group % 8] >> (4 * (group / 8)) & 15;
        let upper = bits[8 + group % 4] >> (2 * (group / 4)) & 3;
        let count = (low | upper << 4).cast_signed() - 32;
        (*scale, *min) = (d * f32::from(count), -0.0);
    }
    pairs(&block[32..96], to.values);
    for (run, values) in to.values.chunks_exact_mut(32).enumerate() {
        for (value, &third) in values.iter_mut().zip(&block[..32]) {
            *value -= (!third >> run & 1).cast_signed() << 2;
        }
    }
}

/// Of `Q4_K` and `Q5_K`: `d`, `m`, and 12 bytes with a scale and a minimum of six bits for each of
/// eight groups. Those of the last four have their upper two bits with the first four.
fn k_scales(block: &[u8], to: &mut Groups<'_>) {
    let (d, m, bits) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    for group in 0..8 {
        let (scale, min) = match group {
            0..4 => (bits[group] & 63, bits[group + 4] & 63),
            _ => {
                let low = bits[group + 4];
                let upper = |byte: u8| byte >> 6 << 4;
                (low & 15 | upper(bits[group - 4]), low >> 4 | upper(bits[group]))
            }
        };
        (to.scales[group], to.mins[group]) = (d * f32::from(scale), -(m * f32::from(min)));
    }
}

/// [`k_scales`], then 32 bytes of nibbles for each two groups.
fn q4_k(block: &[u8], to: &mut Groups<'_>) {
    k_scales(block, to);
    for (bytes, values) in block[16..].chunks_exact(32).zip(to.values.chunks_exact_mut(64)) {
        nibbles(bytes, values);
    }
}

/// [`k_scales`], 32 bytes of fifth bits (bit `g` of byte `i` is of element `i` of group `g`), then
/// nibbles as in `Q4_K`.
fn q5_k(block: &[u8], to: &mut Groups<'_>) {
    k_scales(block, to);
    let (fifth, low) = block[16..].split_at(32);
    for (bytes, values) in low.chunks_exact(32).zip(to.values.chunks_exact_mut(64)) {
        nibbles(bytes, values);
    }
    for (group, values) in to.values.chunks_exact_mut(32).enumerate() {
        for (value, &bits) in values.iter_mut().zip(fifth) {
            *value |= (bits >> group & 1).cast_signed() << 4;
        }
    }
}

/// 128 bytes of nibbles, 64 of upper bit pairs, 16 signed scales, `d`; counts from -32. Each half
/// is four runs of 32 elements: the low nibbles of 64 bytes, then their high ones; pair `r` of an
/// upper byte belongs to run `r`.
fn q6_k(block: &[u8], to: &mut Groups<'_>) {
    let d = half_at(block, 208);
    let scales = to.scales.iter_mut().zip(to.mins.iter_mut()).zip(&block[192..208]);
    for ((scale, min), &bits) in scales {
        (*scale, *min) = (d * f32::from(bits.cast_signed()), -0.0);
    }
    let (low, upper) = (block[..128].chunks_exact(64), block[128..192].chunks_exact(32));
    for ((low, upper), values) in low.zip(upper).zip(to.values.chunks_exact_mut(128)) {
        nibbles(low, values);
        for (run, values) in values.chunks_exact_mut(32).enumerate() {
            for (value, &bits) in values.iter_mut().zip(upper) {
                *value = (*value | (bits >> (2 * run) & 3).cast_signed() << 4) - 32;
            }
        }
    }
}
