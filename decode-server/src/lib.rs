//! The decode server: grants tickets, takes requests over when their pages have landed, and makes
//! tokens in a continuous batch.
//!
//! `peers` (sockets) → `inbox` → the engine thread: `reserve` → `landing` → `step` → `emit`.
#![forbid(unsafe_code)]

mod emit;
mod inbox;
mod landing;
mod metrics;
mod peers;
mod reserve;
mod sequence;
mod step;

use inbox::{Event, INBOX};
use kv_transfer::loopback::Hub;
use link::shutdown::Shutdown;
use peers::Door;
use role::core::{Core, StartError};
use role::settings::Config;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
pub use step::Limits;
use step::{Decode, Parts};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
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
    mut shutdown: Shutdown,
) -> Result<(), DecodeError> {
    let listener = TcpListener::bind(config.listen).await.map_err(StartError::Io)?;
    let (core, targets) = tokio::task::block_in_place(|| Core::decode(&config, hub.as_ref()))?;
    let (events, inbox) = mpsc::channel(INBOX);
    let identity = (core.local, core.layout, core.capacity);
    let door = Arc::new(Door::new(identity, targets, events.clone()));
    let decode = Decode::new(Parts {
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
        .spawn(move || done.send(decode.run(inbox, &runtime)))
        .map_err(StartError::Io)?;
    let address = listener.local_addr().map_err(StartError::Io)?;
    tracing::info!(id = %config.id, %address, "decode server ready");
    let _ = listening.send(address); // nobody may be waiting
    let accept = tokio::spawn(door.accept(listener));
    let result = tokio::select! {
        result = &mut ended => result,
        () = shutdown.wait() => {
            tracing::info!("draining");
            drop(events.send(Event::Drain).await);
            tokio::time::timeout(config.drain, ended).await.unwrap_or(Ok(Ok(())))
        }
    };
    accept.abort();
    result
        .unwrap_or_else(|_| Err(model::engine::EngineError("the engine thread panicked".into())))?;
    Ok(())
}

fn limits(config: &Config) -> Limits {
    Limits {
        batch_max: config.batch_max,
        growth_tokens: config.growth_tokens,
        tickets_max: 1024,
        ticket_life: config.ticket_life,
        retracted_wait: Duration::from_secs(10),
    }
}
