//! The prefill server: computes prompts into radix-cached pages and writes them into decode
//! servers.
//!
//! `gateways`, `decodes` (sockets) → `inbox` → the engine thread: `intake` → `step` → `handoff`.
#![forbid(unsafe_code)]

pub mod command;
mod decodes;
mod gateways;
mod handoff;
mod inbox;
mod intake;
mod job;
mod metrics;
mod reading;
mod step;

use decodes::{Dialler, Served};
use gateways::Gateways;
use inbox::{Event, INBOX};
use kv_transfer::loopback::Hub;
use kv_transfer::{PushConfig, SelfTest};
use link::Door;
use role::core::{Core, StartError};
use role::settings::{BadSetting, Config};
use role::turn;
use service::shutdown::Shutdown;
use shared::wire::handshake::Role;
use std::net::SocketAddr;
use std::sync::Arc;
pub use step::Limits;
use step::{Parts, Prefill};
use tokio::net::TcpListener;
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
    shutdown: Shutdown,
) -> Result<(), PrefillError> {
    if config.decode.is_empty() {
        let problem = "names no decode server to join; want host:port of each".to_string();
        return Err(StartError::Setting(BadSetting::Value { name: "decode", problem }).into());
    }
    let listener = TcpListener::bind(config.listen).await.map_err(StartError::Io)?;
    let (core, sources) = tokio::task::block_in_place(|| Core::prefill(&config, hub.as_ref()))?;
    service::admin::describe(&core.local.identity, env!("CARGO_PKG_VERSION"));
    let (events, inbox) = mpsc::channel(INBOX);
    let dialler = Arc::new(Dialler {
        local: core.local.clone(),
        layout: core.layout,
        sources,
        inbox: events.clone(),
        push: PushConfig { deadline: config.transfer_deadline, ..PushConfig::default() },
        self_test: SelfTest { floor_mb_s: config.bandwidth_floor, ..SelfTest::default() },
        served: Served::default(),
    });
    let door = Door {
        local: core.local,
        layout: core.layout,
        capacity: core.capacity,
        roles: &[Role::Gateway],
    };
    let prefill = Prefill::new(Parts {
        engine: core.engine,
        pool: core.pool,
        cache: core.cache,
        guides: core.guides,
        limits: limits(&config),
        stops: config.stops.clone(),
        server: config.id.to_string(),
    });
    let engine = turn::spawn(prefill, inbox).map_err(StartError::Io)?;
    let address = listener.local_addr().map_err(StartError::Io)?;
    tracing::info!(id = %config.id, %address, "prefill server ready");
    let _ = listening.send(address); // nobody may be waiting
    let mut tasks = tokio::task::JoinSet::new();
    for address in config.decode {
        tasks.spawn(dialler.clone().keep(address));
    }
    let gateways = Arc::new(Gateways::new(events.clone()));
    tasks.spawn(door.keep(listener, move |session| gateways.clone().serve(session)));
    let result = turn::supervise(engine, shutdown, (events, Event::Drain), config.drain).await;
    Ok(result?)
}

fn limits(config: &Config) -> Limits {
    Limits {
        chunk_tokens: config.chunk_tokens,
        queued_max: config.max_queued,
        policy: config.policy,
        checksums: config.page_checksums,
    }
}
