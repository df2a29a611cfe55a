//! Measurements of the engine's kernels on a GPU, through the API that the engine uses.
//!
//! [`per_op`] times each op alone over many shapes; [`share`] says where the time of a whole step
//! goes. Both need no model: [`random`] makes weights of a known [`geometry`]. [`stand`] has the
//! activations, pages and batches that ops run on; [`op`] lists them and enqueues them; [`floor`]
//! is what no version could be faster than; [`report`] prints and writes.

mod floor;
mod geometry;
mod op;
mod per_op;
mod random;
mod report;
mod share;
mod stand;

pub use per_op::PerOp;
pub use share::Share;

use anyhow::Context;
use clap::Args;
use floor::Ceilings;
use kernels::cuda::Device;
use std::path::PathBuf;

/// What both commands take.
#[derive(Args)]
struct GpuOptions {
    /// Which GPU, as `cuda:N`.
    #[arg(long, default_value = "cuda:0", value_parser = ordinal)]
    device: usize,
    /// Replays of each recording, of which the median is taken.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// The GPU's memory bandwidth, GB/s, that floors are computed with; the default is what an H100
    /// copies at.
    #[arg(long, default_value_t = 3000.0)]
    bandwidth: f64,
    /// Its bf16 rate, TFLOP/s; the default is an H100's in a product of 8192³.
    #[arg(long, default_value_t = 796.0)]
    rate: f64,
    /// Also write the rows to this file, as a JSON array.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl GpuOptions {
    fn open(&self) -> anyhow::Result<Device> {
        anyhow::ensure!(self.rounds > 0, "--rounds is 0; want at least 1");
        Device::open(self.device).with_context(|| format!("cuda:{}", self.device))
    }

    fn ceilings(&self) -> Ceilings {
        Ceilings { bytes_a_second: self.bandwidth * 1e9, flops_a_second: self.rate * 1e12 }
    }
}

fn ordinal(text: &str) -> Result<usize, String> {
    let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    number.ok_or_else(|| "want cuda:N, N a number".to_owned())
}

/// How many sequences a step has, and how long they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    sequences: usize,
    /// Tokens of each that are in the pages already.
    before: usize,
    /// New tokens of each.
    new: usize,
}

impl Shape {
    /// Rows of most ops.
    fn tokens(&self) -> usize {
        self.sequences * self.new
    }

    /// A step of single tokens, `keys` of each sequence with the new one.
    const fn decode(sequences: usize, keys: usize) -> Self {
        Self { sequences, before: keys - 1, new: 1 }
    }

    /// A step of whole prompts.
    const fn prefill(sequences: usize, new: usize) -> Self {
        Self { sequences, before: 0, new }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sequences, before, new } = self;
        match new {
            1 => f.pad(&format!("{sequences} × 1 after {before}")),
            _ => f.pad(&format!("{sequences} × {new}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_by_number() {
        assert_eq!(ordinal("cuda:0"), Ok(0));
        assert_eq!(ordinal("cuda:12"), Ok(12));
        ["cuda", "cuda:", "cuda:x", "cpu", "0"].iter().for_each(|text| {
            assert!(ordinal(text).is_err(), "{text}");
        });
    }

    #[test]
    fn shapes_count_the_new_token_among_the_keys() {
        let shape = Shape::decode(8, 512);
        assert_eq!((shape.before, shape.tokens()), (511, 8));
        assert_eq!(Shape::prefill(16, 2048).tokens(), 32_768);
        assert_eq!(shape.to_string(), "8 × 1 after 511");
    }
}
