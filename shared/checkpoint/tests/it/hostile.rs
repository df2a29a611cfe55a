//! Truncated and altered files end in a typed error or a model that reads; never in a panic, an
//! abort or memory asked for by a number from the file.

use crate::gguf_writer::{F16, Gguf, from_golden};
use crate::golden;
use checkpoint::{Checkpoint, gguf::Header, hf};
use half::bf16;
use proptest::prelude::*;
use std::path::Path;
use std::sync::LazyLock;

/// A whole small file: header bytes, and all bytes.
static GGUF: LazyLock<(usize, Vec<u8>)> = LazyLock::new(|| {
    let gguf: Gguf = from_golden("tiny-qwen2", F16);
    (gguf.header().len(), gguf.bytes())
});

static SAFETENSORS: LazyLock<Vec<u8>> =
    LazyLock::new(|| std::fs::read(golden("tiny-qwen2/model.safetensors")).unwrap());

fn parse(bytes: &[u8]) -> Result<Header, checkpoint::Error> {
    Header::parse(Path::new("x.gguf"), bytes, bytes.len() as u64)
}

/// Opens and, if that works, reads everything: what an altered file may at most do.
fn use_up(path: &Path) {
    let Ok(model) = Checkpoint::open(path) else { return };
    for name in model.tensor_names() {
        let _ = model.tensor(name).unwrap().to_vec::<bf16>();
    }
    let _ = (model.tokenizer_json(), model.digest());
}

#[test]
fn every_truncation_of_a_gguf_is_an_error() {
    let (header, bytes) = &*GGUF;
    assert!(parse(bytes).is_ok());
    for end in (0..*header).chain([bytes.len() - 32, bytes.len() / 2]) {
        assert!(parse(&bytes[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn every_bit_of_a_gguf_header_may_flip() {
    let (header, bytes) = &*GGUF;
    let mut bytes = bytes.clone();
    for at in 0..*header {
        // All bits of the numbers in front; one bit of each later byte keeps this short.
        let bits = if at < 512 { 0..8 } else { at as u32 % 8..at as u32 % 8 + 1 };
        for bit in bits {
            bytes[at] ^= 1 << bit;
            let _ = parse(&bytes);
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn counts_and_lengths_from_the_file_allocate_nothing() {
    let huge = u64::MAX.to_le_bytes();
    let key = |bytes: &mut Vec<u8>| {
        bytes.extend(1u64.to_le_bytes());
        bytes.push(b'k');
    };
    let start = |tensors: [u8; 8], entries: [u8; 8]| {
        [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors, &entries].concat()
    };
    let one = 1u64.to_le_bytes();
    let none = 0u64.to_le_bytes();
    let mut string = start(none, one);
    key(&mut string);
    string.extend(8u32.to_le_bytes());
    string.extend(huge);
    let mut strings = start(none, one);
    key(&mut strings);
    strings.extend(9u32.to_le_bytes());
    strings.extend(8u32.to_le_bytes());
    strings.extend(huge);
    let mut nested = start(none, one);
    key(&mut nested);
    nested.extend(9u32.to_le_bytes());
    for _ in 0..100_000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(one);
    }
    let mut tensor = start(one, none);
    key(&mut tensor);
    tensor.extend(4u32.to_le_bytes());
    (0..4).for_each(|_| tensor.extend((1u64 << 62).to_le_bytes()));
    tensor.extend(0u32.to_le_bytes());
    tensor.extend(none);
    let cases = [start(huge, none), start(none, huge), string, strings, nested, tensor];
    for (case, mut bytes) in cases.into_iter().enumerate() {
        bytes.resize(bytes.len() + 256, 0);
        assert!(parse(&bytes).is_err(), "case {case}");
    }
}

#[test]
fn a_safetensors_header_longer_than_the_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        let bytes = std::fs::read(golden("tiny-qwen2").join(name)).unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let open = |bytes: &[u8]| {
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        Checkpoint::open(folder.path()).map(drop)
    };
    open(&SAFETENSORS).unwrap();
    for len in [u64::MAX, 1 << 40, SAFETENSORS.len() as u64 - 7, 0] {
        let mut bytes = SAFETENSORS.clone();
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        let error = open(&bytes).unwrap_err().to_string();
        assert!(error.contains("model.safetensors: broken file"), "{error}");
    }
    for end in [0, 7, 8, 100, SAFETENSORS.len() - 1] {
        let error = open(&SAFETENSORS[..end]).unwrap_err().to_string();
        assert!(error.contains("model.safetensors: broken file"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn altered_ggufs_never_panic(
        cut in 0.0f64..4.0,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let (header, bytes) = &*GGUF;
        let mut bytes = bytes.clone();
        for (at, value) in flips {
            bytes[at.index(*header)] = value;
        }
        if cut < 1.0 {
            bytes.truncate((cut * bytes.len() as f64) as usize);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        use_up(&path);
    }

    #[test]
    fn altered_safetensors_headers_never_panic(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 32u8..127), 1..6),
    ) {
        let len = u64::from_le_bytes(SAFETENSORS[..8].try_into().unwrap()) as usize;
        let mut json = SAFETENSORS[8..8 + len].to_vec();
        for (at, value) in flips {
            let at = at.index(json.len());
            json[at] = value;
        }
        let data = (SAFETENSORS.len() - 8 - len) as u64;
        let _ = hf::parse_header(Path::new("x.safetensors"), &json, data);
    }

    #[test]
    fn any_bytes_are_no_config_at_worst(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = hf::parse_config(Path::new("config.json"), &bytes);
        let _ = hf::parse_index(Path::new("index.json"), &bytes);
        let _ = parse(&bytes);
    }
}
