//! Why a model on disk was refused. Every variant names the file, the thing and the cure.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// A model that cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system's word on a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path is neither a model folder nor a GGUF file.
    #[error("{}: not a model: {reason}", path.display())]
    NotAModel {
        /// What was given.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// The bytes break their own format: truncated, overlapping, out of range.
    #[error("{}: broken file: {what}; fetch it again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and how.
        what: String,
    },
    /// A field is missing or holds a value that cannot be right.
    #[error("{}: `{field}` is {value}; it must be {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Name of the field, dotted where nested.
        field: String,
        /// What it holds, or "missing".
        value: String,
        /// What would do.
        expected: String,
    },
    /// A feature that would change the result and is not implemented.
    #[error("{}: `{field}` = {value} is not supported; {known}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Name of the field or tensor.
        field: String,
        /// What it asks for.
        value: String,
        /// What is supported instead.
        known: String,
    },
    /// The architecture needs a tensor that no file holds.
    #[error("{}: tensor `{name}` is missing; the model is incomplete or of another architecture", path.display())]
    MissingTensor {
        /// Hugging Face name.
        name: String,
        /// Folder or file searched.
        path: PathBuf,
    },
    /// A tensor that the architecture has no use for: ignoring it would change the result.
    #[error("{}: tensor `{name}` has no place in {family}; the file is of another architecture", path.display())]
    UnexpectedTensor {
        /// Name as found.
        name: String,
        /// File that holds it.
        path: PathBuf,
        /// The architecture that was claimed.
        family: &'static str,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{}: tensor `{name}` has shape {found:?}; config says {expected:?}", path.display())]
    Shape {
        /// Hugging Face name.
        name: String,
        /// File that holds it.
        path: PathBuf,
        /// As stored, outermost dimension first.
        found: Vec<usize>,
        /// As the configuration implies.
        expected: Vec<usize>,
    },
    /// A read outside a tensor, or into a buffer of the wrong length: the caller's mistake.
    #[error("tensor `{name}`: rows {start}..{end} of {rows} into {room} elements, {needed} needed")]
    Rows {
        /// Hugging Face name.
        name: String,
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// Rows there are.
        rows: usize,
        /// Elements the buffer holds.
        room: usize,
        /// Elements those rows have.
        needed: usize,
    },
}

impl Error {
    pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.into(), what: what.into() }
    }

    pub(crate) fn missing(path: &Path, field: &str, expected: &str) -> Self {
        Self::field(path, field, "missing", expected)
    }

    pub(crate) fn field(
        path: &Path,
        field: impl Into<String>,
        value: impl Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Field {
            path: path.into(),
            field: field.into(),
            value: clip(&value),
            expected: expected.into(),
        }
    }

    pub(crate) fn unsupported(
        path: &Path,
        field: impl Into<String>,
        value: impl Display,
        known: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            path: path.into(),
            field: field.into(),
            value: clip(&value),
            known: known.into(),
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.into(), source }
    }
}

/// Values come from the file and may be megabytes long; a message shows their beginning.
fn clip(value: &impl Display) -> String {
    const SHOWN: usize = 120;
    let value = value.to_string();
    match value.char_indices().nth(SHOWN) {
        None => value,
        Some((end, _)) => format!("{}…", &value[..end]),
    }
}
