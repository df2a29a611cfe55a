//! What the gateway knows of the model: its tokenizer, chat template, stop ids and defaults.

use crate::config::Config;
use crate::error::Invalid;
use crate::reasoning::Style;
use crate::structured::Checker;
use crate::template::{Conversation, Template, TemplateError};
use crate::tokenize::{BadTokenizer, Tokenizer};
use crate::tools::Format;
use checkpoint::{Checkpoint, Family, GenerationConfig, SpecialTokens};
use serde_json::{Map, Value};
use shared::ids::TokenId;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The model, as far as text goes.
#[derive(Debug)]
pub struct Model {
    /// The name that clients use.
    pub served_name: String,
    /// Where it was read from.
    pub path: PathBuf,
    /// Its architecture.
    pub family: Family,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Ids that end an output: those of generation config, model config and tokenizer.
    pub eos: Vec<TokenId>,
    /// Sampling where a client says nothing.
    pub defaults: Defaults,
    /// Context length that the model was made for, tokens.
    pub context_length: u32,
    /// Elements of a hidden state.
    pub hidden: usize,
    /// When it was loaded, seconds since 1970.
    pub loaded_unix_s: u64,
    /// How it writes calls of tools; `None` leaves them in the text.
    pub calls: Option<Format>,
    /// How it writes its chain of thought; `None` leaves it in the text.
    pub thoughts: Option<Style>,
    /// Says whether grammars compile.
    pub grammars: Arc<Checker>,
    template: Option<Template>,
}

/// `generation_config.json`, as far as it gives defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Defaults {
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Mass of the nucleus.
    pub top_p: Option<f32>,
    /// Candidates kept.
    pub top_k: Option<u32>,
    /// Least probability relative to the best.
    pub min_p: Option<f32>,
    /// Factor against what prompt or output have.
    pub repetition_penalty: Option<f32>,
    /// Output tokens.
    pub max_tokens: Option<u32>,
}

/// Why a model is refused at start.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// Its tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] BadTokenizer),
    /// The chat template does not compile.
    #[error("chat template of {from}: {error}")]
    Template {
        /// The file.
        from: PathBuf,
        /// What is wrong with it.
        error: TemplateError,
    },
    /// The chat template's file cannot be read.
    #[error("chat template {path}: {error}")]
    TemplateFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A default is out of range.
    #[error("generation_config.json: {field} is {value}; want {want}")]
    Default {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// The range.
        want: &'static str,
    },
}

impl Model {
    /// Reads the text half of the checkpoint at `config.model`.
    ///
    /// # Errors
    /// [`LoadError`], naming the file and the field.
    pub fn load(config: &Config) -> Result<Self, LoadError> {
        let checkpoint = Checkpoint::open(&config.model)?;
        let tokenizer = Tokenizer::from_json(&checkpoint.tokenizer_json()?)?;
        let generation = checkpoint.generation_config();
        let (template, source) = template(config, &checkpoint)?.unzip();
        let calls = config.tool_call_parser.format(source.as_deref());
        let thoughts = config.reasoning_parser.style(source.as_deref());
        tracing::info!(?calls, ?thoughts, "formats of the model's output");
        let positions = u32::try_from(checkpoint.config().max_positions).unwrap_or(u32::MAX);
        Ok(Self {
            served_name: config
                .served_model_name
                .clone()
                .unwrap_or_else(|| checkpoint::name(&config.model)),
            path: config.model.clone(),
            family: checkpoint.config().family,
            tokenizer,
            eos: checkpoint.eos_token_ids().into_iter().map(TokenId::new).collect(),
            defaults: defaults(generation)?,
            context_length: config.context_length.map_or(positions, |own| own.min(positions)),
            hidden: checkpoint.config().hidden,
            loaded_unix_s: unix_s(),
            calls,
            thoughts,
            grammars: Arc::default(),
            template,
        })
    }

    /// The prompt text of a conversation that came in `field`.
    ///
    /// # Errors
    /// The model has no chat template, or the template refuses the conversation.
    pub fn render(&self, conversation: &Conversation, field: &str) -> Result<String, Invalid> {
        let Some(template) = &self.template else {
            let what = "the model has no chat template; start the gateway with --chat-template, or \
                        use /v1/completions";
            return Err(Invalid::field(field, what));
        };
        let refused = |err: TemplateError| Invalid::field(field, &err.to_string());
        template.render(conversation).map_err(refused)
    }
}

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The template, compiled, and its source.
fn template(
    config: &Config,
    checkpoint: &Checkpoint,
) -> Result<Option<(Template, String)>, LoadError> {
    let tokens = variables(checkpoint.special_tokens());
    let (from, source) = match &config.chat_template {
        Some(path) => {
            let read = std::fs::read_to_string(path);
            let failed = |error| LoadError::TemplateFile { path: path.clone(), error };
            (path.clone(), read.map_err(failed)?)
        }
        None => match checkpoint.chat_template() {
            Some(source) => (config.model.clone(), source.to_owned()),
            None => return Ok(None),
        },
    };
    match Template::compile(&source, tokens) {
        Ok(template) => Ok(Some((template, source))),
        Err(error) => Err(LoadError::Template { from, error }),
    }
}

fn variables(tokens: &SpecialTokens) -> Map<String, Value> {
    let named = [
        ("bos_token", &tokens.bos),
        ("eos_token", &tokens.eos),
        ("pad_token", &tokens.pad),
        ("unk_token", &tokens.unk),
    ];
    let known = named.into_iter().filter_map(|(name, token)| {
        token.as_ref().map(|token| (name.to_owned(), Value::String(token.clone())))
    });
    known.collect()
}

fn defaults(generation: &GenerationConfig) -> Result<Defaults, LoadError> {
    let refuse = |field, value, want| Err(LoadError::Default { field, value, want });
    match generation {
        GenerationConfig { temperature: Some(value), .. } if *value > 2.0 => {
            refuse("temperature", *value, "0 to 2")
        }
        GenerationConfig { top_p: Some(value), .. } if *value <= 0.0 => {
            refuse("top_p", *value, "above 0, at most 1")
        }
        _ => Ok(Defaults {
            temperature: generation.temperature.map(|value| value as f32),
            top_p: generation.top_p.map(|value| value as f32),
            top_k: generation.top_k,
            min_p: generation.min_p.map(|value| value as f32),
            repetition_penalty: generation.repetition_penalty.map(|value| value as f32),
            max_tokens: generation.max_new_tokens.and_then(|tokens| u32::try_from(tokens).ok()),
        }),
    }
}
