//! `tandem model`: fetch one, install, convert it, or say what one is.

use super::convert::{Width, convert};
use super::settings::Settings;
use super::{resolve_with, say};
use anyhow::Context;
use checkpoint::{Checkpoint, Dtype};
use clap::Subcommand;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What to do with a model.
#[derive(Subcommand, Debug)]
pub enum ModelCommand {
    /// Fetch a model into the cache and print its path.
    Fetch {
        /// A hub id (`org/name[@revision]`), `smollm2`, or `smollm2-gguf`.
        model: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// Make a model the one that this machine's services serve. They find it at their next start.
    Install {
        /// A folder, a .gguf file, or whatever `fetch` takes; what is fetched goes to
        /// /var/lib/tandem/models.
        model: String,
        /// The link that the services' configs name.
        #[arg(long, value_name = "PATH", default_value = "/var/lib/tandem/model")]
        link: PathBuf,
        #[command(flatten)]
        settings: Settings,
    },
    /// Write a model as Hugging Face's tools know it: a folder of config.json, model.safetensors
    /// and tokenizer.json.
    Convert {
        /// A .gguf file, a folder, or whatever `fetch` takes.
        model: String,
        /// Where to; it must not exist.
        folder: PathBuf,
        /// Of matrices; quantised ones are widened.
        #[arg(long, value_enum, default_value = "bf16")]
        dtype: Width,
        #[command(flatten)]
        settings: Settings,
    },
    /// Say what a model is: family, sizes, storage, tokenizer.
    Inspect {
        /// A folder, a .gguf file, or whatever `fetch` takes.
        model: String,
        /// List every tensor.
        #[arg(long)]
        tensors: bool,
        #[command(flatten)]
        settings: Settings,
    },
}

impl ModelCommand {
    /// Runs the command; its result is on standard output.
    ///
    /// # Errors
    /// The model cannot be had or opened.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Fetch { model, settings } => {
                let path = resolve_with(model, settings)?;
                Checkpoint::open(&path)?;
                println!("{}", path.display());
                Ok(())
            }
            Self::Install { model, link, settings } => {
                let path = resolve_with(model, &settings.with_cache_beside(link))?;
                install(&path, link)
            }
            Self::Convert { model, folder, dtype, settings } => {
                convert(&resolve_with(model, settings)?, folder, *dtype)
            }
            Self::Inspect { model, tensors, settings } => {
                inspect(&resolve_with(model, settings)?, *tensors)
            }
        }
    }
}

/// Points `link` at `path`, in one step: who opens it sees the old model or the new one.
fn install(path: &Path, link: &Path) -> anyhow::Result<()> {
    Checkpoint::open(path)?;
    let path = path.canonicalize()?;
    let next = link.with_extension("next");
    let made = match std::fs::remove_file(&next) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::os::unix::fs::symlink(&path, &next).and_then(|()| std::fs::rename(&next, link)),
    };
    made.with_context(|| format!("link {} to {}; are you root?", link.display(), path.display()))?;
    println!("{} -> {}", link.display(), path.display());
    Ok(())
}

fn inspect(path: &Path, tensors: bool) -> anyhow::Result<()> {
    let model = Checkpoint::open(path)?;
    let config = model.config();
    println!("model      {}", path.display());
    println!("family     {}", config.family);
    println!(
        "layers     {} of width {}, mlp {}",
        config.layers, config.hidden, config.intermediate
    );
    println!(
        "heads      {} query, {} key/value, size {}",
        config.heads, config.kv_heads, config.head_dim
    );
    println!("vocabulary {}{}", config.vocab, if config.tied { ", tied" } else { "" });
    println!("context    {} tokens, rope theta {}", config.max_positions, config.rope_theta);
    println!("weights    {}", storage(&model)?);
    println!("ends at    token ids {:?}", model.eos_token_ids());
    println!("template   {}", if model.chat_template().is_some() { "yes" } else { "none" });
    println!("tokenizer  {} bytes of tokenizer.json", model.tokenizer_json()?.len());
    println!("digest     {}", hex(&model.digest()?));
    if tensors {
        for name in model.tensor_names() {
            let tensor = model.tensor(name)?;
            println!("{name} {:?} {}", tensor.shape(), tensor.dtype());
        }
    } else {
        say("(--tensors lists every tensor)");
    }
    Ok(())
}

/// `135 M parameters, 98 MB: 210 Q4_1, 61 F32`.
fn storage(model: &Checkpoint) -> anyhow::Result<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut parameters = 0;
    for name in model.tensor_names() {
        let tensor = model.tensor(name)?;
        parameters += tensor.elements();
        *counts.entry(Dtype::to_string(&tensor.dtype())).or_default() += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    let (millions, megabytes) = (parameters / 1_000_000, model.stored_bytes() / 1_000_000);
    Ok(format!("{millions} M parameters, {megabytes} MB: {}", counts.join(", ")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
