//! The accepting end: handshakes within a bound, each session in a task of its own.

use crate::handshake::{Local, Session, answer};
use shared::wire::handshake::{Capacity, Layout, Role};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections that may be in their handshake at a time.
const STRANGERS: usize = 64;
/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a server shows to whoever connects.
#[derive(Clone, Debug)]
pub struct Door {
    /// Who it is.
    pub local: Local,
    /// What it serves.
    pub layout: Layout,
    /// How much of it.
    pub capacity: Capacity,
    /// Who may come in.
    pub roles: &'static [Role],
}

impl Door {
    /// Accepts for ever. `serve` runs in a task a session; a session holds no place among the
    /// strangers.
    pub async fn keep<F>(
        self,
        listener: TcpListener,
        serve: impl Fn(Session) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        let (strangers, door) = (Arc::new(Semaphore::new(STRANGERS)), Arc::new(self));
        loop {
            let place = strangers.clone().acquire_owned().await;
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (door, serve) = (door.clone(), serve.clone());
            tokio::spawn(async move {
                let (layout, capacity) = (door.layout, door.capacity);
                let session = answer(stream, &door.local, layout, capacity, door.roles).await;
                drop(place);
                match session {
                    Ok(session) => serve(session).await,
                    Err(error) => tracing::warn!(%error, "a connection was turned down"),
                }
            });
        }
    }
}
