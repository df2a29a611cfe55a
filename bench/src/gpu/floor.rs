//! What no version of an op could be faster than: its bytes over the memory's bandwidth, or its
//! operations over the arithmetic's rate, whichever is longer.
//!
//! Bytes are those of the inputs, each once, and the outputs, each once. Activations of a small
//! step may stay in the L2 cache and never reach memory: there a figure may be below its floor.

use super::Shape;
use super::geometry::Geometry;
use super::op::{Op, Weight};

/// Bytes of a bf16.
const HALF: usize = 2;
/// Bytes of an f32, which logits are.
const SINGLE: usize = 4;

/// What a device can do at most.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    pub bytes_a_second: f64,
    pub flops_a_second: f64,
}

/// What must be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub bytes: usize,
    /// Operations that tensor cores do: a multiplication and an addition are two.
    pub flops: usize,
}

impl Work {
    /// µs that it takes at least.
    pub fn floor_us(&self, ceilings: &Ceilings) -> f64 {
        let bytes = self.bytes as f64 / ceilings.bytes_a_second;
        let flops = self.flops as f64 / ceilings.flops_a_second;
        bytes.max(flops) * 1e6
    }

    /// Whether arithmetic takes longer than memory.
    pub fn is_arithmetic(&self, ceilings: &Ceilings) -> bool {
        let bytes = self.bytes as f64 / ceilings.bytes_a_second;
        self.flops as f64 / ceilings.flops_a_second > bytes
    }

    fn of_bytes(bytes: usize) -> Self {
        Self { bytes, flops: 0 }
    }
}

/// `[rows][inputs] · [outputs][inputs]ᵀ`; `written` bytes go out, or to and fro.
fn product(rows: usize, (outputs, inputs): (usize, usize), written: usize) -> Work {
    Work {
        bytes: HALF * (outputs * inputs + rows * inputs) + written,
        flops: 2 * rows * outputs * inputs,
    }
}

/// Keys that the new tokens of a sequence see, in all: causal.
fn pairs(shape: &Shape) -> usize {
    let Shape { before, new, .. } = *shape;
    new * before + new * (new + 1) / 2
}

/// One launch of `op`.
pub fn work(op: Op, geometry: &Geometry, shape: &Shape) -> Work {
    let s = &geometry.sizes;
    let (tokens, sampled) = (shape.tokens(), shape.sequences);
    let (q, kv, qkv) = (geometry.q(), geometry.kv(), geometry.qkv());
    match op {
        Op::Embed => Work::of_bytes(2 * HALF * tokens * s.hidden),
        Op::RmsNorm => Work::of_bytes(2 * HALF * tokens * s.hidden),
        Op::Qkv => product(tokens, Weight::Qkv.shape(geometry), HALF * tokens * qkv),
        Op::RopeWrite => Work::of_bytes(2 * HALF * tokens * qkv),
        Op::Attention => {
            let keys = sampled * (shape.before + shape.new);
            Work {
                bytes: HALF * (keys * 2 * kv + tokens * 2 * q),
                flops: 4 * sampled * pairs(shape) * q,
            }
        }
        // Added to the residual stream, which is read and written.
        Op::Out => product(tokens, Weight::Out.shape(geometry), 2 * HALF * tokens * s.hidden),
        Op::Down => product(tokens, Weight::Down.shape(geometry), 2 * HALF * tokens * s.hidden),
        Op::GateUp => {
            let written = HALF * tokens * s.intermediate;
            product(tokens, Weight::GateUp.shape(geometry), written)
        }
        Op::SiluMul => Work::of_bytes(3 * HALF * tokens * s.intermediate),
        Op::Gather => Work::of_bytes(2 * HALF * sampled * s.hidden),
        Op::Head => product(sampled, (s.vocab, s.hidden), SINGLE * sampled * s.vocab),
        Op::Draw => Work::of_bytes(SINGLE * sampled * s.vocab),
        Op::Library(weight) => {
            let (outputs, inputs) = weight.shape(geometry);
            product(tokens, (outputs, inputs), SINGLE * tokens * outputs)
        }
    }
}

/// A whole step: weights once, keys and values read and written once, all products. Activations
/// and logits are left out, since no law keeps them from staying on the chip.
pub fn of_step(geometry: &Geometry, shape: &Shape) -> Work {
    let s = &geometry.sizes;
    let (tokens, layers) = (shape.tokens(), geometry.layers);
    let products = [Weight::Qkv, Weight::Out, Weight::GateUp, Weight::Down];
    let elements: usize = products
        .iter()
        .map(|weight| {
            let (outputs, inputs) = weight.shape(geometry);
            outputs * inputs
        })
        .sum();
    let head = s.vocab * s.hidden;
    let keys = shape.sequences * (shape.before + shape.new);
    let cached = layers * (keys + tokens) * 2 * geometry.kv();
    let attention = layers * 4 * shape.sequences * pairs(shape) * geometry.q();
    Work {
        bytes: HALF * (layers * elements + head + tokens * s.hidden + cached),
        flops: 2 * (tokens * layers * elements + shape.sequences * head) + attention,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::geometry::Named;

    const H100: Ceilings = Ceilings { bytes_a_second: 3e12, flops_a_second: 796e12 };

    #[test]
    fn a_floor_is_the_longer_of_two_times() {
        let check = |bytes, flops, expect: f64, arithmetic| {
            let work = Work { bytes, flops };
            assert!((work.floor_us(&H100) - expect).abs() < 1e-9, "{work:?}");
            assert_eq!(work.is_arithmetic(&H100), arithmetic, "{work:?}");
        };
        check(3_000_000, 0, 1.0, false);
        check(3_000_000, 796_000_000 / 2, 1.0, false);
        check(3_000_000, 796_000_000 * 2, 2.0, true);
    }

    #[test]
    fn products_count_the_weight_once_and_two_operations_an_element() {
        let geometry = Named::Qwen3Small.geometry();
        let check = |op, shape: Shape, bytes, flops| {
            assert_eq!(work(op, &geometry, &shape), Work { bytes, flops }, "{op} {shape}");
        };
        let (one, eight) = (Shape::decode(1, 512), Shape::decode(8, 512));
        // 4,096 × 1,024 weights; a row of 1,024 comes in, one of 4,096 goes out.
        check(Op::Qkv, one, 2 * (4096 * 1024 + 1024 + 4096), 2 * 4096 * 1024);
        check(Op::Qkv, eight, 2 * (4096 * 1024 + 8 * (1024 + 4096)), 8 * 2 * 4096 * 1024);
        // Gates and ups are multiplied where they are made: half of the outputs is written.
        check(Op::GateUp, one, 2 * (6144 * 1024 + 1024 + 3072), 2 * 6144 * 1024);
        check(Op::Down, one, 2 * (1024 * 3072 + 3072 + 2 * 1024), 2 * 1024 * 3072);
        check(Op::Out, one, 2 * (1024 * 2048 + 2048 + 2 * 1024), 2 * 1024 * 2048);
        let head = 151_936 * 1024;
        check(Op::Head, one, 2 * (head + 1024) + 4 * 151_936, 2 * head);
        check(Op::Draw, eight, 8 * 4 * 151_936, 0);
    }

    #[test]
    fn attention_is_causal() {
        assert_eq!(pairs(&Shape::decode(3, 512)), 512);
        assert_eq!(pairs(&Shape::prefill(3, 4)), 10);
        assert_eq!(pairs(&Shape { sequences: 1, before: 10, new: 2 }), 11 + 12);
        let geometry = Named::Qwen3Small.geometry();
        let attend = |shape| work(Op::Attention, &geometry, &shape);
        // Keys and values of 8 heads of 128; 16 query heads come in and go out.
        let bytes = 8 * (512 * 2 * 1024 + 2 * 2048) * 2;
        assert_eq!(attend(Shape::decode(8, 512)), Work { bytes, flops: 4 * 8 * 512 * 2048 });
        assert_eq!(attend(Shape::prefill(2, 3)).flops, 4 * 2 * 6 * 2048);
    }

    #[test]
    fn a_step_of_one_token_reads_the_weights() {
        let small = of_step(&Named::Qwen3Small.geometry(), &Shape::decode(1, 1));
        // 596 million parameters, of which gains are not counted.
        assert!((1.191e9..1.193e9).contains(&(small.bytes as f64)), "{small:?}");
        let large = of_step(&Named::Qwen3Large.geometry(), &Shape::decode(1, 1));
        // 8.19 billion less the embedding of 622 million, of which a row is read.
        assert!((15.12e9..15.14e9).contains(&(large.bytes as f64)), "{large:?}");
        assert!((large.flops as f64 / large.bytes as f64 - 1.0).abs() < 0.01, "{large:?}");
    }
}
