//! Walk 3/12. Before: `validate.rs`, whose prompts may still be text; a conversation is rendered by
//! the model's template first ([`Model::render`]). After: `fleet/route.rs`, which sees token ids
//! only.
//!
//! A long text is encoded on a blocking thread, at most one a core at a time, so that streams of
//! others go on; a short one is encoded in place, which is quicker than the hop. A text that
//! cannot fit, however its tokens fall, is refused before it is encoded.

mod quick;
mod words;

use crate::error::Invalid;
use crate::model::Model;
use crate::pieces::{BadPieces, Pieces};
use crate::validate::{Content, Prompt};
use quick::Quick;
use serde_json::Value;
use shared::ids::TokenId;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Longest text that is encoded in place, bytes: about a millisecond.
const IN_PLACE: usize = 2048;

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Where there is a quicker way than the crate's.
    quick: Option<Quick>,
    pieces: Arc<Pieces>,
    blocking: Arc<Semaphore>,
}

/// Why a `tokenizer.json` is refused.
#[derive(Debug, thiserror::Error)]
pub enum BadTokenizer {
    /// Not a tokenizer of the `tokenizers` crate.
    #[error("tokenizer.json: {0}")]
    Unreadable(String),
    /// Its tokens have no bytes that we know.
    #[error("tokenizer.json: {0}")]
    Pieces(#[from] BadPieces),
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`BadTokenizer`] with the reason.
    pub fn from_json(json: &[u8]) -> Result<Self, BadTokenizer> {
        let unreadable = |err: &dyn std::fmt::Display| BadTokenizer::Unreadable(err.to_string());
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|err| unreadable(&err))?;
        // A file may carry the truncation of its maker's last call; a prompt is never cut here.
        inner.with_truncation(None).map_err(|err| unreadable(&err))?;
        inner.with_padding(None);
        let file: Value = serde_json::from_slice(json).map_err(|err| unreadable(&err))?;
        let added = inner.get_added_tokens_decoder();
        let special: Vec<u32> =
            added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let vocab = inner.get_vocab(true).into_iter().map(|(token, id)| (id, token));
        let pieces = Arc::new(Pieces::new(&file["decoder"], vocab, &special)?);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let quick = Quick::new(&file, &inner);
        Ok(Self { inner, quick, pieces, blocking: Arc::new(Semaphore::new(cores)) })
    }

    /// Token ids of `text`; `add_special` adds what the file's post-processor adds (a bos token).
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, String> {
        let quick = self.quick.as_ref();
        if let Some(ids) = quick.and_then(|quick| quick.encode(&self.inner, text, add_special)) {
            return Ok(ids);
        }
        let encoding = self.inner.encode_fast(text, add_special).map_err(|err| err.to_string())?;
        Ok(encoding.get_ids().iter().map(|&id| TokenId::new(id)).collect())
    }

    /// Bytes of every token.
    pub fn pieces(&self) -> &Arc<Pieces> {
        &self.pieces
    }

    /// The token as the file writes it, if there is one of that id.
    pub fn token(&self, id: TokenId) -> Option<String> {
        self.inner.id_to_token(id.get())
    }
}

/// The prompt of a conversation whose text the chat template made, special tokens and all.
pub fn chat_prompt(text: String) -> Prompt {
    Prompt { field: "messages".into(), content: Content::Text { text, add_special: false } }
}

/// Token ids of a prompt: 1 to `tokens_max` of them.
///
/// # Errors
/// The prompt is empty or longer than `tokens_max`, or the tokenizer refuses it.
pub async fn tokenize(
    model: &Arc<Model>,
    prompt: Prompt,
    tokens_max: u32,
) -> Result<Vec<TokenId>, Invalid> {
    let Prompt { field, content } = prompt;
    let (text, add_special) = match content {
        Content::Ids(ids) => return fits(ids, &field, tokens_max),
        Content::Text { text, add_special } => (text, add_special),
    };
    let least = text.len() / model.tokenizer.pieces().longest();
    if least > tokens_max as usize {
        return Err(too_long(&field, &format!("at least {least}"), tokens_max));
    }
    let encoded = encode(model, text, add_special).await;
    fits(encoded.map_err(|reason| Invalid::field(&*field, &reason))?, &field, tokens_max)
}

async fn encode(
    model: &Arc<Model>,
    text: String,
    add_special: bool,
) -> Result<Vec<TokenId>, String> {
    if text.len() <= IN_PLACE {
        return model.tokenizer.encode(&text, add_special);
    }
    let blocking = Arc::clone(&model.tokenizer.blocking);
    let permit = blocking.acquire_owned().await.map_err(|err| err.to_string())?;
    let model = Arc::clone(model);
    let task = move || {
        let _permit = permit; // held until the thread is done, even if its client has gone
        model.tokenizer.encode(&text, add_special)
    };
    tokio::task::spawn_blocking(task).await.map_err(|err| err.to_string())?
}

fn fits(ids: Vec<TokenId>, field: &str, tokens_max: u32) -> Result<Vec<TokenId>, Invalid> {
    match ids.len() {
        0 => Err(Invalid::field(field, "is empty; want at least one token")),
        len if len > tokens_max as usize => Err(too_long(field, &len.to_string(), tokens_max)),
        _ => Ok(ids),
    }
}

fn too_long(field: &str, tokens: &str, tokens_max: u32) -> Invalid {
    let message = format!(
        "This model's maximum context length is {tokens_max} tokens; the prompt has {tokens}. \
         Please reduce its length"
    );
    Invalid::too_long(field, message)
}
