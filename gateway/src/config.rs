//! Configuration: a TOML file, flags that win over it, and the typed result.
//!
//! 1. [`Settings`] is one list of optional values that is both the file and the flags: key
//!    `max_queued` is flag `--max-queued`.
//! 2. [`Settings::or`] lays flags over the file; [`Config::new`] fills in defaults and checks.
//!
//! An unknown key is refused with the name that was probably meant.

use crate::fleet::Deadlines;
use crate::reasoning::ReasoningParser;
use crate::tools::ToolCallParser;
use axum::http::Uri;
use clap::Args;
use link::Timing;
use serde::Deserialize;
use service::logs::Format;
use shared::ids::ServerId;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// The file and the flags; every value may be left out.
        #[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Settings {
            $($(#[$doc])* #[arg(long)] pub $name: Option<$type>,)*
            /// `host:port` of the prefill servers.
            #[arg(long, value_delimiter = ',')]
            #[serde(default)]
            pub prefill: Vec<String>,
            /// `host:port` of the decode servers.
            #[arg(long, value_delimiter = ',')]
            #[serde(default)]
            pub decode: Vec<String>,
        }

        impl Settings {
            /// Every key of the file.
            pub const KEYS: &[&str] = &[$(stringify!($name),)* "prefill", "decode"];

            /// These values, and `below` where there is none.
            #[must_use]
            pub fn or(self, below: Self) -> Self {
                let list = |own: Vec<String>, below| if own.is_empty() { below } else { own };
                Self {
                    $($name: self.$name.or(below.$name),)*
                    prefill: list(self.prefill, below.prefill),
                    decode: list(self.decode, below.decode),
                }
            }
        }
    };
}

settings! {
    /// Name of this gateway in logs and handshakes [gateway].
    id: String,
    /// Which logs are written: a level, or `target=level` pairs; RUST_LOG wins [info].
    log: String,
    /// How logs look: text or json [text].
    log_format: String,
    /// Address of HTTP [127.0.0.1:8000].
    listen: SocketAddr,
    /// Model folder or GGUF file: tokenizer, chat template and defaults are read from it.
    model: PathBuf,
    /// Name by which clients ask for the model [the folder's or file's name].
    served_model_name: String,
    /// File of a chat template to use instead of the model's own.
    chat_template: PathBuf,
    /// How the model writes tool calls: auto, by its chat template; hermes, llama3, none [auto].
    tool_call_parser: ToolCallParser,
    /// How it writes its thoughts: auto, by its chat template; qwen3, deepseek-r1, none [auto].
    reasoning_parser: ReasoningParser,
    /// Longest prompt and output together, tokens [the least of model and servers].
    context_length: u32,
    /// Key that clients must send as a bearer token. On a command line others can read it; prefer
    /// api_key_file.
    api_key: String,
    /// File with the key that clients must send.
    api_key_file: PathBuf,
    /// Say /metrics also by the names of SGLang's and vLLM's dashboards [false].
    #[arg(num_args = 0..=1, default_missing_value = "true")]
    compat_metrics: bool,
    /// OpenTelemetry collector that gets a trace of every request, by OTLP over HTTP, like
    /// http://127.0.0.1:4318 [none].
    otlp_endpoint: String,
    /// File with the ring's key, 64 hex digits.
    key_file: PathBuf,
    /// Requests that may wait for a ticket; more get 429 [1024].
    max_queued: usize,
    /// Times a request is sent round again when a server fails it [0].
    retries: u32,
    /// Largest request body, bytes; larger ones get 413 [16777216].
    max_body_bytes: usize,
    /// Connections at once; more wait to be accepted [4096].
    max_connections: usize,
    /// Threads that serve clients and servers, where the gateway has its own process [half of the
    /// cores].
    threads: usize,
    /// From a connection's or request's start to the end of its headers, ms [10000].
    headers_ms: u64,
    /// From the headers to the end of the body, ms [30000].
    body_ms: u64,
    /// From SIGTERM to the end of the last stream, seconds [30].
    drain_seconds: u64,
    /// Waiting for a ticket, ms [120000].
    queue_ms: u64,
    /// From the ticket to the first token, ms [300000].
    first_token_ms: u64,
    /// Between two tokens, ms [60000].
    next_token_ms: u64,
    /// For the two tokens that /health_generate asks for, ms [20000].
    health_ms: u64,
    /// For servers to acknowledge a cancel or a flush, ms [2000].
    acknowledge_ms: u64,
    /// For a server's handshake, ms [2000].
    handshake_ms: u64,
    /// Between heartbeats to servers, ms [200].
    heartbeat_ms: u64,
    /// A server silent for so long is lost, ms [1500].
    silence_ms: u64,
}

/// The gateway's configuration, checked.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is documented as a setting")]
pub struct Config {
    pub id: ServerId,
    pub log: String,
    pub log_format: Format,
    pub listen: SocketAddr,
    pub model: PathBuf,
    pub served_model_name: Option<String>,
    pub chat_template: Option<PathBuf>,
    pub tool_call_parser: ToolCallParser,
    pub reasoning_parser: ReasoningParser,
    pub context_length: Option<u32>,
    pub api_key: Option<String>,
    pub compat_metrics: bool,
    pub otlp_endpoint: Option<Uri>,
    pub key_file: Option<PathBuf>,
    pub prefill: Vec<String>,
    pub decode: Vec<String>,
    pub max_queued: usize,
    pub retries: u32,
    pub threads: usize,
    pub http: HttpLimits,
    pub timing: Timing,
    pub deadlines: Deadlines,
}

/// Bounds of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is documented as a setting")]
pub struct HttpLimits {
    pub max_body_bytes: usize,
    pub max_connections: usize,
    pub headers_max: Duration,
    pub body_max: Duration,
    pub health_max: Duration,
    pub drain_max: Duration,
}

/// Why a configuration is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, or a value of the wrong type.
    #[error("{0}")]
    Toml(String),
    /// A key that does not exist.
    #[error("unknown key `{key}`; did you mean `{nearest}`?")]
    UnknownKey {
        /// As written.
        key: String,
        /// The key that is most like it.
        nearest: &'static str,
    },
    /// A value that is needed and absent.
    #[error("`{key}` is not set; set it in the file or as --{flag}", flag = key.replace('_', "-"))]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value out of range.
    #[error("`{key}` is {value}; want {want}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// The range.
        want: &'static str,
    },
    /// A file that the configuration names cannot be read.
    #[error("`{key}`: {path}: {reason}")]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}

impl Settings {
    /// Reads the text of a config file.
    ///
    /// # Errors
    /// Not TOML (with its line), an unknown key, or a value of the wrong type.
    pub fn from_toml_str(text: &str) -> Result<Self, ConfigError> {
        let toml = |err: toml::de::Error| ConfigError::Toml(err.to_string());
        if let Some((key, nearest)) = service::keys::unknown(text, Self::KEYS) {
            return Err(ConfigError::UnknownKey { key, nearest });
        }
        toml::from_str(text).map_err(toml)
    }

    /// The key that clients must send, of `api_key` or else of `api_key_file`.
    ///
    /// # Errors
    /// It is empty, or the file cannot be read.
    pub fn client_key(&self) -> Result<Option<String>, ConfigError> {
        let key = match (&self.api_key, &self.api_key_file) {
            (Some(key), _) => key.clone(),
            (None, Some(path)) => first_line("api_key_file", path)?,
            (None, None) => return Ok(None),
        };
        if key.is_empty() {
            return refuse("api_key", "empty".into(), "at least one character");
        }
        Ok(Some(key))
    }
}

impl Config {
    /// Fills in defaults and checks.
    ///
    /// # Errors
    /// The first value that is missing, out of range, or names a file that cannot be read.
    pub fn new(settings: Settings) -> Result<Self, ConfigError> {
        let timing = timing(&settings)?;
        let api_key = settings.client_key()?;
        let name = settings.id.unwrap_or_else(|| "gateway".to_owned());
        let id = ServerId::new(name).map_err(|bad| ConfigError::Value {
            key: "id",
            value: format!("{:?}", bad.0),
            want: "1 to 64 of letters, digits, '.', '_', '-'",
        })?;
        if settings.context_length == Some(0) {
            return refuse("context_length", "0".into(), "at least 1");
        }
        let listen = settings.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8000)));
        let http = HttpLimits {
            max_body_bytes: at_least_1("max_body_bytes", settings.max_body_bytes, 16 << 20)?,
            max_connections: at_least_1("max_connections", settings.max_connections, 4096)?,
            headers_max: ms(settings.headers_ms, Duration::from_secs(10)),
            body_max: ms(settings.body_ms, Duration::from_secs(30)),
            health_max: ms(settings.health_ms, Duration::from_secs(20)),
            drain_max: Duration::from_secs(settings.drain_seconds.unwrap_or(30)),
        };
        let own = Deadlines::default();
        let log_format = match settings.log_format.map(|name| (name.parse(), name)) {
            None => Format::default(),
            Some((Ok(format), _)) => format,
            Some((Err(_), name)) => {
                return refuse("log_format", format!("{name:?}"), "text or json");
            }
        };
        Ok(Self {
            id,
            log: settings.log.unwrap_or_else(|| "info".to_owned()),
            log_format,
            listen,
            model: settings.model.ok_or(ConfigError::Missing { key: "model" })?,
            served_model_name: settings.served_model_name,
            chat_template: settings.chat_template,
            tool_call_parser: settings.tool_call_parser.unwrap_or_default(),
            reasoning_parser: settings.reasoning_parser.unwrap_or_default(),
            context_length: settings.context_length,
            api_key,
            compat_metrics: settings.compat_metrics.unwrap_or(false),
            otlp_endpoint: settings.otlp_endpoint.as_deref().map(endpoint).transpose()?,
            key_file: settings.key_file,
            prefill: each_once("prefill", settings.prefill)?,
            decode: each_once("decode", settings.decode)?,
            max_queued: at_least_1("max_queued", settings.max_queued, 1024)?,
            retries: settings.retries.unwrap_or(0),
            threads: at_least_1("threads", settings.threads, half_of_the_cores())?,
            http,
            timing,
            deadlines: Deadlines {
                queue: ms(settings.queue_ms, own.queue),
                first_token: ms(settings.first_token_ms, own.first_token),
                next_token: ms(settings.next_token_ms, own.next_token),
                acknowledge: ms(settings.acknowledge_ms, own.acknowledge),
            },
        })
    }
}

/// Deadlines of links that can hold.
fn endpoint(text: &str) -> Result<Uri, ConfigError> {
    match text.parse::<Uri>() {
        Ok(uri) if uri.scheme_str() == Some("http") && uri.query().is_none() => Ok(uri),
        _ => refuse("otlp_endpoint", format!("{text:?}"), "http://HOST:PORT, maybe with a path"),
    }
}

fn timing(settings: &Settings) -> Result<Timing, ConfigError> {
    let default = Timing::default();
    let timing = Timing {
        handshake: ms(settings.handshake_ms, default.handshake),
        heartbeat: ms(settings.heartbeat_ms, default.heartbeat),
        silence: ms(settings.silence_ms, default.silence),
    };
    if timing.heartbeat.is_zero() {
        return refuse("heartbeat_ms", "0".into(), "at least 1");
    }
    if timing.silence < timing.heartbeat * 2 {
        let value = timing.silence.as_millis().to_string();
        return refuse("silence_ms", value, "at least twice heartbeat_ms");
    }
    Ok(timing)
}

/// A server that is named twice would have its links end each other.
fn each_once(key: &'static str, addresses: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let twice = |(at, address): &(usize, &String)| addresses[..*at].contains(address);
    match addresses.iter().enumerate().find(twice) {
        Some((_, address)) => refuse(key, format!("{address:?} twice"), "each server once"),
        None => Ok(addresses),
    }
}

/// A thread that has work wakes an idle one to share it, and on two cores that was a fifth of what
/// a request took; servers and clients of the machine want cores, too.
fn half_of_the_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

fn ms(setting: Option<u64>, default: Duration) -> Duration {
    setting.map_or(default, Duration::from_millis)
}

fn at_least_1(
    key: &'static str,
    setting: Option<usize>,
    default: usize,
) -> Result<usize, ConfigError> {
    match setting {
        Some(0) => refuse(key, "0".into(), "at least 1"),
        setting => Ok(setting.unwrap_or(default)),
    }
}

fn refuse<T>(key: &'static str, value: String, want: &'static str) -> Result<T, ConfigError> {
    Err(ConfigError::Value { key, value, want })
}

/// The first line of a file that holds a secret.
fn first_line(key: &'static str, path: &Path) -> Result<String, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|err| ConfigError::File {
        key,
        path: path.into(),
        reason: err.to_string(),
    })?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        settings: Settings,
    }

    fn config(text: &str, flags: &[&str]) -> Result<Config, ConfigError> {
        let flags = Command::try_parse_from(["gateway"].iter().chain(flags)).unwrap();
        Config::new(flags.settings.or(Settings::from_toml_str(text)?))
    }

    #[test]
    fn flags_win_over_the_file_and_defaults_fill_in() {
        let file = "model = \"m\"\nmax_queued = 7\nprefill = [\"a:1\", \"b:2\"]\n";
        let config = config(file, &["--max-queued", "9", "--decode", "c:3,d:4"]).unwrap();
        assert_eq!(config.max_queued, 9);
        assert_eq!(config.prefill, ["a:1", "b:2"]);
        assert_eq!(config.decode, ["c:3", "d:4"]);
        assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(config.http.max_body_bytes, 16 << 20);
        assert_eq!(config.tool_call_parser, ToolCallParser::Auto);
    }

    #[test]
    fn parsers_have_sglangs_names() {
        let file = "model = \"m\"\nreasoning_parser = \"deepseek-r1\"\n";
        let config = config(file, &["--tool-call-parser", "llama3"]).unwrap();
        assert_eq!(config.tool_call_parser, ToolCallParser::Llama3);
        assert_eq!(config.reasoning_parser, ReasoningParser::DeepseekR1);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_cure() {
        let check = |text: &str, expect: &str| {
            let error = config(text, &[]).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(
            "model = \"m\"\nmax_queue = 1",
            "unknown key `max_queue`; did you mean `max_queued`?",
        );
        check("model = \"m\"\nserved_name = \"x\"", "`served_model_name`");
        check("listen = \"127.0.0.1:1\"", "`model` is not set; set it in the file or as --model");
        check("model = \"m\"\nmax_queued = \"x\"", "line 2");
        check("model = \"m\"\nmax_queued = 0", "`max_queued` is 0; want at least 1");
        check("model = \"m\"\nid = \"a b\"", "`id` is \"a b\"");
        check("model = \"m\"\napi_key = \"\"", "`api_key` is empty");
        check("model = \"m\"\napi_key_file = \"/nonexistent/key\"", "`api_key_file`");
        check("model = \"m\"\nheartbeat_ms = 0", "`heartbeat_ms` is 0; want at least 1");
        check("model = \"m\"\nsilence_ms = 10", "`silence_ms` is 10; want at least twice");
        check("model = \"m\"\ndecode = [\"a:1\", \"a:1\"]", "want each server once");
        check("model = \"m\"\ntool_call_parser = \"x\"", "`hermes`");
        check("model = ", "line 1");
    }

    #[test]
    fn the_example_is_a_valid_file() {
        let example = include_str!("../../ops/config/gateway.toml");
        let settings = Settings::from_toml_str(example).unwrap();
        assert_eq!(settings.decode, ["127.0.0.1:7200"]);
    }
}
