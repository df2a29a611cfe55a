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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    logs::start();
    if let Err(error) = kv_transfer::ucx::leave_libc_alone() {
        tracing::warn!(%error, "UCX will patch libc, if it is used");
    }
    serve(arguments)
}

#[tokio::main]
async fn serve(arguments: Arguments) -> ExitCode {
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
