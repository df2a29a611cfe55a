//! A Hugging Face model folder: `config.json`, safetensors, and what is beside them.

mod config;
mod shards;
mod text;

pub use config::parse as parse_config;
pub(crate) use config::read as read_config;
pub(crate) use shards::open;
pub use shards::{parse_header, parse_index};
pub(crate) use text::{Text, read as read_text, tokenizer_json};

use crate::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longest of the JSON files beside the weights, `tokenizer.json` aside.
const JSON_MAX: u64 = 16 << 20;

/// A whole file, if it is there.
///
/// # Errors
/// It cannot be read, or is longer than `max` bytes.
pub(crate) fn read_file(path: &Path, max: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > max {
        return Err(Error::malformed(path, format!("longer than the {max} bytes allowed")));
    }
    Ok(Some(bytes))
}

/// A JSON object.
///
/// # Errors
/// Not JSON, or not an object.
pub(crate) fn object(
    path: &Path,
    bytes: &[u8],
) -> Result<serde_json::Map<String, serde_json::Value>, Error> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::malformed(path, format!("not a JSON object: {error}")))
}
