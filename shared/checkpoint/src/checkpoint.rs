//! An open model: either source behind one view.

use crate::config::ModelConfig;
use crate::error::Error;
use crate::gguf::Header;
use crate::tensor::{Tensor, Weights};
use crate::text::{GenerationConfig, SpecialTokens};
use crate::{gguf, hf};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A model on disk, its files open, its headers checked. See the crate's documentation.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    source: Source,
    config: ModelConfig,
    weights: Weights,
    text: hf::Text,
}

#[derive(Debug)]
enum Source {
    Folder,
    Gguf(Box<Header>),
}

impl Checkpoint {
    /// Opens a Hugging Face model folder or a `.gguf` file.
    ///
    /// # Errors
    /// Whatever is missing, broken or not supported, by name: see [`Error`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let kind = std::fs::metadata(path).map_err(Error::io(path))?;
        let (source, config, mut weights, text) = if kind.is_dir() {
            let config = hf::read_config(path)?;
            (Source::Folder, config, hf::open(path)?, hf::read_text(path)?)
        } else if kind.is_file() {
            let (header, file) = gguf::open(path)?;
            let config = gguf::config(path, &header, &file)?;
            let text = gguf::text(path, &header)?;
            let weights = gguf::weights(path, &header, &config, file)?;
            (Source::Gguf(Box::new(header)), config, weights, text)
        } else {
            let reason = "neither a folder nor a file".to_owned();
            return Err(Error::NotAModel { path: path.into(), reason });
        };
        hold_against_architecture(path, &config, &mut weights)?;
        Ok(Self { path: path.into(), source, config, weights, text })
    }

    /// The folder or file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every tensor of the architecture and no other, by Hugging Face name.
    pub fn tensor_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.weights.tensors.keys().map(String::as_str)
    }

    /// A tensor by its Hugging Face name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        match self.weights.tensors.get_key_value(name) {
            Some((name, stored)) => Ok(Tensor::new(name, stored, &self.weights)),
            None => Err(Error::MissingTensor { name: name.to_owned(), path: self.path.clone() }),
        }
    }

    /// Bytes of all tensors as stored: the length of a loader's progress bar.
    pub fn stored_bytes(&self) -> u64 {
        let tensors = self.weights.tensors.iter();
        tensors.map(|(name, stored)| Tensor::new(name, stored, &self.weights).stored_bytes()).sum()
    }

    /// `tokenizer.json`: the folder's, or one built from the GGUF metadata.
    ///
    /// # Errors
    /// There is none, or the GGUF file names a tokenizer that is not known.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>, Error> {
        match &self.source {
            Source::Folder => hf::tokenizer_json(&self.path),
            Source::Gguf(header) => gguf::tokenizer_json(&self.path, header),
        }
    }

    /// The chat template in Jinja, if the model has one; of several the one named `default`.
    pub fn chat_template(&self) -> Option<&str> {
        self.text.chat_template.as_deref()
    }

    /// Special tokens by their text.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.text.special
    }

    /// Defaults of requests.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.text.generation
    }

    /// Every token that ends an answer: those of the generation config, of the model config and of
    /// the tokenizer, ascending. Empty if none of them names one.
    pub fn eos_token_ids(&self) -> Vec<u32> {
        let all: BTreeSet<u32> = (self.config.eos_token_ids.iter())
            .chain(&self.text.generation.eos_token_ids)
            .chain(&self.text.eos_token_id)
            .copied()
            .collect();
        all.into_iter().collect()
    }

    /// Tells models apart in handshakes and page hashes: blake3 over the configuration and, for
    /// each tensor, its name, dtype, shape and its first and last 4 KiB as stored. Reads a few MB
    /// whatever the model's size; not proof against one who edits the middle of a tensor.
    ///
    /// # Errors
    /// [`Error::Io`] from the files.
    pub fn digest(&self) -> Result<[u8; 32], Error> {
        let mut hasher = blake3::Hasher::new_derive_key("tandem checkpoint digest 1");
        hasher.update(format!("{:?}", self.config).as_bytes());
        for name in self.tensor_names() {
            let tensor = self.tensor(name)?;
            let facts = format!("\n{name} {} {:?} ", tensor.dtype(), tensor.shape());
            hasher.update(facts.as_bytes());
            tensor.sample(&mut hasher)?;
        }
        Ok(*hasher.finalize().as_bytes())
    }
}

/// Every tensor there in its shape, and none that would be ignored against the file's intent.
fn hold_against_architecture(
    path: &Path,
    config: &ModelConfig,
    weights: &mut Weights,
) -> Result<(), Error> {
    let mut kept = std::collections::BTreeMap::new();
    for (name, expected) in config.tensors() {
        let Some(stored) = weights.tensors.remove(&name) else {
            return Err(Error::MissingTensor { name, path: path.into() });
        };
        if stored.shape != expected {
            let (path, found) = (weights.path(&stored).into(), stored.shape);
            return Err(Error::Shape { name, path, found, expected });
        }
        kept.insert(name, stored);
    }
    let surplus = std::mem::replace(&mut weights.tensors, kept);
    match surplus.into_iter().find(|(name, _)| !may_be_ignored(name, config)) {
        None => Ok(()),
        Some((name, stored)) => {
            let (path, family) = (weights.path(&stored).into(), config.family.class());
            Err(Error::UnexpectedTensor { name, path, family })
        }
    }
}

/// Old files carry the rotary frequencies, which follow from the configuration; some tied models
/// carry the tied matrix twice, as transformers ignores it too.
fn may_be_ignored(name: &str, config: &ModelConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (config.tied && name == "lm_head.weight")
}
