//! A hub of one repository, `org/tiny`, made of a golden model and speaking the hub's protocol.

use super::server::{Reply, Request, Server};
use crate::model::Settings;
use crate::model::download::{git_blob_id, sha256};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const WEIGHTS: &str = "model.safetensors";

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// Content of the repository.
#[derive(Clone)]
pub struct Repository {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Leave lengths and digests out of the listing, as a mirror may.
    pub terse: bool,
}

impl Repository {
    pub fn golden() -> Self {
        let entries = std::fs::read_dir(golden("tiny-qwen2")).unwrap();
        let file = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        };
        Self { files: entries.map(file).collect(), terse: false }
    }

    fn listing(&self) -> Value {
        let siblings: Vec<_> =
            self.files.iter().map(|(name, bytes)| self.file(name, bytes)).collect();
        json!({"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "private": false})
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Value {
        if self.terse {
            return json!({"rfilename": name});
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        let size = bytes.len();
        match name.ends_with(".safetensors") {
            true => json!({"rfilename": name, "size": size, "blobId": "0".repeat(40),
                "lfs": {"sha256": sha256(&path).unwrap(), "size": size, "pointerSize": 134}}),
            false => json!({"rfilename": name, "size": size,
                "blobId": git_blob_id(&path, size as u64).unwrap()}),
        }
    }

    /// What a well-behaved hub answers.
    pub fn answer(&self, request: &Request) -> Reply {
        if request.path.starts_with("/api/models/org/tiny/revision/") {
            return Reply::new(200, self.listing().to_string());
        }
        let prefix = format!("/org/tiny/resolve/{COMMIT}/");
        let name = request.path.strip_prefix(&prefix).unwrap_or_default();
        let Some(bytes) = self.files.get(name) else { return Reply::new(404, "no such file") };
        let from = request.header("range").and_then(|range| {
            range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
        });
        match from {
            None => Reply::new(200, bytes.clone()),
            Some(from) if from >= bytes.len() => Reply::new(416, ""),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Reply::new(206, &bytes[from..]).header("content-range", &range)
            }
        }
    }

    pub fn serve(self) -> Server {
        Server::start(move |request| self.answer(request))
    }
}

/// Settings that know only a fresh folder and the given hub.
pub struct Place {
    pub settings: Settings,
    pub folder: TempDir,
}

impl Place {
    pub fn new(hub: &Server) -> Self {
        Self::with(hub, &[])
    }

    pub fn with(hub: &Server, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (cache, home, url) = (at("cache"), at("home"), hub.url());
        let hf_hub_cache = at("home/huggingface/hub");
        let mut options = vec!["--cache", &cache, "--home", &home, "--endpoint", &url];
        options.extend(["--hf-home", &home, "--hf-hub-cache", &hf_hub_cache, "--hf-token", ""]);
        options.extend(["--pause-seconds", "0", "--certificates", ""]);
        // A later option would be a second value: the default token gives way.
        if more.contains(&"--hf-token") {
            let at = options.iter().position(|option| *option == "--hf-token").unwrap();
            options.drain(at..at + 2);
        }
        options.extend(more);
        Self { settings: Settings::from_options(&options).unwrap(), folder }
    }

    pub fn resolve(&self, spec: &str) -> Result<PathBuf, String> {
        crate::model::resolve_with(spec, &self.settings).map_err(|error| format!("{error:#}"))
    }
}
