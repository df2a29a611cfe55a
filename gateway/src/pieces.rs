//! The bytes of every token, taken from `tokenizer.json` once.
//!
//! With bytes a token, detokenising is appending: O(1) a token, exact, and no window of earlier
//! tokens has to be decoded again. The rules are those of the file's decoder:
//!
//! - *byte-level* (Qwen, Llama 3, `SmolLM2`): each character stands for one byte, by GPT-2's
//!   table; a token with a character outside the table stands for its own UTF-8;
//! - *byte-fallback* (Llama 2, Mistral, Gemma): `<0xE2>` is a byte, `▁` a space, and a space that
//!   opens the output is dropped where the decoder says so.

use serde_json::Value;
use shared::ids::TokenId;
use std::collections::HashMap;

/// Highest token id accepted, far above any vocabulary: bounds the table.
const MAX_ID: u32 = 1 << 22;

/// Why the tokens of a `tokenizer.json` cannot be turned into bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPieces {
    /// A decoder that works in another way.
    #[error("decoder {0} is not supported; ByteLevel, ByteFallback and Metaspace are")]
    UnknownDecoder(String),
    /// An id that no vocabulary has.
    #[error("token {token:?} has id {id}; want at most {MAX_ID}")]
    IdTooLarge {
        /// The token as written.
        token: String,
        /// Its id.
        id: u32,
    },
}

/// Bytes of every token of a vocabulary.
#[derive(Debug)]
pub struct Pieces {
    /// Token `id` is `bytes[ends[id - 1]..ends[id]]`.
    ends: Vec<u32>,
    bytes: Vec<u8>,
    special: Vec<bool>,
    strips_first_space: bool,
    longest: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    ByteLevel,
    Spaced,
}

impl Pieces {
    /// Bytes for `vocab`, (id, token as written in the file), under the file's `decoder`.
    /// `special` are the ids that `skip_special_tokens` leaves out.
    ///
    /// # Errors
    /// A decoder that is not known, or an id beyond any vocabulary.
    pub fn new(
        decoder: &Value,
        vocab: impl IntoIterator<Item = (u32, String)>,
        special: &[u32],
    ) -> Result<Self, BadPieces> {
        let (rule, strips_first_space) = rule(decoder)?;
        let table = byte_level_table();
        let mut tokens: Vec<(u32, String)> = vocab.into_iter().collect();
        tokens.sort_unstable();
        tokens.dedup_by_key(|(id, _)| *id);
        let mut pieces = Self {
            ends: Vec::new(),
            bytes: Vec::new(),
            special: Vec::new(),
            strips_first_space,
            longest: 1,
        };
        for (id, token) in tokens {
            if id > MAX_ID {
                return Err(BadPieces::IdTooLarge { token, id });
            }
            pieces.ends.resize(id as usize, pieces.bytes.len() as u32); // ids without a token
            let start = pieces.bytes.len();
            match rule {
                Rule::ByteLevel => push_byte_level(&mut pieces.bytes, &token, &table),
                Rule::Spaced => push_spaced(&mut pieces.bytes, &token),
            }
            pieces.ends.push(pieces.bytes.len() as u32);
            pieces.longest = pieces.longest.max(pieces.bytes.len() - start);
        }
        pieces.special = vec![false; pieces.ends.len()];
        for &id in special {
            if let Some(flag) = pieces.special.get_mut(id as usize) {
                *flag = true;
            }
        }
        Ok(pieces)
    }

    /// The token's bytes, not always whole characters; empty for an id without a token.
    pub fn bytes(&self, id: TokenId) -> &[u8] {
        let id = id.get() as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// Whether `skip_special_tokens` leaves the token out.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.special.get(id.get() as usize).copied().unwrap_or(false)
    }

    /// One more than the highest id.
    pub fn count(&self) -> u32 {
        self.ends.len() as u32
    }

    /// Whether a space that opens the output is dropped.
    pub fn strips_first_space(&self) -> bool {
        self.strips_first_space
    }

    /// Length of the longest token, bytes: a text of `n` bytes has at least `n / longest` tokens.
    pub fn longest(&self) -> usize {
        self.longest
    }
}

/// The rule of a decoder, and whether it drops a space that opens the output.
fn rule(decoder: &Value) -> Result<(Rule, bool), BadPieces> {
    let steps: Vec<&Value> = match decoder["decoders"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![decoder],
    };
    let named = |name: &str| steps.iter().find(|step| step["type"] == name);
    if named("ByteLevel").is_some() {
        return Ok((Rule::ByteLevel, false));
    }
    if let Some(metaspace) = named("Metaspace") {
        let prepends = metaspace["prepend_scheme"] != "never";
        return Ok((Rule::Spaced, prepends));
    }
    if named("ByteFallback").is_some() {
        let strips = named("Strip").is_some_and(|strip| strip["start"] != 0);
        return Ok((Rule::Spaced, strips));
    }
    let names: Vec<String> = steps.iter().map(|step| step["type"].to_string()).collect();
    Err(BadPieces::UnknownDecoder(names.join(", ")))
}

fn push_byte_level(bytes: &mut Vec<u8>, token: &str, table: &HashMap<char, u8>) {
    let start = bytes.len();
    for c in token.chars() {
        let Some(&byte) = table.get(&c) else {
            bytes.truncate(start);
            bytes.extend_from_slice(token.as_bytes());
            return;
        };
        bytes.push(byte);
    }
}

fn push_spaced(bytes: &mut Vec<u8>, token: &str) {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => bytes.push(byte),
        None => bytes.extend_from_slice(token.replace('▁', " ").as_bytes()),
    }
}

/// GPT-2's table: printable Latin-1 stands for itself, the other bytes, in order, for the
/// characters from U+0100 on.
pub(crate) fn byte_level_table() -> HashMap<char, u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..=255_u8).filter(|&b| !printable(b));
    let shifted = others.zip('\u{100}'..).map(|(byte, c)| (c, byte));
    (0..=255_u8).filter(|&b| printable(b)).map(|b| (char::from(b), b)).chain(shifted).collect()
}
