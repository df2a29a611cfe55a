//! How elements are stored, and how stored bytes become numbers. Block formats: [`crate::blocks`].

use crate::blocks::{GROUPS_MAX, Groups, LONGEST, unpack};
use crate::tensor::Element;
use half::{bf16, f16};
use std::fmt;

/// How a tensor's elements are stored in the file.
#[expect(non_camel_case_types, reason = "ggml's names, as users know them")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// 18 bytes per 32 elements: a scale, values of 4 bits.
    Q4_0,
    /// 20 bytes per 32 elements: a scale and a minimum, values of 4 bits.
    Q4_1,
    /// 22 bytes per 32 elements: a scale, values of 5 bits.
    Q5_0,
    /// 24 bytes per 32 elements: a scale and a minimum, values of 5 bits.
    Q5_1,
    /// 34 bytes per 32 elements: a scale, values of 8 bits.
    Q8_0,
    /// 84 bytes per 256 elements: a scale and a minimum for each 16, values of 2 bits.
    Q2_K,
    /// 110 bytes per 256 elements: a scale for each 16, values of 3 bits.
    Q3_K,
    /// 144 bytes per 256 elements: a scale and a minimum for each 32, values of 4 bits.
    Q4_K,
    /// 176 bytes per 256 elements: a scale and a minimum for each 32, values of 5 bits.
    Q5_K,
    /// 210 bytes per 256 elements: a scale for each 16, values of 6 bits.
    Q6_K,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Dtype {
    /// What a refusal lists.
    pub(crate) const KNOWN: &str =
        "known are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K and Q6_K";

    /// (elements, bytes) of the smallest unit that can be read alone.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (LONGEST, 84),
            Self::Q3_K => (LONGEST, 110),
            Self::Q4_K => (LONGEST, 144),
            Self::Q5_K => (LONGEST, 176),
            Self::Q6_K => (LONGEST, 210),
        }
    }

    /// Elements that share a scale and a minimum; `None` of a dtype that is not quantised.
    pub const fn group(self) -> Option<usize> {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => None,
            Self::Q2_K | Self::Q3_K | Self::Q6_K => Some(16),
            _ => Some(32),
        }
    }

    /// Takes whole blocks apart.
    ///
    /// # Panics
    /// If this is not a quantised dtype, or the lengths do not agree.
    pub fn unpack(self, bytes: &[u8], to: Groups<'_>) {
        let group = self.group().expect("a quantised dtype");
        let Groups { scales, mins, values } = to;
        let groups = values.len() / group;
        assert_eq!(self.bytes(values.len()), Some(bytes.len()), "{self}");
        assert_eq!((scales.len(), mins.len()), (groups, groups), "{self}");
        let (elements, size) = self.block();
        let each = elements / group;
        let blocks = bytes.chunks_exact(size).zip(values.chunks_exact_mut(elements));
        let groups = scales.chunks_exact_mut(each).zip(mins.chunks_exact_mut(each));
        for ((block, values), (scales, mins)) in blocks.zip(groups) {
            unpack(self, block, &mut Groups { scales, mins, values });
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
            _ => self.decode_blocks(bytes, out),
        }
    }

    fn decode_blocks<T: Element>(self, bytes: &[u8], out: &mut [T]) {
        let (elements, size) = self.block();
        let group = self.group().expect("the others are decoded one by one");
        let (mut scales, mut mins) = ([0.0; GROUPS_MAX], [0.0; GROUPS_MAX]);
        let mut values = [0; LONGEST];
        let (scales, mins) = (&mut scales[..elements / group], &mut mins[..elements / group]);
        let values = &mut values[..elements];
        for (block, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(elements)) {
            unpack(self, block, &mut Groups { scales, mins, values });
            let groups = scales.iter().zip(&*mins).zip(values.chunks_exact(group));
            for (((scale, min), values), out) in groups.zip(out.chunks_exact_mut(group)) {
                for (to, &q) in out.iter_mut().zip(values) {
                    *to = T::from_f32(scale * f32::from(q) + min);
                }
            }
        }
    }
}

fn each<T, const N: usize>(bytes: &[u8], out: &mut [T], decode: impl Fn([u8; N]) -> T) {
    for (from, to) in bytes.as_chunks::<N>().0.iter().zip(out) {
        *to = decode(*from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Header;
    use serde_json::Value;
    use std::path::Path;

    const QUANTISED: [(Dtype, u32); 10] = [
        (Dtype::Q4_0, 2),
        (Dtype::Q4_1, 3),
        (Dtype::Q5_0, 6),
        (Dtype::Q5_1, 7),
        (Dtype::Q8_0, 8),
        (Dtype::Q2_K, 10),
        (Dtype::Q3_K, 11),
        (Dtype::Q4_K, 12),
        (Dtype::Q5_K, 13),
        (Dtype::Q6_K, 14),
    ];

    fn bytes(golden: &Value, dtype: Dtype, what: &str) -> Vec<u8> {
        let hex = golden["formats"][dtype.to_string()][what].as_str().unwrap();
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn blocks_are_what_gguf_py_makes_of_them() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/gguf-blocks.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for (dtype, _) in QUANTISED {
            let (blocks, elements) =
                (bytes(&golden, dtype, "blocks"), bytes(&golden, dtype, "elements"));
            let expected: Vec<f32> =
                elements.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            assert_eq!(dtype.bytes(expected.len()), Some(blocks.len()), "{dtype}");
            let mut found = vec![f32::NAN; expected.len()];
            dtype.decode(&blocks, &mut found);
            assert_eq!(found, expected, "{dtype}");
            let mut rounded = vec![bf16::ZERO; expected.len()];
            dtype.decode(&blocks, &mut rounded);
            let expected = expected.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
            assert_eq!(rounded, expected, "{dtype}");
        }
    }

    /// A file of one tensor of 256 elements, `size` bytes long.
    fn header(code: u32, elements: u64, size: u64) -> Result<Header, crate::Error> {
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend([1_u64, 0, 1].iter().flat_map(|n| n.to_le_bytes()));
        file.push(b'w');
        file.extend(1_u32.to_le_bytes());
        file.extend(elements.to_le_bytes());
        file.extend(code.to_le_bytes());
        file.extend(0_u64.to_le_bytes());
        let len = (file.len() as u64).next_multiple_of(32) + size;
        Header::parse(Path::new("one.gguf"), &file[..], len)
    }

    #[test]
    fn a_file_that_ends_early_or_within_a_block_is_refused() {
        for (dtype, code) in QUANTISED {
            let (per, _) = dtype.block();
            let size = dtype.bytes(512).unwrap() as u64;
            assert_eq!(header(code, 512, size).unwrap().tensors[0].dtype, dtype);
            for (elements, size) in [(512, size - 1), (512 - per as u64 / 2, size)] {
                let error = header(code, elements, size).unwrap_err().to_string();
                assert!(error.contains("`w` lies outside"), "{dtype}: {error}");
            }
        }
    }
}
