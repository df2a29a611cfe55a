//! Chat template, special tokens and generation defaults of a model folder. All may be absent.

use super::{JSON_MAX, object, read_file};
use crate::error::Error;
use crate::fields::Fields;
use crate::text::{GenerationConfig, SpecialTokens};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// Longest `tokenizer.json`: ten times Qwen3's.
pub(crate) const TOKENIZER_MAX: u64 = 128 << 20;

/// What is beside the weights.
#[derive(Debug, Default)]
pub(crate) struct Text {
    pub special: SpecialTokens,
    pub generation: GenerationConfig,
    pub chat_template: Option<String>,
    /// Id of `special.eos`, by the tokenizer.
    pub eos_token_id: Option<u32>,
}

pub(crate) fn read(folder: &Path) -> Result<Text, Error> {
    let config_path = folder.join("tokenizer_config.json");
    let config = read_object(&config_path)?;
    let fields = Fields { path: &config_path, prefix: "", map: &config };
    let special = special_tokens(&fields)?;
    let template_path = folder.join("chat_template.jinja");
    let chat_template = match read_file(&template_path, JSON_MAX)? {
        Some(bytes) => Some(
            String::from_utf8(bytes)
                .map_err(|error| Error::malformed(&template_path, format!("not UTF-8: {error}")))?,
        ),
        None => chat_template(&fields)?,
    };
    let generation_path = folder.join("generation_config.json");
    let generation = read_object(&generation_path)?;
    let generation =
        GenerationConfig::parse(&Fields { path: &generation_path, prefix: "", map: &generation })?;
    let eos_token_id = match &special.eos {
        Some(eos) => added_token_id(folder, eos)?,
        None => None,
    };
    Ok(Text { special, generation, chat_template, eos_token_id })
}

/// The folder's `tokenizer.json`.
pub(crate) fn tokenizer_json(folder: &Path) -> Result<Vec<u8>, Error> {
    read_file(&folder.join("tokenizer.json"), TOKENIZER_MAX)?.ok_or_else(|| Error::NotAModel {
        path: folder.into(),
        reason: "the folder has no tokenizer.json (a fast tokenizer is needed)".to_owned(),
    })
}

fn read_object(path: &Path) -> Result<Map<String, Value>, Error> {
    match read_file(path, JSON_MAX)? {
        Some(bytes) => object(path, &bytes),
        None => Ok(Map::new()),
    }
}

fn special_tokens(fields: &Fields<'_>) -> Result<SpecialTokens, Error> {
    Ok(SpecialTokens {
        bos: special_token(fields, "bos_token")?,
        eos: special_token(fields, "eos_token")?,
        pad: special_token(fields, "pad_token")?,
        unk: special_token(fields, "unk_token")?,
        add_bos: fields.flag("add_bos_token")?.unwrap_or(false),
        add_eos: fields.flag("add_eos_token")?.unwrap_or(false),
    })
}

/// A token is its text, or an object with the text as `content`.
fn special_token(fields: &Fields<'_>, key: &str) -> Result<Option<String>, Error> {
    match fields.get(key) {
        Some(Value::Object(_)) => match fields.object(key)? {
            Some(token) => Ok(token.text("content")?.map(str::to_owned)),
            None => Ok(None),
        },
        _ => Ok(fields.text(key)?.map(str::to_owned)),
    }
}

/// One template, or a list of named ones of which `default` is taken.
fn chat_template(fields: &Fields<'_>) -> Result<Option<String>, Error> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
        template: String,
    }
    let Some(value @ Value::Array(_)) = fields.get("chat_template") else {
        return Ok(fields.text("chat_template")?.map(str::to_owned));
    };
    let named = Vec::<Named>::deserialize(value)
        .map_err(|_| fields.wrong("chat_template", "a template or a list of named templates"))?;
    match named.into_iter().find(|named| named.name == "default") {
        Some(named) => Ok(Some(named.template)),
        None => Err(fields.wrong("chat_template", "a list with one named `default`")),
    }
}

fn added_token_id(folder: &Path, content: &str) -> Result<Option<u32>, Error> {
    #[derive(Deserialize)]
    struct Tokenizer {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    let path = folder.join("tokenizer.json");
    let Some(bytes) = read_file(&path, TOKENIZER_MAX)? else { return Ok(None) };
    let tokenizer: Tokenizer = serde_json::from_slice(&bytes)
        .map_err(|error| Error::malformed(&path, format!("not a tokenizer.json: {error}")))?;
    let found = tokenizer.added_tokens.into_iter().find(|added| added.content == content);
    Ok(found.map(|added| added.id))
}
