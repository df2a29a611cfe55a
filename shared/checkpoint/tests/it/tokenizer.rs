//! Tokenizers built from GGUF metadata against those the models ship.

use crate::gguf_writer::{BF16, Gguf, Meta, from_golden};
use crate::golden;
use checkpoint::Checkpoint;
use proptest::prelude::*;
use std::sync::LazyLock;
use tokenizers::Tokenizer;

fn tokenizer(gguf: &Gguf) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let model = Checkpoint::open(gguf.write(folder.path())).unwrap();
    Tokenizer::from_bytes(model.tokenizer_json().unwrap()).unwrap()
}

fn with_split(name: &str) -> Gguf {
    let mut gguf = from_golden("tiny-qwen3", BF16);
    gguf.set("tokenizer.ggml.pre", Meta::Text(name.to_owned()));
    gguf
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

static SHIPPED: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_file(golden("tiny-qwen3/tokenizer.json")).unwrap());
static BUILT: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer(&with_split("smollm")));

proptest! {
    #[test]
    fn built_and_shipped_tokenizers_agree(text in "([a-z ]{0,9}|\\PC{0,6}|<\\|im_end\\|>|[0-9]{1,5}|\\s{1,3}){0,6}") {
        prop_assert_eq!(ids(&BUILT, &text), ids(&SHIPPED, &text));
        let ids = ids(&BUILT, &text);
        prop_assert_eq!(BUILT.decode(&ids, false).unwrap(), text);
    }
}

fn pieces(name: &str, text: &str) -> Vec<String> {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
    let tokenizer = tokenizer(&with_split(name));
    let mut cut = PreTokenizedString::from(text);
    tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut cut).unwrap();
    let pieces = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
    pieces.into_iter().map(|(piece, _, _)| piece.replace('Ġ', " ")).collect()
}

#[test]
fn each_name_cuts_text_its_own_way() {
    let text = "I'LL pay 12345 now";
    assert_eq!(pieces("gpt-2", text), ["I", "'", "LL", " pay", " 12345", " now"]);
    let digits = ["I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5", " now"];
    assert_eq!(pieces("smollm", text), digits);
    let qwen = ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " now"];
    assert_eq!(pieces("qwen2", text), qwen);
    assert_eq!(pieces("llama-bpe", text), ["I", "'LL", " pay", " ", "123", "45", " now"]);
}

#[test]
fn qwen_composes_accents_first() {
    let tokenizer = tokenizer(&with_split("qwen2"));
    assert_eq!(ids(&tokenizer, "e\u{301}"), ids(&tokenizer, "é"));
    assert_ne!(ids(&BUILT, "e\u{301}"), ids(&BUILT, "é"));
}

#[test]
fn first_and_last_tokens_are_added_when_the_file_says_so() {
    let mut gguf = with_split("smollm");
    let plain = ids(&BUILT, "the cat");
    gguf.set("tokenizer.ggml.add_bos_token", Meta::Bool(true));
    assert_eq!(ids(&tokenizer(&gguf), "the cat"), [&[1], &plain[..]].concat());
    gguf.set("tokenizer.ggml.add_eos_token", Meta::Bool(true));
    assert_eq!(ids(&tokenizer(&gguf), "the cat"), [&[1], &plain[..], &[2]].concat());
}

#[test]
fn llama3_adds_its_first_token_unless_the_file_says_no() {
    let mut gguf = with_split("llama-bpe");
    assert_eq!(ids(&tokenizer(&gguf), "the cat")[0], 1);
    gguf.set("tokenizer.ggml.add_bos_token", Meta::Bool(false));
    assert_ne!(ids(&tokenizer(&gguf), "the cat")[0], 1);
}
