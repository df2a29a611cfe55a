//! Settings of a prefill or decode server: a TOML file, and flags of the same names over it.

use clap::Args;
use kv_transfer::select::Choice;
use link::{Stops, Timing};
use model::WeightFormat;
use model::sim::StepTable;
use serde::Deserialize;
use service::logs::Format;
use shared::eviction::EvictionPolicy;
use shared::ids::ServerId;
use shared::kv::KvDtype;
use shared::sched::prefill::PrefillPolicy;
use shared::wire::handshake::RingKey;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

macro_rules! settings {
    ($($(#[$attribute:meta])+ $name:ident: $type:ty,)*) => {
        /// Every setting, each optional; file keys and flags have the same names (`_` is `-` in a
        /// flag).
        #[derive(Args, Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Settings {
            $($(#[$attribute])+ #[arg(long)] pub $name: Option<$type>,)*
        }

        impl Settings {
            /// Every key of the file.
            pub const KEYS: &[&str] = &[$(stringify!($name),)*];

            /// These settings, and for those that are absent `below`.
            fn over(self, below: Self) -> Self {
                Self { $($name: self.$name.or(below.$name),)* }
            }
        }
    };
}

settings! {
    /// Name of this server, stable over restarts.
    id: String,
    /// Which logs are written: a level, or `target=level` pairs; RUST_LOG wins [default: info].
    log: String,
    /// How logs look: text or json [default: text].
    log_format: String,
    /// Address for gateways and peers.
    listen: SocketAddr,
    /// Address for /health and /metrics; absent: none.
    admin: SocketAddr,
    /// Say /metrics also by the names of SGLang's and vLLM's dashboards [default: false].
    #[arg(num_args = 0..=1, default_missing_value = "true")]
    compat_metrics: bool,
    /// What clients call the model, the `model_name` of those [default: the folder's or file's
    /// name].
    served_model_name: String,
    /// File with the ring's key, 64 hex digits.
    key_file: PathBuf,
    /// Model: a folder of safetensors or a GGUF file.
    model: PathBuf,
    /// Where the model runs: cpu, cuda or cuda:N; auto or auto:N is that GPU where there is one,
    /// else the CPU; sim:FILE only takes the time that this table of step times says [default:
    /// cpu].
    device: String,
    /// Keys, values and arithmetic: bf16 or f32 [default: bf16].
    dtype: String,
    /// Matrices in memory: auto (as the file has them; on a GPU bf16), bf16, or q8_0 (those in full
    /// rounded to 8 bits, CPU only). Servers of a ring must agree [default: auto].
    weights: String,
    /// Longest sequence, tokens [default: the model's].
    context_length: u32,
    /// Tokens of a page [default: 16].
    page_size: u32,
    /// Part of the available memory (on a GPU: of what the weights leave) that pages may take
    /// [default: 0.1; on a GPU 0.4, so that two servers fit on one].
    mem_fraction: f64,
    /// Most tokens of the page pool [default: as many as fit].
    max_total_tokens: u32,
    /// Threads that compute [default: all cores].
    threads: usize,
    /// How pages travel: auto, ucx, cuda_ipc, tcp [default: auto].
    transport: String,
    /// Folder with libucp.so.0 [default: where the loader finds it].
    ucx_dir: PathBuf,
    /// Address for page data by TCP [default: the host of `listen`, any port].
    data_listen: SocketAddr,
    /// Address that peers use for page data, if not the bound one.
    data_advertise: IpAddr,
    /// Refuse a transport below this, MB/s [default: 0].
    bandwidth_floor: u64,
    /// Checksum every page that is shipped [default: false].
    page_checksums: bool,
    /// Which cached pages go first: lru, lfu, fifo, mru or priority (of the request
    /// that computed them) [default: lru].
    eviction: String,
    /// Milliseconds between heartbeats [default: 200].
    heartbeat_ms: u64,
    /// A peer silent for so many milliseconds is lost [default: 1500].
    silence_ms: u64,
    /// Milliseconds that a transfer operation may take [default: 1500].
    transfer_deadline_ms: u64,
    /// Seconds that a drain may take [default: 30].
    drain_seconds: u64,
    /// Prefill: decode servers to join, host:port.
    decode: StringList,
    /// Prefill: most prompt tokens of a step [default: 512; on a GPU 8192].
    chunked_prefill_size: u32,
    /// Prefill, on a GPU: most groups of layers that a chunk's pages are shipped in while later
    /// layers are computed, each half of what is left; 1 ships them all behind the last [default: 1
    /// for short chunks, else until one layer is left].
    layer_groups: usize,
    /// Prefill: requests that may wait [default: 4096].
    max_queued: usize,
    /// Prefill: order of admission: lpm, fcfs, dfs-weight, lof, random or priority [default: lpm].
    schedule_policy: String,
    /// Decode: most sequences of a step [default: 64; on a GPU 256].
    max_running_requests: usize,
    /// Decode: tokens of growth reserved for a request [default: 512].
    num_reserved_decode_tokens: u32,
    /// Decode: seconds after which a ticket that was not opened expires [default: 300].
    ticket_seconds: u64,
    /// For tests: stop by SIGSTOP at this point, `POINT` or `POINT:N`.
    stop_at: String,
}

/// Where settings are read from.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigFile {
    /// TOML file with any of the settings; flags go over it.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Number that `{instance}` in the file stands for: servers of several GPUs share one.
    #[arg(long)]
    pub instance: Option<u16>,
}

/// What [`ConfigFile::instance`] replaces.
const INSTANCE: &str = "{instance}";

/// A list in TOML, comma-separated in a flag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct StringList(pub Vec<String>);

impl FromStr for StringList {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        Ok(Self(items.map(str::to_owned).collect()))
    }
}

/// A setting that cannot be used, with the cure.
#[derive(Debug, thiserror::Error)]
pub enum BadSetting {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not what it should be; the message names line and key.
    #[error("{path}: {error}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// What is wrong where.
        error: Box<toml::de::Error>,
    },
    /// A key that does not exist.
    #[error("{path}: unknown key `{key}`; did you mean `{nearest}`?")]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// As written.
        key: String,
        /// The key that is most like it.
        nearest: &'static str,
    },
    /// A value that does not fit, or is missing.
    #[error("{name}: {problem}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What is wrong and what would do.
        problem: String,
    },
}

fn bad(name: &'static str, problem: impl Into<String>) -> BadSetting {
    BadSetting::Value { name, problem: problem.into() }
}

/// Where the model runs.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// On the CPU.
    #[default]
    Cpu,
    /// On the GPU of this number, as the driver counts.
    Cuda(usize),
    /// Nowhere: steps take the time that this table says.
    Sim(Arc<StepTable>),
}

impl Device {
    /// GPU `number` where it can be used, else the CPU.
    fn best(number: usize) -> Self {
        match kernels::cuda::Device::open(number) {
            Ok(_) => Self::Cuda(number),
            Err(_) => Self::Cpu,
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let number = match name {
            "cpu" => return Ok(Self::Cpu),
            "auto" => return Ok(Self::best(0)),
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
        };
        if let Some(file) = name.strip_prefix("sim:") {
            let table = StepTable::read(Path::new(file)).map_err(|error| error.to_string())?;
            return Ok(Self::Sim(Arc::new(table)));
        }
        let auto = name.strip_prefix("auto:").and_then(|number| number.parse().ok());
        number.map(Self::Cuda).or(auto.map(Self::best)).ok_or_else(|| {
            format!("{name:?} is not known; want cpu, cuda, cuda:N, auto, auto:N or sim:FILE")
        })
    }
}

/// Exact values, checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the setting of the same name")]
pub struct Config {
    pub id: ServerId,
    pub log: Option<String>,
    pub log_format: Format,
    pub listen: SocketAddr,
    pub admin: Option<SocketAddr>,
    /// What clients call the model, if /metrics is to have the names of others too.
    pub compat_metrics: Option<String>,
    pub key: RingKey,
    pub model: PathBuf,
    pub device: Device,
    pub dtype: KvDtype,
    pub weights: WeightFormat,
    pub context_length: Option<u32>,
    pub page_size: u32,
    pub mem_fraction: f64,
    pub max_total_tokens: Option<u32>,
    pub threads: Option<usize>,
    pub transport: Choice,
    pub ucx_dir: Option<PathBuf>,
    pub data_listen: SocketAddr,
    pub data_advertise: Option<IpAddr>,
    pub bandwidth_floor: u64,
    pub page_checksums: bool,
    pub eviction: EvictionPolicy,
    pub timing: Timing,
    pub transfer_deadline: Duration,
    pub drain: Duration,
    pub decode: Vec<String>,
    pub chunk_tokens: u32,
    pub layer_groups: Option<usize>,
    pub max_queued: usize,
    pub policy: PrefillPolicy,
    pub batch_max: usize,
    pub growth_tokens: u32,
    pub ticket_life: Duration,
    pub stops: Stops,
}

impl Settings {
    /// Reads `file`, if given, below these settings, and checks the whole.
    ///
    /// # Errors
    /// [`BadSetting`] with the name, the value and the cure.
    pub fn resolve(self, file: &ConfigFile) -> Result<Config, BadSetting> {
        self.above(file)?.check()
    }

    /// These settings over those of `file`, if given.
    ///
    /// # Errors
    /// [`BadSetting`]: the file cannot be read, or a key in it does not exist.
    pub fn above(self, file: &ConfigFile) -> Result<Self, BadSetting> {
        let Some(path) = file.config.as_deref() else { return Ok(self) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| BadSetting::Unreadable { path: path.into(), error })?;
        let text = match file.instance {
            Some(instance) => text.replace(INSTANCE, &instance.to_string()),
            None => text,
        };
        if let Some((key, nearest)) = service::keys::unknown(&text, Self::KEYS) {
            return Err(BadSetting::UnknownKey { path: path.into(), key, nearest });
        }
        let below = toml::from_str(&text)
            .map_err(|error| BadSetting::Syntax { path: path.into(), error: Box::new(error) })?;
        Ok(self.over(below))
    }

    /// Exact values of these settings.
    ///
    /// # Errors
    /// [`BadSetting`] with the name, the value and the cure.
    pub fn check(self) -> Result<Config, BadSetting> {
        let missing = |name| bad(name, "is not set, and there is no default");
        let listen = self.listen.ok_or_else(|| missing("listen"))?;
        let key_file = self.key_file.ok_or_else(|| missing("key_file"))?;
        let device: Device = parse("device", self.device)?.unwrap_or_default();
        let on_gpu = matches!(device, Device::Cuda(_));
        let (chunk_tokens, batch_max) = match &device {
            Device::Cpu => (512, 64),
            Device::Cuda(_) => (8192, 256),
            Device::Sim(table) => (table.steps().chunk_tokens, table.steps().rows_max as usize),
        };
        let mem_fraction = self.mem_fraction.unwrap_or(if on_gpu { 0.4 } else { 0.1 });
        if !(mem_fraction > 0.0 && mem_fraction <= 1.0) {
            return Err(bad("mem_fraction", format!("{mem_fraction} is not in (0, 1]")));
        }
        let id = self.id.ok_or_else(|| missing("id"))?;
        let dtype = dtype(self.dtype.as_deref())?;
        if on_gpu && dtype == KvDtype::F32 {
            return Err(bad("dtype", "f32 does not run on a GPU; want bf16, or device cpu"));
        }
        let model = self.model.ok_or_else(|| missing("model"))?;
        let model_name = self.served_model_name.unwrap_or_else(|| checkpoint::name(&model));
        let weights = parse("weights", self.weights)?.unwrap_or_default();
        if on_gpu && weights == WeightFormat::Q8_0 {
            return Err(bad("weights", "q8_0 does not run on a GPU; want auto, or device cpu"));
        }
        Ok(Config {
            id: ServerId::new(id).map_err(|e| bad("id", e.to_string()))?,
            log: self.log,
            log_format: parse("log_format", self.log_format)?.unwrap_or_default(),
            listen,
            admin: self.admin,
            compat_metrics: self.compat_metrics.unwrap_or(false).then_some(model_name),
            key: read_key(&key_file)?,
            model,
            device,
            dtype,
            weights,
            context_length: at_least_one("context_length", self.context_length)?,
            page_size: at_least_one("page_size", self.page_size)?.unwrap_or(16),
            mem_fraction,
            max_total_tokens: at_least_one("max_total_tokens", self.max_total_tokens)?,
            threads: at_least_one("threads", self.threads)?,
            transport: parse("transport", self.transport)?.unwrap_or_default(),
            ucx_dir: self.ucx_dir,
            data_listen: self.data_listen.unwrap_or(SocketAddr::new(listen.ip(), 0)),
            data_advertise: self.data_advertise,
            bandwidth_floor: self.bandwidth_floor.unwrap_or(0),
            page_checksums: self.page_checksums.unwrap_or(false),
            eviction: parse("eviction", self.eviction)?.unwrap_or_default(),
            timing: timing(self.heartbeat_ms, self.silence_ms)?,
            transfer_deadline: at_least_one("transfer_deadline_ms", self.transfer_deadline_ms)?
                .map_or(Duration::from_millis(1500), Duration::from_millis),
            drain: Duration::from_secs(self.drain_seconds.unwrap_or(30)),
            decode: self.decode.unwrap_or_default().0,
            chunk_tokens: at_least_one("chunked_prefill_size", self.chunked_prefill_size)?
                .unwrap_or(chunk_tokens),
            layer_groups: at_least_one("layer_groups", self.layer_groups)?,
            max_queued: at_least_one("max_queued", self.max_queued)?.unwrap_or(4096),
            policy: parse("schedule_policy", self.schedule_policy)?.unwrap_or(PrefillPolicy::Lpm),
            batch_max: at_least_one("max_running_requests", self.max_running_requests)?
                .unwrap_or(batch_max),
            growth_tokens: self.num_reserved_decode_tokens.unwrap_or(512),
            ticket_life: at_least_one("ticket_seconds", self.ticket_seconds)?
                .map_or(Duration::from_secs(300), Duration::from_secs),
            stops: parse("stop_at", self.stop_at)?.unwrap_or_default(),
        })
    }
}

fn read_key(path: &Path) -> Result<RingKey, BadSetting> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| bad("key_file", format!("cannot read {}: {e}", path.display())))?;
    RingKey::from_hex(&text).map_err(|e| bad("key_file", format!("{}: {e}", path.display())))
}

fn parse<T: FromStr<Err: ToString>>(
    name: &'static str,
    value: Option<String>,
) -> Result<Option<T>, BadSetting> {
    value.map(|text| text.parse().map_err(|e: T::Err| bad(name, e.to_string()))).transpose()
}

fn at_least_one<T: Default + PartialEq>(
    name: &'static str,
    value: Option<T>,
) -> Result<Option<T>, BadSetting> {
    match value {
        Some(zero) if zero == T::default() => Err(bad(name, "0 does not fit; want at least 1")),
        other => Ok(other),
    }
}

fn dtype(name: Option<&str>) -> Result<KvDtype, BadSetting> {
    match name {
        None | Some("bf16") => Ok(KvDtype::Bf16),
        Some("f32") => Ok(KvDtype::F32),
        Some(other) => Err(bad("dtype", format!("{other:?} is not known; want bf16 or f32"))),
    }
}

fn timing(heartbeat_ms: Option<u64>, silence_ms: Option<u64>) -> Result<Timing, BadSetting> {
    let default = Timing::default();
    let ms = |value: Option<u64>, or| value.map_or(or, Duration::from_millis);
    let heartbeat = ms(heartbeat_ms, default.heartbeat);
    let silence = ms(silence_ms, default.silence);
    if heartbeat.is_zero() || silence < heartbeat * 2 {
        return Err(bad(
            "silence_ms",
            "want heartbeat_ms above 0 and silence_ms at least twice it",
        ));
    }
    Ok(Timing { heartbeat, silence, ..default })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "11".repeat(32)).unwrap();
        let file = folder.path().join("server.toml");
        std::fs::write(&file, text.replace("KEY", key.to_str().unwrap())).unwrap();
        let file = ConfigFile { config: Some(file), instance: Some(3) };
        Settings::default().resolve(&file).map_err(|e| e.to_string())
    }

    const LEAST: &str = "id = \"p\"\nlisten = \"127.0.0.1:1\"\nkey_file = \"KEY\"\nmodel = \"m\"\n";

    #[test]
    fn the_least_file_has_defaults_and_flags_go_over_it() {
        let config = check(LEAST).unwrap();
        assert_eq!((config.page_size, config.transport), (16, Choice::Auto));
        let numbered = LEAST.replace("127.0.0.1:1", "127.0.0.1:720{instance}");
        assert_eq!(check(&numbered).unwrap().listen.port(), 7203);
        // Without a driver it is the CPU, with one the GPU of that number, if there is one.
        let auto = check(&format!("{LEAST}device = \"auto:9\"\n")).unwrap().device;
        assert!(!matches!(auto, Device::Cuda(0)), "{auto:?}");
        let flags = Settings { page_size: Some(32), ..Settings::default() };
        let file = Settings { page_size: Some(8), threads: Some(3), ..Settings::default() };
        let both = flags.over(file);
        assert_eq!((both.page_size, both.threads), (Some(32), Some(3)));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let fails = |more: &str, words: &[&str]| {
            let error = check(&format!("{LEAST}{more}\n")).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        fails("page_sice = 4", &["page_sice", "page_size"]);
        fails("page_size = 0", &["page_size", "at least 1"]);
        fails("ticket_seconds = 0", &["ticket_seconds", "at least 1"]);
        fails("dtype = \"int4\"", &["dtype", "int4", "bf16"]);
        fails("device = \"cuda:x\"", &["device", "cuda:x", "cuda:N"]);
        fails("device = \"sim:none.json\"", &["device", "none.json", "cannot read"]);
        fails("weights = \"q3\"", &["weights", "q3", "bf16", "q8_0"]);
        fails("device = \"cuda\"\nweights = \"q8_0\"", &["weights", "q8_0", "auto"]);
        fails("device = \"cuda\"\ndtype = \"f32\"", &["dtype", "f32", "bf16"]);
        fails("mem_fraction = 1.5", &["mem_fraction", "1.5"]);
        fails("transport = \"rdma\"", &["transport", "rdma", "tcp"]);
        fails("silence_ms = 10", &["silence_ms"]);
        fails("stop_at = \"nowhere\"", &["stop_at", "nowhere", "decode-landed"]);
        assert!(check("").unwrap_err().contains("listen"));
    }
}
