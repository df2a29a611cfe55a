//! Tokens to text as they come, never half a character.
//!
//! 1. [`Detokenizer::push`] appends a token's bytes and returns the text that is now certain.
//! 2. Bytes that may still become a character wait, at most three of them; bytes that never can
//!    become U+FFFD, as a whole-text lossy decode has them.
//! 3. Bytes that still wait when the output ends are dropped: they are half a character.
//!
//! **Invariant:** the texts of all pushes, joined, are the lossy decode of all bytes so far, less
//! an unfinished last character.

use crate::pieces::Pieces;
use shared::ids::TokenId;
use std::sync::Arc;

/// Decodes one output.
#[derive(Debug)]
pub struct Detokenizer {
    pieces: Arc<Pieces>,
    skip_special: bool,
    at_start: bool,
    waiting: Vec<u8>,
}

impl Detokenizer {
    /// For an output that starts now; `skip_special` leaves special tokens out.
    pub fn new(pieces: Arc<Pieces>, skip_special: bool) -> Self {
        let at_start = pieces.strips_first_space();
        Self { pieces, skip_special, at_start, waiting: Vec::new() }
    }

    /// Takes the next token; returns the text that it completes, maybe none.
    pub fn push(&mut self, id: TokenId) -> String {
        if self.skip_special && self.pieces.is_special(id) {
            return String::new();
        }
        let mut bytes = self.pieces.bytes(id);
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.waiting.extend_from_slice(bytes);
        let (text, used) = certain(&self.waiting);
        self.waiting.drain(..used);
        text
    }
}

/// The text of a whole list of tokens, an unfinished last character as U+FFFD.
pub fn decode_all(pieces: &Arc<Pieces>, ids: &[TokenId], skip_special: bool) -> String {
    let mut detokenizer = Detokenizer::new(Arc::clone(pieces), skip_special);
    let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    text.push_str(&String::from_utf8_lossy(&detokenizer.waiting));
    text
}

/// The text that `bytes` begin with for certain, and how many bytes that took.
fn certain(bytes: &[u8]) -> (String, usize) {
    let mut text = String::with_capacity(bytes.len());
    let mut used = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        used += chunk.valid().len();
        let invalid = chunk.invalid();
        let unfinished = used + invalid.len() == bytes.len()
            && std::str::from_utf8(invalid).is_err_and(|err| err.error_len().is_none());
        if invalid.is_empty() || unfinished {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        used += invalid.len();
    }
    (text, used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Tokens 0..256 are single bytes, 256 a special token, 257 a token outside the byte table.
    fn byte_pieces() -> Arc<Pieces> {
        let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let mut next = 0x100;
        let mut vocab: Vec<(u32, String)> = (0..=255_u8)
            .map(|byte| {
                let code = if printable(byte) { u32::from(byte) } else { next };
                next += u32::from(!printable(byte));
                (u32::from(byte), char::from_u32(code).unwrap().to_string())
            })
            .collect();
        vocab.push((256, "<|end|>".into()));
        vocab.push((257, "<｜中｜>".into()));
        Arc::new(Pieces::new(&json!({"type": "ByteLevel"}), vocab, &[256]).unwrap())
    }

    fn stream(ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = Detokenizer::new(byte_pieces(), skip_special);
        ids.iter().map(|&id| detokenizer.push(TokenId::new(id))).collect()
    }

    proptest! {
        #[test]
        fn any_text_byte_by_byte_is_the_same_whole(text in "\\PC{0,40}") {
            let ids: Vec<u32> = text.bytes().map(u32::from).collect();
            prop_assert_eq!(stream(&ids, true), text);
        }

        #[test]
        fn any_bytes_are_the_lossy_decode_less_an_unfinished_end(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let ids: Vec<u32> = bytes.iter().map(|&b| u32::from(b)).collect();
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            let unfinished = (1..=3.min(bytes.len())).any(|n| {
                let tail = &bytes[bytes.len() - n..];
                let error = std::str::from_utf8(tail).err();
                error.is_some_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
            });
            let finished = whole.strip_suffix('\u{FFFD}').filter(|_| unfinished);
            let expected = finished.unwrap_or(&whole);
            prop_assert_eq!(stream(&ids, true), expected);
            let ids: Vec<TokenId> = ids.into_iter().map(TokenId::new).collect();
            prop_assert_eq!(decode_all(&byte_pieces(), &ids, true), whole);
        }
    }

    #[test]
    fn special_tokens_are_left_out_on_demand() {
        let ids = [u32::from(b'a'), 256, 257, 999];
        assert_eq!(stream(&ids, true), "a<｜中｜>");
        assert_eq!(stream(&ids, false), "a<|end|><｜中｜>");
    }

    #[test]
    fn byte_fallback_joins_bytes_and_drops_the_first_space() {
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let vocab = ["▁Hi", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "▁you"];
        let vocab = (0..).zip(vocab.map(str::to_owned));
        let pieces = Arc::new(Pieces::new(&decoder, vocab, &[]).unwrap());
        let mut detokenizer = Detokenizer::new(pieces, true);
        let texts: Vec<String> = (0..6).map(|id| detokenizer.push(TokenId::new(id))).collect();
        assert_eq!(texts, ["Hi", "", "", "", "🙂", " you"]);
    }

    #[test]
    fn an_unknown_decoder_is_refused_by_name() {
        let refused = Pieces::new(&json!({"type": "WordPiece"}), [], &[]).unwrap_err();
        assert!(refused.to_string().contains("WordPiece"), "{refused}");
    }
}
