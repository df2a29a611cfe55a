//! Bytes ↔ values. The only file that names bincode, so that leaving it is a change of one file.
//!
//! bincode 2 through serde with fixed-width integers (2 to 3 times as fast as varints) and a limit:
//! its own derive aborts on a hostile length, the serde path returns an error. Trailing bytes are
//! refused.

use serde::{Serialize, de::DeserializeOwned};

/// Largest encoded message, bytes: a prompt of [`crate::request::MAX_SEQUENCE`] tokens and room.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A message that cannot be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Larger than [`MESSAGE_BYTES_MAX`]; a caller that bounds its values does not see this.
    #[error("message does not encode: {0}")]
    Encode(String),
    /// Not a value of the expected type.
    #[error("message does not decode: {0}")]
    Decode(String),
    /// A value, and then more bytes.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
}

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Fixint,
    bincode::config::Limit<MESSAGE_BYTES_MAX>,
> = bincode::config::legacy().with_limit::<MESSAGE_BYTES_MAX>();

/// Encodes `value`.
///
/// # Errors
/// [`CodecError::Encode`] if it is larger than [`MESSAGE_BYTES_MAX`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::new();
    encode_into(value, &mut bytes)?;
    Ok(bytes)
}

/// Encodes `value` behind what `bytes` has.
///
/// # Errors
/// As [`encode`]; `bytes` may then end in a part of it.
pub fn encode_into<T: Serialize>(value: &T, bytes: &mut Vec<u8>) -> Result<(), CodecError> {
    let written = bincode::serde::encode_into_std_write(value, bytes, CONFIG)
        .map_err(|e| CodecError::Encode(e.to_string()))?;
    if written > MESSAGE_BYTES_MAX {
        return Err(CodecError::Encode(format!("{written} bytes, limit {MESSAGE_BYTES_MAX}")));
    }
    Ok(())
}

/// Decodes exactly one value from all of `bytes`.
///
/// # Errors
/// [`CodecError::Decode`] if they are no such value, [`CodecError::Trailing`] if more follows.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, CONFIG)
        .map_err(|e| CodecError::Decode(e.to_string()))?;
    match bytes.len() - used {
        0 => Ok(value),
        more => Err(CodecError::Trailing(more)),
    }
}
