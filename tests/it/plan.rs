//! What a ring is to be: models, how many of each role, and settings over the tests' own.

use crate::ring::Ring;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A ring to be. Settings are the config files' own keys.
#[derive(Clone)]
pub struct Plan {
    pub model: PathBuf,
    pub prefill: usize,
    pub decode: usize,
    pub prefill_settings: Table,
    pub decode_settings: Table,
    pub gateway_settings: Table,
}

/// A golden file or folder.
pub fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// The demo model's file.
pub fn demo_model() -> PathBuf {
    let found = std::env::vars_os().find(|(name, _)| name == "TANDEM_DEMO_MODEL");
    let (_, path) = found.expect("set TANDEM_DEMO_MODEL to the demo GGUF file; ./ops/test does");
    path.into()
}

/// Whether many more rounds are wanted.
pub fn long() -> bool {
    std::env::vars_os().any(|(name, value)| name == "TANDEM_LONG" && value == "1")
}

impl Plan {
    /// One of each role, in f32 with the weights of the golden data, one computing thread a server,
    /// every page checksummed. Servers may be silent for so long that a busy machine is not taken
    /// for a dead peer.
    pub fn new(model: PathBuf) -> Self {
        let (prefill_settings, decode_settings) = (Table::new(), Table::new());
        let gateway_settings = Table::new();
        Self { model, prefill: 1, decode: 1, prefill_settings, decode_settings, gateway_settings }
            .servers("dtype", "f32")
            .servers("weights", "bf16")
            .servers("threads", 1)
            .servers("max_total_tokens", 8192)
            .servers("page_checksums", true)
            .on_gateway("log", "info,gateway::fleet=debug,link=debug")
            .everyone("silence_ms", 10_000)
            .servers("transfer_deadline_ms", 10_000)
    }

    /// [`Plan::new`] with one of the golden models.
    pub fn tiny(name: &str) -> Self {
        Self::new(golden_path(name))
    }

    pub fn of(self, prefill: usize, decode: usize) -> Self {
        Self { prefill, decode, ..self }
    }

    pub fn on_prefill(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.prefill_settings.insert(key.into(), value.into());
        self
    }

    pub fn on_decode(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.decode_settings.insert(key.into(), value.into());
        self
    }

    pub fn on_gateway(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.gateway_settings.insert(key.into(), value.into());
        self
    }

    /// On prefill and decode.
    pub fn servers(self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.on_prefill(key, value.clone()).on_decode(key, value)
    }

    pub fn everyone(self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.servers(key, value.clone()).on_gateway(key, value)
    }

    /// Starts it in one process.
    #[track_caller]
    pub fn start_in_one_process(self) -> Ring {
        let mut ring = Ring::one_process(&self);
        ring.start_all();
        ring.wait_ready();
        ring
    }

    /// Starts it and waits until every pair has joined.
    #[track_caller]
    pub fn start(self) -> Ring {
        let mut ring = Ring::new(&self);
        ring.start_all();
        ring.wait_ready();
        ring
    }
}
