//! The demo model, SmolLM2-135M-Instruct as GGUF, against reference data made with gguf-py and
//! transformers. `TANDEM_DEMO_MODEL` names the file; `ops/test` sets it.

use crate::golden;
use checkpoint::{Checkpoint, Dtype, Family};
use half::bf16;
use serde_json::Value;

fn demo() -> Checkpoint {
    let path = std::env::var_os("TANDEM_DEMO_MODEL")
        .expect("TANDEM_DEMO_MODEL must name the demo model's .gguf file; ops/test sets it");
    Checkpoint::open(path).unwrap()
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

#[test]
fn demo_weights_are_bit_equal_to_the_reference_conversion() {
    let (model, reference) = (demo(), json("smollm2-135m.digests.json"));
    let reference = reference["tensors"].as_object().unwrap();
    assert!(model.tensor_names().eq(reference.keys().map(String::as_str)));
    for (name, expected) in reference {
        let tensor = model.tensor(name).unwrap();
        assert_eq!(serde_json::json!(tensor.shape()), expected["shape"], "{name}");
        let weights: Vec<bf16> = tensor.to_vec().unwrap();
        let bytes: Vec<u8> = weights.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(blake3::hash(&bytes).to_string(), expected["blake3"], "{name}");
    }
}

#[test]
fn demo_tokenizer_encodes_as_the_reference() {
    let tokenizer = demo().tokenizer_json().unwrap();
    let tokenizer = tokenizers::Tokenizer::from_bytes(tokenizer).unwrap();
    let reference = json("smollm2-135m.json");
    let cases = reference["cases"].as_array().unwrap();
    assert!(cases.len() >= 8);
    for case in cases {
        let text = case["prompt_text"].as_str().unwrap();
        let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(serde_json::json!(ids), case["prompt_ids"], "{}", case["id"]);
    }
}

#[test]
fn demo_facts() {
    let model = demo();
    let config = model.config();
    assert_eq!((config.family, config.tied), (Family::Llama, true));
    assert_eq!((config.layers, config.hidden, config.intermediate), (30, 576, 1536));
    assert_eq!((config.heads, config.kv_heads, config.head_dim), (9, 3, 64));
    assert_eq!((config.vocab, config.max_positions), (49_152, 8192));
    assert_eq!((config.rope_theta, config.rms_eps), (100_000.0, 1e-5));
    assert_eq!(model.tensor("model.embed_tokens.weight").unwrap().dtype(), Dtype::Q8_0);
    assert_eq!(model.eos_token_ids(), [2]);
    assert!(model.chat_template().unwrap().contains("You are a helpful AI assistant named SmolLM"));
    let special = model.special_tokens();
    assert_eq!(special.bos.as_deref(), Some("<|im_start|>"));
    assert_eq!(special.eos.as_deref(), Some("<|im_end|>"));
    assert_eq!((special.add_bos, special.add_eos), (false, false));
}
