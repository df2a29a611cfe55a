//! The ops that are measured, each as the engine calls it.

use super::Shape;
use super::geometry::Geometry;
use super::stand::Stand;
use kernels::cuda::{Cuda, CudaBatch, CudaMatrix, PROJECT_ROWS_MAX};
use kernels::ops::{
    Attention, Embed, Gather, HeadNorm, Linear, NormGated, NormLinear, OpError, Ops, RmsNorm,
    RopeWrite, SiluMul,
};
use model::forward::Layer;
use std::fmt;

/// A layer's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    Qkv,
    Out,
    GateUp,
    Down,
}

impl Weight {
    pub const ALL: [Self; 4] = [Self::Qkv, Self::Out, Self::GateUp, Self::Down];

    /// Outputs and inputs.
    pub fn shape(self, geometry: &Geometry) -> (usize, usize) {
        let s = &geometry.sizes;
        match self {
            Self::Qkv => (geometry.qkv(), s.hidden),
            Self::Out => (s.hidden, geometry.q()),
            Self::GateUp => (2 * s.intermediate, s.hidden),
            Self::Down => (s.hidden, s.intermediate),
        }
    }

    fn of(self, layer: &Layer<Cuda>) -> &CudaMatrix {
        match self {
            Self::Qkv => &layer.attention.qkv,
            Self::Out => &layer.attention.out,
            Self::GateUp => &layer.mlp.gate_up,
            Self::Down => &layer.mlp.down,
        }
    }
}

/// An op on a model's own shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Embed,
    /// Of the residual stream, alone.
    RmsNorm,
    /// Norm and product to queries, keys and values.
    Qkv,
    RopeWrite,
    Attention,
    /// Attention's output, added to the residual stream.
    Out,
    /// Norm, product to gates and ups, and their product.
    GateUp,
    SiluMul,
    /// The MLP's output, added to the residual stream.
    Down,
    Gather,
    /// Norm and product to logits.
    Head,
    Draw,
    /// A plain product to f32, which is cuBLASLt's whatever the number of rows.
    Library(Weight),
}

impl Op {
    /// Whether every layer has it.
    pub fn is_of_layers(self) -> bool {
        !matches!(self, Self::Embed | Self::Gather | Self::Head | Self::Draw)
    }

    /// What computes it.
    pub fn path(self, shape: &Shape) -> &'static str {
        let few = shape.tokens() <= PROJECT_ROWS_MAX;
        match self {
            Self::Qkv | Self::Out | Self::GateUp | Self::Down if few => "projection",
            Self::Qkv | Self::GateUp => "cuBLASLt and row-wise",
            Self::Out | Self::Down | Self::Library(_) => "cuBLASLt",
            Self::Head => "cuBLASLt and row-wise",
            Self::Attention if shape.new == 1 => "split-KV",
            Self::Attention => "tiles",
            _ => "row-wise",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Embed => "embed",
            Self::RmsNorm => "rms_norm",
            Self::Qkv => "norm_linear qkv",
            Self::RopeWrite => "rope_write",
            Self::Attention => "attention",
            Self::Out => "linear o",
            Self::GateUp => "norm_gated gate_up",
            Self::SiluMul => "silu_mul",
            Self::Down => "linear down",
            Self::Gather => "gather",
            Self::Head => "norm_linear lm_head",
            Self::Draw => "draw",
            Self::Library(Weight::Qkv) => "linear f32 qkv",
            Self::Library(Weight::Out) => "linear f32 o",
            Self::Library(Weight::GateUp) => "linear f32 gate_up",
            Self::Library(Weight::Down) => "linear f32 down",
        })
    }
}

/// Enqueues `op` once, or once a layer if it is of layers.
pub fn enqueue(
    cuda: &Cuda,
    stand: &mut Stand,
    op: Op,
    batch: &CudaBatch,
    shape: &Shape,
) -> Result<(), OpError> {
    if !op.is_of_layers() {
        return once(cuda, stand, op, batch, shape);
    }
    (0..stand.model.layers.len()).try_for_each(|index| {
        let rows = shape.tokens();
        match op {
            Op::RopeWrite | Op::Attention => attend(cuda, stand, op, batch, index),
            _ => of_layer(cuda, stand, op, rows, index),
        }
    })
}

fn once(
    cuda: &Cuda,
    stand: &mut Stand,
    op: Op,
    batch: &CudaBatch,
    shape: &Shape,
) -> Result<(), OpError> {
    let Stand { model, own: s, .. } = stand;
    match op {
        Op::Embed => cuda.embed(Embed { table: &model.embedding, batch, out: &mut s.x }),
        Op::Gather => cuda.gather(Gather { x: &s.x, batch, out: &mut s.last_x }),
        Op::Head => cuda.norm_linear(NormLinear {
            rows: shape.sequences,
            x: &s.last_x,
            gain: &model.norm,
            eps: model.sizes.eps,
            normed: &mut s.last_normed,
            weight: model.head.as_ref().unwrap_or(&model.embedding),
            bias: None,
            out: &mut s.logits,
        }),
        _ => cuda.draw(&s.logits, batch),
    }
}

fn attend(
    cuda: &Cuda,
    stand: &mut Stand,
    op: Op,
    batch: &CudaBatch,
    layer: usize,
) -> Result<(), OpError> {
    let Stand { model, own: s, pages, .. } = stand;
    let (heads, eps, rope) = (model.sizes.heads, model.sizes.eps, &model.rope);
    let pages = &*pages;
    if op == Op::Attention {
        let scale = 1.0 / (model.sizes.head_dim as f32).sqrt();
        let (qkv, out) = (&s.qkv, &mut s.attended);
        return cuda.attention(Attention { qkv, heads, scale, batch, layer, pages, out });
    }
    let gains = model.layers[layer].attention.head_norm.as_ref();
    let norm = gains.map(|g| HeadNorm { q: &g.q, k: &g.k, eps });
    cuda.rope_write(RopeWrite { qkv: &mut s.qkv, heads, norm, rope, batch, layer, pages })
}

fn of_layer(
    cuda: &Cuda,
    stand: &mut Stand,
    op: Op,
    rows: usize,
    index: usize,
) -> Result<(), OpError> {
    let Stand { model, own: s, .. } = stand;
    let (layer, eps) = (&model.layers[index], model.sizes.eps);
    match op {
        Op::RmsNorm => {
            let gain = &layer.attention_norm;
            cuda.rms_norm(RmsNorm { rows, x: &s.x, gain, eps, out: &mut s.normed })
        }
        Op::Qkv => cuda.norm_linear(NormLinear {
            rows,
            x: &s.x,
            gain: &layer.attention_norm,
            eps,
            normed: &mut s.normed,
            weight: &layer.attention.qkv,
            bias: None,
            out: &mut s.qkv,
        }),
        Op::Out => {
            let weight = &layer.attention.out;
            let (x, out) = (&s.attended, &mut s.x);
            cuda.linear(Linear { rows, x, weight, bias: None, add: true, out })
        }
        Op::GateUp => cuda.norm_gated(NormGated {
            rows,
            x: &s.x,
            gain: &layer.mlp_norm,
            eps,
            normed: &mut s.normed,
            weight: &layer.mlp.gate_up,
            gate_up: &mut s.gate_up,
            out: &mut s.gated,
        }),
        Op::SiluMul => cuda.silu_mul(SiluMul { rows, gate_up: &s.gate_up, out: &mut s.gated }),
        Op::Down => {
            let weight = &layer.mlp.down;
            let (x, out) = (&s.gated, &mut s.x);
            cuda.linear(Linear { rows, x, weight, bias: None, add: true, out })
        }
        Op::Library(of) => {
            let x = match of {
                Weight::Qkv | Weight::GateUp => &s.normed,
                Weight::Out => &s.attended,
                Weight::Down => &s.gated,
            };
            let (weight, out) = (of.of(layer), &mut s.single[of as usize]);
            cuda.linear(Linear { rows, x, weight, bias: None, add: false, out })
        }
        Op::Embed | Op::RopeWrite | Op::Attention | Op::Gather | Op::Head | Op::Draw => {
            unreachable!("{op} takes the batch")
        }
    }
}
