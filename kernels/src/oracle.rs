//! The scalar reference: every op as short as its maths, in f32, with sums in f64.
//!
//! It implements the same trait as the backends, so a whole model runs on it too.

use crate::ops::{
    Attention, Embed, Gather, HostBatch, HostMatrix, KvShape, Linear, OpError, Ops, RmsNorm,
    RopeWrite, SiluMul, Weights,
};
use half::bf16;
use std::cell::RefCell;

/// The reference backend.
pub struct Oracle;

/// Rows of `width`, or a matrix `[out][width]`.
pub struct Rows {
    /// All elements.
    pub data: Vec<f32>,
    /// Elements of a row.
    pub width: usize,
}

impl Rows {
    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..][..self.width]
    }
    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.width..][..self.width]
    }
}

/// The cache, `[page][layer][K|V][kv_head][token][head_dim]`.
pub struct OraclePages {
    shape: KvShape,
    round_to_bf16: bool,
    data: RefCell<Vec<f32>>,
}

impl OraclePages {
    /// `pages` pages, poisoned with NaN; elements are rounded to bf16 if asked.
    pub fn new(shape: KvShape, pages: usize, round_to_bf16: bool) -> Self {
        let data = RefCell::new(vec![f32::NAN; pages * shape.layers * shape.layer_len()]);
        Self { shape, round_to_bf16, data }
    }

    /// Where the key of a position lies; its value is `layer_len() / 2` further.
    fn at(&self, (page, layer): (u32, usize), head: usize, slot: usize) -> usize {
        let KvShape { layers, head_dim, .. } = self.shape;
        let part = (page as usize * layers + layer) * self.shape.layer_len();
        part + self.shape.head_at(head) + slot * head_dim
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

fn normed(x: &[f32], gain: &[f32], eps: f32) -> Vec<f32> {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    x.iter().zip(gain).map(|(x, gain)| x * scale * gain).collect()
}

fn rotated(x: &[f32], angles: &[f32]) -> Vec<f32> {
    let half = x.len() / 2;
    let (cos, sin) = angles.split_at(half);
    let first = (0..half).map(|i| x[i] * cos[i] - x[i + half] * sin[i]);
    let second = (0..half).map(|i| x[i + half] * cos[i] + x[i] * sin[i]);
    first.chain(second).collect()
}

/// For each new token: its index, its position, and the page table of its sequence.
fn tokens(batch: &HostBatch) -> impl Iterator<Item = (usize, usize, &[u32])> {
    batch
        .segments
        .iter()
        .flat_map(|s| (0..s.len).map(|i| (s.first + i, s.start + i, &batch.pages[s.table..])))
}

impl Ops for Oracle {
    type Matrix = Rows;
    type Vector = Vec<f32>;
    type Tensor = Rows;
    type Batch = HostBatch;
    type Pages = OraclePages;

    fn matrix(&self, host: HostMatrix) -> Result<Rows, OpError> {
        let data = match host.weights {
            Weights::F32(data) => data,
            Weights::Bf16(data) => data.into_iter().map(bf16::to_f32).collect(),
            Weights::Blocks(blocks) => blocks.widened().collect(),
        };
        Ok(Rows { data, width: host.cols })
    }

    fn vector(&self, host: Vec<f32>) -> Result<Vec<f32>, OpError> {
        Ok(host)
    }

    fn tensor(&self, rows: usize, width: usize) -> Result<Rows, OpError> {
        Ok(Rows { data: vec![f32::NAN; rows * width], width })
    }

    fn batch(&self, host: HostBatch) -> Result<HostBatch, OpError> {
        Ok(host)
    }

    fn download(&self, tensor: &Rows, rows: usize, into: &mut Vec<f32>) -> Result<(), OpError> {
        into.clear();
        into.extend_from_slice(&tensor.data[..rows * tensor.width]);
        Ok(())
    }

    fn embed(&self, args: Embed<'_, Self>) -> Result<(), OpError> {
        for (row, &token) in args.batch.tokens.iter().enumerate() {
            args.out.row_mut(row).copy_from_slice(args.table.row(token as usize));
        }
        Ok(())
    }

    fn rms_norm(&self, args: RmsNorm<'_, Self>) -> Result<(), OpError> {
        for row in 0..args.rows {
            let normed = normed(args.x.row(row), args.gain, args.eps);
            args.out.row_mut(row).copy_from_slice(&normed);
        }
        Ok(())
    }

    fn linear(&self, args: Linear<'_, Self>) -> Result<(), OpError> {
        for row in 0..args.rows {
            for (i, y) in args.out.row_mut(row).iter_mut().enumerate() {
                let sum = dot(args.x.row(row), args.weight.row(i));
                let sum = sum + args.bias.map_or(0.0, |b| b[i]);
                *y = if args.add { *y + sum } else { sum };
            }
        }
        Ok(())
    }

    fn rope_write(&self, args: RopeWrite<'_, Self>) -> Result<(), OpError> {
        let KvShape { kv_heads, head_dim: dim, page_tokens, .. } = args.pages.shape;
        let mut pages = args.pages.data.borrow_mut();
        let stored = |x: f32| {
            if args.pages.round_to_bf16 { bf16::from_f32(x).to_f32() } else { x }
        };
        for (token, position, table) in tokens(args.batch) {
            let row = args.qkv.row_mut(token);
            let angles = &args.rope[position * dim..][..dim];
            for head in 0..args.heads + kv_heads {
                let x = &mut row[head * dim..][..dim];
                if let Some(norm) = &args.norm {
                    let gain = if head < args.heads { norm.q } else { norm.k };
                    x.copy_from_slice(&normed(x, gain, norm.eps));
                }
                x.copy_from_slice(&rotated(x, angles));
            }
            let (keys, values) = row[args.heads * dim..].split_at(kv_heads * dim);
            for head in 0..kv_heads {
                let page = (table[position / page_tokens], args.layer);
                let at = args.pages.at(page, head, position % page_tokens);
                for i in 0..dim {
                    pages[at + i] = stored(keys[head * dim + i]);
                    pages[at + args.pages.shape.layer_len() / 2 + i] =
                        stored(values[head * dim + i]);
                }
            }
        }
        Ok(())
    }

    fn attention(&self, args: Attention<'_, Self>) -> Result<(), OpError> {
        let shape = args.pages.shape;
        let KvShape { kv_heads, head_dim: dim, page_tokens, .. } = shape;
        let pages = args.pages.data.borrow();
        for (token, position, table) in tokens(args.batch) {
            for head in 0..args.heads {
                let q = &args.qkv.row(token)[head * dim..][..dim];
                let key = |p: usize| {
                    let page = (table[p / page_tokens], args.layer);
                    args.pages.at(page, head / (args.heads / kv_heads), p % page_tokens)
                };
                let scores: Vec<f32> =
                    (0..=position).map(|p| dot(q, &pages[key(p)..][..dim]) * args.scale).collect();
                let max = scores.iter().copied().fold(f32::MIN, f32::max);
                let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f32 = weights.iter().sum();
                for i in 0..dim {
                    let value = |p| pages[key(p) + shape.layer_len() / 2 + i];
                    let column: Vec<f32> = (0..=position).map(value).collect();
                    args.out.row_mut(token)[head * dim + i] = dot(&weights, &column) / sum;
                }
            }
        }
        Ok(())
    }

    fn silu_mul(&self, args: SiluMul<'_, Self>) -> Result<(), OpError> {
        for row in 0..args.rows {
            let (gate, up) = args.gate_up.row(row).split_at(args.out.width);
            for (i, y) in args.out.row_mut(row).iter_mut().enumerate() {
                *y = gate[i] / (1.0 + (-gate[i]).exp()) * up[i];
            }
        }
        Ok(())
    }

    fn gather(&self, args: Gather<'_, Self>) -> Result<(), OpError> {
        for (row, &token) in args.batch.sampled.iter().enumerate() {
            args.out.row_mut(row).copy_from_slice(args.x.row(token as usize));
        }
        Ok(())
    }
}
