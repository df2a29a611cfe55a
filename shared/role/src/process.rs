//! A server's process: settings → logs → admin → role → drain.

use crate::core::StartError;
use crate::settings::{BadSetting, Config, ConfigFile, Settings};
use kv_transfer::ucx;
use service::logs::{self, LogError, Logs};
use service::shutdown::{self, Shutdown};
use service::{admin, notify};
use std::fmt::Display;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::sync::oneshot;

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Start {
    /// Where settings are read from.
    pub file: ConfigFile,
    /// Flags, which win over it.
    pub flags: Settings,
}

/// Runs a role until its process is told to drain. `run` gets the config, who learns the address
/// once peers can connect, and when to drain.
pub fn serve<E, F>(
    start: Start,
    run: impl FnOnce(Config, oneshot::Sender<SocketAddr>, Shutdown) -> F,
) -> ExitCode
where
    E: From<StartError> + Display,
    F: Future<Output = Result<(), E>>,
{
    let settings = start.flags.clone().above(&start.file);
    let (settings, config) = match settings.and_then(|s| Ok((s.clone(), s.check()?))) {
        Ok(both) => both,
        Err(error) => return fail(&error),
    };
    let logs = match logs::start(config.log.as_deref(), config.log_format) {
        Ok(logs) => logs,
        Err(error) => return fail(&error),
    };
    if let Err(error) = ucx::leave_libc_alone() {
        tracing::warn!(%error, "UCX will patch libc, if it is used");
    }
    let reload = move || reload(&start, &settings, &logs);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the server ends");
            return ExitCode::FAILURE;
        }
    };
    let served = runtime.block_on(async {
        if let Some(address) = config.admin {
            let compat = config.compat_metrics.as_deref();
            admin::serve(address, compat).await.map_err(StartError::from)?;
        }
        let shutdown = shutdown::on_signal().map_err(StartError::from)?;
        notify::on_reload(reload).map_err(StartError::from)?;
        let (listening, listens) = oneshot::channel();
        tokio::spawn(announce(listens, shutdown.clone()));
        run(config, listening, shutdown).await
    });
    if let Err(error) = &served {
        tracing::error!(%error, "the server ends");
    }
    // Threads that still compute do not hold up the end of a drain that ran out of time.
    ucx::end_process(u8::from(served.is_err()))
}

/// Before there are logs.
fn fail(error: &dyn Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

async fn announce(listens: oneshot::Receiver<SocketAddr>, mut shutdown: Shutdown) {
    if let Ok(address) = listens.await {
        notify::ready(&format!("serving on {address}"));
        shutdown.wait().await;
        notify::stopping();
    }
}

#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error("{0}")]
    Setting(#[from] BadSetting),
    #[error("{0}")]
    Log(#[from] LogError),
}

/// Takes what can change while the process runs, which is `log`, and says if there is more.
fn reload(start: &Start, running: &Settings, logs: &Logs) -> Result<(), ReloadError> {
    let found = start.flags.clone().above(&start.file)?;
    found.clone().check()?;
    logs.set(found.log.as_deref())?;
    if (Settings { log: running.log.clone(), ..found }) != *running {
        tracing::warn!("keys other than `log` have changed; they need a restart");
    }
    Ok(())
}
