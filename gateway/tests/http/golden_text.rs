//! Text against golden data: templates and ids as transformers made them.

use crate::support::{config, golden, model};
use gateway::detokenize::{Detokenizer, decode_all};
use gateway::model::Model;
use gateway::template::Conversation;
use proptest::prelude::*;
use serde_json::Value;
use shared::ids::TokenId;
use std::sync::{Arc, LazyLock};

static TINY: LazyLock<Arc<Model>> = LazyLock::new(model);

fn ids(value: &Value) -> Vec<TokenId> {
    let list = value.as_array().unwrap();
    list.iter().map(|id| TokenId::new(u32::try_from(id.as_u64().unwrap()).unwrap())).collect()
}

#[test]
fn tiny_template_renders_chatml() {
    let conversation = Conversation {
        messages: vec![serde_json::json!({"role": "user", "content": "Hi"})],
        add_generation_prompt: true,
        ..Conversation::default()
    };
    let text = TINY.render(&conversation, "messages").unwrap();
    assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    let ids = TINY.tokenizer.encode(&text, false).unwrap();
    assert_eq!(ids[0], TokenId::new(1), "a special token is one id");
    assert_eq!(decode_all(TINY.tokenizer.pieces(), &ids, false), text);
    assert_eq!(TINY.eos, [TokenId::new(2)]);
}

#[test]
fn a_chat_template_of_ones_own_wins() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{{ messages[0].content }}{{ eos_token }}").unwrap();
    let own = |settings: &mut gateway::config::Settings| {
        settings.chat_template = Some(file.path().into());
    };
    let conversation = Conversation {
        messages: vec![serde_json::json!({"role": "user", "content": "Hi"})],
        ..Conversation::default()
    };
    let text = Model::load(&config(own)).unwrap().render(&conversation, "messages").unwrap();
    assert_eq!(text, "Hi<|im_end|>");
    std::fs::write(file.path(), "{% if %}").unwrap();
    let refused = Model::load(&config(own)).unwrap_err().to_string();
    assert!(refused.contains("chat template of") && refused.contains("line 1"), "{refused}");
}

proptest! {
    #[test]
    fn any_text_comes_back_whole_and_in_whole_characters(text in "\\PC{0,60}") {
        let ids = TINY.tokenizer.encode(&text, false).unwrap();
        let mut detokenizer = Detokenizer::new(Arc::clone(TINY.tokenizer.pieces()), false);
        let pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
        prop_assert_eq!(pieces.concat(), text);
    }

    #[test]
    fn any_ids_decode_as_the_tokenizers_crate_has_them(
        ids in proptest::collection::vec(0_u32..512, 0..40), skip: bool,
    ) {
        let json = std::fs::read(golden("tiny-qwen3/tokenizer.json")).unwrap();
        static REFERENCE: std::sync::OnceLock<tokenizers::Tokenizer> = std::sync::OnceLock::new();
        let reference = REFERENCE.get_or_init(|| tokenizers::Tokenizer::from_bytes(json).unwrap());
        let expected = reference.decode(&ids, skip).unwrap();
        let ids: Vec<TokenId> = ids.into_iter().map(TokenId::new).collect();
        prop_assert_eq!(decode_all(TINY.tokenizer.pieces(), &ids, skip), expected);
    }
}

/// The demo model's file, where `TANDEM_DEMO_MODEL` names it.
fn demo() -> Option<Model> {
    let (_, path) = std::env::vars_os().find(|(name, _)| name == "TANDEM_DEMO_MODEL")?;
    Some(Model::load(&config(|settings| settings.model = Some(path.into()))).unwrap())
}

#[test]
fn demo_model_prompts_and_outputs_are_the_golden_ones() {
    let Some(model) = demo() else { return };
    let golden = std::fs::read(golden("smollm2-135m.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let id = &case["id"];
        let text = match case["messages"].as_array() {
            Some(messages) => {
                let conversation = Conversation {
                    messages: messages.clone(),
                    add_generation_prompt: true,
                    ..Conversation::default()
                };
                model.render(&conversation, "messages").unwrap()
            }
            None => case["prompt"].as_str().unwrap().to_owned(),
        };
        assert_eq!(text, case["prompt_text"].as_str().unwrap(), "{id}");
        let prompt = model.tokenizer.encode(&text, false).unwrap();
        assert_eq!(prompt, ids(&case["prompt_ids"]), "{id}");
        let mut output = ids(&case["output_ids"]);
        if let Some(stop_at) = case["stop_at"].as_u64() {
            output.truncate(usize::try_from(stop_at).unwrap());
        }
        let shown = decode_all(model.tokenizer.pieces(), &output, true);
        assert_eq!(shown, case["output_text"].as_str().unwrap(), "{id}");
    }
}
