//! What a model is: sizes and constants, one type for both sources, and the tensors they imply.

use crate::error::Error;
use std::fmt;
use std::path::Path;

/// The model families that there is a forward pass for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Family {
    /// Llama 2 and 3, `SmolLM2`: GQA, no biases.
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: q and k normalised per head before rope.
    Qwen3,
}

impl Family {
    /// Every family, for refusals that list what is known.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// Hugging Face's class name.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// Hugging Face's `model_type`, which is also GGUF's `general.architecture`.
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class())
    }
}

/// How rotary frequencies are stretched for a longer context.
#[derive(Clone, PartialEq, Debug)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length of the first training, in tokens.
        original_max_positions: usize,
    },
    /// GGUF's form of the same: a divisor for each of the `head_dim / 2` frequencies.
    Divisors(Vec<f32>),
}

/// Sizes and constants of a model. Every value is within the bounds of [`ModelConfig::MAX`], and
/// they fit each other: checked before this type is handed out.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelConfig {
    /// Which forward pass.
    pub family: Family,
    /// Rows of the embedding: token ids are below this.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of one head, even; `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Context length in tokens that the model was made for.
    pub max_positions: usize,
    /// Added to the mean square in every norm.
    pub rms_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretch of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// The output projection is the embedding: there is no `lm_head.weight`.
    pub tied: bool,
    /// First token of a text, by the model's configuration.
    pub bos_token_id: Option<u32>,
    /// Ends of a text, by the model's configuration alone; servers take
    /// [`crate::Checkpoint::eos_token_ids`].
    pub eos_token_ids: Vec<u32>,
}

/// Upper bounds of the sizes: far above any model, far below an overflow.
#[derive(Debug)]
pub struct Bounds {
    /// Of `vocab`.
    pub vocab: usize,
    /// Of `hidden` and `intermediate`.
    pub width: usize,
    /// Of `layers`.
    pub layers: usize,
    /// Of `heads` and `kv_heads`.
    pub heads: usize,
    /// Of `head_dim`.
    pub head_dim: usize,
    /// Of `max_positions`.
    pub positions: usize,
}

impl ModelConfig {
    /// Upper bounds of the sizes.
    pub const MAX: Bounds = Bounds {
        vocab: 1 << 22,
        width: 1 << 20,
        layers: 1 << 10,
        heads: 1 << 10,
        head_dim: 1 << 10,
        positions: 1 << 28,
    };

    /// q, k and v projections have biases.
    pub const fn qkv_bias(&self) -> bool {
        matches!(self.family, Family::Qwen2)
    }

    /// q and k are normalised per head before rope.
    pub const fn qk_norm(&self) -> bool {
        matches!(self.family, Family::Qwen3)
    }

    /// The `head_dim / 2` rotary frequencies in radians per position, stretched as configured.
    /// Computed in f64 and rounded once.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let pairs = self.head_dim / 2;
        let plain = |i: usize| self.rope_theta.powf(-((2 * i) as f64) / self.head_dim as f64);
        (0..pairs).map(|i| self.rope_scaling.stretch(i, plain(i)) as f32).collect()
    }

    /// Every tensor of the architecture with its shape, outermost dimension first, in file order.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, self.hidden])];
        for layer in 0..self.layers {
            let prefix = format!("model.layers.{layer}.");
            all.extend(
                self.layer().into_iter().map(|(name, shape)| (prefix.clone() + name, shape)),
            );
        }
        all.push(("model.norm.weight".to_owned(), vec![self.hidden]));
        if !self.tied {
            all.push(("lm_head.weight".to_owned(), vec![self.vocab, self.hidden]));
        }
        all
    }

    /// The tensors of one layer, by their names below `model.layers.N.`.
    fn layer(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut layer = vec![
            ("input_layernorm.weight", vec![self.hidden]),
            ("self_attn.q_proj.weight", vec![q, self.hidden]),
            ("self_attn.k_proj.weight", vec![kv, self.hidden]),
            ("self_attn.v_proj.weight", vec![kv, self.hidden]),
            ("self_attn.o_proj.weight", vec![self.hidden, q]),
            ("post_attention_layernorm.weight", vec![self.hidden]),
            ("mlp.gate_proj.weight", vec![self.intermediate, self.hidden]),
            ("mlp.up_proj.weight", vec![self.intermediate, self.hidden]),
            ("mlp.down_proj.weight", vec![self.hidden, self.intermediate]),
        ];
        if self.qkv_bias() {
            layer.push(("self_attn.q_proj.bias", vec![q]));
            layer.push(("self_attn.k_proj.bias", vec![kv]));
            layer.push(("self_attn.v_proj.bias", vec![kv]));
        }
        if self.qk_norm() {
            layer.push(("self_attn.q_norm.weight", vec![self.head_dim]));
            layer.push(("self_attn.k_norm.weight", vec![self.head_dim]));
        }
        layer
    }

    /// What no single field shows: whether they fit each other.
    pub(crate) fn check(self, path: &Path) -> Result<Self, Error> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of num_attention_heads = {}", self.heads);
            return Err(Error::field(path, "num_key_value_heads", self.kv_heads, expected));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::field(path, "head_dim", self.head_dim, "even, for rope's pairs"));
        }
        for &id in self.eos_token_ids.iter().chain(&self.bos_token_id) {
            if id as usize >= self.vocab {
                let expected = format!("a token id below vocab_size = {}", self.vocab);
                return Err(Error::field(path, "bos_token_id or eos_token_id", id, expected));
            }
        }
        Ok(self)
    }
}

impl RopeScaling {
    /// `frequency` number `pair`, stretched. `Llama3` as in Hugging Face transformers'
    /// `modeling_rope_utils`.
    fn stretch(&self, pair: usize, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Divisors(divisors) => frequency / f64::from(divisors[pair]),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let turns = *original_max_positions as f64 * frequency / std::f64::consts::TAU;
                let ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let keep = ramp.clamp(0.0, 1.0);
                (1.0 - keep) * frequency / factor + keep * frequency
            }
        }
    }
}
