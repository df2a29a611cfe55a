//! A model with random weights, made where it is measured: speed does not depend on their values as
//! long as they are no special ones (zeros cost less power, and with it the clock).

use super::geometry::Geometry;
use crate::numbers::Random;
use half::bf16;
use kernels::cuda::{Cuda, CudaMatrix, CudaVector};
use kernels::ops::{OpError, Ops, Pieces};
use model::forward::{Attention, HeadGains, Layer, Mlp, Model};

/// Elements that are made; matrices are filled with pieces of them.
const BLOCK: usize = 1 << 20;
/// Elements of a piece.
const PIECE: usize = 1 << 19;
/// Base of the rotary angles.
const THETA: f64 = 1e6;
/// Standard deviation of logits: about a model's own, so that what a filter keeps is some thousand
/// tokens and not all.
const LOGITS: f64 = 3.0;

/// A model of this geometry whose rotary table covers `positions`.
pub fn model(cuda: &Cuda, geometry: &Geometry, positions: usize) -> Result<Model<Cuda>, OpError> {
    let s = geometry.sizes;
    let (hidden, intermediate) = (s.hidden, s.intermediate);
    let ones = |len: usize| cuda.vector(vec![1.0; len]);
    let of_hidden = Block::new(hidden, 1.0);
    let of_q = Block::new(geometry.q(), 1.0);
    let of_intermediate = Block::new(intermediate, 1.0);
    let layer = |_| {
        Ok::<_, OpError>(Layer {
            attention_norm: ones(hidden)?,
            attention: Attention {
                qkv: of_hidden.matrix(cuda, geometry.qkv())?,
                qkv_bias: None,
                head_norm: Some(HeadGains { q: ones(s.head_dim)?, k: ones(s.head_dim)? }),
                out: of_q.matrix(cuda, hidden)?,
            },
            mlp_norm: ones(hidden)?,
            mlp: Mlp {
                gate_up: of_hidden.matrix(cuda, 2 * intermediate)?,
                down: of_intermediate.matrix(cuda, hidden)?,
            },
        })
    };
    let layers = (0..geometry.layers).map(layer).collect::<Result<_, _>>()?;
    let vocabulary = Block::new(hidden, LOGITS);
    let embedding = vocabulary.matrix(cuda, s.vocab)?;
    let head = (!geometry.tied).then(|| vocabulary.matrix(cuda, s.vocab)).transpose()?;
    let rope = rope(cuda, s.head_dim, positions)?;
    Ok(Model { sizes: s, embedding, layers, norm: ones(hidden)?, head, rope })
}

/// Random weights of matrices with `cols` inputs.
struct Block {
    cols: usize,
    weights: Vec<bf16>,
}

impl Block {
    /// Whose products with normed rows have this standard deviation.
    fn new(cols: usize, deviation: f64) -> Self {
        // Uniform in ±1 has a deviation of 1/√3.
        let scale = deviation * (3.0 / cols as f64).sqrt();
        let mut random = Random::new(cols as u64);
        let one = |_| {
            let unit = (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
            bf16::from_f64((2.0 * unit - 1.0) * scale)
        };
        Self { cols, weights: (0..BLOCK).map(one).collect() }
    }

    fn matrix(&self, cuda: &Cuda, rows: usize) -> Result<CudaMatrix, OpError> {
        let (cols, len) = (self.cols, rows * self.cols);
        let lens: Vec<_> =
            (0..len.div_ceil(PIECE)).map(|piece| PIECE.min(len - piece * PIECE)).collect();
        let read = |piece: usize, out: &mut [bf16]| {
            // Pieces begin at odd places, so that rows are not alike.
            let at = piece * 104_729 % (BLOCK - PIECE);
            out.copy_from_slice(&self.weights[at..at + out.len()]);
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
        cuda.matrix_of(&Pieces::<OpError> { rows, cols, lens: &lens, threads, read: &read })
    }
}

/// `[position][cosines, sines]`.
fn rope(cuda: &Cuda, head_dim: usize, positions: usize) -> Result<CudaVector, OpError> {
    let frequency = |pair: usize| THETA.powf(-2.0 * pair as f64 / head_dim as f64);
    let frequencies: Vec<_> = (0..head_dim / 2).map(frequency).collect();
    let mut table = Vec::with_capacity(positions * head_dim);
    for position in 0..positions {
        table.extend(frequencies.iter().map(|f| (position as f64 * f).cos() as f32));
        table.extend(frequencies.iter().map(|f| (position as f64 * f).sin() as f32));
    }
    cuda.vector(table)
}
