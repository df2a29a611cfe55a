//! `tandem model convert`: a model, whatever its form, as a folder that Hugging Face's tools read.
//!
//! 1. Config, tokenizer and generation defaults are written as the checkpoint says them.
//! 2. Weights are streamed, tensor by tensor, into one safetensors file; those that are quantised
//!    are widened.
//! 3. The folder is opened again and held against the source; only then does it get its name.

use super::say;
use anyhow::{Context, bail, ensure};
use checkpoint::{Checkpoint, Dtype, Element, ModelConfig, RopeScaling, Tensor};
use clap::ValueEnum;
use half::bf16;
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Bytes widened at once.
const CHUNK: usize = 4 << 20;

/// How matrices are written. Vectors that are stored in f32 stay so: they are few, and exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Width {
    /// Rounded to nearest, as models are published.
    Bf16,
    /// Exactly what the source says, in twice the bytes.
    F32,
}

impl Width {
    const fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// The one in which `tensor` is written.
    fn of(self, tensor: &Tensor<'_>) -> Self {
        let exact = tensor.shape().len() == 1 && tensor.dtype() == Dtype::F32;
        if exact { Self::F32 } else { self }
    }
}

/// Writes the model at `path` into `folder`, which must not exist yet.
///
/// # Errors
/// The model cannot be opened, has no form in Hugging Face's layout, or cannot be written.
pub fn convert(path: &Path, folder: &Path, width: Width) -> anyhow::Result<()> {
    ensure!(!folder.exists(), "{} exists; name a folder that does not", folder.display());
    let model = Checkpoint::open(path)?;
    let mut part = folder.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    match fs::remove_dir_all(&part) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| part.display().to_string());
        }
        _ => fs::create_dir_all(&part).with_context(|| part.display().to_string())?,
    }
    say(&format!("{} -> {}", path.display(), folder.display()));
    write_json(&part.join("config.json"), config(&model, width)?)?;
    write_json(&part.join("generation_config.json"), generation_config(&model))?;
    write_json(&part.join("tokenizer_config.json"), tokenizer_config(&model))?;
    write(&part.join("tokenizer.json"), &model.tokenizer_json()?)?;
    weights(&model, &part.join("model.safetensors"), width)?;
    same(&model, &Checkpoint::open(&part)?).with_context(|| part.display().to_string())?;
    fs::rename(&part, folder).with_context(|| folder.display().to_string())?;
    println!("{}", folder.display());
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// What is null is left out.
fn write_json(path: &Path, value: Value) -> anyhow::Result<()> {
    let Value::Object(mut map) = value else { bail!("{}: not an object", path.display()) };
    map.retain(|_, value| !value.is_null());
    write(path, serde_json::to_string_pretty(&map)?.as_bytes())
}

fn config(model: &Checkpoint, width: Width) -> anyhow::Result<Value> {
    let config = model.config();
    // The shortest decimal that is this f32: 1e-5, not 9.99999974…e-6.
    let rms_eps: f64 = config.rms_eps.to_string().parse()?;
    let dtype = match width {
        Width::Bf16 => "bfloat16",
        Width::F32 => "float32",
    };
    Ok(json!({
        "architectures": [config.family.class()],
        "model_type": config.family.model_type(),
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": rms_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_scaling(config)?,
        "tie_word_embeddings": config.tied,
        "torch_dtype": dtype,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos(model),
    }))
}

fn rope_scaling(config: &ModelConfig) -> anyhow::Result<Value> {
    let scaling = match &config.rope_scaling {
        RopeScaling::Divisors(divisors) => named(config, divisors)?,
        known => known.clone(),
    };
    Ok(match scaling {
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_positions,
            })
        }
        RopeScaling::None | RopeScaling::Divisors(_) => Value::Null,
    })
}

/// A GGUF file has only what came of Llama 3's rule, a divisor a frequency. All models of that rule
/// share three of its constants and differ in the factor, which is the largest divisor; whether it
/// was that rule is seen by applying it.
fn named(config: &ModelConfig, divisors: &[f32]) -> anyhow::Result<RopeScaling> {
    let scaling = RopeScaling::Llama3 {
        factor: f64::from(divisors.iter().copied().fold(1.0, f32::max)),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    let guess = ModelConfig { rope_scaling: scaling.clone(), ..config.clone() };
    ensure!(
        same_frequencies(config, &guess),
        "its rotary frequencies are stretched by another rule than Llama 3's; config.json has no \
         form for that"
    );
    Ok(scaling)
}

/// Up to the rounding of divisors to f32.
fn same_frequencies(one: &ModelConfig, other: &ModelConfig) -> bool {
    const RELATIVE: f32 = 1e-5;
    let pairs = one.rope_frequencies().into_iter().zip(other.rope_frequencies());
    pairs.into_iter().all(|(one, other)| (one - other).abs() <= RELATIVE * one)
}

/// One id as a number, several as a list.
fn eos(model: &Checkpoint) -> Value {
    match model.eos_token_ids()[..] {
        [] => Value::Null,
        [id] => id.into(),
        ref ids => json!(ids),
    }
}

fn generation_config(model: &Checkpoint) -> Value {
    let defaults = model.generation_config();
    json!({
        "bos_token_id": model.config().bos_token_id,
        "eos_token_id": eos(model),
        "do_sample": defaults.do_sample,
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        "top_k": defaults.top_k,
        "min_p": defaults.min_p,
        "repetition_penalty": defaults.repetition_penalty,
        "max_new_tokens": defaults.max_new_tokens,
    })
}

fn tokenizer_config(model: &Checkpoint) -> Value {
    let special = model.special_tokens();
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config().max_positions,
        "clean_up_tokenization_spaces": false,
        "bos_token": special.bos,
        "eos_token": special.eos,
        "pad_token": special.pad,
        "unk_token": special.unk,
        "add_bos_token": special.add_bos,
        "add_eos_token": special.add_eos,
        "chat_template": model.chat_template(),
    })
}

/// The safetensors file: the length of a header, the header in JSON, the tensors one after another,
/// wide ones first so that each lies at a multiple of its width.
fn weights(model: &Checkpoint, path: &Path, width: Width) -> anyhow::Result<()> {
    let tensors = model.tensor_names().map(|name| model.tensor(name));
    let mut tensors = tensors.collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by_key(|tensor| std::cmp::Reverse(width.of(tensor).bytes()));
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for tensor in &tensors {
        let (start, width) = (end, width.of(tensor));
        end += tensor.elements() * width.bytes();
        let dtype = match width {
            Width::Bf16 => "BF16",
            Width::F32 => "F32",
        };
        let place = json!({"dtype": dtype, "shape": tensor.shape(), "data_offsets": [start, end]});
        header.insert(tensor.name().to_owned(), place);
    }
    let mut header = Value::from(header).to_string();
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));

    let at = || path.display().to_string();
    let mut out = BufWriter::with_capacity(CHUNK, File::create(path).with_context(at)?);
    out.write_all(&(header.len() as u64).to_le_bytes()).with_context(at)?;
    out.write_all(header.as_bytes()).with_context(at)?;
    let bar = ProgressBar::new(end as u64);
    for tensor in &tensors {
        match width.of(tensor) {
            Width::Bf16 => copy(tensor, &mut out, &bar, bf16::to_le_bytes),
            Width::F32 => copy(tensor, &mut out, &bar, f32::to_le_bytes),
        }
        .with_context(at)?;
    }
    bar.finish_and_clear();
    let file = out.into_inner().map_err(|error| error.into_error()).with_context(at)?;
    file.sync_all().with_context(at)
}

fn copy<T: Element, const N: usize>(
    tensor: &Tensor<'_>,
    out: &mut impl Write,
    bar: &ProgressBar,
    bytes: impl Fn(T) -> [u8; N],
) -> anyhow::Result<()> {
    let rows_each = (CHUNK / (tensor.row_len() * N).max(1)).max(1);
    let mut elements = vec![T::default(); rows_each.min(tensor.rows()) * tensor.row_len()];
    for start in (0..tensor.rows()).step_by(rows_each) {
        let rows = start..tensor.rows().min(start + rows_each);
        let elements = &mut elements[..rows.len() * tensor.row_len()];
        tensor.read(rows, elements)?;
        for &element in &*elements {
            out.write_all(&bytes(element))?;
        }
        bar.inc((elements.len() * N) as u64);
    }
    Ok(())
}

/// Whether what was written says what was read: all but the weights, whose shapes `open` has held
/// against the config.
fn same(source: &Checkpoint, written: &Checkpoint) -> anyhow::Result<()> {
    let rest = |model: &Checkpoint| ModelConfig {
        rope_scaling: RopeScaling::None,
        eos_token_ids: model.eos_token_ids(),
        ..model.config().clone()
    };
    ensure!(rest(source) == rest(written), "config.json came back as another one");
    ensure!(same_frequencies(source.config(), written.config()), "other rotary frequencies");
    ensure!(source.tokenizer_json()? == written.tokenizer_json()?, "another tokenizer.json");
    ensure!(source.special_tokens() == written.special_tokens(), "other special tokens");
    ensure!(source.chat_template() == written.chat_template(), "another chat template");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
    }

    #[test]
    fn a_folder_comes_back_as_itself() {
        for name in ["tiny-llama3", "tiny-qwen2", "tiny-qwen3"] {
            let parent = tempfile::tempdir().unwrap();
            let folder = parent.path().join("written");
            convert(&golden(name), &folder, Width::F32).unwrap();
            let (source, written) =
                (Checkpoint::open(golden(name)).unwrap(), Checkpoint::open(&folder).unwrap());
            assert_eq!(source.config(), written.config());
            assert_eq!(source.generation_config(), written.generation_config());
            for tensor in source.tensor_names() {
                let read =
                    |model: &Checkpoint| model.tensor(tensor).unwrap().to_vec::<f32>().unwrap();
                assert_eq!(read(&source), read(&written), "{tensor} of {name}");
            }
            let error = convert(&golden(name), &folder, Width::F32).unwrap_err().to_string();
            assert!(error.contains("exists; name a folder that does not"), "{error}");
        }
    }

    #[test]
    fn divisors_get_the_name_of_their_rule_back_or_are_refused() {
        let mut config = Checkpoint::open(golden("tiny-llama3")).unwrap().config().clone();
        for factor in [8.0, 32.0] {
            let rule = RopeScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_positions: 8192,
            };
            config.rope_theta = 500_000.0;
            config.rope_scaling = RopeScaling::None;
            let plain = config.rope_frequencies();
            config.rope_scaling = rule.clone();
            let stretched = config.rope_frequencies();
            let pairs = plain.iter().zip(&stretched);
            let mut divisors: Vec<_> = pairs.map(|(plain, stretched)| plain / stretched).collect();
            assert_eq!(named(&config, &divisors).unwrap(), rule);
            divisors[0] *= 1.5;
            config.rope_scaling = RopeScaling::Divisors(divisors.clone());
            let error = named(&config, &divisors).unwrap_err().to_string();
            assert!(error.contains("another rule than Llama 3's"), "{error}");
        }
    }
}
