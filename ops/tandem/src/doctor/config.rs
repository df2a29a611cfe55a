//! The three config files, read as their roles read them, and what they name.

use super::Finding;
use checkpoint::Checkpoint;
use role::settings::{Config as Server, ConfigFile, Settings};
use shared::wire::handshake::RingKey;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What could be read.
#[derive(Default)]
pub struct Files {
    /// The gateway's.
    pub gateway: Option<gateway::config::Config>,
    /// Name and config of each server.
    pub servers: Vec<(&'static str, Server)>,
}

/// Reads them from `folder`; servers as `instance`.
pub fn check(folder: &Path, instance: u16) -> (Files, Vec<Finding>) {
    let mut files = Files::default();
    let mut findings = Vec::new();
    match gateway(&folder.join("gateway.toml")) {
        Ok(config) => {
            findings.push(Finding::ok("gateway.toml", format!("listens at {}", config.listen)));
            files.gateway = Some(config);
        }
        Err(problem) => findings.push(bad("gateway.toml", problem)),
    }
    for (name, file) in [("prefill.toml", "prefill"), ("decode.toml", "decode")] {
        let file = ConfigFile {
            config: Some(folder.join(format!("{file}.toml"))),
            instance: Some(instance),
        };
        match Settings::default().resolve(&file) {
            Ok(config) => {
                let found = format!("{} listens at {}", config.id, config.listen);
                findings.push(Finding::ok(name, found));
                files.servers.push((name, config));
            }
            Err(problem) => findings.push(bad(name, problem.to_string())),
        }
    }
    findings.extend(pairs(&files));
    findings.extend(models(&files));
    findings.extend(files.gateway.iter().map(|gateway| key(gateway.key_file.as_deref())));
    (files, findings)
}

fn bad(name: &'static str, problem: String) -> Finding {
    Finding::broken(name, problem, "mend that key; each is explained in the file itself")
}

fn gateway(path: &Path) -> Result<gateway::config::Config, String> {
    let settings = gateway::start::settings(path).map_err(|error| error.to_string())?;
    gateway::config::Config::new(settings).map_err(|error| error.to_string())
}

/// Whether the gateway and the prefill servers know this machine's servers.
fn pairs(files: &Files) -> Vec<Finding> {
    let Some(gateway) = &files.gateway else { return vec![] };
    let mut findings = Vec::new();
    for (name, server) in &files.servers {
        let address = server.listen.to_string();
        let known = if server.decode.is_empty() { &gateway.decode } else { &gateway.prefill };
        if !known.contains(&address) {
            let found = format!("{} at {address} is not in gateway.toml", server.id);
            let list = if server.decode.is_empty() { "decode" } else { "prefill" };
            let cure = format!("add \"{address}\" to `{list}` there, if this gateway is to use it");
            findings.push(Finding::warning(name, found, cure));
        }
    }
    findings
}

/// Whether every model can be opened, and all are one.
fn models(files: &Files) -> Vec<Finding> {
    let servers = files.servers.iter().map(|(_, server)| server.model.clone());
    let gateway = files.gateway.iter().map(|gateway| gateway.model.clone());
    let mut paths: Vec<_> = gateway.chain(servers).collect();
    paths.sort();
    paths.dedup();
    let mut findings: Vec<_> = paths.iter().map(|path| model(path)).collect();
    if paths.len() > 1 {
        let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        let cure = "a server that runs other weights is refused at join: name one model in all";
        findings.push(Finding::warning("models", names.join(", "), cure));
    }
    findings
}

fn model(path: &Path) -> Finding {
    match Checkpoint::open(path) {
        Ok(model) => {
            let (family, bytes) = (model.config().family, model.stored_bytes());
            let found = format!("{}: {family}, {} MB", path.display(), bytes / 1_000_000);
            match model.chat_template() {
                Some(_) => Finding::ok("model", found),
                None => {
                    let cure = "chat needs one: `chat_template` of gateway.toml";
                    Finding::warning("model", format!("{found}, no chat template"), cure)
                }
            }
        }
        Err(error) => {
            let cure = "tandem model install smollm2, or a hub id, a folder, a .gguf file";
            Finding::broken("model", error.to_string(), cure)
        }
    }
}

/// Whether the ring's key is one, and whether others can read it.
fn key(path: Option<&Path>) -> Finding {
    const WHAT: &str = "key";
    let cure = "openssl rand -hex 32, the same on every host; owned by tandem, mode 400";
    let Some(path) = path else {
        return Finding::broken(WHAT, "`key_file` of gateway.toml is not set", cure);
    };
    let read = fs::read_to_string(path)
        .map_err(|error| error.to_string())
        .and_then(|hex| RingKey::from_hex(&hex).map_err(|error| error.to_string()))
        .and_then(|_| fs::metadata(path).map_err(|error| error.to_string()));
    match read.map(|metadata| metadata.permissions().mode() & 0o777) {
        Err(error) => Finding::broken(WHAT, format!("{}: {error}", path.display()), cure),
        Ok(mode) => {
            let found = format!("{} has mode {mode:03o}", path.display());
            if mode & 0o077 == 0 {
                Finding::ok(WHAT, found)
            } else {
                Finding::warning(WHAT, found, format!("chmod 400 {}", path.display()))
            }
        }
    }
}
