//! `tandem ring`: gateway, prefill and decode in one process, pages over loopback, the same code as
//! in three. For owners of one device.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use gateway::auth::Guard;
use kv_transfer::loopback::Hub;
use role::settings::Settings;
use serde::Deserialize;
use service::admin;
use service::logs::{self, Format};
use service::shutdown::{self, Shutdown, Trigger};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Run the whole ring in this process.
#[derive(Args)]
pub struct RingCommand {
    /// TOML file: listen, model, served_model_name, dtype, weights, key_file; [gateway] and
    /// [server] with any setting of the gateway and of both servers.
    #[arg(long)]
    config: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: SocketAddr,
    model: PathBuf,
    served_model_name: Option<String>,
    dtype: Option<String>,
    weights: Option<String>,
    key_file: PathBuf,
    #[serde(default)]
    gateway: gateway::config::Settings,
    #[serde(default)]
    server: Settings,
}

impl RingCommand {
    /// Runs until SIGTERM or SIGINT, then drains front to back.
    ///
    /// # Errors
    /// The config does not fit; what comes after that is logged.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let text = std::fs::read_to_string(&self.config)
            .with_context(|| format!("read {}", self.config.display()))?;
        let file: File =
            toml::from_str(&text).with_context(|| self.config.display().to_string())?;
        let (log, format) = logging(&file).with_context(|| self.config.display().to_string())?;
        logs::start(log, format)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        if let Err(error) = runtime.block_on(run(file)) {
            tracing::error!(error = format!("{error:#}"), "the ring ends");
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// There is one log, of which the gateway's settings speak, or else those of the servers.
fn logging(file: &File) -> anyhow::Result<(Option<&str>, Format)> {
    let (gateway, server) = (&file.gateway, &file.server);
    let log = gateway.log.as_deref().or(server.log.as_deref());
    let format = gateway.log_format.as_deref().or(server.log_format.as_deref());
    let format = format.map(str::parse).transpose();
    let format = format.map_err(|problem: String| anyhow!("`log_format`: {problem}"))?;
    Ok((log, format.unwrap_or_default()))
}

/// A role of this process.
struct Running {
    name: &'static str,
    drain: Trigger,
    /// None once it is known how it ended.
    task: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Running {
    /// Returns how it ended; where that was told before, nothing more. Cancel safe.
    async fn ended(&mut self) -> anyhow::Result<()> {
        let Some(task) = &mut self.task else { return Ok(()) };
        let ended = task.await;
        self.task = None;
        ended.map_err(anyhow::Error::from).flatten().context(self.name)
    }
}

/// What each role is to be. Who joins whom is known when they listen.
struct Configs {
    decode: role::settings::Config,
    prefill: role::settings::Config,
    gateway: gateway::config::Config,
}

impl Configs {
    fn of(file: &File) -> anyhow::Result<Self> {
        let gateway = gateway::config::Config::new(gateway_settings(file)).context("[gateway]")?;
        let server = |id| server(file, id).check().context("[server]");
        Ok(Self { decode: server("decode-0")?, prefill: server("prefill-0")?, gateway })
    }
}

async fn run(file: File) -> anyhow::Result<()> {
    let configs = Configs::of(&file)?;
    let mut told = shutdown::on_signal()?;
    // Before the servers, whose counters begin when they start.
    let name = file.served_model_name.clone().unwrap_or_else(|| checkpoint::name(&file.model));
    admin::install(configs.gateway.compat_metrics.then_some(&*name))?;
    let mut roles = Vec::new();
    let mut outcome = tokio::select! {
        ended = serve(configs, &mut roles) => ended,
        () = told.wait() => Ok(()),
    };
    // Whoever ended first and why: no other may lose its runtime while it works.
    for role in roles.iter_mut().rev() {
        role.drain.pull();
        outcome = outcome.and(role.ended().await);
    }
    outcome
}

/// Starts the roles, decode first, and returns how the first one ended. Cancel safe: those that run
/// are in `roles`.
async fn serve(
    Configs { decode, mut prefill, mut gateway }: Configs,
    roles: &mut Vec<Running>,
) -> anyhow::Result<()> {
    let hub = Hub::new();
    let of_decode = Some(Arc::clone(&hub));
    let decode = start(roles, "decode", |listening, shutdown| async {
        Ok(decode_server::run(decode, of_decode, listening, shutdown).await?)
    });
    let decode = decode.await?.to_string();
    prefill.decode = vec![decode.clone()];
    let prefill = start(roles, "prefill", |listening, shutdown| async {
        Ok(prefill_server::run(prefill, Some(hub), listening, shutdown).await?)
    });
    gateway.prefill = vec![prefill.await?.to_string()];
    gateway.decode = vec![decode];
    let guard = Arc::new(Guard::new(gateway.api_key.as_deref()));
    let gateway = start(roles, "gateway", |listening, shutdown| async {
        let served = gateway::start::run(gateway, guard, listening, shutdown).await;
        served.map_err(|error| anyhow!(error))
    });
    gateway.await?;
    let [decode, prefill, gateway] = &mut **roles else { unreachable!("three were started") };
    tokio::select! {
        ended = decode.ended() => ended,
        ended = prefill.ended() => ended,
        ended = gateway.ended() => ended,
    }
}

/// Starts a role and waits until it listens.
async fn start<F>(
    roles: &mut Vec<Running>,
    name: &'static str,
    serve: impl FnOnce(oneshot::Sender<SocketAddr>, Shutdown) -> F,
) -> anyhow::Result<SocketAddr>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (drain, shutdown) = shutdown::pair();
    let (listening, listens) = oneshot::channel();
    let task = Some(tokio::spawn(serve(listening, shutdown)));
    let at = roles.len();
    roles.push(Running { name, drain, task });
    let Ok(address) = listens.await else {
        // Why is told by its end.
        roles[at].ended().await?;
        bail!("{name} ended before it listened");
    };
    Ok(address)
}

fn server(file: &File, id: &str) -> Settings {
    let common = &file.server;
    Settings {
        id: Some(id.to_owned()),
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        key_file: Some(file.key_file.clone()),
        model: Some(file.model.clone()),
        dtype: common.dtype.clone().or(file.dtype.clone()),
        weights: common.weights.clone().or(file.weights.clone()),
        ..common.clone()
    }
}

fn gateway_settings(file: &File) -> gateway::config::Settings {
    let below = gateway::config::Settings {
        listen: Some(file.listen),
        model: Some(file.model.clone()),
        served_model_name: file.served_model_name.clone(),
        key_file: Some(file.key_file.clone()),
        ..gateway::config::Settings::default()
    };
    file.gateway.clone().or(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_table_go_to_both_servers_and_the_gateway() {
        let text = "listen = \"127.0.0.1:0\"\nmodel = \"m\"\nkey_file = \"k\"\ndtype = \"f32\"\n\
                    weights = \"bf16\"\n[server]\npage_size = 32\n[gateway]\nmax_queued = 7\n";
        let file: File = toml::from_str(text).unwrap();
        let settings = server(&file, "decode-0");
        assert_eq!((settings.page_size, settings.dtype.as_deref()), (Some(32), Some("f32")));
        assert_eq!(settings.weights.as_deref(), Some("bf16"));
        assert_eq!(gateway_settings(&file).max_queued, Some(7));
        assert!(toml::from_str::<File>("[server]\npage_sice = 1\n").is_err());
    }

    #[test]
    fn the_gateways_settings_say_how_the_one_log_looks() {
        let head = "listen = \"127.0.0.1:0\"\nmodel = \"m\"\nkey_file = \"k\"\n";
        let said = |tables: &str| {
            let file: File = toml::from_str(&format!("{head}{tables}")).unwrap();
            logging(&file)
                .map(|(log, format)| (log.map(str::to_owned), format))
                .map_err(|error| error.to_string())
        };
        let both =
            "[gateway]\nlog_format = \"json\"\n[server]\nlog = \"debug\"\nlog_format = \"text\"\n";
        assert_eq!(said(both), Ok((Some("debug".to_owned()), Format::Json)));
        assert_eq!(said("[server]\nlog_format = \"json\"\n"), Ok((None, Format::Json)));
        assert!(said("[server]\nlog_format = \"yaml\"\n").unwrap_err().contains("yaml"));
    }
}
