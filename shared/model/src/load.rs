//! From a checkpoint to a model on a device: tensors read, fused, hashed, uploaded.
//!
//! Matrices stay in bf16, or in f32 where the file holds more than bf16 and f32 was asked for;
//! quantised ones become bf16. Gains and biases are f32. What is read is hashed as it passes, in
//! pieces of fixed size, so that the fingerprint depends on neither threads nor timing.

use crate::family;
use crate::forward::{Model, Sizes};
use checkpoint::{Checkpoint, Dtype, Element, ModelConfig};
use half::bf16;
use kernels::ops::{HostMatrix, OpError, Ops, Weights};
use shared::kv::KvDtype;
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
    /// blake3 over the configuration and every element as loaded.
    pub fingerprint: [u8; 32],
}

/// Where and how to load.
pub struct LoadPlan<'a, O> {
    /// The device.
    pub ops: &'a O,
    /// Whether matrices may be f32.
    pub dtype: KvDtype,
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
    let positions = plan.positions;
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
    let rope = loader.plan.ops.vector(rope_table(&config.rope_frequencies(), positions))?;
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
fn rope_table(frequencies: &[f32], positions: usize) -> Vec<f32> {
    let mut table = Vec::with_capacity(positions * 2 * frequencies.len());
    for position in 0..positions {
        let angles = frequencies.iter().map(|f| f64::from(position as f32 * f));
        table.extend(angles.clone().map(|a| a.cos() as f32));
        table.extend(angles.map(|a| a.sin() as f32));
    }
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
        let mut shape = (0, 0);
        let mut exact = self.plan.dtype == KvDtype::F32;
        for name in names {
            let tensor = self.checkpoint.tensor(name)?;
            shape = (shape.0 + tensor.rows(), tensor.row_len());
            exact &= matches!(tensor.dtype(), Dtype::F32 | Dtype::F16);
        }
        let weights = match exact {
            true => Weights::F32(self.read(names)?),
            false => Weights::Bf16(self.read(names)?),
        };
        let (rows, cols) = shape;
        Ok(self.plan.ops.matrix(HostMatrix { rows, cols, weights })?)
    }

    /// The named vectors, one after the other.
    fn vectors(&mut self, names: &[String]) -> Result<O::Vector, LoadError> {
        let all = self.read::<f32>(names)?;
        Ok(self.plan.ops.vector(all)?)
    }

    fn read<E: Read>(&mut self, names: &[String]) -> Result<Vec<E>, LoadError> {
        let mut all = Vec::new();
        for name in names {
            let tensor = self.checkpoint.tensor(name)?;
            let first = all.len();
            all.resize(first + tensor.elements(), E::default());
            for digest in read_pieces(&tensor, self.plan.threads, &mut all[first..])? {
                self.hasher.update(digest.as_bytes());
            }
            self.done += tensor.stored_bytes();
            (self.progress)(self.done, self.checkpoint.stored_bytes());
        }
        Ok(all)
    }
}

/// Reads a tensor in pieces on several threads; returns the pieces' digests, in order.
fn read_pieces<E: Read>(
    tensor: &checkpoint::Tensor<'_>,
    threads: usize,
    out: &mut [E],
) -> Result<Vec<blake3::Hash>, checkpoint::Error> {
    let row_len = tensor.row_len();
    let rows = (PIECE / row_len).max(1);
    let mut pieces: Vec<_> =
        out.chunks_mut(rows * row_len).enumerate().map(|(i, out)| (i * rows, out)).collect();
    let read = |&mut (first, ref mut out): &mut (usize, &mut [E])| {
        tensor.read(first..first + out.len() / row_len, out)?;
        Ok(digest(out))
    };
    let share = pieces.len().div_ceil(threads.max(1));
    if share == pieces.len() {
        return pieces.iter_mut().map(read).collect();
    }
    thread::scope(|scope| {
        let shares: Vec<_> = pieces
            .chunks_mut(share)
            .map(|pieces| scope.spawn(move || pieces.iter_mut().map(read).collect::<Vec<_>>()))
            .collect();
        let join = |share: thread::ScopedJoinHandle<'_, _>| {
            share.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        shares.into_iter().flat_map(join).collect()
    })
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
