//! `tandem ring`: gateway, prefill and decode in one process, pages over loopback, the same code as
//! in three. For owners of one device.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::Args;
use gateway::auth::Guard;
use kv_transfer::loopback::Hub;
use role::settings::{ConfigFile, Settings, StringList};
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

/// A server of this process.
struct Running {
    address: SocketAddr,
    drain: Trigger,
    task: JoinHandle<anyhow::Result<()>>,
}

async fn run(file: File) -> anyhow::Result<()> {
    // Before the servers, whose counters begin when they start.
    let name = file.served_model_name.clone().unwrap_or_else(|| checkpoint::name(&file.model));
    let compat = file.gateway.compat_metrics.unwrap_or(false);
    admin::install(compat.then_some(&*name))?;
    let hub = Hub::new();
    let decode_config = server(&file, "decode-0").resolve(&ConfigFile::default())?;
    let mut decode = start(|listening, shutdown| {
        let hub = Some(Arc::clone(&hub));
        async { Ok(decode_server::run(decode_config, hub, listening, shutdown).await?) }
    })
    .await?;
    let joins = Some(StringList(vec![decode.address.to_string()]));
    let prefill_config =
        Settings { decode: joins, ..server(&file, "prefill-0") }.resolve(&ConfigFile::default())?;
    let mut prefill = start(|listening, shutdown| {
        let hub = Some(Arc::clone(&hub));
        async { Ok(prefill_server::run(prefill_config, hub, listening, shutdown).await?) }
    })
    .await?;
    let gateway = gateway_settings(&file, prefill.address, decode.address);
    let gateway = gateway::config::Config::new(gateway)?;
    let guard = Arc::new(Guard::new(gateway.api_key.as_deref()));
    let (listening, shutdown) = (oneshot::channel().0, shutdown::on_signal()?);
    let gateway = gateway::start::run(gateway, guard, listening, shutdown);
    let mut outcome = tokio::select! {
        served = gateway => served.map_err(|error| anyhow!(error)),
        ended = &mut decode.task => ended.context("the decode server").flatten(),
        ended = &mut prefill.task => ended.context("the prefill server").flatten(),
    };
    // Whoever ended first and why: the others may not lose their runtime while they work.
    for role in [prefill, decode] {
        role.drain.pull();
        if !role.task.is_finished() {
            outcome = outcome.and(role.task.await?);
        }
    }
    outcome
}

/// Starts a server and waits until it listens.
async fn start<F>(
    serve: impl FnOnce(oneshot::Sender<SocketAddr>, Shutdown) -> F,
) -> anyhow::Result<Running>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (trigger, shutdown) = shutdown::pair();
    let (listening, listens) = oneshot::channel();
    let mut task = tokio::spawn(serve(listening, shutdown));
    tokio::select! {
        address = listens => {
            let address = match address {
                Ok(address) => address,
                Err(_) => return Err(task.await?.err().unwrap_or_else(|| anyhow!("it ended"))),
            };
            Ok(Running { address, drain: trigger, task })
        }
        ended = &mut task => Err(ended?.err().unwrap_or_else(|| anyhow!("it ended"))),
    }
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

fn gateway_settings(
    file: &File,
    prefill: SocketAddr,
    decode: SocketAddr,
) -> gateway::config::Settings {
    let below = gateway::config::Settings {
        listen: Some(file.listen),
        model: Some(file.model.clone()),
        served_model_name: file.served_model_name.clone(),
        key_file: Some(file.key_file.clone()),
        prefill: vec![prefill.to_string()],
        decode: vec![decode.to_string()],
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
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let gateway = gateway_settings(&file, address, address);
        assert_eq!((gateway.max_queued, gateway.decode), (Some(7), vec!["127.0.0.1:9".to_owned()]));
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
