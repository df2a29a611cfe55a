//! Accepting connections, and the drain.
//!
//! 1. Accept, at most `max_connections` at once; each connection is a task of its own.
//! 2. When `shutdown` resolves: `/ready` says no, the port closes, idle connections close, busy
//!    ones finish their answer.
//! 3. After `drain_max` what is left is dropped, which cancels its requests on the servers.

use crate::http::{App, router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often histograms are folded, so that an unread `/metrics` stays small.
const FOLD_EVERY: Duration = Duration::from_secs(5);

/// Serves until `shutdown` resolves and the drain is over. Returns the number of connections that
/// the drain had to cut.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: impl Future<Output = ()>,
) -> usize {
    let mut server = auto::Builder::new(TokioExecutor::new());
    // A streamed token is small: one buffer that is copied costs less than three that are gathered.
    server.http1().writev(false);
    server.http1().timer(TokioTimer::new()).header_read_timeout(app.limits.headers_max);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(Some(app.limits.headers_max));
    let service = TowerToHyperService::new(router(Arc::clone(&app)));
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(app.limits.max_connections));
    let mut connections = JoinSet::new();
    let mut fold = tokio::time::interval(FOLD_EVERY);
    tokio::pin!(shutdown);
    loop {
        let (stream, place) = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            Some(_) = connections.join_next() => continue,
            _ = fold.tick() => {
                app.metrics.run_upkeep();
                continue;
            }
            () = &mut shutdown => break,
        };
        let connection = server.serve_connection(TokioIo::new(stream), service.clone());
        let connection = graceful.watch(connection.into_owned());
        connections.spawn(async move {
            if let Err(err) = connection.await {
                tracing::debug!(%err, "connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    app.drain();
    tracing::info!(calls = app.in_flight.count(), "draining");
    let finished = async {
        graceful.shutdown().await;
        while connections.join_next().await.is_some() {}
    };
    let in_time = tokio::time::timeout(app.limits.drain_max, finished).await.is_ok();
    if in_time { 0 } else { connections.len() }
}

/// The next connection, once there is a place for it. Cancel safe.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    let place = Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Tokens are small and must not wait for each other.
                if let Err(err) = stream.set_nodelay(true) {
                    tracing::debug!(%err, "TCP_NODELAY");
                }
                return (stream, place);
            }
            Err(err) => {
                tracing::warn!(%err, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
