//! A GGUF file: weights, configuration and tokenizer in one.
//!
//! Dimensions are stored innermost first; reversed they are Hugging Face's shape, the bytes are not
//! transposed. What the file only names (split pattern, row order of q and k) is filled in here.

mod config;
mod header;
mod reader;
mod tokenizer;
mod value;
mod weights;

pub(crate) use config::read as config;
pub use header::{Header, TensorInfo};
pub(crate) use tokenizer::{text, tokenizer_json};
pub(crate) use weights::locate as weights;

use crate::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Opens `path` and reads its header.
pub(crate) fn open(path: &Path) -> Result<(Header, File), Error> {
    let file = File::open(path).map_err(Error::io(path))?;
    let len = file.metadata().map_err(Error::io(path))?.len();
    let header = Header::parse(path, BufReader::with_capacity(1 << 16, &file), len)?;
    Ok((header, file))
}
