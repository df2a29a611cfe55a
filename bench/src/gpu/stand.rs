//! What ops are measured on: a model, activations, pages that hold something, batches over them.

use super::floor::work;
use super::geometry::Geometry;
use super::op::{self, Op, Weight};
use super::{Shape, random};
use crate::numbers::{Random, median};
use anyhow::Context;
use kernels::cuda::{
    Cuda, CudaBatch, CudaPages, CudaShape, CudaTensor, Device, Draw, Heads, PROJECT_ROWS_MAX,
    PagePool, ROWS_MAX,
};
use kernels::ops::{HostBatch, KvShape, OpError, Ops, Segment};
use model::forward::Model;
use std::sync::Arc;

pub const PAGE_TOKENS: usize = 16;
/// Bytes after which nothing of the first is left in an L2 cache of 50 or 60 MB.
const EVICTS: usize = 256 << 20;
/// Launches in a recording of an op that a step has once.
const ONCE_LAUNCHES: usize = 16;
/// Tokens of a chunk that pages are filled with.
const CHUNK: usize = 8192;

/// Activations, as the forward pass has them.
pub struct Activations {
    pub x: CudaTensor,
    pub normed: CudaTensor,
    pub qkv: CudaTensor,
    pub attended: CudaTensor,
    pub gate_up: CudaTensor,
    pub gated: CudaTensor,
    pub last_x: CudaTensor,
    pub last_normed: CudaTensor,
    pub logits: CudaTensor,
    /// Of [`Op::Library`], by [`Weight`].
    pub single: Vec<CudaTensor>,
}

impl Activations {
    fn new(cuda: &Cuda, geometry: &Geometry, tokens: usize) -> Result<Self, OpError> {
        let s = &geometry.sizes;
        let token = |width| cuda.tensor(tokens, width);
        let last = |width| cuda.tensor(ROWS_MAX, width);
        let single = |weight: Weight| cuda.logits(PROJECT_ROWS_MAX, weight.shape(geometry).0);
        Ok(Self {
            x: token(s.hidden)?,
            normed: token(s.hidden)?,
            qkv: token(geometry.qkv())?,
            attended: token(geometry.q())?,
            gate_up: token(2 * s.intermediate)?,
            gated: token(s.intermediate)?,
            last_x: last(s.hidden)?,
            last_normed: last(s.hidden)?,
            logits: cuda.logits(ROWS_MAX, s.vocab)?,
            single: Weight::ALL.into_iter().map(single).collect::<Result<_, _>>()?,
        })
    }
}

/// What ops read and write.
pub struct Stand {
    pub geometry: Geometry,
    pub model: Model<Cuda>,
    pub own: Activations,
    pub pages: CudaPages,
    /// All pages, in random order.
    order: Vec<u32>,
    random: Random,
}

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawing {
    Greedy,
    /// Temperature 1, the best 0.95 of the probability.
    TopP,
}

impl Drawing {
    /// The same for each of `rows`.
    pub fn draws(self, rows: usize) -> Vec<Draw> {
        let (temperature, top_p) = match self {
            Self::Greedy => (0.0, 1.0),
            Self::TopP => (1.0, 0.95),
        };
        let draw = |row| Draw { temperature, top_p, seed: row, ..Draw::best() };
        (0..rows as u64).map(draw).collect()
    }
}

impl Stand {
    /// Room for steps like `shapes`; pages are filled, and activations hold some layer's.
    pub fn new(
        device: &Device,
        geometry: Geometry,
        shapes: &[Shape],
    ) -> anyhow::Result<(Cuda, Self)> {
        let most = |of: fn(&Shape) -> usize| shapes.iter().map(of).max().unwrap_or(1);
        let tokens = most(Shape::tokens).max(CHUNK);
        let positions = most(|shape| shape.before + shape.new).max(CHUNK);
        let chunk_pages = CHUNK / PAGE_TOKENS;
        let pages = most(|shape| shape.sequences * pages_each(shape)).max(chunk_pages);
        let pages = pages.next_multiple_of(chunk_pages);
        let s = &geometry.sizes;
        let kv = KvShape {
            layers: geometry.layers,
            kv_heads: s.kv_heads,
            head_dim: s.head_dim,
            page_tokens: PAGE_TOKENS,
        };
        let heads = Heads { kv, heads: s.heads };
        let cuda = Cuda::new(
            device,
            &CudaShape { heads, vocab: s.vocab, hidden: s.hidden, intermediate: s.intermediate },
        )?;
        let model = random::model(&cuda, &geometry, positions)?;
        let own = Activations::new(&cuda, &geometry, tokens)?;
        let pool = PagePool::new(device, kv, pages as u32).with_context(|| {
            format!("{pages} pages of {}: measure smaller shapes", geometry.name)
        })?;
        let mut random = Random::new(7);
        let mut order: Vec<_> = (0..pages as u32).collect();
        (1..pages).rev().for_each(|last| order.swap(last, random.below(last + 1)));
        let pages = CudaPages::new(Arc::new(pool));
        let mut stand = Self { geometry, model, own, pages, order, random };
        stand.fill(&cuda)?;
        Ok((cuda, stand))
    }

    /// Writes every page, and every activation that an op reads.
    fn fill(&mut self, cuda: &Cuda) -> Result<(), OpError> {
        let shape = Shape::prefill(1, CHUNK);
        let sets = self.order.len() / pages_each(&shape);
        for set in 0..sets {
            let batch = cuda.step(self.host(&shape, set), &Drawing::Greedy.draws(1))?;
            let ops = [Op::Embed, Op::Qkv, Op::RopeWrite];
            ops.iter().try_for_each(|&op| op::enqueue(cuda, self, op, &batch, &shape))?;
        }
        let batch = cuda.step(self.host(&shape, 0), &Drawing::Greedy.draws(1))?;
        let rest = [Op::Attention, Op::Out, Op::GateUp, Op::Down];
        rest.iter().try_for_each(|&op| op::enqueue(cuda, self, op, &batch, &shape))?;
        let shape = Shape::decode(ROWS_MAX, 1);
        let batch = cuda.step(self.host(&shape, 0), &Drawing::Greedy.draws(ROWS_MAX))?;
        let last = [Op::Gather, Op::Head];
        last.iter().try_for_each(|&op| op::enqueue(cuda, self, op, &batch, &shape))
    }

    /// A step of random tokens. Each `set` has pages of its own, as far as there are any.
    pub fn host(&mut self, shape: &Shape, set: usize) -> HostBatch {
        let &Shape { sequences, before, new } = shape;
        let each = pages_each(shape);
        let vocab = self.geometry.sizes.vocab as u32;
        let segment =
            |row| Segment { first: row * new, len: new, start: before, table: row * each };
        let needed = sequences * each;
        let from = set * needed;
        HostBatch {
            tokens: self.random.ids(sequences * new, 0, vocab),
            segments: (0..sequences).map(segment).collect(),
            pages: (from..from + needed).map(|at| self.order[at % self.order.len()]).collect(),
            sampled: (1..=sequences).map(|row| (row * new - 1) as u32).collect(),
        }
    }

    /// µs of one launch of `op`: the median of replays of a recording of all layers.
    ///
    /// What it reads of weights and pages is in no cache: another layer's is read in between, or
    /// other pages.
    pub fn time(
        &mut self,
        cuda: &Cuda,
        (op, shape, drawing): (Op, &Shape, Drawing),
        rounds: usize,
    ) -> anyhow::Result<f64> {
        let layers = if op.is_of_layers() { self.geometry.layers } else { 1 };
        let sets = self.sets(op, shape);
        let draws = drawing.draws(shape.sequences);
        let batches: Vec<CudaBatch> = (0..sets)
            .map(|set| cuda.step(self.host(shape, set), &draws))
            .collect::<Result<_, _>>()?;
        let times = cuda.time_recorded(rounds, || {
            batches.iter().try_for_each(|batch| op::enqueue(cuda, self, op, batch, shape))
        });
        let times = times.with_context(|| format!("{op} of {shape}"))?;
        Ok(median(times) / (sets * layers) as f64)
    }

    /// Batches in a recording.
    fn sets(&self, op: Op, shape: &Shape) -> usize {
        match op {
            Op::Attention => {
                let bytes = self.geometry.layers * work(op, &self.geometry, shape).bytes;
                let have = self.order.len() / (shape.sequences * pages_each(shape));
                EVICTS.div_ceil(bytes).min(have).max(1)
            }
            _ if op.is_of_layers() => 1,
            _ => ONCE_LAUNCHES,
        }
    }
}

fn pages_each(shape: &Shape) -> usize {
    (shape.before + shape.new).div_ceil(PAGE_TOKENS)
}
