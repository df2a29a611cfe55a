//! `tandem-gateway`: config → logs → gateway → drain.
#![forbid(unsafe_code)]

use clap::Parser;
use gateway::config::{Config, Settings};
use gateway::start;
use link::shutdown;
use std::error::Error;
use std::path::PathBuf;
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
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let command = Command::parse();
    let file = command.config.as_deref().map(start::settings).transpose()?.unwrap_or_default();
    let config = Config::new(command.settings.or(file))?;
    let filter = EnvFilter::try_new(&config.log)?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    start::run(config, shutdown::on_signal()?).await
}
