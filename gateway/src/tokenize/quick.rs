//! The quick way from text to ids, for byte-level tokenizers whose pattern is known.
//!
//! 1. Added tokens are cut out, the longest first of those that begin together.
//! 2. [`Words`] cuts what is between them.
//! 3. A word's ids are remembered; the `tokenizers` crate merges a word that is new.
//!
//! The ids are those of the crate's own `encode`, which keeps offsets, alignments and token texts
//! that nobody here reads. What is not known for certain to come out the same is left to it.

use super::words::Words;
use crate::pieces::byte_level_table;
use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;
use shared::ids::TokenId;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Mutex;
use tokenizers::{AddedToken, Model, Tokenizer};
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

/// Words remembered: with what is around them a few MB. A full table is emptied, for a language
/// has fewer words in use.
const WORDS_MAX: usize = 1 << 15;

/// Text to ids, for one tokenizer.
#[derive(Debug)]
pub struct Quick {
    words: Words,
    added: AhoCorasick,
    /// By the pattern's number.
    added_ids: Vec<TokenId>,
    /// Whether text is brought to normal form C.
    nfc: bool,
    /// What the post-processor puts before and after a text.
    around: (Vec<TokenId>, Vec<TokenId>),
    /// The character that stands for a byte.
    letters: [char; 256],
    known: Mutex<Known>,
}

type Known = HashMap<Word, Ids, foldhash::fast::RandomState>;

/// A short word, padded, and its length in the last byte: one cache line has it and its ids, and it
/// is hashed and compared as four numbers.
#[derive(Debug, PartialEq, Eq)]
struct Word([u64; 4]);

impl Word {
    /// `None` if it is longer than what is remembered.
    fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let (letters, len) = bytes.split_at_mut(31);
        letters.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        len[0] = text.len() as u8;
        let (numbers, _) = bytes.as_chunks();
        Some(Self(std::array::from_fn(|at| u64::from_ne_bytes(numbers[at]))))
    }
}

impl Hash for Word {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|&number| state.write_u64(number));
    }
}

/// Most words are one token.
#[derive(Debug)]
enum Ids {
    One(TokenId),
    Some(Box<[TokenId]>),
}

impl Quick {
    /// For the tokenizer that was read from `file`, if its way is known.
    pub fn new(file: &Value, tokenizer: &Tokenizer) -> Option<Self> {
        let nfc = match &file["normalizer"] {
            Value::Null => false,
            normalizer if normalizer["type"] == "NFC" => true,
            _ => return None,
        };
        let model = &file["model"];
        if model["type"] != "BPE" || !model["dropout"].is_null() {
            return None;
        }
        let added: Vec<(&u32, &AddedToken)> =
            tokenizer.get_added_vocabulary().get_added_tokens_decoder().iter().collect();
        let plain = |token: &AddedToken| {
            !(token.normalized || token.single_word || token.lstrip || token.rstrip)
        };
        if !added.iter().all(|(_, token)| plain(token)) {
            return None;
        }
        let contents = added.iter().map(|(_, token)| &token.content);
        let mut letters = ['\0'; 256];
        byte_level_table().into_iter().for_each(|(c, byte)| letters[usize::from(byte)] = c);
        Some(Self {
            words: Words::new(&file["pre_tokenizer"])?,
            added: AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(contents)
                .ok()?,
            added_ids: added.iter().map(|(id, _)| TokenId::new(**id)).collect(),
            nfc,
            around: around(tokenizer)?,
            letters,
            known: Mutex::default(),
        })
    }

    /// Token ids of `text`; `None` where only the crate's own `encode` knows them.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        add_special: bool,
    ) -> Option<Vec<TokenId>> {
        let changes = || is_nfc_quick(text.chars()) != IsNormalized::Yes;
        if self.nfc && !text.is_ascii() && changes() {
            return None;
        }
        let mut ids = Vec::with_capacity(text.len() / 4 + 4);
        // Whoever finds the table taken does without: no request waits for a long one.
        let mut known = self.known.try_lock().ok();
        let mut words = |text: &str, ids: &mut Vec<TokenId>| {
            self.words.each(text, |word| {
                let known = known.as_deref_mut();
                self.word(tokenizer, word, known, ids)
            })
        };
        if add_special {
            ids.extend(&self.around.0);
        }
        let mut from = 0;
        for found in self.added.find_iter(text) {
            words(&text[from..found.start()], &mut ids)?;
            ids.push(self.added_ids[found.pattern().as_usize()]);
            from = found.end();
        }
        words(&text[from..], &mut ids)?;
        if add_special {
            ids.extend(&self.around.1);
        }
        Some(ids)
    }

    fn word(
        &self,
        tokenizer: &Tokenizer,
        word: &str,
        known: Option<&mut Known>,
        ids: &mut Vec<TokenId>,
    ) -> Option<()> {
        let short = Word::new(word);
        match short.as_ref().and_then(|short| known.as_ref()?.get(short)) {
            Some(Ids::One(id)) => {
                ids.push(*id);
                return Some(());
            }
            Some(Ids::Some(found)) => {
                ids.extend_from_slice(found);
                return Some(());
            }
            None => {}
        }
        let spelled: String = word.bytes().map(|byte| self.letters[usize::from(byte)]).collect();
        let tokens = tokenizer.get_model().tokenize(&spelled).ok()?;
        let new = ids.len();
        ids.extend(tokens.iter().map(|token| TokenId::new(token.id)));
        if let (Some(known), Some(short)) = (known, short) {
            if known.len() >= WORDS_MAX {
                known.clear();
            }
            let found = match &ids[new..] {
                &[id] => Ids::One(id),
                some => Ids::Some(some.into()),
            };
            known.insert(short, found);
        }
        Some(())
    }
}

/// What is put before and after a text: the same for every text, so one that is short tells.
fn around(tokenizer: &Tokenizer) -> Option<(Vec<TokenId>, Vec<TokenId>)> {
    let encode = |add_special| {
        let encoding = tokenizer.encode_fast("a", add_special).ok()?;
        Some(encoding.get_ids().iter().map(|&id| TokenId::new(id)).collect::<Vec<_>>())
    };
    let (bare, whole) = (encode(false)?, encode(true)?);
    let at = whole.windows(bare.len().max(1)).position(|part| part == bare)?;
    Some((whole[..at].to_vec(), whole[at + bare.len()..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::LazyLock;

    const CL100K: [&str; 3] = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
        "{1,3}",
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ];

    /// A model of the golden data with another way to cut text.
    fn with(change: impl FnOnce(&mut Value)) -> (Tokenizer, Option<Quick>) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny-llama3");
        let text = std::fs::read(format!("{path}/tokenizer.json")).unwrap();
        let mut file = serde_json::from_slice(&text).unwrap();
        change(&mut file);
        let tokenizer = Tokenizer::from_bytes(file.to_string()).unwrap();
        let quick = Quick::new(&file, &tokenizer);
        (tokenizer, quick)
    }

    fn byte_level(use_regex: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex})
    }

    fn cl100k(digits: &str) -> Value {
        let pattern = [CL100K[0], digits, CL100K[2]].concat();
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                "invert": false},
            byte_level(false),
        ]})
    }

    static WAYS: LazyLock<[(Tokenizer, Quick); 4]> = LazyLock::new(|| {
        [
            with(|_| ()),
            with(|file| file["pre_tokenizer"] = byte_level(true)),
            with(|file| {
                file["pre_tokenizer"] = cl100k("");
                file["normalizer"] = json!({"type": "NFC"});
            }),
            with(|file| {
                file["pre_tokenizer"] = cl100k(CL100K[1]);
                file["model"]["ignore_merges"] = json!(true);
                file["post_processor"] = json!({
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                        {"Sequence": {"id": "B", "type_id": 1}}],
                    "special_tokens": {"<|endoftext|>":
                        {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
                });
            }),
        ]
        .map(|(tokenizer, quick)| (tokenizer, quick.expect("a known way")))
    });

    /// What the patterns tell apart, and the borders between.
    fn texts() -> impl Strategy<Value = String> {
        let pieces = [
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "\u{a0}",
            "\u{3000}",
            "\u{2028}",
            "\u{85}",
            "'",
            "'s",
            "'S",
            "'ſ",
            "'Re",
            "'ll",
            "'LL",
            "'d",
            "a",
            "It",
            "the",
            "é",
            "e\u{301}",
            "\u{301}",
            "ǅ",
            "ʰ",
            "中文",
            "ไทย",
            "한",
            "\u{1112}\u{1161}",
            "7",
            "12345",
            "٣",
            "Ⅷ",
            "½",
            "²",
            "一",
            ".",
            "!?",
            "--",
            "\u{200d}",
            "🙂",
            "_",
            "$",
            "<|im_start|>",
            "<|im",
            "|>",
        ];
        let piece = prop_oneof![
            4 => proptest::sample::select(pieces.to_vec()).prop_map(str::to_owned),
            1 => any::<char>().prop_map(String::from),
        ];
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn the_ids_are_those_of_the_crate(text in texts(), add_special: bool) {
            for (tokenizer, quick) in WAYS.iter() {
                let whole = tokenizer.encode(text.as_str(), add_special).unwrap();
                let whole: Vec<TokenId> =
                    whole.get_ids().iter().map(|&id| TokenId::new(id)).collect();
                if let Some(ids) = quick.encode(tokenizer, &text, add_special) {
                    prop_assert_eq!(ids, whole);
                } else {
                    prop_assert!(quick.nfc && !text.is_ascii());
                }
            }
        }
    }

    #[test]
    fn every_character_is_of_the_class_that_the_crate_has_it_in() {
        let (tokenizer, quick) = &WAYS[3];
        // All planes that have letters or numbers, and a bit of one that has none.
        let all: Vec<char> = (0..=0x4_0000).filter_map(char::from_u32).collect();
        for part in all.chunks(64) {
            // Runs of one class stay whole, and end with it.
            let text: String = part.iter().flat_map(|&c| ['a', c, c, '1', c, '.']).collect();
            let whole = tokenizer.encode_fast(text.as_str(), false).unwrap();
            let ids = quick.encode(tokenizer, &text, false).unwrap();
            let ids: Vec<u32> = ids.iter().map(|id| id.get()).collect();
            assert_eq!(ids, whole.get_ids(), "{part:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_left_to_the_crate() {
        let known = |change: fn(&mut Value)| with(change).1.is_some();
        assert!(known(|_| ()));
        assert!(!known(|file| file["normalizer"] = json!({"type": "NFKC"})));
        assert!(!known(|file| file["pre_tokenizer"] = json!({"type": "Whitespace"})));
        assert!(!known(|file| file["added_tokens"][0]["lstrip"] = json!(true)));
        assert!(!known(|file| file["pre_tokenizer"] = cl100k("{1,2}")));
    }
}
