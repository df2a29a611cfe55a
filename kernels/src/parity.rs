//! Every op of every backend against the oracle: random shapes with odd tails, outputs and unused
//! pages poisoned with NaN.

use crate::cpu::memory::{HostMemory, PageMemory, PageShape};
use crate::cpu::simd::Level;
use crate::cpu::{Cpu, CpuPages, KvElement, Softmax};
use crate::ops::*;
use crate::oracle::{Oracle, OraclePages};
use half::bf16;
use std::sync::Arc;

/// A fixed sequence that looks random (splitmix64).
pub(crate) struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    pub fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
    /// Elements mostly between -1 and 1; scales are halves, some of them subnormal, or are not.
    fn blocks(&mut self, len: usize, group: usize, narrow: bool, half: bool) -> Blocks {
        let step = if narrow { 8.0 } else { 128.0 };
        let mut scales: Vec<f32> = self.vec(len / group).iter().map(|x| x / step).collect();
        let mut mins: Vec<f32> = scales.iter().map(|scale| scale * -7.7).collect();
        (scales[0], mins[0]) = (3e-7, -0.0);
        if half {
            let round = |x: &mut f32| *x = half::f16::from_f32(*x).to_f32();
            scales.iter_mut().chain(&mut mins).for_each(round);
        }
        let value = |n| if narrow { n as i8 & 15 } else { n as i8 };
        let values = (0..len).map(|_| value(self.next() >> 20)).collect();
        Blocks { group, scales, mins, values }
    }
}

/// Backends under test: what this CPU can do, and the portable code, on one thread and on several.
fn backends() -> Vec<Cpu> {
    let levels = Level::all().into_iter().map(|level| Cpu::with_level(2, level));
    let tiles = Cpu::with_level(2, Level::PlainTiles);
    [Cpu::new(1), Cpu::new(3), tiles].into_iter().chain(levels).collect()
}

/// A tensor with the given rows: an embedding of them.
pub(crate) fn upload<O: Ops>(ops: &O, rows: &[f32], width: usize) -> O::Tensor {
    let count = rows.len() / width;
    let weights = Weights::F32(rows.to_vec());
    let table = ops.matrix(HostMatrix { rows: count, cols: width, weights }).unwrap();
    let tokens = (0..count as u32).collect();
    let segments = vec![Segment { first: 0, len: count, start: 0, table: 0 }];
    let batch = ops.batch(HostBatch { tokens, segments, ..Default::default() }).unwrap();
    let mut out = ops.tensor(count, width).unwrap();
    ops.embed(Embed { table: &table, batch: &batch, out: &mut out }).unwrap();
    out
}

fn poisoned<O: Ops>(ops: &O, rows: usize, width: usize) -> O::Tensor {
    upload(ops, &vec![f32::NAN; rows * width], width)
}

pub(crate) fn rows<O: Ops>(ops: &O, tensor: &O::Tensor, rows: usize) -> Vec<f32> {
    let mut out = Vec::new();
    ops.download(tensor, rows, &mut out).unwrap();
    out
}

#[track_caller]
fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{what}: [{i}] is {found}, expected {expected}");
    }
}

/// ‖found − expected‖ / ‖expected‖; NaN if anything is.
pub(crate) fn norm_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let norm = |x: &mut dyn Iterator<Item = f32>| {
        x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
    };
    let difference =
        norm(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
    let whole = norm(&mut expected.iter().copied());
    if difference == 0.0 { 0.0 } else { (difference / whole) as f32 }
}

/// Runs `op` on the oracle and on each backend and compares what it returns.
macro_rules! parity {
    ($what:expr, $tolerance:expr, |$ops:ident| $body:expr) => {{
        let expected = {
            let $ops = &Oracle;
            $body
        };
        for (index, backend) in backends().iter().enumerate() {
            let $ops = backend;
            close(&format!("{} on backend {index}", $what), &$body, &expected, $tolerance);
        }
    }};
}

/// With `onto`, added to it.
pub(crate) fn linear<O: Ops>(
    ops: &O,
    x: &[f32],
    host: &HostMatrix,
    bias: Option<&Vec<f32>>,
    onto: Option<&[f32]>,
) -> Vec<f32> {
    let count = x.len() / host.cols;
    let weight = ops.matrix(host.clone()).unwrap();
    let bias = bias.map(|b| ops.vector(b.clone()).unwrap());
    let x = upload(ops, x, host.cols);
    let mut out = match onto {
        Some(onto) => upload(ops, onto, host.rows),
        None => poisoned(ops, count, host.rows),
    };
    let (bias, add) = (bias.as_ref(), onto.is_some());
    let args = Linear { rows: count, x: &x, weight: &weight, bias, add, out: &mut out };
    ops.linear(args).unwrap();
    rows(ops, &out, count)
}

/// A norm, and `NormLinear` or, with outputs that pair up, `NormGated`.
pub(crate) fn norm_linear<O: Ops>(
    ops: &O,
    x: &[f32],
    gain: &[f32],
    host: &HostMatrix,
    bias: Option<&Vec<f32>>,
) -> Vec<f32> {
    let count = x.len() / host.cols;
    let (weight, gain) = (ops.matrix(host.clone()).unwrap(), ops.vector(gain.to_vec()).unwrap());
    let bias = bias.map(|b| ops.vector(b.clone()).unwrap());
    let x = upload(ops, x, host.cols);
    let (mut normed, mut wide) = (poisoned(ops, count, host.cols), poisoned(ops, count, host.rows));
    let (rows_in, eps, normed) = (count, 1e-5, &mut normed);
    let (x, gain, weight, bias) = (&x, &gain, &weight, bias.as_ref());
    let args = NormLinear { rows: rows_in, x, gain, eps, normed, weight, bias, out: &mut wide };
    ops.norm_linear(args).unwrap();
    let mut all = rows(ops, &wide, count);
    if host.rows.is_multiple_of(2) {
        let mut gate_up = poisoned(ops, count, host.rows);
        let mut out = poisoned(ops, count, host.rows / 2);
        let (gate_up, out_ref) = (&mut gate_up, &mut out);
        let args = NormGated { rows: rows_in, x, gain, eps, normed, weight, gate_up, out: out_ref };
        ops.norm_gated(args).unwrap();
        all.extend(rows(ops, &out, count));
    }
    all
}

#[test]
fn linear_layers() {
    let mut random = Random(1);
    let shapes = [(1, 1, 1), (1, 576, 70), (2, 33, 17), (3, 64, 16), (5, 31, 48), (6, 8, 8)];
    let more = [(7, 130, 100), (8, 576, 960), (13, 67, 33), (64, 96, 129), (100, 40, 31)];
    for (count, inputs, outputs) in shapes.into_iter().chain(more) {
        for half in [false, true] {
            for biased in [false, true] {
                let x = random.vec(count * inputs);
                let w = random.vec(outputs * inputs);
                let weights = if half {
                    Weights::Bf16(w.into_iter().map(bf16::from_f32).collect())
                } else {
                    Weights::F32(w)
                };
                let host = HostMatrix { rows: outputs, cols: inputs, weights };
                let bias = biased.then(|| random.vec(outputs));
                let (bias, onto) = (bias.as_ref(), random.vec(count * outputs));
                let what = format!("{count}x{inputs}x{outputs} bf16 {half}");
                parity!(what, 4e-5, |ops| linear(ops, &x, &host, bias, None));
                parity!(what, 4e-5, |ops| linear(ops, &x, &host, bias, Some(&onto)));
                let gain = random.vec(inputs);
                parity!(what, 2e-4, |ops| norm_linear(ops, &x, &gain, &host, bias));
            }
        }
    }
}

/// Values of 4 and of 8 bits, in groups of 16 and 32, with scales that are halves and that are not.
#[test]
fn linear_layers_that_stay_quantised() {
    let mut random = Random(11);
    let shapes = [(1, 32, 1), (1, 576, 70), (2, 96, 17), (3, 64, 16), (5, 32, 48), (6, 32, 8)];
    let more = [(7, 128, 100), (8, 576, 96), (13, 64, 33), (64, 96, 129), (300, 64, 31)];
    for (count, inputs, outputs) in shapes.into_iter().chain(more) {
        for (group, narrow, half) in
            [(32, true, true), (32, true, false), (16, false, true), (32, false, false)]
        {
            let x = random.vec(count * inputs);
            let blocks = random.blocks(outputs * inputs, group, narrow, half);
            let host = HostMatrix { rows: outputs, cols: inputs, weights: Weights::Blocks(blocks) };
            let (bias, onto) = (random.vec(outputs), random.vec(count * outputs));
            let what = format!("{count}x{inputs}x{outputs} by {group}, narrow {narrow}, {half}");
            parity!(what, 2e-3, |ops| linear(ops, &x, &host, None, None));
            parity!(what, 2e-3, |ops| linear(ops, &x, &host, Some(&bias), Some(&onto)));
            parity!(what, 0.0, |ops| embed_all(ops, &host));
        }
    }
}

/// Every row of a matrix, as an embedding.
fn embed_all<O: Ops>(ops: &O, host: &HostMatrix) -> Vec<f32> {
    let table = ops.matrix(host.clone()).unwrap();
    let segments = vec![Segment { first: 0, len: host.rows, start: 0, table: 0 }];
    let tokens = (0..host.rows as u32).collect();
    let batch = ops.batch(HostBatch { tokens, segments, ..Default::default() }).unwrap();
    let mut out = ops.tensor(host.rows, host.cols).unwrap();
    ops.embed(Embed { table: &table, batch: &batch, out: &mut out }).unwrap();
    rows(ops, &out, host.rows)
}

pub(crate) fn rms_norm<O: Ops>(ops: &O, x: &[f32], gain: &[f32]) -> Vec<f32> {
    let (count, width) = (x.len() / gain.len(), gain.len());
    let (x, mut out) = (upload(ops, x, width), poisoned(ops, count, width));
    let gain = ops.vector(gain.to_vec()).unwrap();
    let args = RmsNorm { rows: count, x: &x, gain: &gain, eps: 1e-5, out: &mut out };
    ops.rms_norm(args).unwrap();
    rows(ops, &out, count)
}

#[test]
fn norms() {
    let mut random = Random(2);
    for (count, width) in [(1, 1), (1, 576), (3, 7), (5, 64), (40, 577)] {
        let (x, gain) = (random.vec(count * width), random.vec(width));
        parity!("norm", 1e-5, |ops| rms_norm(ops, &x, &gain));
    }
}

pub(crate) fn silu_mul<O: Ops>(ops: &O, gate_up: &[f32], width: usize) -> Vec<f32> {
    let count = gate_up.len() / width / 2;
    let gate_up = upload(ops, gate_up, 2 * width);
    let mut out = poisoned(ops, count, width);
    ops.silu_mul(SiluMul { rows: count, gate_up: &gate_up, out: &mut out }).unwrap();
    rows(ops, &out, count)
}

#[test]
fn activations() {
    let mut random = Random(3);
    for (count, width) in [(1, 1), (1, 1536), (3, 13), (5, 64), (50, 401)] {
        let mut gate_up = random.vec(count * width * 2);
        gate_up.iter_mut().for_each(|x| *x *= 30.0);
        gate_up[0] = -200.0;
        parity!("silu", 1e-5, |ops| silu_mul(ops, &gate_up, width));
    }
}

pub(crate) fn gather<O: Ops>(ops: &O, x: &[f32], width: usize, sampled: &[u32]) -> Vec<f32> {
    let len = x.len() / width;
    let segments = vec![Segment { first: 0, len, start: 0, table: 0 }];
    let (tokens, sampled) = (vec![0; len], sampled.to_vec());
    let count = sampled.len();
    let batch = ops.batch(HostBatch { tokens, segments, pages: vec![], sampled }).unwrap();
    let (x, mut out) = (upload(ops, x, width), poisoned(ops, len, width));
    ops.gather(Gather { x: &x, batch: &batch, out: &mut out }).unwrap();
    rows(ops, &out, count)
}

#[test]
fn gathered_rows() {
    let x = Random(4).vec(9 * 5);
    parity!("gather", 0.0, |ops| gather(ops, &x, 5, &[8, 0, 3, 3]));
    parity!("gather none", 0.0, |ops| gather(ops, &x, 5, &[]));
}

/// A paged case: sequences fed in steps, some of them several times.
pub(crate) struct Paged {
    pub shape: KvShape,
    pub heads: usize,
    pub pages: usize,
    normed: bool,
    steps: Vec<HostBatch>,
}

impl Paged {
    /// Of a random shape.
    pub fn random(random: &mut Random) -> Self {
        let kv_heads = 1 + random.below(3);
        let head_dim = 16 * (1 + random.below(5));
        let shape = KvShape {
            layers: 1 + random.below(3),
            kv_heads,
            head_dim,
            page_tokens: 1 + random.below(20),
        };
        let heads = kv_heads * (1 + random.below(8));
        Self::of(random, shape, heads)
    }

    /// Random sequences cut into random chunks, their pages dealt in random order.
    pub fn of(random: &mut Random, shape: KvShape, heads: usize) -> Self {
        let mut tables: Vec<Vec<u32>> = Vec::new();
        let mut lengths = Vec::new();
        let mut next = 0;
        for _ in 0..1 + random.below(4) {
            let len = 1 + random.below(130);
            lengths.push(len);
            let count = len.div_ceil(shape.page_tokens) as u32;
            tables.push((next..next + count).collect());
            next += count;
        }
        let mut order: Vec<u32> = (0..next).collect();
        (1..order.len()).rev().for_each(|i| order.swap(i, random.below(i + 1)));
        tables.iter_mut().flatten().for_each(|page| *page = order[*page as usize]);
        let mut done = vec![0; lengths.len()];
        let mut steps = Vec::new();
        while done != lengths {
            steps.push(Self::step(random, &shape, (&tables, &lengths), &mut done));
        }
        let normed = random.below(2) == 1;
        Self { shape, heads, pages: next as usize, normed, steps }
    }

    fn step(
        random: &mut Random,
        shape: &KvShape,
        (tables, lengths): (&[Vec<u32>], &[usize]),
        done: &mut [usize],
    ) -> HostBatch {
        let mut batch = HostBatch::default();
        let single = random.below(3) == 0;
        for (row, start) in done.iter_mut().enumerate() {
            let left = lengths[row] - *start;
            let len = [1, 2, 1 + random.below(90), left][random.below(4)].min(left);
            let len = if single { len.min(1) } else { len };
            if len == 0 {
                continue;
            }
            let (first, table) = (batch.tokens.len(), batch.pages.len());
            batch.segments.push(Segment { first, len, start: *start, table });
            batch.tokens.extend((0..len).map(|_| random.below(50) as u32));
            *start += len;
            batch.pages.extend(&tables[row][..start.div_ceil(shape.page_tokens)]);
        }
        batch
    }

    /// Writes every step's tokens and attends; returns the outputs of all steps.
    pub fn run<O: Ops>(&self, ops: &O, pages: &O::Pages) -> Vec<f32> {
        let mut random = Random(77);
        let dim = self.shape.head_dim;
        let width = (self.heads + 2 * self.shape.kv_heads) * dim;
        let rope = ops.vector(random.vec(200 * dim)).unwrap();
        let gains = [(); 2].map(|()| ops.vector(random.vec(dim)).unwrap());
        let mut all = Vec::new();
        for step in &self.steps {
            let count = step.tokens.len();
            let batch = ops.batch(step.clone()).unwrap();
            let mut qkv = upload(ops, &random.vec(count * width), width);
            let mut out = poisoned(ops, count, self.heads * dim);
            let layer = self.shape.layers - 1;
            let norm = self.normed.then(|| HeadNorm { q: &gains[0], k: &gains[1], eps: 1e-6 });
            let (heads, rope) = (self.heads, &rope);
            let write = RopeWrite { qkv: &mut qkv, heads, norm, rope, batch: &batch, layer, pages };
            ops.rope_write(write).unwrap();
            let (qkv, batch, scale) = (&qkv, &batch, 2.0 / (dim as f32).sqrt());
            let args = Attention { qkv, heads, scale, batch, layer, pages, out: &mut out };
            ops.attention(args).unwrap();
            all.extend(rows(ops, &out, count));
        }
        all
    }

    fn cpu_pages(&self, element: KvElement) -> CpuPages {
        let size = if element == KvElement::F32 { 4 } else { 2 };
        let part_bytes = self.shape.layer_len() * size;
        let shape = PageShape { pages: self.pages as u32, parts: self.shape.layers, part_bytes };
        let bytes = shape.total_bytes().unwrap();
        let memory = PageMemory::new(HostMemory::zeroed(bytes).unwrap(), shape).unwrap();
        for page in 0..shape.pages {
            memory.write(page, 0..shape.page_bytes(), &vec![0xff; shape.page_bytes()]);
        }
        CpuPages::new(Arc::new(memory), self.shape, element)
    }
}

/// One step over sequences whose earlier tokens lie in pages already.
pub(crate) struct Filled {
    pub shape: KvShape,
    pub heads: usize,
    pub pages: usize,
    /// Of each sequence: tokens in pages, new tokens.
    pub rows: Vec<(usize, usize)>,
    /// In random order.
    tables: Vec<Vec<u32>>,
}

impl Filled {
    pub fn of(random: &mut Random, shape: KvShape, heads: usize, rows: &[(usize, usize)]) -> Self {
        let counts = rows.iter().map(|(start, len)| (start + len).div_ceil(shape.page_tokens));
        let pages = counts.clone().sum();
        let mut order: Vec<u32> = (0..pages as u32).collect();
        (1..pages).rev().for_each(|i| order.swap(i, random.below(i + 1)));
        let mut order = order.into_iter();
        let tables = counts.map(|count| order.by_ref().take(count).collect()).collect();
        Self { shape, heads, pages, rows: rows.to_vec(), tables }
    }

    /// Of `part` of every sequence: its start and length.
    fn batch(&self, part: impl Fn((usize, usize)) -> (usize, usize)) -> HostBatch {
        let mut batch = HostBatch::default();
        for (&row, pages) in self.rows.iter().zip(&self.tables) {
            let (start, len) = part(row);
            let (first, table) = (batch.tokens.len(), batch.pages.len());
            if len > 0 {
                batch.segments.push(Segment { first, len, start, table });
                batch.tokens.extend(std::iter::repeat_n(0, len));
                batch.pages.extend(&pages[..(start + len).div_ceil(self.shape.page_tokens)]);
            }
        }
        batch
    }

    /// Outputs of the new tokens.
    pub fn run<O: Ops>(&self, ops: &O, pages: &O::Pages) -> Vec<f32> {
        let mut random = Random(78);
        let (heads, dim) = (self.heads, self.shape.head_dim);
        let width = (heads + 2 * self.shape.kv_heads) * dim;
        let longest = self.rows.iter().map(|(start, len)| start + len).max().unwrap_or(1);
        let rope = ops.vector(random.vec(longest * dim)).unwrap();
        let (layer, rope) = (self.shape.layers - 1, &rope);
        let mut write = |batch: &O::Batch, count: usize| {
            let mut qkv = upload(ops, &random.vec(count * width), width);
            let args = RopeWrite { qkv: &mut qkv, heads, norm: None, rope, batch, layer, pages };
            ops.rope_write(args).unwrap();
            qkv
        };
        let before = self.batch(|(start, _)| (0, start));
        if !before.tokens.is_empty() {
            write(&ops.batch(before.clone()).unwrap(), before.tokens.len());
        }
        let new = self.batch(|row| row);
        let (count, batch) = (new.tokens.len(), ops.batch(new).unwrap());
        let qkv = write(&batch, count);
        let mut out = poisoned(ops, count, heads * dim);
        let (qkv, batch, scale, out_ref) = (&qkv, &batch, 2.0 / (dim as f32).sqrt(), &mut out);
        ops.attention(Attention { qkv, heads, scale, batch, layer, pages, out: out_ref }).unwrap();
        rows(ops, &out, count)
    }
}

#[test]
fn paged_attention() {
    let mut random = Random(5);
    for case in 0..24 {
        let paged = Paged::random(&mut random);
        for element in [KvElement::F32, KvElement::Bf16] {
            let half = element == KvElement::Bf16;
            let oracle_pages = OraclePages::new(paged.shape, paged.pages, half);
            let expected = paged.run(&Oracle, &oracle_pages);
            assert!(expected.iter().all(|x| x.is_finite()), "case {case}");
            for (index, cpu) in backends().iter().enumerate() {
                let found = paged.run(cpu, &paged.cpu_pages(element));
                // A key that rounds the other way shows as half a bf16 step in the output.
                let tolerance = if half { 4e-3 } else { 3e-5 };
                let what = format!("case {case} backend {index} {element:?} {:?}", paged.shape);
                close(&what, &found, &expected, tolerance);
            }
        }
    }
}

#[test]
fn terms_of_a_softmax() {
    let mut random = Random(6);
    for len in [1, 7, 8, 100, 5000] {
        let x: Vec<f32> = random.vec(len).iter().map(|x| x * 40.0).collect();
        let max = x.iter().copied().fold(f32::MIN, f32::max);
        let expected: Vec<f32> = x.iter().map(|x| ((x - max) * 0.7).exp()).collect();
        let sum: f64 = expected.iter().map(|&t| f64::from(t)).sum();
        for cpu in [Softmax::detect(), Softmax::with_level(Level::Portable)] {
            assert_eq!(cpu.max(&x), max);
            let mut found = vec![f32::NAN; len];
            let total = cpu.exp_sum(&x, (max, 0.7), &mut found);
            close("terms", &found, &expected, 1e-6);
            assert!((total - sum).abs() < 1e-6 * sum, "{total} {sum}");
        }
    }
}

#[test]
fn what_a_mask_rules_out() {
    let mut random = Random(7);
    for len in [1_usize, 8, 33, 100, 4999] {
        // The last tokens may have no word.
        let words: Vec<u32> = (0..len / 32).map(|_| random.below(1 << 32) as u32).collect();
        let is_set = |i: usize| words.get(i / 32).is_some_and(|word| word >> (i % 32) & 1 == 1);
        let x = random.vec(len);
        let pick = |(i, &x): (usize, &f32)| if is_set(i) { x } else { f32::NEG_INFINITY };
        let expected: Vec<f32> = x.iter().enumerate().map(pick).collect();
        for level in Level::all() {
            let mut found = x.clone();
            Softmax::with_level(level).rule_out(&words, &mut found);
            assert_eq!(found, expected, "{level:?} {len}");
        }
    }
}
