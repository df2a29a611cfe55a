//! The one file of a ring, and the flags of `tandem up` over it.
//!
//! 1. [`RingFile::read`] checks every key: one that does not exist, or that `up` itself must set,
//!    is refused with the table that it stands in.
//! 2. [`RingFile::under`] lays the flags over it.
//! 3. What a value means is checked by the process that gets it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use role::settings::Settings;
use serde::Deserialize;
use toml::{Table, Value};

use super::options::UpOptions;

/// As it is written; each table has the keys of its role's config.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingFile {
    pub model: Option<String>,
    #[serde(default)]
    pub gateway: Table,
    /// Of all servers.
    #[serde(default)]
    pub server: Table,
    /// One for each prefill server.
    #[serde(default)]
    pub prefill: Vec<Table>,
    /// One for each decode server.
    #[serde(default)]
    pub decode: Vec<Table>,
}

/// What `up` itself says to a role: who is who, and that it drains before `up` loses patience.
const OURS: [&str; 6] = ["id", "key_file", "model", "prefill", "decode", "drain_seconds"];

/// Only one server can have these.
const OF_ONE: [&str; 2] = ["listen", "admin"];

const MODEL: &str = "smollm2";
const PORT: u16 = 8000;

impl RingFile {
    /// # Errors
    /// The file cannot be read, or a key in it does not exist or is not for it to set.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let file: Self = toml::from_str(text)?;
        let gateway_keys = gateway::config::Settings::KEYS;
        check::<gateway::config::Settings>("[gateway]", &file.gateway, gateway_keys)?;
        check::<Settings>("[server]", &file.server, Settings::KEYS)?;
        let of_one = OF_ONE.into_iter().find(|key| file.server.contains_key(*key));
        if let Some(key) = of_one {
            bail!("[server]: `{key}` cannot be that of all servers; write it in a [[decode]]");
        }
        for (table, servers) in [("[[prefill]]", &file.prefill), ("[[decode]]", &file.decode)] {
            for server in servers {
                check::<Settings>(table, server, Settings::KEYS)?;
            }
        }
        Ok(file)
    }

    /// What the ring is to be: the flags, and this file where they say nothing.
    ///
    /// # Errors
    /// A flag and the file contradict each other.
    pub fn under(mut self, flags: &UpOptions) -> anyhow::Result<Self> {
        if flags.one_process {
            let none = self.prefill.is_empty() && self.decode.is_empty();
            ensure!(
                none,
                "--one-process has one server of each role: write their settings in [server], and \
                 no [[prefill]] and no [[decode]]"
            );
        }
        self.model = flags.model.clone().or(self.model);
        if let Some(port) = flags.port {
            let mut listen = self.listen()?;
            listen.set_port(port);
            self.gateway.insert("listen".into(), listen.to_string().into());
        }
        if let Some(name) = &flags.served_model_name {
            self.gateway.insert("served_model_name".into(), name.clone().into());
        }
        if !self.gateway.contains_key("served_model_name") {
            let name = self.name_of_the_model();
            self.gateway.insert("served_model_name".into(), name.into());
        }
        counted("prefill", &mut self.prefill, flags.prefill)?;
        counted("decode", &mut self.decode, flags.decode)?;
        let said = [
            ("dtype", flags.dtype.map(Value::try_from)),
            ("weights", flags.weights.map(Value::try_from)),
            ("transport", flags.transport.map(Value::try_from)),
        ];
        for (key, value) in said {
            let Some(value) = value.transpose()? else { continue };
            for server in self.prefill.iter_mut().chain(&mut self.decode) {
                server.remove(key);
            }
            self.server.insert(key.into(), value);
        }
        Ok(self)
    }

    /// The model by the name that [`crate::model::resolve`] finds it by.
    pub fn model(&self) -> &str {
        self.model.as_deref().unwrap_or(MODEL)
    }

    /// Where the gateway listens.
    ///
    /// # Errors
    /// It is no address.
    pub fn listen(&self) -> anyhow::Result<SocketAddr> {
        let listen = address(&self.gateway, "listen").context("[gateway]")?;
        Ok(listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))))
    }

    /// What clients must send, of the gateway's settings.
    ///
    /// # Errors
    /// It is empty, or its file cannot be read.
    pub fn client_key(&self) -> anyhow::Result<Option<String>> {
        let settings: gateway::config::Settings = self.gateway.clone().try_into()?;
        settings.client_key().context("[gateway]")
    }

    /// What clients call the model, of a file that is under flags.
    pub fn served_model_name(&self) -> &str {
        let name = self.gateway.get("served_model_name").and_then(Value::as_str);
        name.expect("`under` has set it, and `read` lets no other type pass")
    }

    /// The id or the file that was asked for.
    fn name_of_the_model(&self) -> String {
        let model = self.model();
        let path = Path::new(model);
        if path.exists() {
            let name = path.file_stem().or_else(|| path.file_name());
            return name.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        }
        let id = model.strip_prefix("hf:").unwrap_or(model);
        id.split('@').next().unwrap_or(id).to_owned()
    }
}

/// The address that this key has.
///
/// # Errors
/// It has none.
pub fn address(table: &Table, key: &str) -> anyhow::Result<Option<SocketAddr>> {
    let Some(value) = table.get(key) else { return Ok(None) };
    let address = value.as_str().and_then(|text| text.parse().ok());
    let wanted = || format!("`{key}` is {value}; want IP:PORT, like \"127.0.0.1:8000\"");
    address.map(Some).with_context(wanted)
}

/// One empty table for each server that only a flag asks for, or nobody.
fn counted(role: &str, servers: &mut Vec<Table>, flag: Option<u16>) -> anyhow::Result<()> {
    match (flag, servers.len()) {
        (None, 0) => servers.push(Table::new()),
        (Some(count), 0) => servers.resize(count.into(), Table::new()),
        (None, _) => {}
        (Some(count), tables) => ensure!(
            usize::from(count) == tables,
            "--{role} {count}, but the file has {tables} [[{role}]]; leave the flag out"
        ),
    }
    Ok(())
}

/// Refuses keys that `T` does not have, that are not the file's to set, and values of another type.
fn check<T: for<'de> Deserialize<'de>>(
    name: &str,
    table: &Table,
    keys: &[&'static str],
) -> anyhow::Result<()> {
    if let Some((key, nearest)) = service::keys::unknown_in(table, keys) {
        bail!("{name}: unknown key `{key}`; did you mean `{nearest}`?");
    }
    if let Some(key) = OURS.into_iter().find(|key| table.contains_key(*key)) {
        bail!("{name}: `{key}` is set by tandem up for every process; leave it out");
    }
    let _: T = table.clone().try_into().with_context(|| name.to_owned())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::options::tests::parse;

    const WHOLE: &str = "model = \"hf:Qwen/Qwen3-0.6B@main\"\n[gateway]\nlisten = \"0.0.0.0:80\"\n\
                         [server]\ndtype = \"f32\"\n[[prefill]]\n[[decode]]\nthreads = 2\n\
                         [[decode]]\ndtype = \"bf16\"\n";

    fn ring(text: &str, flags: &[&str]) -> anyhow::Result<RingFile> {
        RingFile::parse(text)?.under(&parse(flags).unwrap())
    }

    #[test]
    fn the_file_says_all_and_a_flag_says_it_better() {
        let file = ring(WHOLE, &[]).unwrap();
        assert_eq!((file.prefill.len(), file.decode.len()), (1, 2));
        assert_eq!(file.listen().unwrap().to_string(), "0.0.0.0:80");
        assert_eq!(file.served_model_name(), "Qwen/Qwen3-0.6B");
        assert_eq!(file.decode[1]["dtype"].as_str(), Some("bf16"));
        let file = ring(WHOLE, &["--port", "81", "--model", "m", "--dtype", "f32"]).unwrap();
        assert_eq!(file.listen().unwrap().to_string(), "0.0.0.0:81");
        assert_eq!((file.model(), file.served_model_name()), ("m", "m"));
        assert_eq!(file.decode[1].get("dtype"), None, "the flag is that of all");
        assert_eq!(file.server["dtype"].as_str(), Some("f32"));
    }

    #[test]
    fn without_a_file_flags_say_all() {
        let file = ring("", &["--decode", "3"]).unwrap();
        assert_eq!((file.prefill.len(), file.decode.len()), (1, 3));
        assert_eq!((file.model(), file.served_model_name()), (MODEL, MODEL));
        assert_eq!(file.listen().unwrap().port(), PORT);
    }

    #[test]
    fn a_model_is_called_what_it_was_asked_for_by() {
        let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        let stem = file.path().file_stem().unwrap().to_str().unwrap();
        let name = |flags: &[&str]| ring("", flags).unwrap().served_model_name().to_owned();
        assert_eq!(name(&["--model", file.path().to_str().unwrap()]), stem);
        assert_eq!(name(&["--served-model-name", "x"]), "x");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |text: &str, flags: &[&str], words: &[&str]| {
            let error = format!("{:#}", ring(text, flags).unwrap_err());
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        refused("[[prefil]]", &[], &["prefil", "prefill"]);
        refused("[[decode]]\npage_sice = 1", &[], &["[[decode]]", "page_sice", "page_size"]);
        refused("[[decode]]\npage_size = \"x\"", &[], &["[[decode]]", "page_size", "u32"]);
        refused("[gateway]\nmax_queue = 1", &[], &["[gateway]", "max_queue", "max_queued"]);
        refused("[gateway]\ndecode = []", &[], &["[gateway]", "decode", "leave it out"]);
        refused("[server]\nlisten = \"[::1]:1\"", &[], &["[server]", "listen", "[[decode]]"]);
        refused(WHOLE, &["--decode", "3"], &["--decode 3", "2 [[decode]]"]);
        refused(WHOLE, &["--one-process"], &["--one-process", "[server]"]);
        refused("[gateway]\nlisten = \"localhost:1\"", &[], &["[gateway]", "listen"]);
    }
}
