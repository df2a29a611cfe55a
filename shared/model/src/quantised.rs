//! Matrices that stay quantised: which they are, and how they are read.
//!
//! What a file has in blocks is taken apart and not rounded. Matrices that are one below the other
//! in one product may be of several formats: all then have the smallest group of them.

use crate::load::{LoadError, Piece, pieces_of};
use checkpoint::{Groups, Tensor};
use kernels::ops::{Blocks, share};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// How matrices are kept in memory, and so what the model computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// As the file has them, if the backend can; else in bf16.
    #[default]
    Auto,
    /// Rounded to bf16, whatever the file has: what a GPU computes with.
    Bf16,
    /// Those that the file has in full are rounded to `Q8_0`: 8 bits, a scale for each 32 inputs.
    Q8_0,
}

impl FromStr for WeightFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "bf16" => Ok(Self::Bf16),
            "q8_0" => Ok(Self::Q8_0),
            _ => Err(format!("{name:?} is not known; want auto, bf16 or q8_0")),
        }
    }
}

/// Inputs that share a scale in `Q8_0`.
const Q8_GROUP: usize = 32;

/// How a matrix is to be read.
#[derive(Clone, Copy)]
pub(crate) enum Plan {
    /// Taken apart, in groups of so many inputs.
    Stored(usize),
    /// Rounded to `Q8_0`.
    Rounded,
}

impl WeightFormat {
    /// How a matrix of `tensors` stays quantised, if it does.
    pub(crate) fn plan(self, tensors: &[Tensor<'_>]) -> Option<Plan> {
        let groups: Option<Vec<_>> = tensors.iter().map(|tensor| tensor.dtype().group()).collect();
        let stored = groups.and_then(|groups| groups.into_iter().min()).map(Plan::Stored);
        let fits = tensors.iter().all(|tensor| tensor.row_len().is_multiple_of(Q8_GROUP));
        match self {
            Self::Bf16 => None,
            Self::Auto => stored,
            Self::Q8_0 => stored.or(fits.then_some(Plan::Rounded)),
        }
    }
}

impl Plan {
    /// Reads `tensors`, one below the other, on `threads` threads, with a digest of each piece.
    pub(crate) fn read(
        self,
        tensors: &[Tensor<'_>],
        threads: usize,
    ) -> Result<(Blocks, Vec<blake3::Hash>), LoadError> {
        let group = match self {
            Self::Stored(group) => group,
            Self::Rounded => Q8_GROUP,
        };
        let all: usize = tensors.iter().map(Tensor::elements).sum();
        let (mut scales, mut mins) = (vec![0.0; all / group], vec![-0.0; all / group]);
        let mut values = vec![0; all];
        let (mut scales_left, mut mins_left) = (&mut scales[..], &mut mins[..]);
        let mut values_left = &mut values[..];
        let mut work = Vec::new();
        for piece in tensors.iter().flat_map(pieces_of) {
            let len = piece.len();
            let scales = scales_left.split_off_mut(..len / group).unwrap_or_default();
            let mins = mins_left.split_off_mut(..len / group).unwrap_or_default();
            let values = values_left.split_off_mut(..len).unwrap_or_default();
            work.push((work.len(), piece, Groups { scales, mins, values }));
        }
        let digests = Mutex::new(vec![None; work.len()]);
        let read = |(index, piece, groups): (usize, Piece<'_>, Groups<'_>)| {
            let digest = match self {
                Self::Stored(group) => stored(&piece, group, groups)?,
                Self::Rounded => rounded(&piece, groups)?,
            };
            digests.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(digest);
            Ok::<_, LoadError>(())
        };
        share(threads, work.into_iter(), || Ok(()), |(), item| read(item))?;
        let digests = digests.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((Blocks { group, scales, mins, values }, digests.into_iter().flatten().collect()))
    }
}

fn stored(piece: &Piece<'_>, group: usize, to: Groups<'_>) -> Result<blake3::Hash, LoadError> {
    let (tensor, dtype) = (&piece.tensor, piece.tensor.dtype());
    let mut bytes = vec![0; piece.rows.len() * tensor.row_bytes()];
    tensor.read_stored(piece.rows.clone(), &mut bytes)?;
    let own = dtype.group().unwrap_or(group);
    if own == group {
        dtype.unpack(&bytes, to);
    } else {
        let groups = to.values.len() / own;
        let (mut scales, mut mins) = (vec![0.0; groups], vec![0.0; groups]);
        let (scales, mins) = (&mut scales[..], &mut mins[..]);
        dtype.unpack(&bytes, Groups { scales, mins, values: to.values });
        for (index, (scale, min)) in scales.iter().zip(&*mins).enumerate() {
            let parts = index * own / group..(index + 1) * own / group;
            to.scales[parts.clone()].fill(*scale);
            to.mins[parts].fill(*min);
        }
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{dtype} as stored ").as_bytes());
    Ok(hasher.update(&bytes).finalize())
}

/// A scale is the largest size of its group over 127, rounded to a half, as ggml has it.
fn rounded(piece: &Piece<'_>, to: Groups<'_>) -> Result<blake3::Hash, LoadError> {
    let mut elements = vec![0.0_f32; piece.len()];
    piece.tensor.read(piece.rows.clone(), &mut elements)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"rounded to Q8_0 ");
    let groups = elements.chunks_exact(Q8_GROUP).zip(to.values.chunks_exact_mut(Q8_GROUP));
    for ((elements, values), scale) in groups.zip(to.scales) {
        let size = elements.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
        let exact = size / 127.0;
        *scale = half::f16::from_f32(exact).to_f32();
        let inverse = if exact > 0.0 { 1.0 / exact } else { 0.0 };
        let mut bytes = [0; Q8_GROUP];
        for ((value, byte), x) in values.iter_mut().zip(&mut bytes).zip(elements) {
            *value = (x * inverse).round() as i8;
            *byte = value.cast_unsigned();
        }
        hasher.update(&scale.to_le_bytes());
        hasher.update(&bytes);
    }
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkpoint::Checkpoint;
    use std::path::Path;

    #[test]
    fn rounding_to_8_bits_is_within_half_a_step() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny-qwen3");
        let checkpoint = Checkpoint::open(Path::new(path)).unwrap();
        let tensor = checkpoint.tensor("model.layers.0.mlp.down_proj.weight").unwrap();
        assert!(WeightFormat::Auto.plan(&[tensor]).is_none());
        let plan = WeightFormat::Q8_0.plan(&[tensor, tensor]).unwrap();
        let read = |threads| plan.read(&[tensor, tensor], threads).unwrap();
        let (blocks, digests) = read(2);
        assert_eq!((&blocks, &digests), (&read(1).0, &read(1).1), "whatever the threads");
        let exact = [tensor.to_vec::<f32>().unwrap(), tensor.to_vec().unwrap()].concat();
        for (index, (found, exact)) in blocks.widened().zip(&exact).enumerate() {
            let scale = blocks.scales[index / Q8_GROUP];
            // Half a step, and what the scale's own rounding adds at 127 steps.
            assert!((found - exact).abs() <= scale * (0.5 + 127.0 / 2048.0), "{index}");
        }
    }
}
