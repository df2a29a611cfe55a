//! `tandem-prefill`: settings → server → drain.
#![forbid(unsafe_code)]

use clap::Parser;
use link::shutdown;
use prefill_server::PrefillError;
use role::core::StartError;
use role::logs;
use role::settings::Settings;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::sync::oneshot;

/// A prefill server: computes prompts and writes their pages into decode servers.
#[derive(Parser)]
#[command(name = "tandem-prefill", version)]
struct Arguments {
    /// TOML file with any of the settings below; flags go over it.
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    logs::start();
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "prefill server ends");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), PrefillError> {
    let config =
        arguments.settings.resolve(arguments.config.as_deref()).map_err(StartError::from)?;
    if let Some(address) = config.admin {
        link::admin::serve(address).await.map_err(StartError::from)?;
    }
    let shutdown = shutdown::on_signal().map_err(StartError::from)?;
    prefill_server::run(config, None, oneshot::channel().0, shutdown).await
}
