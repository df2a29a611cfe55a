//! Where models are kept and fetched from: options, or the environment variables that the Hugging
//! Face tools know.

use anyhow::{Context, bail};
use clap::builder::FalseyValueParser;
use clap::{Args, Parser};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

const HUB: &str = "https://huggingface.co";

/// Where models are kept and fetched from.
#[derive(Args, Debug, Clone)]
pub struct Settings {
    /// Folder of fetched models [default: `$XDG_CACHE_HOME/tandem` or `~/.cache/tandem`].
    #[arg(long, value_name = "DIR", env = "TANDEM_CACHE")]
    cache: Option<OsString>,

    /// Ask the hub again for a revision that is already in the cache.
    #[arg(long)]
    pub refresh: bool,

    /// Address of the hub.
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT", default_value = HUB)]
    endpoint: String,

    /// Token for private and gated models; better given as a variable than as an option.
    #[arg(long, value_name = "TOKEN", env = "HF_TOKEN", hide_env_values = true)]
    hf_token: Option<String>,

    /// Use no network: only what is in the cache.
    #[arg(long, env = "HF_HUB_OFFLINE", value_parser = FalseyValueParser::new())]
    pub offline: bool,

    /// Certificates to trust in place of the built-in ones, as PEM.
    #[arg(long, value_name = "FILE", env = "SSL_CERT_FILE", hide = true)]
    certificates: Option<OsString>,

    #[arg(long, env = "HF_HUB_CACHE", hide = true, hide_env = true)]
    hf_hub_cache: Option<OsString>,

    #[arg(long, env = "HF_HOME", hide = true, hide_env = true)]
    hf_home: Option<OsString>,

    #[arg(long, env = "XDG_CACHE_HOME", hide = true, hide_env = true)]
    cache_home: Option<OsString>,

    #[arg(long, env = "HOME", hide = true, hide_env = true)]
    home: Option<OsString>,

    /// Longest wait for a connection, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, hide = true)]
    connect_seconds: f64,

    /// First pause before a broken download is taken up again, in seconds; it grows.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, hide = true)]
    pause_seconds: f64,
}

impl Settings {
    /// What the environment says, and defaults for the rest.
    ///
    /// # Errors
    /// A variable holds what it may not.
    pub fn from_environment() -> anyhow::Result<Self> {
        Self::from_options(&[])
    }

    /// What options and the environment say.
    pub(super) fn from_options(options: &[&str]) -> anyhow::Result<Self> {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            settings: Settings,
        }
        let arguments = std::iter::once("model").chain(options.iter().copied());
        let alone = Alone::try_parse_from(arguments).context("settings of the model cache")?;
        Ok(alone.settings)
    }

    /// These, with fetched models in `models` beside `link` unless a folder is named.
    pub(super) fn with_cache_beside(&self, link: &Path) -> Self {
        let beside = || Some(link.with_file_name("models").into_os_string());
        let cache = given(self.cache.as_ref()).map(PathBuf::into_os_string).or_else(beside);
        Self { cache, ..self.clone() }
    }

    /// Tandem's own folder of models.
    pub(super) fn cache(&self) -> anyhow::Result<PathBuf> {
        let default = || Some(self.user_cache()?.join("tandem"));
        given(self.cache.as_ref()).or_else(default).context(
            "no place to keep models: set HOME or XDG_CACHE_HOME, or give a folder by --cache",
        )
    }

    /// The hub cache of the Hugging Face tools, which is only read.
    pub(super) fn shared_cache(&self) -> Option<PathBuf> {
        given(self.hf_hub_cache.as_ref()).or_else(|| Some(self.hf_home()?.join("hub")))
    }

    fn hf_home(&self) -> Option<PathBuf> {
        given(self.hf_home.as_ref()).or_else(|| Some(self.user_cache()?.join("huggingface")))
    }

    /// A relative `XDG_CACHE_HOME` is to be ignored, by its specification.
    fn user_cache(&self) -> Option<PathBuf> {
        let named = given(self.cache_home.as_ref()).filter(|path| path.is_absolute());
        named.or_else(|| Some(given(self.home.as_ref())?.join(".cache")))
    }

    /// The hub's address without a slash at its end.
    pub(super) fn endpoint(&self) -> anyhow::Result<&str> {
        let endpoint = match self.endpoint.trim_end_matches('/') {
            "" => HUB,
            given => given,
        };
        if !(endpoint.starts_with("https://") || endpoint.starts_with("http://")) {
            bail!("HF_ENDPOINT is `{endpoint}`; it must be an http:// or https:// address");
        }
        Ok(endpoint)
    }

    /// The token, by option or variable, else as the Hugging Face tools' login left it.
    pub(super) fn token(&self) -> Option<String> {
        let clean = |token: String| Some(token.trim().to_owned()).filter(|token| !token.is_empty());
        self.hf_token
            .clone()
            .and_then(clean)
            .or_else(|| std::fs::read_to_string(self.hf_home()?.join("token")).ok().and_then(clean))
    }

    pub(super) fn certificates(&self) -> Option<PathBuf> {
        given(self.certificates.as_ref())
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.connect_seconds).unwrap_or(Duration::from_secs(3))
    }

    pub(super) fn pause(&self) -> Duration {
        Duration::try_from_secs_f64(self.pause_seconds).unwrap_or(Duration::from_secs(1))
    }
}

/// An empty variable counts as one that is not set.
fn given(path: Option<&OsString>) -> Option<PathBuf> {
    path.filter(|path| !path.is_empty()).map(PathBuf::from)
}
