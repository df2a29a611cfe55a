//! Tensors by Hugging Face name, read row by row.
//!
//! A *row* is one index of the outermost dimension; a vector has rows of one element, a scalar one
//! row. GGUF files of the llama architecture store the rows of q and k so that ggml may rotate
//! neighbours; Hugging Face rotates halves. The order is put right here, while rows are read, so a
//! range of rows always means Hugging Face rows.

use crate::dtype::Dtype;
use crate::error::Error;
use half::bf16;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes read by one system call at most, which bounds the scratch memory of a read.
const CHUNK: usize = 1 << 20;

/// What a read may produce: `f32` (exact for every stored dtype) or `bf16` (that, rounded to
/// nearest even).
pub trait Element: Copy + Default + Send + 'static + sealed::Sealed {
    /// From the exact value.
    fn from_f32(value: f32) -> Self;
    /// From a stored bf16, unchanged.
    fn from_bf16(value: bf16) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }
    fn from_bf16(value: bf16) -> Self {
        value.to_f32()
    }
}

impl Element for bf16 {
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn from_bf16(value: bf16) -> Self {
        value
    }
}

/// Where one tensor lies. Made only by the two readers, which checked it against the file.
#[derive(Debug)]
pub(crate) struct Stored {
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Index into [`Weights::files`].
    pub file: usize,
    /// First byte within that file.
    pub offset: u64,
    /// Rows of one head, where they are stored in ggml's interleaved order.
    pub interleaved: Option<usize>,
}

/// Open files and what they hold.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    pub files: Vec<(PathBuf, File)>,
    pub tensors: BTreeMap<String, Stored>,
}

impl Weights {
    pub fn path(&self, stored: &Stored) -> &Path {
        &self.files[stored.file].0
    }
}

/// One tensor of an open checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    name: &'a str,
    stored: &'a Stored,
    path: &'a Path,
    file: &'a File,
}

impl<'a> Tensor<'a> {
    pub(crate) fn new(name: &'a str, stored: &'a Stored, weights: &'a Weights) -> Self {
        let (path, file) = &weights.files[stored.file];
        Self { name, stored, path, file }
    }

    /// Hugging Face name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// How it is stored; reads convert.
    pub fn dtype(&self) -> Dtype {
        self.stored.dtype
    }

    /// Outermost dimension first, as Hugging Face has it.
    pub fn shape(&self) -> &'a [usize] {
        &self.stored.shape
    }

    /// Size of the outermost dimension; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.stored.shape.first().copied().unwrap_or(1)
    }

    /// Elements of one row.
    pub fn row_len(&self) -> usize {
        self.stored.shape.iter().skip(1).product()
    }

    /// Elements in all.
    pub fn elements(&self) -> usize {
        self.stored.shape.iter().product()
    }

    /// Bytes in the file: the unit of a loader's progress bar.
    pub fn stored_bytes(&self) -> u64 {
        self.rows() as u64 * self.row_bytes() as u64
    }

    /// Bytes of one row in the file.
    pub fn row_bytes(&self) -> usize {
        self.stored.dtype.bytes(self.row_len()).expect("rows end on blocks: checked at open")
    }

    /// Reads `rows` into `out`, which must hold exactly `rows.len() * row_len()` elements.
    ///
    /// # Errors
    /// [`Error::Rows`] if the range or `out` does not fit the tensor, [`Error::Io`] from the file.
    pub fn read<T: Element>(&self, rows: Range<usize>, out: &mut [T]) -> Result<(), Error> {
        self.fits(&rows, self.row_len(), out.len())?;
        let row_bytes = self.row_bytes();
        let rows_each = (CHUNK / row_bytes).clamp(1, rows.len().max(1));
        let mut bytes = vec![0; rows_each * row_bytes];
        let starts = rows.step_by(rows_each);
        for (start, out) in starts.zip(out.chunks_mut(rows_each * self.row_len())) {
            let rows = out.len() / self.row_len();
            let bytes = &mut bytes[..rows * row_bytes];
            self.stored_rows(start..start + rows, bytes)?;
            self.stored.dtype.decode(bytes, out);
        }
        Ok(())
    }

    /// Reads `rows` as they are stored into `out`, which must hold exactly their bytes. The order
    /// of rows is put right here too.
    ///
    /// # Errors
    /// [`Error::Rows`] if the range or `out` does not fit the tensor, [`Error::Io`] from the file.
    pub fn read_stored(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        self.fits(&rows, self.row_bytes(), out.len())?;
        self.stored_rows(rows, out)
    }

    /// Holds a range and the length of what it is read into against the tensor.
    fn fits(&self, rows: &Range<usize>, row_len: usize, room: usize) -> Result<(), Error> {
        let needed = rows.len().checked_mul(row_len);
        if rows.end <= self.rows() && needed == Some(room) {
            return Ok(());
        }
        Err(Error::Rows {
            name: self.name.to_owned(),
            start: rows.start,
            end: rows.end,
            rows: self.rows(),
            room,
            needed: needed.unwrap_or(usize::MAX),
        })
    }

    /// The whole tensor; `bf16` or `f32` by the type asked for.
    ///
    /// # Errors
    /// [`Error::Io`] from the file.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, Error> {
        let mut out = vec![T::default(); self.elements()];
        self.read(0..self.rows(), &mut out)?;
        Ok(out)
    }

    /// Feeds the first and last 4 KiB of the stored bytes to `hasher`.
    pub(crate) fn sample(&self, hasher: &mut blake3::Hasher) -> Result<(), Error> {
        const SAMPLE: u64 = 4096;
        let len = self.stored_bytes().min(SAMPLE);
        let mut bytes = vec![0; len as usize];
        for at in [0, self.stored_bytes() - len] {
            let at = self.stored.offset + at;
            self.file.read_exact_at(&mut bytes, at).map_err(Error::io(self.path))?;
            hasher.update(&bytes);
        }
        Ok(())
    }

    fn stored_rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        match self.stored.interleaved {
            None => self.read_rows_at(rows.start, out),
            Some(head) => self.interleaved_rows(rows, head, out),
        }
    }

    /// Row `i < d/2` of a head lies at `2i`, row `i + d/2` at `2i + 1`: a head is read at once and
    /// its rows picked out.
    fn interleaved_rows(
        &self,
        rows: Range<usize>,
        head: usize,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let row_bytes = self.row_bytes();
        let mut bytes = vec![0; head * row_bytes];
        let mut held = None;
        for (row, out) in rows.zip(out.chunks_exact_mut(row_bytes)) {
            let first = row / head * head;
            if held != Some(first) {
                self.read_rows_at(first, &mut bytes)?;
                held = Some(first);
            }
            let (half, within) = ((row - first) / (head / 2), (row - first) % (head / 2));
            out.copy_from_slice(&bytes[(2 * within + half) * row_bytes..][..row_bytes]);
        }
        Ok(())
    }

    fn read_rows_at(&self, row: usize, bytes: &mut [u8]) -> Result<(), Error> {
        let at = self.stored.offset + row as u64 * self.row_bytes() as u64;
        self.file.read_exact_at(bytes, at).map_err(Error::io(self.path))
    }
}
