//! From a checkpoint to a model on a device: tensors read, fused, hashed, uploaded.
//!
//! Matrices stay quantised as a [`WeightFormat`] says; the others are in bf16, or in f32 where the
//! file holds more than bf16 and f32 was asked for. Gains and biases are f32. What is read is
//! hashed as it passes, in pieces of fixed size, so that the fingerprint depends on neither threads
//! nor timing.

use crate::family;
use crate::forward::{Model, Sizes};
use crate::quantised::WeightFormat;
use checkpoint::{Checkpoint, Dtype, Element, ModelConfig, Tensor};
use half::bf16;
use kernels::ops::{HostMatrix, OpError, Ops, Pieces, Weights};
use shared::kv::KvDtype;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Elements of a piece that is read and hashed at once.
const PIECE: usize = 1 << 19;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The files.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The device.
    #[error(transparent)]
    Device(#[from] OpError),
    /// A value of the model or of the configuration that the engine cannot take.
    #[error("{field} is {value}; want {want}")]
    Unsupported {
        /// Name in config.json or in the engine's configuration.
        field: &'static str,
        /// What it is.
        value: String,
        /// What would do.
        want: String,
    },
}

/// Called with bytes read so far and in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// A loaded model and what names it.
pub struct Loaded<O: Ops> {
    /// The model.
    pub model: Model<O>,
    /// blake3 over the configuration and every element as the model computes with it.
    pub fingerprint: [u8; 32],
}

/// Where and how to load.
pub struct LoadPlan<'a, O> {
    /// The device.
    pub ops: &'a O,
    /// Whether matrices may be f32.
    pub dtype: KvDtype,
    /// How matrices are kept.
    pub weights: WeightFormat,
    /// Positions that the rotary table covers.
    pub positions: usize,
    /// Threads that read and hash.
    pub threads: usize,
}

/// Loads `checkpoint` onto a device.
///
/// # Errors
/// [`LoadError`]: files, or memory.
pub fn load<O: Ops>(
    checkpoint: &Checkpoint,
    plan: LoadPlan<'_, O>,
    progress: Progress<'_>,
) -> Result<Loaded<O>, LoadError> {
    let config = checkpoint.config();
    let mut hasher = blake3::Hasher::new_derive_key("tandem model fingerprint 1");
    hasher.update(format!("{config:?}").as_bytes());
    let (positions, threads) = (plan.positions, plan.threads);
    let mut loader = Loader { checkpoint, plan, progress, hasher, done: 0 };
    let embedding = loader.matrix(&["model.embed_tokens.weight".to_owned()])?;
    let layer = |index| {
        let mut layer = LayerLoader { loader: &mut loader, index };
        family::layer(config.family, &mut layer)
    };
    let layers = (0..config.layers).map(layer).collect::<Result<_, _>>()?;
    let norm = loader.vectors(&["model.norm.weight".to_owned()])?;
    let head = match config.tied {
        true => None,
        false => Some(loader.matrix(&["lm_head.weight".to_owned()])?),
    };
    let rope =
        loader.plan.ops.vector(rope_table(&config.rope_frequencies(), positions, threads))?;
    let fingerprint = *loader.hasher.finalize().as_bytes();
    let model = Model { sizes: sizes(config), embedding, layers, norm, head, rope };
    Ok(Loaded { model, fingerprint })
}

fn sizes(config: &ModelConfig) -> Sizes {
    Sizes {
        hidden: config.hidden,
        intermediate: config.intermediate,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        vocab: config.vocab,
        eps: config.rms_eps,
    }
}

/// `[position][cosines of all frequencies, sines]`. The angle is rounded to f32, as the reference
/// implementations have it.
fn rope_table(frequencies: &[f32], positions: usize, threads: usize) -> Vec<f32> {
    let width = 2 * frequencies.len();
    let mut table = vec![0.0; positions * width];
    let share = positions.div_ceil(threads.max(1)).max(1);
    thread::scope(|scope| {
        for (index, rows) in table.chunks_mut(share * width).enumerate() {
            scope.spawn(move || {
                for (position, row) in (index * share..).zip(rows.chunks_exact_mut(width)) {
                    let (cosines, sines) = row.split_at_mut(frequencies.len());
                    for ((cosine, sine), f) in cosines.iter_mut().zip(sines).zip(frequencies) {
                        let angle = f64::from(position as f32 * f);
                        (*cosine, *sine) = (angle.cos() as f32, angle.sin() as f32);
                    }
                }
            });
        }
    });
    table
}

struct Loader<'a, O> {
    checkpoint: &'a Checkpoint,
    plan: LoadPlan<'a, O>,
    progress: Progress<'a>,
    hasher: blake3::Hasher,
    done: u64,
}

impl<O: Ops> Loader<'_, O> {
    /// The named matrices, one below the other.
    fn matrix(&mut self, names: &[String]) -> Result<O::Matrix, LoadError> {
        let tensors = names.iter().map(|name| self.checkpoint.tensor(name));
        let tensors: Vec<_> = tensors.collect::<Result<_, _>>()?;
        let rows = tensors.iter().map(Tensor::rows).sum();
        let cols = tensors.first().map_or(0, Tensor::row_len);
        if let Some(plan) = self.plan.weights.plan(&tensors) {
            let (blocks, digests) = plan.read(&tensors, self.plan.threads)?;
            self.passed(&tensors, digests.into_iter());
            let weights = Weights::Blocks(blocks);
            return Ok(self.plan.ops.matrix(HostMatrix { rows, cols, weights })?);
        }
        let exact = |tensor: &Tensor<'_>| matches!(tensor.dtype(), Dtype::F32 | Dtype::F16);
        if self.plan.dtype == KvDtype::F32 && tensors.iter().all(exact) {
            let weights = Weights::F32(self.read(&tensors)?);
            return Ok(self.plan.ops.matrix(HostMatrix { rows, cols, weights })?);
        }
        let parts: Vec<_> = tensors.iter().flat_map(pieces_of).collect();
        let lens: Vec<_> = parts.iter().map(Piece::len).collect();
        let digests = Mutex::new(vec![None; parts.len()]);
        let read = |index: usize, out: &mut [bf16]| -> Result<(), LoadError> {
            let digest = parts[index].read(out)?;
            digests.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(digest);
            Ok(())
        };
        let threads = self.plan.threads;
        let lens = &lens[..];
        let pieces = Pieces::<LoadError> { rows, cols, lens, threads, read: &read };
        let matrix = self.plan.ops.matrix_of(&pieces)?;
        let digests = digests.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.passed(&tensors, digests.into_iter().flatten());
        Ok(matrix)
    }

    /// The named vectors, one after the other.
    fn vectors(&mut self, names: &[String]) -> Result<O::Vector, LoadError> {
        let tensors = names.iter().map(|name| self.checkpoint.tensor(name));
        let all = self.read::<f32>(&tensors.collect::<Result<Vec<_>, _>>()?)?;
        Ok(self.plan.ops.vector(all)?)
    }

    fn read<E: Read>(&mut self, tensors: &[Tensor<'_>]) -> Result<Vec<E>, LoadError> {
        let mut all = vec![E::default(); tensors.iter().map(Tensor::elements).sum()];
        let mut rest = &mut all[..];
        let mut digests = Vec::new();
        for piece in tensors.iter().flat_map(pieces_of) {
            let (out, after) = rest.split_at_mut(piece.len());
            digests.push(piece.read(out)?);
            rest = after;
        }
        self.passed(tensors, digests.into_iter());
        Ok(all)
    }

    /// Tensors were read, with these digests.
    fn passed(&mut self, tensors: &[Tensor<'_>], digests: impl Iterator<Item = blake3::Hash>) {
        for digest in digests {
            self.hasher.update(digest.as_bytes());
        }
        self.done += tensors.iter().map(Tensor::stored_bytes).sum::<u64>();
        (self.progress)(self.done, self.checkpoint.stored_bytes());
    }
}

/// Rows of a tensor that are read and hashed at once.
pub(crate) struct Piece<'t> {
    pub tensor: Tensor<'t>,
    pub rows: Range<usize>,
}

pub(crate) fn pieces_of<'t>(tensor: &Tensor<'t>) -> impl Iterator<Item = Piece<'t>> + use<'t> {
    let (tensor, rows) = (*tensor, tensor.rows());
    let step = (PIECE / tensor.row_len().max(1)).max(1);
    (0..rows).step_by(step).map(move |at| Piece { tensor, rows: at..rows.min(at + step) })
}

impl Piece<'_> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.rows.len() * self.tensor.row_len()
    }

    fn read<E: Read>(&self, out: &mut [E]) -> Result<blake3::Hash, LoadError> {
        self.tensor.read(self.rows.clone(), out)?;
        Ok(digest(out))
    }
}

/// What tensors are read as.
trait Read: Element + Sync {
    /// Little-endian bytes, for hashing.
    type Bytes: AsRef<[u8]>;
    fn bytes(self) -> Self::Bytes;
}

impl Read for f32 {
    type Bytes = [u8; 4];
    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

impl Read for bf16 {
    type Bytes = [u8; 2];
    fn bytes(self) -> [u8; 2] {
        self.to_le_bytes()
    }
}

fn digest<E: Read>(elements: &[E]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::with_capacity(64 << 10);
    for run in elements.chunks(16 << 10) {
        bytes.clear();
        run.iter().for_each(|x| bytes.extend_from_slice(x.bytes().as_ref()));
        hasher.update(&bytes);
    }
    hasher.finalize()
}

/// Loads tensors of one layer by their names below `model.layers.N.`.
pub struct LayerLoader<'l, 'a, O> {
    loader: &'l mut Loader<'a, O>,
    index: usize,
}

impl<O: Ops> LayerLoader<'_, '_, O> {
    fn names(&self, names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("model.layers.{}.{name}", self.index)).collect()
    }

    /// Matrices, one below the other.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn matrix(&mut self, names: &[&str]) -> Result<O::Matrix, LoadError> {
        self.loader.matrix(&self.names(names))
    }

    /// The projections to queries, keys and values as one matrix.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn qkv(&mut self) -> Result<O::Matrix, LoadError> {
        self.matrix(&[
            "self_attn.q_proj.weight",
            "self_attn.k_proj.weight",
            "self_attn.v_proj.weight",
        ])
    }

    /// A vector.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn vector(&mut self, name: &str) -> Result<O::Vector, LoadError> {
        self.vectors(&[name])
    }

    /// Vectors, one after the other.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn vectors(&mut self, names: &[&str]) -> Result<O::Vector, LoadError> {
        self.loader.vectors(&self.names(names))
    }
}
