//! The CUDA backend against the oracle: needs a GPU, so the tests run only where asked for
//! (`cargo test -p kernels -- --ignored cuda`); and the compile check, which needs NVRTC alone.

use super::compile::{Arch, SOURCES, compile};
use super::{Cuda, CudaPages, Device, PagePool};
use crate::ops::*;
use crate::oracle::{Oracle, OraclePages};
use crate::parity::{Paged, Random, gather, linear, norm_error, rms_norm, rows, silu_mul, upload};
use half::bf16;
use std::sync::Arc;

/// Two roundings to bf16 of operands, one of the result.
const TOLERANCE: f32 = 1e-2;

fn cuda() -> Cuda {
    Cuda::new(&Device::open(0).unwrap()).unwrap()
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
) -> Vec<((&'static str, &'static str), Vec<String>)> {
    let shapes: &[&[&str]] = match source.0 {
        "decode_attention" => &[
            &["HEAD_DIM=128", "GROUP=2", "PAGE_TOKENS=16", "STAGES=3"],
            &["HEAD_DIM=128", "GROUP=8", "PAGE_TOKENS=64", "STAGES=3"],
            &["HEAD_DIM=64", "GROUP=3", "PAGE_TOKENS=16", "STAGES=6"],
        ],
        "prefill_attention" => {
            &[&["HEAD_DIM=128", "PAGE_TOKENS=16"], &["HEAD_DIM=64", "PAGE_TOKENS=48"]]
        }
        "project" => &[
            &["COLUMNS=1", "TILES=2", "WARPS_N=1", "WARPS_K=8", "SPLIT=1", "STAGES=4", "NORM=1"],
            &["COLUMNS=4", "TILES=2", "WARPS_N=1", "WARPS_K=8", "SPLIT=1", "STAGES=2", "NORM=0"],
        ],
        "sample" => &[&["SAMPLE_THREADS=512"]],
        _ => &[&[]],
    };
    let owned = |shape: &&[&str]| shape.iter().map(|&text| text.to_owned()).collect();
    shapes.iter().map(|shape| (source, owned(shape))).collect()
}

#[test]
#[ignore = "needs NVRTC"]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    for (source, definitions) in SOURCES.iter().flat_map(|&source| variants(source)) {
        for arch in Arch::ALL {
            let cubin = compile(source, arch, &definitions).unwrap();
            let spills = cubin.log.lines().filter(|line| line.contains("spill"));
            let none = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
            for line in spills {
                assert!(line.contains(none), "{} for {arch:?}: {line}", source.0);
            }
            assert!(cubin.image.starts_with(b"\x7fELF"));
        }
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
        let expected = linear(&Oracle, &x, &host, bias.as_ref());
        let what = format!("linear {count}×{inputs}×{outputs}");
        close(&what, &linear(&cuda, &x, &host, bias.as_ref()), &expected);
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
        let args = Linear { rows: count, x: &x_there, weight: &weight, bias: None, out: &mut out };
        cuda.linear(args).unwrap();
        let error = norm_error(&rows(&cuda, &out, count), &linear(&Oracle, &x, &host, None));
        println!("logits {count}×{inputs}×{outputs}: {error:.1e}");
        assert!(error <= 1e-5, "{error}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_row_wise_ops() {
    let (cuda, mut random) = (cuda(), Random(22));
    for case in 0..24 {
        let (count, width) = (1 + random.below(60), 1 + random.below(2000));
        let (x, delta) = (random.vec(count * width), random.vec(count * width));
        let gain = random.vec(width);
        let delta = (case % 2 == 0).then_some(delta.as_slice());
        let what = format!("norm {count}×{width}");
        close(&what, &rms_norm(&cuda, &x, delta, &gain), &rms_norm(&Oracle, &x, delta, &gain));
        let mut gate_up = random.vec(count * width * 2);
        gate_up.iter_mut().for_each(|x| *x *= 8.0);
        let what = format!("silu {count}×{width}");
        close(&what, &silu_mul(&cuda, &gate_up, width), &silu_mul(&Oracle, &gate_up, width));
        let sampled: Vec<u32> =
            (0..random.below(count + 1)).map(|_| random.below(count) as u32).collect();
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
    let (cuda, mut random) = (cuda(), Random(23));
    for case in 0..72 {
        // A third of any shape, the rest of those that have kernels of their own.
        let paged = if case % 3 == 0 { Paged::random(&mut random) } else { fast(&mut random) };
        let expected = paged.run(&Oracle, &OraclePages::new(paged.shape, paged.pages, true));
        let pool = PagePool::new(cuda.device(), paged.shape, paged.pages as u32).unwrap();
        let page_bytes = paged.shape.layers * paged.shape.layer_len() * 2;
        for page in 0..pool.pages() {
            pool.write(page, 0..page_bytes, &vec![0xff; page_bytes]).unwrap();
        }
        let found = paged.run(&cuda, &CudaPages::new(Arc::new(pool)));
        close(&format!("attention {case} {:?} × {}", paged.shape, paged.heads), &found, &expected);
    }
}
