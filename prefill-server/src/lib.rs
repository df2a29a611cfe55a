//! The prefill server: computes prompts into radix-cached pages and writes them into decode servers.
//!
//! `gateways`, `decodes` (sockets) → `inbox` → the engine thread: `intake` → `step` → `handoff`.
#![forbid(unsafe_code)]

mod decodes;
mod gateways;
mod handoff;
mod inbox;
mod intake;
mod job;
mod metrics;
mod step;

use decodes::Dialler;
use gateways::Door;
use inbox::{Event, INBOX};
use kv_transfer::loopback::Hub;
use kv_transfer::{PushConfig, SelfTest};
use link::shutdown::Shutdown;
use role::core::{Core, StartError};
use role::settings::{BadSetting, Config};
use std::net::SocketAddr;
use std::sync::Arc;
pub use step::Limits;
use step::{Parts, Prefill};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Why a prefill server ended otherwise than by a drain.
#[derive(Debug, thiserror::Error)]
pub enum PrefillError {
    /// It could not start.
    #[error("{0}")]
    Start(#[from] StartError),
    /// The engine failed while running.
    #[error("{0}")]
    Engine(#[from] model::engine::EngineError),
}

/// Runs a prefill server until `shutdown`, then drains. `listening` learns the bound address once
/// gateways can connect. Must be called within a multi-threaded tokio runtime; loading blocks the
/// caller's thread.
///
/// # Errors
/// [`PrefillError`].
pub async fn run(
    config: Config,
    hub: Option<Arc<Hub>>,
    listening: oneshot::Sender<SocketAddr>,
    mut shutdown: Shutdown,
) -> Result<(), PrefillError> {
    if config.decode.is_empty() {
        let problem = "names no decode server to join; want host:port of each".to_string();
        return Err(StartError::Setting(BadSetting::Value { name: "decode", problem }).into());
    }
    let listener = TcpListener::bind(config.listen).await.map_err(StartError::Io)?;
    let (core, sources) = tokio::task::block_in_place(|| Core::prefill(&config, hub.as_ref()))?;
    let (events, inbox) = mpsc::channel(INBOX);
    let dialler = Arc::new(Dialler {
        local: core.local.clone(),
        layout: core.layout,
        sources,
        inbox: events.clone(),
        push: PushConfig { deadline: config.transfer_deadline, ..PushConfig::default() },
        self_test: SelfTest { floor_mb_s: config.bandwidth_floor, ..SelfTest::default() },
    });
    let door = Arc::new(Door {
        local: core.local,
        layout: core.layout,
        capacity: core.capacity,
        inbox: events.clone(),
    });
    let prefill = Prefill::new(Parts {
        engine: core.engine,
        pool: core.pool,
        cache: core.cache,
        limits: limits(&config),
        stops: config.stops.clone(),
        server: config.id.to_string(),
    });
    let (done, mut ended) = oneshot::channel();
    let runtime = Handle::current();
    std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || done.send(prefill.run(inbox, &runtime)))
        .map_err(StartError::Io)?;
    let address = listener.local_addr().map_err(StartError::Io)?;
    tracing::info!(id = %config.id, %address, "prefill server ready");
    let _ = listening.send(address); // nobody may be waiting
    let mut tasks = tokio::task::JoinSet::new();
    for address in config.decode {
        tasks.spawn(dialler.clone().keep(address));
    }
    tasks.spawn(door.accept(listener));
    let result = tokio::select! {
        result = &mut ended => result,
        () = shutdown.wait() => {
            tracing::info!("draining");
            drop(events.send(Event::Drain).await);
            tokio::time::timeout(config.drain, ended).await.unwrap_or(Ok(Ok(())))
        }
    };
    result
        .unwrap_or_else(|_| Err(model::engine::EngineError("the engine thread panicked".into())))?;
    Ok(())
}

fn limits(config: &Config) -> Limits {
    Limits {
        chunk_tokens: config.chunk_tokens,
        queued_max: config.max_queued,
        policy: config.policy,
        checksums: config.page_checksums,
    }
}
