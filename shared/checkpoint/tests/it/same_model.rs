//! One model, several forms on disk: the same configuration, numbers and text.

use crate::gguf_writer::{BF16, F16, F32, from_golden};
use crate::golden;
use checkpoint::{Checkpoint, Family, RopeScaling};
use half::{bf16, f16};
use std::path::Path;

const MODELS: [&str; 3] = ["tiny-llama3", "tiny-qwen2", "tiny-qwen3"];

#[test]
fn golden_folders_open_with_the_facts_of_their_config() {
    for (name, family) in MODELS.into_iter().zip(Family::ALL) {
        let model = Checkpoint::open(golden(name)).unwrap();
        let config = model.config();
        assert_eq!((config.family, config.vocab, config.max_positions), (family, 512, 2048));
        assert_eq!(config.tied, family != Family::Llama);
        assert_eq!(model.tensor("lm_head.weight").is_err(), config.tied);
        assert_eq!(model.tensor_names().len(), config.tensors().len());
        assert_eq!(model.eos_token_ids(), [2]);
        assert_eq!(model.special_tokens().bos.as_deref(), Some("<|im_start|>"));
        assert!(model.chat_template().unwrap().contains("add_generation_prompt"));
        assert_eq!(model.generation_config().eos_token_ids, [2]);
    }
}

#[test]
fn a_gguf_of_a_golden_model_is_the_golden_model() {
    for (name, code) in MODELS.iter().flat_map(|name| [(name, F32), (name, BF16)]) {
        let folder = tempfile::tempdir().unwrap();
        let model = Checkpoint::open(golden(name)).unwrap();
        let twin = Checkpoint::open(from_golden(name, code).write(folder.path())).unwrap();
        let mut expected = model.config().clone();
        expected.rope_scaling = RopeScaling::None; // a tensor in GGUF: its own test
        assert_eq!(*twin.config(), expected);
        assert_eq!(twin.chat_template(), model.chat_template());
        assert_eq!(twin.eos_token_ids(), model.eos_token_ids());
        assert!(twin.tensor_names().eq(model.tensor_names()));
        for tensor in model.tensor_names() {
            let (ours, theirs) = (twin.tensor(tensor).unwrap(), model.tensor(tensor).unwrap());
            assert_eq!(ours.shape(), theirs.shape(), "{tensor}");
            let (ours, theirs) = (ours.to_vec::<bf16>().unwrap(), theirs.to_vec().unwrap());
            assert!(ours == theirs, "{tensor} of {name} in type {code}");
        }
    }
}

#[test]
fn f16_is_widened_exactly_and_rounded_once() {
    let folder = tempfile::tempdir().unwrap();
    let model = Checkpoint::open(golden("tiny-qwen3")).unwrap();
    let twin = Checkpoint::open(from_golden("tiny-qwen3", F16).write(folder.path())).unwrap();
    let name = "model.layers.1.mlp.down_proj.weight";
    let stored: Vec<f32> = model.tensor(name).unwrap().to_vec().unwrap();
    let stored: Vec<f32> = stored.into_iter().map(|x| f16::from_f32(x).to_f32()).collect();
    assert_eq!(twin.tensor(name).unwrap().to_vec::<f32>().unwrap(), stored);
    let rounded: Vec<bf16> = stored.into_iter().map(bf16::from_f32).collect();
    assert_eq!(twin.tensor(name).unwrap().to_vec::<bf16>().unwrap(), rounded);
}

#[test]
fn shards_are_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let model = Checkpoint::open(golden("tiny-qwen2")).unwrap();
    shard(&golden("tiny-qwen2"), folder.path());
    let sharded = Checkpoint::open(folder.path()).unwrap();
    for name in model.tensor_names() {
        let (one, many) = (model.tensor(name).unwrap(), sharded.tensor(name).unwrap());
        assert!(one.to_vec::<bf16>().unwrap() == many.to_vec().unwrap(), "{name}");
    }
    assert_eq!(model.digest().unwrap(), sharded.digest().unwrap());
}

#[test]
fn a_missing_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    shard(&golden("tiny-qwen2"), folder.path());
    std::fs::remove_file(folder.path().join("model-1.safetensors")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model-1.safetensors"), "{error}");
}

#[test]
fn digests_tell_weights_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut gguf = from_golden("tiny-qwen2", BF16);
    let digest = |path| Checkpoint::open(path).unwrap().digest().unwrap();
    let before = digest(gguf.write(folder.path()));
    assert_eq!(before, digest(gguf.write(folder.path())));
    gguf.tensor("blk.1.attn_k.bias").bytes[0] ^= 1;
    assert_ne!(before, digest(gguf.write(folder.path())));
}

/// Copies `from` with its tensors spread over three files.
fn shard(from: &Path, to: &Path) {
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    for shard in 0..3 {
        let file = format!("model-{shard}.safetensors");
        let names = tensors.names().into_iter().filter(|name| name.len() % 3 == shard);
        let part: Vec<_> = names.map(|name| (name, tensors.tensor(name).unwrap())).collect();
        assert!(!part.is_empty());
        map.extend(part.iter().map(|(name, _)| ((*name).to_owned(), file.clone().into())));
        safetensors::serialize_to_file(part, None, &to.join(file)).unwrap();
    }
    let index = serde_json::json!({"weight_map": map}).to_string();
    std::fs::write(to.join("model.safetensors.index.json"), index).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::write(to.join(name), std::fs::read(from.join(name)).unwrap()).unwrap();
    }
}
