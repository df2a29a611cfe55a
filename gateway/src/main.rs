//! `tandem-gateway`: config → logs → gateway → drain.
#![forbid(unsafe_code)]

use clap::Parser;
use gateway::auth::Guard;
use gateway::command::Arguments;
use gateway::config::{Config, Settings};
use gateway::start;
use mimalloc::MiMalloc;
use service::logs::{self, Logs};
use service::{notify, shutdown};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A request makes some 170 allocations, most of them small and short-lived.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let Arguments { config: file, settings: flags } = Arguments::parse();
    let started = settings(&flags, file.as_deref()).and_then(|settings| {
        let config = Config::new(settings.clone())?;
        let logs = logs::start(Some(&config.log), config.log_format)?;
        Ok((settings, config, logs))
    });
    let (settings, config, logs) = match started {
        Ok(started) => started,
        Err(error) => {
            // Before there are logs.
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(config.threads).enable_all().build();
    let served = runtime.map_err(Failure::from).and_then(|runtime| {
        // This thread is no worker: what it accepts would be queued for one, and wake it by
        // a futex.
        runtime.block_on(runtime.spawn(run((flags, file), (settings, config), logs)))?
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the gateway ends");
            ExitCode::FAILURE
        }
    }
}

/// `flags` and `file` are looked at again when the gateway reloads.
async fn run(
    (flags, file): (Settings, Option<PathBuf>),
    (settings, config): (Settings, Config),
    logs: Logs,
) -> Result<(), Failure> {
    let guard = Arc::new(Guard::new(config.api_key.as_deref()));
    let shutdown = shutdown::on_signal()?;
    let kept = Arc::clone(&guard);
    notify::on_reload(move || {
        reload(self::settings(&flags, file.as_deref())?, &settings, (&kept, &logs))
    })?;
    let (listening, listens) = oneshot::channel();
    let mut draining = shutdown.clone();
    tokio::spawn(async move {
        if let Ok(address) = listens.await {
            notify::ready(&format!("serving on http://{address}"));
            draining.wait().await;
            notify::stopping();
        }
    });
    start::run(config, guard, listening, shutdown).await
}

/// Flags over the file.
fn settings(flags: &Settings, file: Option<&Path>) -> Result<Settings, Failure> {
    let file = file.map(start::settings).transpose()?.unwrap_or_default();
    Ok(flags.clone().or(file))
}

/// Takes what can change while the process runs, logs and the key of clients, and says if there is
/// more.
fn reload(
    found: Settings,
    running: &Settings,
    (guard, logs): (&Guard, &Logs),
) -> Result<(), Failure> {
    let config = Config::new(found.clone())?;
    logs.set(Some(&config.log))?;
    guard.set(config.api_key.as_deref());
    let Settings { log, api_key, api_key_file, .. } = running.clone();
    if (Settings { log, api_key, api_key_file, ..found }) != *running {
        tracing::warn!(
            "keys other than `log`, `api_key` and `api_key_file` have changed; they need a restart"
        );
    }
    Ok(())
}
