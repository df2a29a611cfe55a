//! What goes over a data connection. Little-endian, fixed sizes.
//!
//! Source to target: one [`Hello`]; then frames, each a head of [`HEAD_BYTES`] and, for a piece,
//! its payload. Target to source: one byte [`WELCOME`], then the number of each flush mark, 8
//! bytes, when everything before it on this stream is in the pool.

use crate::offer::{Reader, Writer};
use crate::{SessionId, TransferError};

const MAGIC: u32 = u32::from_le_bytes(*b"TKVD");
const VERSION: u8 = 1;

/// Bytes of a [`Hello`].
pub(super) const HELLO_BYTES: usize = 4 + 1 + 1 + 8 + 32;
/// Bytes of a frame's head.
pub(super) const HEAD_BYTES: usize = 4 + 4 + 8;
/// The target's answer to a hello that it takes.
pub(super) const WELCOME: u8 = 0x57;

/// Opens a data connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) stream: u8,
    pub(super) session: SessionId,
    pub(super) secret: [u8; 32],
}

impl Hello {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.u32(MAGIC).u8(VERSION).u8(self.stream).u64(self.session.get()).raw(&self.secret);
        writer.0
    }

    pub(super) fn read(bytes: &[u8; HELLO_BYTES]) -> Result<Self, TransferError> {
        let mut reader = Reader(bytes);
        let magic = reader.u32("hello.magic")?;
        if magic != MAGIC {
            return Err(TransferError::malformed("hello.magic", &magic, "a page transfer"));
        }
        let version = reader.u8("hello.version")?;
        if version != VERSION {
            return Err(TransferError::malformed("hello.version", &version, "1: same release"));
        }
        Ok(Self {
            stream: reader.u8("hello.stream")?,
            session: SessionId::new(reader.u64("hello.session")?),
            secret: reader.array("hello.secret")?,
        })
    }
}

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// `len` bytes follow, for byte `at` of the target's pool.
    Piece { at: u64, len: u32 },
    /// Acknowledge `number` when everything before is written.
    Flush { number: u64 },
}

impl Frame {
    pub(super) fn write(self) -> [u8; HEAD_BYTES] {
        let (kind, len, value) = match self {
            Self::Piece { at, len } => (1_u32, len, at),
            Self::Flush { number } => (2, 0, number),
        };
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        bytes[8..].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    /// Reads a head and checks a piece against a pool of `pool_bytes`.
    pub(super) fn read(bytes: &[u8; HEAD_BYTES], pool_bytes: u64) -> Result<Self, TransferError> {
        let mut reader = Reader(bytes);
        let kind = reader.u32("frame.kind")?;
        let len = reader.u32("frame.len")?;
        let value = reader.u64("frame.value")?;
        match (kind, len) {
            (1, 0) => Err(TransferError::malformed("frame.len", &len, "at least 1")),
            (1, len) if value.checked_add(u64::from(len)).is_none_or(|end| end > pool_bytes) => {
                Err(TransferError::malformed("frame.at", &value, "bytes within the pool"))
            }
            (1, len) => Ok(Self::Piece { at: value, len }),
            (2, 0) => Ok(Self::Flush { number: value }),
            _ => Err(TransferError::malformed("frame.kind", &kind, "1 (piece) or 2 (flush)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hello_comes_back() {
        let hello = Hello { stream: 1, session: SessionId::new(77), secret: [9; 32] };
        let bytes: [u8; HELLO_BYTES] = hello.write().try_into().unwrap();
        assert_eq!(Hello::read(&bytes).unwrap(), hello);
        for at in 0..5 {
            let mut wrong = bytes;
            wrong[at] ^= 1;
            assert!(Hello::read(&wrong).is_err(), "byte {at}");
        }
    }

    proptest! {
        /// Any head at all is refused or lies within the pool and the buffer.
        #[test]
        fn frames_that_pass_are_in_bounds(
            kind in 0u32..4, len in any::<u32>(), value in any::<u64>(),
            small in 0u32..2000, near in 0u64..3000,
        ) {
            for (len, value) in [(len, value), (small, near), (small, value), (len, near)] {
                let mut bytes = [0; HEAD_BYTES];
                bytes[..4].copy_from_slice(&kind.to_le_bytes());
                bytes[4..8].copy_from_slice(&len.to_le_bytes());
                bytes[8..].copy_from_slice(&value.to_le_bytes());
                match Frame::read(&bytes, 2500) {
                    Ok(frame @ Frame::Piece { at, len }) => {
                        prop_assert!(len >= 1 && at + u64::from(len) <= 2500);
                        prop_assert_eq!(frame.write(), bytes);
                    }
                    Ok(frame @ Frame::Flush { .. }) => prop_assert_eq!(frame.write(), bytes),
                    Err(_) => {}
                }
            }
        }
    }
}
