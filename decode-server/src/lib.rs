//! The decode server: grants tickets, takes requests over when their pages have landed, and makes
//! tokens in a continuous batch.
//!
//! `peers` (sockets) → `inbox` → the engine thread: `reserve` → `landing` → `step` → `emit`.
#![forbid(unsafe_code)]

pub mod command;
mod emit;
mod flight;
mod inbox;
mod landing;
mod metrics;
mod peers;
mod reserve;
mod sequence;
mod step;

use inbox::{Event, INBOX};
use kv_transfer::loopback::Hub;
use link::Door;
use peers::Peers;
use role::core::{Core, StartError};
use role::settings::Config;
use role::turn;
use service::shutdown::Shutdown;
use shared::wire::handshake::Role;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
pub use step::Limits;
use step::{Decode, Parts};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// Why a decode server ended otherwise than by a drain.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It could not start.
    #[error("{0}")]
    Start(#[from] StartError),
    /// The engine failed while running.
    #[error("{0}")]
    Engine(#[from] model::engine::EngineError),
}

/// Runs a decode server until `shutdown`, then drains. `listening` learns the bound address once
/// peers can connect. Must be called within a multi-threaded tokio runtime; loading blocks the
/// caller's thread.
///
/// # Errors
/// [`DecodeError`].
pub async fn run(
    config: Config,
    hub: Option<Arc<Hub>>,
    listening: oneshot::Sender<SocketAddr>,
    shutdown: Shutdown,
) -> Result<(), DecodeError> {
    let listener = TcpListener::bind(config.listen).await.map_err(StartError::Io)?;
    let (core, targets) = tokio::task::block_in_place(|| Core::decode(&config, hub.as_ref()))?;
    service::admin::describe(&core.local.identity, env!("CARGO_PKG_VERSION"));
    let (events, inbox) = mpsc::channel(INBOX);
    let door = Door {
        local: core.local,
        layout: core.layout,
        capacity: core.capacity,
        roles: &[Role::Gateway, Role::Prefill],
    };
    let peers = Arc::new(Peers::new(targets, events.clone()));
    let limits = limits(&config, core.engine.rows_max());
    let decode = Decode::new(Parts {
        engine: core.engine,
        pool: core.pool,
        cache: core.cache,
        guides: core.guides,
        limits,
        stops: config.stops.clone(),
        server: config.id.to_string(),
    });
    let engine = turn::spawn(decode, inbox).map_err(StartError::Io)?;
    let address = listener.local_addr().map_err(StartError::Io)?;
    tracing::info!(id = %config.id, %address, "decode server ready");
    let _ = listening.send(address); // nobody may be waiting
    let accept = tokio::spawn(door.keep(listener, move |session| peers.clone().serve(session)));
    let result = turn::supervise(engine, shutdown, (events, Event::Drain), config.drain).await;
    accept.abort();
    Ok(result?)
}

fn limits(config: &Config, rows_max: usize) -> Limits {
    if config.batch_max > rows_max {
        let asked = config.batch_max;
        tracing::warn!(asked, rows_max, "max_running_requests is what this engine takes");
    }
    Limits {
        batch_max: config.batch_max.min(rows_max),
        growth_tokens: config.growth_tokens,
        tickets_max: 1024,
        ticket_life: config.ticket_life,
        retracted_wait: Duration::from_secs(10),
    }
}
