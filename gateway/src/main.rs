//! `tandem-gateway`: config → logs → model → fleet → serve → drain.
#![forbid(unsafe_code)]

use clap::Parser;
use gateway::config::{Config, Settings};
use gateway::fleet::{FleetConfig, Ring};
use gateway::http::App;
use gateway::model::Model;
use gateway::{metrics, serve};
use shared::wire::handshake::{RingKey, Role};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The gateway of a Tandem ring: HTTP in front of prefill and decode servers.
#[derive(Parser)]
#[command(name = "tandem-gateway", version)]
struct Command {
    /// Config file; flags win over it.
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let command = Command::parse();
    let file = command.config.as_deref().map(settings).transpose()?.unwrap_or_default();
    let config = Config::new(command.settings.or(file))?;
    let filter = EnvFilter::try_new(&config.log)?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let metrics = metrics::install()?;
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = TcpListener::bind(config.listen).await?;
    let model = Model::load(&config)?;
    let ring = Ring::start(fleet(&config)?);
    tracing::info!(listen = %listener.local_addr()?, model = model.served_name, "listening");
    let app = App::new(ring, model, config.http, metrics, config.api_key.as_deref());
    let cut = serve::serve(listener, Arc::new(app), stop(&mut terminate, &mut interrupt)).await;
    if cut > 0 {
        tracing::warn!(connections = cut, "the drain ran out of time; they were cut");
    }
    Ok(())
}

fn settings(path: &Path) -> Result<Settings, Box<dyn Error>> {
    let named = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let text = std::fs::read_to_string(path).map_err(|err| named(&err))?;
    Ok(Settings::from_toml_str(&text).map_err(|err| named(&err))?)
}

fn fleet(config: &Config) -> Result<FleetConfig, Box<dyn Error>> {
    let path = config.key_file.as_deref().ok_or("`key_file` is not set; every ring has a key")?;
    let named = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let hex = std::fs::read_to_string(path).map_err(|err| named(&err))?;
    Ok(FleetConfig {
        identity: link::identity::draw(Role::Gateway, config.id.clone())?,
        key: RingKey::from_hex(&hex).map_err(|err| named(&err))?,
        prefill: config.prefill.clone(),
        decode: config.decode.clone(),
        max_queued: config.max_queued,
        retries: config.retries,
        timing: config.timing,
        deadlines: config.deadlines,
    })
}

async fn stop(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
