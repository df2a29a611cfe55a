//! Numbers: block formats against formulas written out, row ranges against the whole, rope.

use crate::gguf_writer::{BF16, F32, Meta, Q4_1, Q8_0, Tensor, from_golden};
use crate::golden;
use checkpoint::{Checkpoint, Dtype, RopeScaling};
use half::{bf16, f16};
use proptest::prelude::*;
use std::sync::LazyLock;

/// tiny-llama3 with block-quantised projections, and what they hold in Hugging Face order.
struct Quantised {
    model: Checkpoint,
    q_proj: Vec<f32>,
    up_proj: Vec<f32>,
    _folder: tempfile::TempDir,
}

static QUANTISED: LazyLock<Quantised> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let mut gguf = from_golden("tiny-llama3", BF16);
    let q = random_blocks(gguf.tensor("blk.0.attn_q.weight"), Q8_0, 34);
    let up = random_blocks(gguf.tensor("blk.0.ffn_up.weight"), Q4_1, 20);
    let q: Vec<f32> = q.chunks(34).flat_map(q8_0).collect();
    let model = Checkpoint::open(gguf.write(folder.path())).unwrap();
    let head = model.config().head_dim;
    let row = model.config().hidden;
    let mut q_proj = Vec::new();
    for head in q.chunks(head * row) {
        let rows: Vec<_> = head.chunks(row).collect();
        q_proj.extend(rows.iter().step_by(2).copied().flatten());
        q_proj.extend(rows.iter().skip(1).step_by(2).copied().flatten());
    }
    let up_proj = up.chunks(20).flat_map(q4_1).collect();
    Quantised { model, q_proj, up_proj, _folder: folder }
});

/// Fills `tensor` with blocks of `size` bytes whose scales are ordinary numbers.
fn random_blocks(tensor: &mut Tensor, code: u32, size: usize) -> Vec<u8> {
    let blocks = tensor.shape.iter().product::<usize>() / 32;
    let mut stream = blake3::Hasher::new().update(&[size as u8]).finalize_xof();
    let mut bytes = vec![0; blocks * size];
    stream.fill(&mut bytes);
    for block in bytes.chunks_mut(size) {
        for scale in block[..if code == Q4_1 { 4 } else { 2 }].chunks_mut(2) {
            scale[1] = (scale[1] & 0x83) | 0x24; // exponent of 2^-6: neither huge nor NaN
        }
    }
    (tensor.code, tensor.bytes) = (code, bytes.clone());
    bytes
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_bits(u16::from(block[at]) | u16::from(block[at + 1]) << 8).to_f32()
}

fn q8_0(block: &[u8]) -> Vec<f32> {
    let d = half_at(block, 0);
    block[2..].iter().map(|&q| d * f32::from(q as i8)).collect()
}

fn q4_1(block: &[u8]) -> Vec<f32> {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let nibble = |j: usize| if j < 16 { block[4 + j] % 16 } else { block[4 + j - 16] / 16 };
    (0..32)
        .map(|j| {
            let p = d * f32::from(nibble(j));
            p + m
        })
        .collect()
}

#[test]
fn block_formats_decode_as_written_out() {
    let model = &QUANTISED.model;
    let q = model.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
    let up = model.tensor("model.layers.0.mlp.up_proj.weight").unwrap();
    assert_eq!((q.dtype(), up.dtype()), (Dtype::Q8_0, Dtype::Q4_1));
    assert_eq!(q.stored_bytes() as usize, q.elements() / 32 * 34);
    for (tensor, expected) in [(q, &QUANTISED.q_proj), (up, &QUANTISED.up_proj)] {
        assert!(tensor.to_vec::<f32>().unwrap() == *expected);
        let rounded: Vec<_> = expected.iter().map(|&x| bf16::from_f32(x)).collect();
        assert!(tensor.to_vec::<bf16>().unwrap() == rounded);
    }
}

proptest! {
    #[test]
    fn a_range_of_rows_is_that_part_of_the_whole(a in 0usize..=256, b in 0usize..=256) {
        let (q, whole) = (&QUANTISED.model, &QUANTISED.q_proj);
        let q = q.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
        let rows = a.min(b)..a.max(b);
        let mut part = vec![0f32; rows.len() * q.row_len()];
        q.read(rows.clone(), &mut part).unwrap();
        prop_assert!(part == whole[rows.start * q.row_len()..rows.end * q.row_len()]);
    }
}

#[test]
fn a_read_that_does_not_fit_is_an_error() {
    let model = Checkpoint::open(golden("tiny-qwen3")).unwrap();
    let tensor = model.tensor("model.embed_tokens.weight").unwrap();
    let mut row = vec![0f32; tensor.row_len()];
    tensor.read(511..512, &mut row).unwrap();
    for (rows, out) in [(512..513, &mut row[..]), (0..2, &mut vec![0.0; 128][..])] {
        let error = tensor.read(rows, out).unwrap_err().to_string();
        assert!(error.contains("model.embed_tokens.weight"), "{error}");
    }
    let error = model.tensor("model.layers.9.mlp.up_proj.weight").unwrap_err().to_string();
    assert!(error.contains("model.layers.9.mlp.up_proj.weight"), "{error}");
}

/// Reference values: transformers' `_compute_llama3_parameters` for tiny-llama3 (theta 500000,
/// `head_dim` 64, factor 8, low 1, high 4, original length 64), written as its formula in f32.
#[test]
fn llama3_scaling_follows_its_formula_and_gguf_divisors_give_the_same() {
    let model = Checkpoint::open(golden("tiny-llama3")).unwrap();
    let scaled = model.config().rope_frequencies();
    let plain: Vec<f32> = (0..32).map(|i| 1.0 / 500_000f32.powf(2.0 * i as f32 / 64.0)).collect();
    let mut kinds = [0; 3];
    for (i, (&scaled, &plain)) in scaled.iter().zip(&plain).enumerate() {
        let wavelength = std::f32::consts::TAU / plain;
        let expected = if wavelength < 64.0 / 4.0 {
            kinds[0] += 1;
            plain
        } else if wavelength > 64.0 / 1.0 {
            kinds[1] += 1;
            plain / 8.0
        } else {
            kinds[2] += 1;
            let smooth = (64.0 / wavelength - 1.0) / (4.0 - 1.0);
            (1.0 - smooth) * plain / 8.0 + smooth * plain
        };
        assert!((scaled / expected - 1.0).abs() < 1e-5, "pair {i}: {scaled} for {expected}");
    }
    assert!(kinds.iter().all(|&n| n > 0), "every branch was taken: {kinds:?}");

    let folder = tempfile::tempdir().unwrap();
    let mut gguf = from_golden("tiny-llama3", BF16);
    gguf.tensors.push(Tensor {
        name: "rope_freqs.weight".to_owned(),
        shape: vec![32],
        code: F32,
        bytes: plain.iter().zip(&scaled).flat_map(|(p, s)| (p / s).to_le_bytes()).collect(),
    });
    let twin = Checkpoint::open(gguf.write(folder.path())).unwrap();
    assert!(matches!(twin.config().rope_scaling, RopeScaling::Divisors(_)));
    for (a, b) in twin.config().rope_frequencies().iter().zip(&scaled) {
        assert!((a / b - 1.0).abs() < 1e-5, "{a} for {b}");
    }
    assert!(twin.tensor("rope_freqs.weight").is_err(), "part of the configuration, not a weight");

    gguf.tensor("rope_freqs.weight").bytes[..4].copy_from_slice(&0f32.to_le_bytes());
    let error = Checkpoint::open(gguf.write(folder.path())).unwrap_err().to_string();
    assert!(error.contains("rope_freqs.weight"), "{error}");
}

#[test]
fn a_second_end_token_of_a_gguf_is_an_end_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut gguf = from_golden("tiny-qwen2", BF16);
    gguf.set("tokenizer.ggml.eot_token_id", Meta::U32(7));
    let model = Checkpoint::open(gguf.write(folder.path())).unwrap();
    assert_eq!(model.eos_token_ids(), [2, 7]);
}
