//! Which of cuBLASLt's algorithms is fastest for a product, as recorded steps run it.
//!
//! Its proposals are timed in a recording over the same product of all layers, so that weights come
//! from memory as they do in a step. Timed by launches one by one the host is measured instead, and
//! worse ones win. What won is kept on disk: a later start only reads it.

use super::backend::{Cuda, CudaMatrix, CudaTensor};
use super::compile::{user_cache, write_whole};
use crate::ops::{Linear, OpError, Ops};
use std::fs;

/// Replays of a recording; the median counts.
const ROUNDS: usize = 3;

/// What a later proposal's time is of the best before it at most, to be taken: others may use the
/// GPU meanwhile, and what is chosen is kept.
const CLEARLY: f64 = 0.98;

/// A product of several layers: the same shapes, other weights.
pub struct Tune<'a> {
    /// Rows.
    pub rows: usize,
    /// `[rows][in]`, of any contents.
    pub x: &'a CudaTensor,
    /// `[out][in]`, one a layer.
    pub weights: &'a [&'a CudaMatrix],
    /// Whether `out` is added to.
    pub add: bool,
    /// `[rows][out]`, overwritten.
    pub out: &'a mut CudaTensor,
}

impl Cuda {
    /// Finds out which algorithm later products of these shapes are to take. Does nothing for those
    /// that go to a kernel of our own.
    ///
    /// # Errors
    /// [`OpError`] from the device.
    pub fn tune(&self, args: Tune<'_>) -> Result<(), OpError> {
        let Tune { rows, x, weights, add, out } = args;
        let Some((products, product)) = self.library_product(rows, weights, (x, out)) else {
            return Ok(());
        };
        let name = blake3::hash(format!("{product:?}, {}", products.version()).as_bytes());
        let path = user_cache("tuned").map(|folder| folder.join(&name.to_hex()[..32]));
        let known = path.as_ref().and_then(|path| fs::read_to_string(path).ok());
        if let Some(index) = known.and_then(|text| text.trim().parse().ok()) {
            return products.choose(product, index);
        }
        let (mut best, mut failed) = (None, None);
        for index in 0..products.proposals(product)? {
            products.choose(product, index)?;
            let times = self.time_recorded(ROUNDS, || {
                let bias = None;
                weights
                    .iter()
                    .try_for_each(|weight| self.linear(Linear { rows, x, weight, bias, add, out }))
            });
            match times {
                Ok(mut times) => {
                    times.sort_by(f64::total_cmp);
                    let time = times[ROUNDS / 2];
                    if best.is_none_or(|(least, _)| time < least * CLEARLY) {
                        best = Some((time, index));
                    }
                }
                // One that cannot run where it is to is no candidate.
                Err(error) => failed = Some(error),
            }
        }
        let Some((_, index)) = best else { return failed.map_or(Ok(()), Err) };
        products.choose(product, index)?;
        if let Some(path) = path {
            // A full or read-only disk costs the next start this time and no more.
            drop(write_whole(&path, index.to_string().as_bytes()));
        }
        Ok(())
    }
}
