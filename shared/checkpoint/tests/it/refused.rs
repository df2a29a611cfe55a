//! What is not supported or cannot be right is refused by the name of the field or tensor.

use crate::gguf_writer::{BF16, Gguf, Meta, Tensor, from_golden};
use crate::golden;
use checkpoint::{Checkpoint, hf};
use serde_json::{Value, json};
use std::path::Path;

fn config_with(name: &str, key: &str, value: Value) -> Result<checkpoint::ModelConfig, String> {
    let bytes = std::fs::read(golden(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&bytes).unwrap();
    match value {
        Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
        value => config[key] = value,
    }
    let bytes = config.to_string().into_bytes();
    hf::parse_config(Path::new("config.json"), &bytes).map_err(|error| error.to_string())
}

#[test]
fn config_fields_that_would_change_the_result_are_refused_by_name() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0});
    let per_layer = json!({"full_attention": {"rope_type": "default"}});
    let backwards = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
        "high_freq_factor": 1.0, "original_max_position_embeddings": 64});
    let cases = [
        ("architectures", json!(["MistralForCausalLM"])),
        ("architectures", json!([])),
        ("quantization_config", json!({"quant_method": "awq"})),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("use_sliding_window", json!(true)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_scaling", yarn.clone()),
        ("rope_parameters", yarn),
        ("rope_parameters", per_layer),
        ("rope_scaling", backwards),
        ("vocab_size", json!(0)),
        ("vocab_size", json!(-5)),
        ("vocab_size", json!("512")),
        ("hidden_size", json!(1u64 << 60)),
        ("num_hidden_layers", json!(1u64 << 40)),
        ("num_hidden_layers", Value::Null),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(63)),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(0)),
        ("eos_token_id", json!([2, 512])),
        ("eos_token_id", json!(2.5)),
        ("tie_word_embeddings", json!("yes")),
    ];
    for (key, value) in cases {
        let shown = format!("{key} = {value}");
        let mut config = std::fs::read(golden("tiny-llama3/config.json")).unwrap();
        if key == "rope_parameters" || key == "rope_theta" {
            // Its rope_scaling repeats theta, which would hide the case.
            let mut json: Value = serde_json::from_slice(&config).unwrap();
            json["rope_scaling"] = Value::Null;
            config = json.to_string().into_bytes();
        }
        let mut json: Value = serde_json::from_slice(&config).unwrap();
        json[key] = value;
        let bytes = json.to_string().into_bytes();
        let error = hf::parse_config(Path::new("config.json"), &bytes).unwrap_err().to_string();
        let names = error.contains(key)
            || (key.starts_with("rope_") && error.contains("rope_type"))
            || error.contains("high_freq_factor");
        assert!(names && error.starts_with("config.json: "), "{shown}: {error}");
    }
}

#[test]
fn both_spellings_of_rope_are_one() {
    let old = config_with("tiny-llama3", "unused", json!(1)).unwrap();
    let bytes = std::fs::read(golden("tiny-llama3/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&bytes).unwrap();
    let map = config.as_object_mut().unwrap();
    let scaling = map.remove("rope_scaling").unwrap();
    map.remove("rope_theta");
    map.insert("rope_parameters".to_owned(), scaling);
    let bytes = config.to_string().into_bytes();
    let new = hf::parse_config(Path::new("config.json"), &bytes).unwrap();
    assert_eq!(old, new);
    assert_eq!(new.rope_theta, 500_000.0);
}

#[test]
fn absent_fields_have_the_defaults_of_the_class() {
    assert_eq!(config_with("tiny-llama3", "head_dim", Value::Null).unwrap().head_dim, 64);
    assert_eq!(config_with("tiny-llama3", "num_key_value_heads", Value::Null).unwrap().kv_heads, 4);
    let error = config_with("tiny-qwen2", "num_key_value_heads", Value::Null).unwrap_err();
    assert!(error.contains("`num_key_value_heads` is missing"), "{error}");
    let error = config_with("tiny-qwen2", "rope_theta", Value::Null).unwrap_err();
    assert!(error.contains("`rope_theta` is missing"), "{error}");
    let family = config_with("tiny-qwen3", "architectures", Value::Null).unwrap().family;
    assert_eq!(family, checkpoint::Family::Qwen3);
}

fn refusal(change: impl FnOnce(&mut Gguf)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut gguf = from_golden("tiny-qwen3", BF16);
    change(&mut gguf);
    Checkpoint::open(gguf.write(folder.path())).unwrap_err().to_string()
}

fn refused_tensor(name: &str) -> String {
    refusal(|gguf| {
        let shape = vec![32];
        gguf.tensors.push(Tensor { name: name.to_owned(), shape, code: BF16, bytes: vec![0; 64] });
    })
}

#[test]
fn gguf_metadata_that_would_change_the_result_is_refused_by_name() {
    let text = |s: &str| Meta::Text(s.to_owned());
    let cases = [
        ("general.architecture", text("gemma3"), "known architectures are llama, qwen2, qwen3"),
        ("qwen3.expert_count", Meta::U32(8), "only 0 is"),
        ("qwen3.attention.sliding_window", Meta::U32(4096), "only 0 is"),
        ("qwen3.rope.scaling.type", text("yarn"), "only none is"),
        ("qwen3.rope.dimension_count", Meta::U32(64), "only the head's size, 128, is"),
        ("qwen3.attention.value_length", Meta::U32(64), "only the head's size, 128, is"),
        ("qwen3.block_count", Meta::U32(0), "whole number"),
        ("qwen3.rope.freq_base", Meta::F32(f32::NAN), "above 0"),
        ("qwen3.attention.head_count", Meta::I32s(vec![4, 4]), "missing"),
        ("general.alignment", Meta::U32(0), "a power of two"),
        ("tokenizer.ggml.model", text("llama"), "only gpt2"),
        ("tokenizer.ggml.pre", text("tekken"), "known are smollm, qwen2"),
        ("tokenizer.ggml.eos_token_id", Meta::U32(512), "below vocab_size"),
        ("tokenizer.ggml.padding_token_id", Meta::U32(9999), "an id of the vocabulary"),
        ("tokenizer.ggml.token_type", Meta::I32s(vec![1]), "as long as the vocabulary"),
    ];
    for (key, value, cure) in cases {
        let error = refusal(|gguf| gguf.set(key, value));
        let field = if cure == "below vocab_size" { "eos_token_id" } else { key };
        assert!(error.contains(field) && error.contains(cure), "{key}: {error}");
    }
}

#[test]
fn tensors_are_refused_by_name() {
    let error = refusal(|gguf| gguf.tensors.retain(|tensor| tensor.name != "blk.2.ffn_up.weight"));
    assert!(error.contains("`model.layers.2.mlp.up_proj.weight` is missing"), "{error}");
    for name in ["blk.0.ffn_gate_exps.weight", "blk.9.attn_q.weight", "blk.0.attn_q.bias"] {
        let error = refused_tensor(name);
        let place = name.split('.').nth(1).unwrap();
        assert!(error.contains("has no place in Qwen3ForCausalLM"), "{error}");
        assert!(error.contains(name) || error.contains(&format!("layers.{place}.")), "{error}");
    }
    let error = refusal(|gguf| gguf.tensor("output_norm.weight").shape = vec![64]);
    assert!(error.contains("model.norm.weight") && error.contains("[64]"), "{error}");
    let error = refusal(|gguf| gguf.tensor("blk.0.attn_q.weight").code = 20);
    assert!(error.contains("blk.0.attn_q.weight") && error.contains("IQ4_NL"), "{error}");
    let error = refusal(|gguf| {
        let norm = gguf.tensor("output_norm.weight");
        (norm.code, norm.bytes) = (8, vec![0; 4 * 34]);
    });
    assert!(error.contains("output_norm.weight") && error.contains("Q8_0"), "{error}");
}

#[test]
fn what_is_no_model_is_said_plainly() {
    let folder = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("no config.json"), "{error}");
    let config = std::fs::read(golden("tiny-qwen2/config.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("neither model.safetensors nor"), "{error}");
    let error = Checkpoint::open(golden("tiny-qwen2/tokenizer.json")).unwrap_err().to_string();
    assert!(error.contains("must be GGUF"), "{error}");
    let error = Checkpoint::open(folder.path().join("absent")).unwrap_err().to_string();
    assert!(error.contains("absent"), "{error}");
}

#[test]
fn an_index_cannot_name_files_elsewhere() {
    for shard in ["../up.safetensors", "/etc/model.safetensors", "a/b.safetensors", "x.bin", ""] {
        let index = json!({"weight_map": {"model.norm.weight": shard}}).to_string();
        let error = hf::parse_index(Path::new("index.json"), index.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("weight_map"), "{error}");
    }
}
