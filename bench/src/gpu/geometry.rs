//! Sizes of models that are measured; their weights are random.

use clap::ValueEnum;
use model::forward::Sizes;

/// A model whose sizes are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Named {
    /// Qwen3-0.6B.
    #[value(name = "qwen3-0.6b")]
    Qwen3Small,
    /// Qwen3-8B.
    #[value(name = "qwen3-8b")]
    Qwen3Large,
}

/// What its ops' shapes follow from.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// As on the command line.
    pub name: &'static str,
    pub sizes: Sizes,
    pub layers: usize,
    /// Whether the embedding is the last product's weight.
    pub tied: bool,
}

impl Named {
    pub fn geometry(self) -> Geometry {
        let (kv_heads, head_dim, vocab, eps) = (8, 128, 151_936, 1e-6);
        match self {
            Self::Qwen3Small => Geometry {
                name: "qwen3-0.6b",
                sizes: Sizes {
                    hidden: 1024,
                    intermediate: 3072,
                    heads: 16,
                    kv_heads,
                    head_dim,
                    vocab,
                    eps,
                },
                layers: 28,
                tied: true,
            },
            Self::Qwen3Large => Geometry {
                name: "qwen3-8b",
                sizes: Sizes {
                    hidden: 4096,
                    intermediate: 12_288,
                    heads: 32,
                    kv_heads,
                    head_dim,
                    vocab,
                    eps,
                },
                layers: 36,
                tied: false,
            },
        }
    }
}

impl Geometry {
    /// Elements of a token's queries.
    pub fn q(&self) -> usize {
        self.sizes.heads * self.sizes.head_dim
    }

    /// Elements of a token's keys, or values, in a layer.
    pub fn kv(&self) -> usize {
        self.sizes.kv_heads * self.sizes.head_dim
    }

    /// Elements of a token's queries, keys and values.
    pub fn qkv(&self) -> usize {
        self.q() + 2 * self.kv()
    }
}
