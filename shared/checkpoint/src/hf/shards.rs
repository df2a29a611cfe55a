//! Safetensors files: `model.safetensors`, or shards listed by `model.safetensors.index.json`.
//!
//! The format: 8 bytes header length, a JSON header of names, dtypes, shapes and byte ranges, data.
//! The `safetensors` crate checks that the ranges follow each other without gaps and agree with the
//! shapes; here it remains to hold them against the file's length.

use crate::dtype::Dtype;
use crate::error::Error;
use crate::tensor::{Stored, Weights};
use safetensors::tensor::Metadata;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Longest header: some hundred thousand tensors.
const HEADER_MAX: u64 = 64 << 20;
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Opens every safetensors file of `folder`.
pub(crate) fn open(folder: &Path) -> Result<Weights, Error> {
    let index_path = folder.join(INDEX);
    let mut weights = Weights::default();
    if let Some(bytes) = super::read_file(&index_path, HEADER_MAX)? {
        let map = parse_index(&index_path, &bytes)?;
        let shards: BTreeSet<_> = map.values().collect();
        for shard in shards {
            add_file(&mut weights, &folder.join(shard))?;
        }
        hold_against_index(&weights, folder, &map)?;
    } else if folder.join(SINGLE).exists() {
        add_file(&mut weights, &folder.join(SINGLE))?;
    } else {
        let reason = format!("the folder has neither {SINGLE} nor {INDEX}");
        return Err(Error::NotAModel { path: folder.into(), reason });
    }
    Ok(weights)
}

/// The `weight_map` of an index file: tensor name → file name, a plain one in the same folder.
///
/// # Errors
/// Not an index file, or a file name that leaves the folder.
pub fn parse_index(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>, Error> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(bytes)
        .map_err(|error| Error::malformed(path, format!("not an index file: {error}")))?;
    for shard in index.weight_map.values() {
        let plain = Path::new(shard).file_name().is_some_and(|name| name == shard.as_str());
        if !plain || !shard.ends_with(".safetensors") {
            let expected = "the name of a .safetensors file in the same folder";
            return Err(Error::field(path, "weight_map", shard, expected));
        }
    }
    Ok(index.weight_map)
}

/// A header's JSON: names, dtypes, shapes and ranges, which tile the data of `data_len` bytes.
///
/// # Errors
/// Not a header, ranges with gaps or overlaps, or data longer or shorter than the file.
pub fn parse_header(path: &Path, json: &[u8], data_len: u64) -> Result<Metadata, Error> {
    let header: Metadata = serde_json::from_slice(json)
        .map_err(|error| Error::malformed(path, format!("safetensors header: {error}")))?;
    if header.data_len() as u64 != data_len {
        let what =
            format!("header lists {} bytes of tensors, {data_len} follow", header.data_len());
        return Err(Error::malformed(path, what));
    }
    Ok(header)
}

fn add_file(weights: &mut Weights, path: &Path) -> Result<(), Error> {
    let file = File::open(path).map_err(Error::io(path))?;
    let len = file.metadata().map_err(Error::io(path))?.len();
    let mut prefix = [0; 8];
    if len < 8 {
        return Err(Error::malformed(path, format!("{len} bytes are too few for a header")));
    }
    file.read_exact_at(&mut prefix, 0).map_err(Error::io(path))?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > HEADER_MAX || header_len > len - 8 {
        let what = format!("header of {header_len} bytes in a file of {len}");
        return Err(Error::malformed(path, what));
    }
    let mut json = vec![0; header_len as usize];
    file.read_exact_at(&mut json, 8).map_err(Error::io(path))?;
    let header = parse_header(path, &json, len - 8 - header_len)?;
    let index = weights.files.len();
    for (name, info) in header.tensors() {
        let stored = Stored {
            dtype: dtype(path, &name, info.dtype)?,
            shape: info.shape.clone(),
            file: index,
            offset: 8 + header_len + info.data_offsets.0 as u64,
            interleaved: None,
        };
        if weights.tensors.insert(name.clone(), stored).is_some() {
            return Err(Error::malformed(path, format!("tensor `{name}` is in two files")));
        }
    }
    weights.files.push((path.into(), file));
    Ok(())
}

fn dtype(path: &Path, name: &str, dtype: safetensors::Dtype) -> Result<Dtype, Error> {
    match dtype {
        safetensors::Dtype::F32 => Ok(Dtype::F32),
        safetensors::Dtype::F16 => Ok(Dtype::F16),
        safetensors::Dtype::BF16 => Ok(Dtype::BF16),
        other => Err(Error::unsupported(path, name, other, Dtype::KNOWN)),
    }
}

/// A shard that was replaced by another model's would otherwise go unseen.
fn hold_against_index(
    weights: &Weights,
    folder: &Path,
    map: &BTreeMap<String, String>,
) -> Result<(), Error> {
    for (name, shard) in map {
        let stored = weights.tensors.get(name);
        if stored.is_none_or(|stored| !weights.path(stored).ends_with(shard)) {
            return Err(Error::MissingTensor { name: name.clone(), path: folder.join(shard) });
        }
    }
    Ok(())
}
