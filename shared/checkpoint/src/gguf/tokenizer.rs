//! GGUF metadata → `tokenizer.json`, special tokens, chat template.
//!
//! The file holds vocabulary, merges and token types of a byte-level BPE; how text is split before
//! the merges is only named (`tokenizer.ggml.pre`) and comes from the table here. Token types:
//! 1 normal, 3 control (special), 4 user defined (added, not special), 5 unused (left out).

use super::Header;
use crate::error::Error;
use crate::fields::Fields;
use crate::hf::Text;
use crate::text::{GenerationConfig, SpecialTokens};
use serde_json::{Map, Value, json};
use std::path::Path;

const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How text is cut before the merges.
struct Split {
    /// The names that GGUF files give it.
    names: &'static [&'static str],
    nfc: bool,
    kind: SplitKind,
    /// A word that is in the vocabulary is not merged: llama 3.
    ignore_merges: bool,
    /// Where the file does not say.
    add_bos: bool,
}

enum SplitKind {
    /// GPT-2's own pattern.
    Gpt2,
    /// Single digits, then GPT-2's pattern.
    Digits,
    /// The pattern of cl100k and its children, with this many digits together.
    Cl100k(&'static str),
}

const SPLITS: [Split; 4] = [
    Split {
        names: &["smollm"],
        nfc: false,
        kind: SplitKind::Digits,
        ignore_merges: false,
        add_bos: false,
    },
    Split {
        names: &["qwen2", "deepseek-r1-qwen"],
        nfc: true,
        kind: SplitKind::Cl100k(""),
        ignore_merges: false,
        add_bos: false,
    },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3"],
        nfc: false,
        kind: SplitKind::Cl100k("{1,3}"),
        ignore_merges: true,
        add_bos: true,
    },
    Split {
        names: &["gpt-2"],
        nfc: false,
        kind: SplitKind::Gpt2,
        ignore_merges: false,
        add_bos: false,
    },
];

/// Vocabulary of the file, its parts checked against each other.
struct Vocabulary<'a> {
    tokens: &'a [String],
    types: &'a [i64],
    fields: Fields<'a>,
}

impl<'a> Vocabulary<'a> {
    fn read(path: &'a Path, header: &'a Header) -> Result<Self, Error> {
        let fields = Fields { path, prefix: "tokenizer.ggml.", map: &header.scalars };
        let list = "a list as long as the vocabulary";
        let tokens = header.strings.get("tokenizer.ggml.tokens");
        let tokens = tokens.ok_or_else(|| Error::missing(path, "tokenizer.ggml.tokens", list))?;
        let types = header.numbers.get("tokenizer.ggml.token_type");
        let types = types.ok_or_else(|| Error::missing(path, "tokenizer.ggml.token_type", list))?;
        if tokens.len() != types.len() || tokens.len() > u32::MAX as usize {
            let found = format!("{} long for {} tokens", types.len(), tokens.len());
            return Err(Error::field(path, "tokenizer.ggml.token_type", found, list));
        }
        Ok(Self { tokens, types, fields })
    }

    /// (id, text, type) of each token.
    fn iter(&self) -> impl Iterator<Item = (usize, &'a str, i64)> + '_ {
        let typed = self.tokens.iter().zip(self.types).enumerate();
        typed.map(|(id, (token, &kind))| (id, token.as_str(), kind))
    }

    /// Text of the token that `key` names.
    fn named(&self, key: &str) -> Result<Option<(u32, &'a str)>, Error> {
        let Some(id) = self.fields.id(key)? else { return Ok(None) };
        match self.tokens.get(id as usize) {
            Some(token) => Ok(Some((id, token))),
            None => Err(self.fields.wrong(key, "an id of the vocabulary")),
        }
    }
}

/// Chat template and special tokens. A GGUF file has no generation defaults.
pub(crate) fn text(path: &Path, header: &Header) -> Result<Text, Error> {
    let vocabulary = Vocabulary::read(path, header)?;
    let named = |key| Ok::<_, Error>(vocabulary.named(key)?.map(|(_, text)| text.to_owned()));
    let special = SpecialTokens {
        bos: named("bos_token_id")?,
        eos: named("eos_token_id")?,
        pad: named("padding_token_id")?,
        unk: named("unknown_token_id")?,
        add_bos: vocabulary.fields.flag("add_bos_token")?.unwrap_or(split(&vocabulary)?.add_bos),
        add_eos: vocabulary.fields.flag("add_eos_token")?.unwrap_or(false),
    };
    let top = Fields { prefix: "", ..vocabulary.fields };
    Ok(Text {
        special,
        generation: GenerationConfig::default(),
        chat_template: top.text("tokenizer.chat_template")?.map(str::to_owned),
        eos_token_id: vocabulary.fields.id("eos_token_id")?,
    })
}

/// The file's tokenizer as Hugging Face's `tokenizer.json`.
pub(crate) fn tokenizer_json(path: &Path, header: &Header) -> Result<Vec<u8>, Error> {
    let vocabulary = Vocabulary::read(path, header)?;
    let split = split(&vocabulary)?;
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(&vocabulary),
        "normalizer": if split.nfc { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": split.pre_tokenizer(),
        "post_processor": post_processor(&vocabulary, split)?,
        "decoder": byte_level(true, true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": split.ignore_merges,
            "vocab": vocab(&vocabulary),
            "merges": merges(path, header)?,
        },
    });
    Ok(tokenizer.to_string().into_bytes())
}

fn split(vocabulary: &Vocabulary<'_>) -> Result<&'static Split, Error> {
    let fields = &vocabulary.fields;
    if fields.text("model")? != Some("gpt2") {
        return Err(fields.refuse("model", "only gpt2, a byte-level BPE, is"));
    }
    let name = fields.text("pre")?.unwrap_or_default();
    SPLITS.iter().find(|split| split.names.contains(&name)).ok_or_else(|| {
        let known: Vec<_> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
        fields.refuse("pre", &format!("known are {}", known.join(", ")))
    })
}

impl Split {
    fn pre_tokenizer(&self) -> Value {
        match self.kind {
            SplitKind::Gpt2 => byte_level(true, true),
            SplitKind::Digits => sequence(&[
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true, true),
            ]),
            SplitKind::Cl100k(digits) => sequence(&[
                json!({
                    "type": "Split",
                    "pattern": {"Regex": cl100k(digits)},
                    "behavior": "Isolated",
                    "invert": false,
                }),
                byte_level(false, false),
            ]),
        }
    }
}

fn cl100k(digits: &str) -> String {
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        &format!(r"\p{{N}}{digits}"),
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|")
}

fn sequence(parts: &[Value; 2]) -> Value {
    json!({"type": "Sequence", "pretokenizers": parts})
}

fn byte_level(use_regex: bool, trim_offsets: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    })
}

fn is_added(kind: i64) -> bool {
    matches!(kind, CONTROL | USER_DEFINED)
}

fn added_tokens(vocabulary: &Vocabulary<'_>) -> Vec<Value> {
    let added = vocabulary.iter().filter(|(_, _, kind)| is_added(*kind));
    added
        .map(|(id, content, kind)| {
            json!({
                "id": id,
                "content": content,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": kind == CONTROL,
            })
        })
        .collect()
}

/// Added tokens stay out of the BPE's vocabulary unless they lie in front of it, as `SmolLM`'s do.
fn vocab(vocabulary: &Vocabulary<'_>) -> Map<String, Value> {
    let first_normal = vocabulary.types.iter().position(|&kind| kind == NORMAL);
    let in_front = |id| first_normal.is_some_and(|first| id < first);
    let kept = vocabulary
        .iter()
        .filter(|&(id, _, kind)| kind == NORMAL || (is_added(kind) && in_front(id)));
    kept.map(|(id, token, _)| (token.to_owned(), id.into())).collect()
}

fn merges(path: &Path, header: &Header) -> Result<Vec<Value>, Error> {
    let key = "tokenizer.ggml.merges";
    let merges = header.strings.get(key);
    let merges = merges.ok_or_else(|| Error::missing(path, key, "a list of merges"))?;
    let pair = |merge: &String| match merge.split_once(' ') {
        Some((left, right)) => Ok(json!([left, right])),
        None => Err(Error::field(path, key, merge, "two tokens with a space between")),
    };
    merges.iter().map(pair).collect()
}

fn post_processor(vocabulary: &Vocabulary<'_>, split: &Split) -> Result<Value, Error> {
    let flag = |key| vocabulary.fields.flag(key);
    let first = flag("add_bos_token")?.unwrap_or(split.add_bos);
    let last = flag("add_eos_token")?.unwrap_or(false);
    let mut special = Map::new();
    let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
    for (wanted, key, at) in [(first, "bos_token_id", 0), (last, "eos_token_id", usize::MAX)] {
        if !wanted {
            continue;
        }
        let Some((id, token)) = vocabulary.named(key)? else {
            return Err(vocabulary.fields.wrong(key, "given, since the tokenizer adds it"));
        };
        special.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        single.insert(at.min(single.len()), json!({"SpecialToken": {"id": token, "type_id": 0}}));
    }
    if special.is_empty() {
        return Ok(Value::Null);
    }
    let mut pair = single.clone();
    pair.push(json!({"Sequence": {"id": "B", "type_id": 1}}));
    Ok(json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": special,
    }))
}
