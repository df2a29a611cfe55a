//! Draws on a GPU against the host's from the same logits, over a large vocabulary. Run only where
//! asked for: `-- --ignored cuda`.

use super::{draw, mask::Mask};
use crate::cuda::{SAMPLER_TIE, to_draw};
use crate::engine::Sample;
use kernels::cpu::Softmax;
use kernels::cuda::{Adjusted, Cuda, CudaShape, CudaTensor, Device, Heads};
use kernels::ops::{Embed, HostBatch, HostMatrix, KvShape, Linear, Ops, Segment, Weights};
use shared::ids::TokenId;
use shared::request::Sampling;
use std::sync::Arc;

const VOCAB: usize = 151_936;
const WIDTH: usize = 8;

/// SplitMix64, as floats in -1 to 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
}

/// Filters, penalties, biases and masks of every kind, one in three of them alone.
fn sample(random: &mut Random) -> Sample {
    let mut one = |of: u64| random.below(of) == 0;
    let mut sampling = Sampling { temperature: 0.7, seed: 3, ..Sampling::GREEDY };
    sampling.temperature = if one(5) { 0.0 } else { 0.8 };
    sampling.top_p = if one(2) { 0.95 } else { 1.0 };
    sampling.top_k = if one(3) { 40 } else { 0 };
    sampling.min_p = if one(3) { 0.02 } else { 0.0 };
    let (penalised, masked, biased) = (one(3), one(3), one(3));
    if penalised {
        sampling.repetition_penalty = 1.2;
        sampling.frequency_penalty = 0.3;
        sampling.presence_penalty = -0.4;
    }
    sampling.seed = random.next();
    let mut sample = Sample::new(sampling, random.below(1000) as u32);
    sample.logprobs = Some(random.below(6) as u8);
    if penalised || biased {
        let mut ids: Vec<_> = (0..300).map(|_| random.below(VOCAB as u64) as u32).collect();
        ids.sort_unstable();
        ids.dedup();
        let list = ids.into_iter().map(|id| Adjusted {
            token: id,
            seen: if penalised { random.below(4) as u32 } else { 0 },
            bias: if biased { 4.0 * random.unit() } else { 0.0 },
        });
        sample.adjusted = Arc::new(list.collect());
    }
    if masked {
        let words: Vec<_> = (0..VOCAB.div_ceil(32)).map(|_| random.next() as u32 | 1).collect();
        let (mask, promise) = Mask::promised();
        promise.keep(words);
        sample.mask = Some(mask);
    }
    sample
}

/// Logits with a deviation of about 3.
fn logits(cuda: &Cuda, random: &mut Random, count: usize) -> CudaTensor {
    let matrix = |values: Vec<f32>| {
        let rows = values.len() / WIDTH;
        cuda.matrix(HostMatrix { rows, cols: WIDTH, weights: Weights::F32(values) }).unwrap()
    };
    let weight = random.vec(VOCAB * WIDTH).into_iter().map(|x| 3.0 * x).collect();
    let (table, weight) = (matrix(random.vec(count * WIDTH)), matrix(weight));
    let tokens = (0..count as u32).collect();
    let segments = vec![Segment { first: 0, len: count, start: 0, table: 0 }];
    let batch = HostBatch { tokens, segments, ..HostBatch::default() };
    let batch = cuda.batch(batch).unwrap();
    let mut x = cuda.tensor(count, WIDTH).unwrap();
    cuda.embed(Embed { table: &table, batch: &batch, out: &mut x }).unwrap();
    let mut out = cuda.logits(count, VOCAB).unwrap();
    let args =
        Linear { rows: count, x: &x, weight: &weight, bias: None, add: false, out: &mut out };
    cuda.linear(args).unwrap();
    out
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_draws_as_the_host_does() {
    let kv = KvShape { layers: 1, kv_heads: 1, head_dim: 16, page_tokens: 1 };
    let heads = Heads { kv, heads: 1 };
    let shape = CudaShape { heads, vocab: VOCAB, hidden: 16, intermediate: 16 };
    let cuda = Cuda::new(&Device::open(0).unwrap(), &shape).unwrap();
    let (mut random, softmax) = (Random(9), Softmax::detect());
    let (mut equal, mut close) = (0, 0);
    for count in [1, 2, 7, 33, 64, 200] {
        let logits = logits(&cuda, &mut random, count);
        let samples: Vec<_> = (0..count).map(|_| sample(&mut random)).collect();
        let draws: Vec<_> = samples.iter().map(to_draw).collect();
        let segments = vec![Segment { first: 0, len: count, start: 0, table: 0 }];
        let sampled = (0..count as u32).collect();
        let (tokens, pages) = (vec![0; count], vec![0; count]);
        let batch = HostBatch { tokens, segments, pages, sampled };
        let batch = cuda.step(batch, &draws).unwrap();
        cuda.draw(&logits, &batch).unwrap();
        let mut results = cuda.results().unwrap();
        cuda.fetch(count, &mut results).unwrap();
        let tops = draws.iter().map(|draw| draw.top as usize);
        let found = results.read(tops).unwrap();
        let mut host = Vec::new();
        cuda.download(&logits, count, &mut host).unwrap();
        for ((found, sample), logits) in found.iter().zip(&samples).zip(host.chunks(VOCAB)) {
            let expected = draw(softmax, logits, sample);
            let token = &expected.token;
            if TokenId::new(found.token) != token.id {
                let what = format!("{sample:?}: {} for {:?}", found.token, token.id);
                assert!(expected.margin <= SAMPLER_TIE, "{what}, by {}", expected.margin);
                close += 1;
                continue;
            }
            equal += 1;
            assert!((found.logprob - token.logprob).abs() < 1e-3, "{sample:?}");
            let ids: Vec<_> = found.top.iter().map(|top| TokenId::new(top.0)).collect();
            let expected: Vec<_> = token.top.iter().map(|top| top.0).collect();
            assert_eq!(ids, expected, "{sample:?}");
        }
    }
    println!("{equal} draws equal, {close} otherwise where it was close");
    assert!(close * 20 < equal, "{close} of {equal}");
}
