//! The header: metadata, and where each tensor lies. Format: ggml's `docs/gguf.md`, versions 2, 3.

use super::reader::Reader;
use super::value::{Kind, skip_array};
use crate::dtype::Dtype;
use crate::error::Error;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

/// ggml's own limit.
const DIMENSIONS_MAX: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// What a GGUF file says before its data begins.
#[derive(Debug, Default)]
pub struct Header {
    /// Scalars of the metadata.
    pub scalars: Map<String, Value>,
    /// Arrays of strings.
    pub strings: BTreeMap<String, Vec<String>>,
    /// Arrays of 32-bit whole numbers.
    pub numbers: BTreeMap<String, Vec<i64>>,
    /// Keys of arrays of any other type; their values are not kept.
    pub other_arrays: BTreeSet<String>,
    /// In file order, each inside the file.
    pub tensors: Vec<TensorInfo>,
}

/// One tensor as the file has it.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// ggml's name: `blk.7.attn_q.weight`.
    pub name: String,
    /// Outermost dimension first; each at least 1.
    pub shape: Vec<usize>,
    /// Storage of the elements.
    pub dtype: Dtype,
    /// First byte, from the start of the file.
    pub offset: u64,
}

impl Header {
    /// Reads a header from the start of a file of `file_len` bytes; `path` is for messages only.
    ///
    /// # Errors
    /// Not GGUF, a version or tensor type that is not known, or any length that breaks the file.
    pub fn parse(path: &Path, source: impl Read, file_len: u64) -> Result<Self, Error> {
        let mut reader = Reader::new(path, source, file_len);
        check_magic(path, &mut reader)?;
        // Least sizes: a name of one byte, its lengths, a type, the smallest value.
        let tensors = reader.count(8 + 1 + 4 + 4 + 8, "tensors")?;
        let entries = reader.count(8 + 1 + 4 + 1, "metadata entries")?;
        let mut header = Self::default();
        for _ in 0..entries {
            header.entry(&mut reader)?;
        }
        let mut names = BTreeSet::new();
        for _ in 0..tensors {
            let info = tensor_info(path, &mut reader)?;
            if !names.insert(info.name.clone()) {
                return Err(reader.broken(&format!("tensor `{}` is listed twice", info.name)));
            }
            header.tensors.push(info);
        }
        let end = reader.position();
        header.place(path, end, file_len)?;
        Ok(header)
    }

    fn entry(&mut self, reader: &mut Reader<'_, impl Read>) -> Result<(), Error> {
        let key = reader.name()?;
        let seen = self.scalars.contains_key(&key)
            || self.strings.contains_key(&key)
            || self.numbers.contains_key(&key)
            || self.other_arrays.contains(&key);
        if seen {
            return Err(reader.broken(&format!("key `{key}` is listed twice")));
        }
        match Kind::read(reader)? {
            Kind::Array => self.array(reader, key)?,
            scalar => {
                let value = scalar.value(reader)?;
                self.scalars.insert(key, value);
            }
        }
        Ok(())
    }

    fn array(&mut self, reader: &mut Reader<'_, impl Read>, key: String) -> Result<(), Error> {
        let kind = Kind::read(reader)?;
        let count = reader.count(kind.least_size(), "array elements")?;
        match kind {
            Kind::String => {
                let all: Result<_, Error> = (0..count).map(|_| reader.string()).collect();
                self.strings.insert(key, all?);
            }
            Kind::U32 | Kind::I32 => {
                let one = |_| match kind {
                    Kind::U32 => reader.u32().map(i64::from),
                    _ => reader.u32().map(|bits| i64::from(bits.cast_signed())),
                };
                let all: Result<_, Error> = (0..count).map(one).collect();
                self.numbers.insert(key, all?);
            }
            other => {
                skip_array(reader, other, count)?;
                self.other_arrays.insert(key);
            }
        }
        Ok(())
    }

    /// Turns offsets from the start of the data into offsets from the start of the file, and holds
    /// each tensor against the file's end.
    fn place(&mut self, path: &Path, header_end: u64, file_len: u64) -> Result<(), Error> {
        let alignment = match self.scalars.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(value) => value
                .as_u64()
                .filter(|n| n.is_power_of_two())
                .ok_or_else(|| Error::field(path, "general.alignment", value, "a power of two"))?,
        };
        let outside = |name: &str| {
            let what = format!("tensor `{name}` lies outside the {file_len} bytes of the file");
            Error::malformed(path, what)
        };
        let data = header_end.checked_next_multiple_of(alignment).ok_or_else(|| outside("data"))?;
        for tensor in &mut self.tensors {
            if !tensor.offset.is_multiple_of(alignment) {
                let what = format!("tensor `{}` is not aligned to {alignment}", tensor.name);
                return Err(Error::malformed(path, what));
            }
            let end = tensor.bytes().and_then(|len| {
                let start = data.checked_add(tensor.offset)?;
                Some((start, start.checked_add(len)?))
            });
            match end {
                Some((start, end)) if end <= file_len => tensor.offset = start,
                _ => return Err(outside(&tensor.name)),
            }
        }
        Ok(())
    }
}

impl TensorInfo {
    /// Bytes in the file; `None` if a row ends inside a block, or on overflow.
    fn bytes(&self) -> Option<u64> {
        let (inner, outer) = self.shape.split_last()?;
        let row = self.dtype.bytes(*inner)? as u64;
        outer.iter().try_fold(row, |bytes, &n| bytes.checked_mul(n as u64))
    }
}

fn check_magic(path: &Path, reader: &mut Reader<'_, impl Read>) -> Result<(), Error> {
    let not_gguf = |reason: &str| Error::NotAModel { path: path.into(), reason: reason.to_owned() };
    match reader.array::<4>() {
        Ok(magic) if &magic == b"GGUF" => {}
        _ => return Err(not_gguf("a single file must be GGUF; for safetensors give the folder")),
    }
    match reader.u32()? {
        2 | 3 => Ok(()),
        version if matches!(version.swap_bytes(), 1..=3) => {
            Err(not_gguf("a big-endian GGUF file; convert it to little-endian"))
        }
        version => Err(not_gguf(&format!("GGUF version {version}; known are 2 and 3"))),
    }
}

fn tensor_info(path: &Path, reader: &mut Reader<'_, impl Read>) -> Result<TensorInfo, Error> {
    let name = reader.name()?;
    let dimensions = reader.u32()?;
    if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
        return Err(reader.broken(&format!("tensor `{name}` of {dimensions} dimensions")));
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        match usize::try_from(reader.u64()?) {
            Ok(n @ 1..) => shape.push(n),
            _ => return Err(reader.broken(&format!("tensor `{name}` has an impossible size"))),
        }
    }
    shape.reverse();
    let code = reader.u32()?;
    let dtype = dtype(code)
        .ok_or_else(|| Error::unsupported(path, name.as_str(), type_name(code), Dtype::KNOWN))?;
    Ok(TensorInfo { name, shape, dtype, offset: reader.u64()? })
}

fn dtype(code: u32) -> Option<Dtype> {
    match code {
        0 => Some(Dtype::F32),
        1 => Some(Dtype::F16),
        2 => Some(Dtype::Q4_0),
        3 => Some(Dtype::Q4_1),
        6 => Some(Dtype::Q5_0),
        7 => Some(Dtype::Q5_1),
        8 => Some(Dtype::Q8_0),
        10 => Some(Dtype::Q2_K),
        11 => Some(Dtype::Q3_K),
        12 => Some(Dtype::Q4_K),
        13 => Some(Dtype::Q5_K),
        14 => Some(Dtype::Q6_K),
        30 => Some(Dtype::BF16),
        _ => None,
    }
}

/// ggml's names of the types one is most likely to bring, for the refusal.
fn type_name(code: u32) -> String {
    let known = match code {
        15 => "Q8_K",
        20 => "IQ4_NL",
        23 => "IQ4_XS",
        39 => "MXFP4",
        other => return format!("ggml type {other}"),
    };
    known.to_owned()
}
