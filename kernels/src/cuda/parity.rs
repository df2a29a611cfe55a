//! The CUDA backend against the oracle: needs a GPU, so the tests run only where asked for
//! (`cargo test -p kernels -- --ignored cuda`); and the compile check, which needs NVRTC alone.

use super::compile::{Arch, SOURCES, compile};
use super::plan::{Limits, Mode, Plan, stages};
use super::project;
use super::{Cuda, CudaPages, CudaShape, Device, Draw, Heads, PagePool};
use crate::ops::*;
use crate::oracle::{Oracle, OraclePages};
use crate::parity::{
    Filled, Paged, Random, gather, linear, norm_error, norm_linear, rms_norm, rows, silu_mul,
    upload,
};
use half::bf16;
use std::sync::Arc;

/// Two roundings to bf16 of operands, one of the result.
const TOLERANCE: f32 = 1e-2;

/// For a vocabulary, and attention of a shape.
fn cuda_for(vocab: usize, kv: KvShape, heads: usize) -> Cuda {
    let heads = Heads { kv, heads };
    let shape = CudaShape { heads, vocab, hidden: 16, intermediate: 16 };
    Cuda::new(&Device::open(0).unwrap(), &shape).unwrap()
}

fn cuda() -> Cuda {
    let kv = KvShape { layers: 1, kv_heads: 1, head_dim: 16, page_tokens: 1 };
    cuda_for(1000, kv, 1)
}

#[track_caller]
fn close(what: &str, found: &[f32], expected: &[f32]) {
    let error = norm_error(found, expected);
    println!("{what}: {error:.1e}");
    assert!(error <= TOLERANCE, "{what}: error {error}");
}

/// A source with the definitions of each shape that it is tried in.
fn variants(
    source: (&'static str, &'static str),
    arch: Arch,
) -> Vec<((&'static str, &'static str), Vec<String>)> {
    let heads = |head_dim, kv_heads, group, page_tokens| Heads {
        kv: KvShape { layers: 1, kv_heads, head_dim, page_tokens },
        heads: kv_heads * group,
    };
    let shapes: &[&[&str]] = match source.0 {
        "decode_attention" => {
            // Of a block, on the least device of the architecture that is supported.
            let shared_max = if arch == Arch::Sm80 { 166_912 } else { 232_448 };
            let shapes = [(128, 8, 2, 16), (128, 8, 4, 16), (128, 4, 8, 64), (64, 3, 3, 16)];
            let of = |(head_dim, kv_heads, group, page_tokens)| {
                let mut all = heads(head_dim, kv_heads, group, page_tokens).definitions();
                let stages = stages(head_dim, group, shared_max).unwrap();
                all.extend([format!("GROUP={group}"), format!("STAGES={stages}")]);
                (source, all)
            };
            return shapes.map(of).to_vec();
        }
        "prefill_attention" => {
            &[&["HEAD_DIM=128", "PAGE_TOKENS=16"], &["HEAD_DIM=64", "PAGE_TOKENS=48"]]
        }
        "project" => {
            let cuts = project::definitions_tried(arch != Arch::Sm80);
            return cuts.into_iter().map(|definitions| (source, definitions)).collect();
        }
        "sample" => &[&["SAMPLE_THREADS=512"]],
        _ => &[&[]],
    };
    let owned = |shape: &&[&str]| shape.iter().map(|&text| text.to_owned()).collect();
    shapes.iter().map(|shape| (source, owned(shape))).collect()
}

#[test]
#[ignore = "needs NVRTC"]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    std::thread::scope(|scope| {
        for arch in Arch::ALL {
            scope.spawn(move || check_spills(arch));
        }
    });
}

fn check_spills(arch: Arch) {
    for (source, definitions) in SOURCES.iter().flat_map(|&source| variants(source, arch)) {
        let cubin = compile(source, arch, &definitions).unwrap();
        let mut spills = cubin.log.lines().filter(|line| line.contains("spill")).peekable();
        let said = spills.peek().is_some();
        assert!(said, "{} {definitions:?} for {arch:?}: {:?}", source.0, cubin.log);
        let none = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
        for line in spills {
            assert!(line.contains(none), "{} {definitions:?} for {arch:?}: {line}", source.0);
        }
        assert!(cubin.image.starts_with(b"\x7fELF"));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_linear_layers() {
    let (cuda, mut random) = (cuda(), Random(21));
    for case in 0..24 {
        let size = |random: &mut Random| 8 + 8 * random.below(100);
        let count = 1 + random.below(200);
        let (inputs, outputs) = (size(&mut random), size(&mut random));
        let (x, w) = (random.vec(count * inputs), random.vec(outputs * inputs));
        let weights = Weights::Bf16(w.into_iter().map(bf16::from_f32).collect());
        let host = HostMatrix { rows: outputs, cols: inputs, weights };
        let bias = (case % 2 == 0).then(|| random.vec(outputs));
        let (bias, onto) = (bias.as_ref(), random.vec(count * outputs));
        let onto = (case % 3 == 0).then_some(&onto[..]);
        let expected = linear(&Oracle, &x, &host, bias, onto);
        let what = format!("linear {count}×{inputs}×{outputs}");
        close(&what, &linear(&cuda, &x, &host, bias, onto), &expected);
    }
}

/// Products of few rows have a kernel of their own, with norm and addition in it.
#[test]
#[ignore = "needs a GPU"]
fn cuda_projections() {
    let (cuda, mut random) = (cuda(), Random(25));
    for case in 0..36 {
        let count = [1, 8, 9, 1 + random.below(32), 1 + random.below(32), 33][case % 6];
        let (inputs, outputs) = (32 * (8 + random.below(100)), 16 * (1 + random.below(300)));
        let w = random.vec(outputs * inputs);
        let weights = Weights::Bf16(w.into_iter().map(bf16::from_f32).collect());
        let host = HostMatrix { rows: outputs, cols: inputs, weights };
        let (x, gain) = (random.vec(count * inputs), random.vec(inputs));
        let bias = (case % 2 == 0).then(|| random.vec(outputs));
        let (bias, onto) = (bias.as_ref(), random.vec(count * outputs));
        let onto = (case % 3 == 0).then_some(&onto[..]);
        let what = format!("projection {count}×{inputs}×{outputs}");
        let expected = linear(&Oracle, &x, &host, bias, onto);
        close(&what, &linear(&cuda, &x, &host, bias, onto), &expected);
        let expected = norm_linear(&Oracle, &x, &gain, &host, bias);
        close(&format!("normed {what}"), &norm_linear(&cuda, &x, &gain, &host, bias), &expected);
    }
}

/// The best token of each row, its log-probability and the best alternatives, from the device's own
/// logits; what the filters do is tested with the model, against the CPU's sampler.
#[test]
#[ignore = "needs a GPU"]
fn cuda_draws() {
    let mut random = Random(26);
    for vocab in [1000, 1, 33, 50_000, 151_936] {
        let kv = KvShape { layers: 1, kv_heads: 1, head_dim: 16, page_tokens: 1 };
        let cuda = cuda_for(vocab, kv, 1);
        for count in [1, 7, 64] {
            let (x, w) = (random.vec(count * 8), random.vec(vocab * 8));
            let host = HostMatrix { rows: vocab, cols: 8, weights: Weights::F32(w) };
            let (weight, x) = (cuda.matrix(host).unwrap(), upload(&cuda, &x, 8));
            let mut logits = cuda.logits(count, vocab).unwrap();
            logits.poison();
            let (bias, out) = (None, &mut logits);
            let args = Linear { rows: count, x: &x, weight: &weight, bias, add: false, out };
            cuda.linear(args).unwrap();
            let tokens = vec![0; count];
            let segments = vec![Segment { first: 0, len: count, start: 0, table: 0 }];
            let sampled = (0..count as u32).collect();
            let batch = HostBatch { tokens, segments, pages: vec![0; count], sampled };
            let top = vocab.min(5);
            let draws = vec![Draw { top: top as u32, ..Draw::best() }; count];
            let batch = cuda.step(batch, &draws).unwrap();
            cuda.draw(&logits, &batch).unwrap();
            let mut results = cuda.results().unwrap();
            cuda.fetch(count, &mut results).unwrap();
            let drawn = results.read(std::iter::repeat(top)).unwrap();
            for (drawn, logits) in drawn.iter().zip(rows(&cuda, &logits, count).chunks(vocab)) {
                let mut order: Vec<u32> = (0..vocab as u32).collect();
                order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
                let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
                let logprob = |id: u32| logits[id as usize] - sum.ln() as f32;
                assert_eq!(drawn.token, order[0], "{vocab}");
                let ids: Vec<u32> = drawn.top.iter().map(|top| top.0).collect();
                assert_eq!(ids, order[..top], "{vocab}");
                let reported = drawn.top.iter().copied().chain([(drawn.token, drawn.logprob)]);
                let error = reported.map(|(id, p)| (p - logprob(id)).abs()).fold(0.0, f32::max);
                assert!(error < 1e-4, "{vocab}: log-probabilities are off by {error}");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_logits() {
    let (cuda, mut random) = (cuda(), Random(24));
    for _ in 0..20 {
        let size = |random: &mut Random| 8 + 8 * random.below(100);
        let (count, inputs) = (1 + random.below(60), size(&mut random));
        let outputs = size(&mut random);
        let (x, w) = (random.vec(count * inputs), random.vec(outputs * inputs));
        let weights = Weights::Bf16(w.into_iter().map(bf16::from_f32).collect());
        let host = HostMatrix { rows: outputs, cols: inputs, weights };
        // Rounded before both, so that the operands are equal and only sums differ.
        let x: Vec<f32> = x.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect();
        let (weight, x_there) = (cuda.matrix(host.clone()).unwrap(), upload(&cuda, &x, inputs));
        let mut out = cuda.logits(count, outputs).unwrap();
        out.poison();
        let (bias, out_ref) = (None, &mut out);
        let args =
            Linear { rows: count, x: &x_there, weight: &weight, bias, add: false, out: out_ref };
        cuda.linear(args).unwrap();
        let expected = linear(&Oracle, &x, &host, None, None);
        let error = norm_error(&rows(&cuda, &out, count), &expected);
        println!("logits {count}×{inputs}×{outputs}: {error:.1e}");
        assert!(error <= 1e-5, "{error}");
    }
}

/// Long rows and many: every mode of decode attention, and main loops of prefill attention that
/// mask nothing.
#[test]
#[ignore = "needs a GPU"]
fn cuda_attention_over_filled_pages() {
    let mut random = Random(27);
    let mut modes = Vec::new();
    for case in 0..28 {
        // kv heads, group, head_dim, and of how many rows how long.
        let (kv_heads, group, head_dim, count, longest) = [
            (8, 2, 128, 40, 600),
            (8, 2, 128, 1, 3000),
            (2, 4, 64, 5, 2000),
            (3, 3, 64, 64, 300),
            (8, 4, 128, 3, 500),
            (4, 8, 64, 70, 200),
            (2, 2, 128, 3, 1700),
        ][case % 7];
        let shape = KvShape { layers: 2, kv_heads, head_dim, page_tokens: 16 };
        let is_decode = case < 14;
        let rows: Vec<_> = (0..if is_decode { count } else { count.min(3) })
            .map(|_| (random.below(longest), if is_decode { 1 } else { 1 + random.below(400) }))
            .collect();
        let filled = Filled::of(&mut random, shape, kv_heads * group, &rows);
        let expected = filled.run(&Oracle, &OraclePages::new(shape, filled.pages, true));
        let cuda = cuda_for(1000, shape, filled.heads);
        let pool = PagePool::new(cuda.device(), shape, filled.pages as u32).unwrap();
        let page_bytes = shape.layers * shape.layer_len() * 2;
        for page in 0..pool.pages() {
            pool.write(page, 0..page_bytes, &vec![0xff; page_bytes]).unwrap();
        }
        let found = filled.run(&cuda, &CudaPages::new(Arc::new(pool)));
        close(&format!("case {case}: {} rows, {shape:?} × {group}", rows.len()), &found, &expected);
        if is_decode {
            let blocks = cuda.device().multiprocessors().unwrap();
            let mut plan = Plan::new(Limits { blocks, kv_heads: kv_heads as u32, rows: 256 });
            plan.update(&rows.iter().map(|(start, len)| (start + len) as u32).collect::<Vec<_>>());
            modes.push(plan.mode());
        }
    }
    for mode in [Mode::TwoHeads, Mode::OneHead, Mode::Halves] {
        assert!(modes.contains(&mode), "{mode:?} was not tried: {modes:?}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_row_wise_ops() {
    let (cuda, mut random) = (cuda(), Random(22));
    for case in 0..24 {
        let (count, width) = (1 + random.below(60), 1 + random.below(2000));
        let width = if case % 2 == 0 { width.next_multiple_of(8) } else { width };
        let (x, gain) = (random.vec(count * width), random.vec(width));
        let what = format!("norm {count}×{width}");
        close(&what, &rms_norm(&cuda, &x, &gain), &rms_norm(&Oracle, &x, &gain));
        let mut gate_up = random.vec(count * width * 2);
        gate_up.iter_mut().for_each(|x| *x *= 8.0);
        let what = format!("silu {count}×{width}");
        close(&what, &silu_mul(&cuda, &gate_up, width), &silu_mul(&Oracle, &gate_up, width));
        let mut sampled: Vec<u32> =
            (0..random.below(count + 1)).map(|_| random.below(count) as u32).collect();
        sampled.sort_unstable();
        let expected = gather(&Oracle, &x, width, &sampled);
        close("gather", &gather(&cuda, &x, width, &sampled), &expected);
    }
}

fn fast(random: &mut Random) -> Paged {
    let shape = KvShape {
        layers: 1 + random.below(3),
        kv_heads: 1 + random.below(4),
        head_dim: [64, 128][random.below(2)],
        page_tokens: 16 * (1 + random.below(4)),
    };
    let group = 1 + random.below(8);
    Paged::of(random, shape, shape.kv_heads * group)
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_paged_attention() {
    let mut random = Random(23);
    for case in 0..72 {
        // A third of any shape, the rest of those that have kernels of their own.
        let paged = if case % 3 == 0 { Paged::random(&mut random) } else { fast(&mut random) };
        let expected = paged.run(&Oracle, &OraclePages::new(paged.shape, paged.pages, true));
        let cuda = cuda_for(1000, paged.shape, paged.heads);
        let pool = PagePool::new(cuda.device(), paged.shape, paged.pages as u32).unwrap();
        let page_bytes = paged.shape.layers * paged.shape.layer_len() * 2;
        for page in 0..pool.pages() {
            pool.write(page, 0..page_bytes, &vec![0xff; page_bytes]).unwrap();
        }
        let found = paged.run(&cuda, &CudaPages::new(Arc::new(pool)));
        close(&format!("attention {case} {:?} × {}", paged.shape, paged.heads), &found, &expected);
    }
}
