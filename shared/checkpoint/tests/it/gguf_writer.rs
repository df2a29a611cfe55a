//! Writes GGUF files: the format's other half, so that the reader is tested without a download.

use checkpoint::{Checkpoint, Family};
use half::{bf16, f16};
use serde_json::Value as Json;
use std::path::Path;

/// A metadata value of the types the tests need.
pub enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

/// One tensor; `shape` outermost first.
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub code: u32,
    pub bytes: Vec<u8>,
}

#[derive(Default)]
pub struct Gguf {
    pub meta: Vec<(String, Meta)>,
    pub tensors: Vec<Tensor>,
}

pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q4_1: u32 = 3;
pub const Q8_0: u32 = 8;
pub const BF16: u32 = 30;

impl Gguf {
    pub fn set(&mut self, key: &str, value: Meta) {
        self.meta.retain(|(old, _)| old != key);
        self.meta.push((key.to_owned(), value));
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    /// Everything before the data, padded to its start.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.meta.len() as u64).to_le_bytes());
        for (key, value) in &self.meta {
            text(&mut out, key);
            meta(&mut out, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for &n in tensor.shape.iter().rev() {
                out.extend((n as u64).to_le_bytes());
            }
            out.extend(tensor.code.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + tensor.bytes.len() as u64).next_multiple_of(32);
        }
        pad(&mut out);
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for tensor in &self.tensors {
            out.extend(&tensor.bytes);
            pad(&mut out);
        }
        out
    }

    pub fn write(&self, folder: &Path) -> std::path::PathBuf {
        let path = folder.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(32), 0);
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn meta(out: &mut Vec<u8>, value: &Meta) {
    let mut put = |code: u32, bytes: &[u8]| {
        out.extend(code.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Meta::U32(n) => put(4, &n.to_le_bytes()),
        Meta::F32(x) => put(6, &x.to_le_bytes()),
        Meta::Bool(b) => put(7, &[u8::from(*b)]),
        Meta::Text(s) => {
            put(8, &[]);
            text(out, s);
        }
        Meta::Texts(list) => {
            put(9, &8u32.to_le_bytes());
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|s| text(out, s));
        }
        Meta::I32s(list) => {
            put(9, &5u32.to_le_bytes());
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
    }
}

/// The golden model `name` as a GGUF file: ggml's names, q and k rows interleaved for Llama, its
/// weights stored as `code` (F32, F16 or BF16).
pub fn from_golden(name: &str, code: u32) -> Gguf {
    let folder = crate::golden(name);
    let model = Checkpoint::open(&folder).unwrap();
    let mut gguf = Gguf::default();
    config(&mut gguf, &model);
    vocabulary(&mut gguf, &model);
    for name in model.tensor_names() {
        let tensor = model.tensor(name).unwrap();
        let mut rows: Vec<Vec<bf16>> =
            tensor.to_vec().unwrap().chunks(tensor.row_len()).map(<[bf16]>::to_vec).collect();
        let rotated = name.contains("q_proj") || name.contains("k_proj");
        if rotated && model.config().family == Family::Llama {
            rows = interleave(&rows, model.config().head_dim);
        }
        gguf.tensors.push(Tensor {
            name: ggml_name(name),
            shape: tensor.shape().to_vec(),
            code,
            bytes: rows.concat().into_iter().flat_map(|x| stored(code, x)).collect(),
        });
    }
    gguf
}

fn stored(code: u32, x: bf16) -> Vec<u8> {
    match code {
        F32 => x.to_f32().to_le_bytes().to_vec(),
        F16 => f16::from_f32(x.to_f32()).to_le_bytes().to_vec(),
        BF16 => x.to_le_bytes().to_vec(),
        other => panic!("no rounding to type {other} here"),
    }
}

/// Hugging Face's halves → ggml's neighbours.
fn interleave(rows: &[Vec<bf16>], head: usize) -> Vec<Vec<bf16>> {
    let mut out = Vec::new();
    for rows in rows.chunks(head) {
        for pair in 0..head / 2 {
            out.push(rows[pair].clone());
            out.push(rows[pair + head / 2].clone());
        }
    }
    out
}

fn ggml_name(name: &str) -> String {
    let parts = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ];
    parts.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn config(gguf: &mut Gguf, model: &Checkpoint) {
    let config = model.config();
    let arch = config.family.model_type();
    gguf.set("general.architecture", Meta::Text(arch.to_owned()));
    let sizes = [
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.intermediate),
        ("block_count", config.layers),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("context_length", config.max_positions),
    ];
    for (key, size) in sizes {
        gguf.set(&format!("{arch}.{key}"), Meta::U32(size as u32));
    }
    gguf.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), Meta::F32(config.rms_eps));
    gguf.set(&format!("{arch}.rope.freq_base"), Meta::F32(config.rope_theta as f32));
    gguf.set("tokenizer.ggml.bos_token_id", Meta::U32(config.bos_token_id.unwrap()));
    gguf.set("tokenizer.ggml.eos_token_id", Meta::U32(config.eos_token_ids[0]));
}

fn vocabulary(gguf: &mut Gguf, model: &Checkpoint) {
    let json: Json = serde_json::from_slice(&model.tokenizer_json().unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    let mut types = vec![1; vocab.len()];
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    for added in json["added_tokens"].as_array().unwrap() {
        types[added["id"].as_u64().unwrap() as usize] = 3;
    }
    let merges = json["model"]["merges"].as_array().unwrap().iter();
    let merges =
        merges.map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
    gguf.set("tokenizer.ggml.model", Meta::Text("gpt2".to_owned()));
    gguf.set("tokenizer.ggml.pre", Meta::Text("smollm".to_owned()));
    gguf.set("tokenizer.ggml.tokens", Meta::Texts(tokens));
    gguf.set("tokenizer.ggml.token_type", Meta::I32s(types));
    gguf.set("tokenizer.ggml.merges", Meta::Texts(merges.collect()));
    let template = model.chat_template().unwrap().to_owned();
    gguf.set("tokenizer.chat_template", Meta::Text(template));
}
