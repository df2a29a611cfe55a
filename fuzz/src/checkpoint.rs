//! The entry points of model files.

use checkpoint::{gguf, hf};
use std::path::Path;

/// Bytes as a GGUF file.
pub fn gguf(bytes: &[u8]) {
    let path = Path::new("fuzz.gguf");
    if let Ok(header) = gguf::Header::parse(path, bytes, bytes.len() as u64) {
        for tensor in &header.tensors {
            let elements = tensor.shape.iter().product();
            let len = tensor.dtype.bytes(elements).expect("a size that was checked") as u64;
            assert!(tensor.offset + len <= bytes.len() as u64, "{tensor:?} leaves the file");
        }
    }
}

/// Bytes as the header of a safetensors file, the first eight the length of its data, and as an
/// index of shards.
pub fn safetensors_header(bytes: &[u8]) {
    let path = Path::new("fuzz.safetensors");
    if let Some((len, json)) = bytes.split_first_chunk() {
        let len = u64::from_le_bytes(*len);
        if let Ok(header) = hf::parse_header(path, json, len) {
            let ends = header.tensors().values().map(|info| info.data_offsets.1 as u64).max();
            assert!(ends.unwrap_or(0) <= len);
        }
    }
    if let Ok(shards) = hf::parse_index(path, bytes) {
        assert!(shards.values().all(|shard| !shard.contains('/')), "a shard elsewhere");
    }
}

/// Bytes as a config.json.
pub fn config_json(bytes: &[u8]) {
    if let Ok(config) = hf::parse_config(Path::new("config.json"), bytes) {
        assert!(config.layers > 0 && config.hidden > 0, "a model without a size");
    }
}
