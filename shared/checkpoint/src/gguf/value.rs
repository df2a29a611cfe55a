//! Metadata values: thirteen types, each known by its code.

use super::reader::Reader;
use crate::error::Error;
use serde_json::{Number, Value};
use std::io::Read;

/// Arrays within arrays: nothing known has more than one.
const NESTING_MAX: u32 = 4;

/// Type of a metadata value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    pub fn read(reader: &mut Reader<'_, impl Read>) -> Result<Self, Error> {
        use Kind::*;
        const BY_CODE: [Kind; 13] =
            [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64];
        let code = reader.u32()?;
        let kind = BY_CODE.get(code as usize).copied();
        kind.ok_or_else(|| reader.broken(&format!("a value of unknown type {code}")))
    }

    /// Bytes of one value, or of the emptiest one.
    pub fn least_size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }

    /// A scalar as JSON; a float that is not finite has no JSON and becomes its text, so that a
    /// look-up for a number names it.
    pub fn value(self, reader: &mut Reader<'_, impl Read>) -> Result<Value, Error> {
        let float =
            |x: f64| Number::from_f64(x).map_or(Value::String(x.to_string()), Value::Number);
        Ok(match self {
            Self::U8 => reader.array::<1>()?[0].into(),
            Self::I8 => i8::from_le_bytes(reader.array()?).into(),
            Self::U16 => u16::from_le_bytes(reader.array()?).into(),
            Self::I16 => i16::from_le_bytes(reader.array()?).into(),
            Self::U32 => reader.u32()?.into(),
            Self::I32 => i32::from_le_bytes(reader.array()?).into(),
            Self::F32 => float(f32::from_le_bytes(reader.array()?).into()),
            Self::F64 => float(f64::from_le_bytes(reader.array()?)),
            Self::U64 => reader.u64()?.into(),
            Self::I64 => i64::from_le_bytes(reader.array()?).into(),
            Self::String => reader.string()?.into(),
            Self::Bool => match reader.array::<1>()?[0] {
                0 => false.into(),
                1 => true.into(),
                other => return Err(reader.broken(&format!("a truth value of {other}"))),
            },
            Self::Array => return Err(reader.broken("an array where a scalar was due")),
        })
    }
}

/// Passes over the elements of an array that nothing here reads.
pub(super) fn skip_array(
    reader: &mut Reader<'_, impl Read>,
    kind: Kind,
    count: usize,
) -> Result<(), Error> {
    skip_nested(reader, kind, count, NESTING_MAX)
}

fn skip_nested(
    reader: &mut Reader<'_, impl Read>,
    kind: Kind,
    count: usize,
    depth: u32,
) -> Result<(), Error> {
    if depth == 0 {
        return Err(reader.broken("arrays nested too deep"));
    }
    match kind {
        Kind::String => {
            for _ in 0..count {
                let len = reader.count(1, "bytes of text")?;
                reader.skip(len, 1)?;
            }
            Ok(())
        }
        Kind::Array => {
            for _ in 0..count {
                let kind = Kind::read(reader)?;
                let count = reader.count(kind.least_size(), "array elements")?;
                skip_nested(reader, kind, count, depth - 1)?;
            }
            Ok(())
        }
        fixed => reader.skip(count, fixed.least_size()),
    }
}
