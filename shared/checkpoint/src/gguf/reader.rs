//! Little-endian primitives with every length held against what is left of the file before memory
//! is asked for.

use crate::error::Error;
use std::io::Read;
use std::path::Path;

/// Metadata and tensor list together: far above the 12 MB of the largest vocabularies.
const HEADER_MAX: u64 = 128 << 20;
/// Longest name of a key or tensor.
const NAME_MAX: u64 = 1 << 10;

pub(super) struct Reader<'a, R> {
    path: &'a Path,
    inner: R,
    position: u64,
    /// Bytes that may still be read: of the file, or of [`HEADER_MAX`].
    left: u64,
}

impl<'a, R: Read> Reader<'a, R> {
    pub fn new(path: &'a Path, inner: R, file_len: u64) -> Self {
        Self { path, inner, position: 0, left: file_len.min(HEADER_MAX) }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// An error at the current position.
    pub fn broken(&self, what: &str) -> Error {
        Error::malformed(self.path, format!("GGUF header at byte {}: {what}", self.position))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.take(bytes.len() as u64)?;
        self.inner.read_exact(bytes).map_err(Error::io(self.path))
    }

    fn take(&mut self, len: u64) -> Result<(), Error> {
        self.left = self
            .left
            .checked_sub(len)
            .ok_or_else(|| self.broken(&format!("{len} more bytes wanted, {} left", self.left)))?;
        self.position += len;
        Ok(())
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things of at least `each` bytes, which must still fit: safe to allocate for.
    pub fn count(&mut self, each: u64, of: &str) -> Result<usize, Error> {
        let count = self.u64()?;
        if count > self.left / each {
            return Err(self.broken(&format!("{count} {of} cannot fit in {} bytes", self.left)));
        }
        Ok(count as usize)
    }

    pub fn string(&mut self) -> Result<String, Error> {
        let len = self.count(1, "bytes of text")?;
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.broken("text that is not UTF-8"))
    }

    /// A string short enough to be a name.
    pub fn name(&mut self) -> Result<String, Error> {
        let name = self.string()?;
        match name.len() as u64 {
            1..=NAME_MAX => Ok(name),
            len => Err(self.broken(&format!("a name of {len} bytes"))),
        }
    }

    /// Passes over `count` things of `each` bytes.
    pub fn skip(&mut self, count: usize, each: u64) -> Result<(), Error> {
        let len = (count as u64).checked_mul(each).ok_or_else(|| self.broken("overflow"))?;
        self.take(len)?;
        let passed = std::io::copy(&mut self.inner.by_ref().take(len), &mut std::io::sink());
        match passed.map_err(Error::io(self.path))? == len {
            true => Ok(()),
            false => Err(self.broken("the file ended")),
        }
    }
}
