//! Gateways' connections: whoever may come in, and what becomes of it in the engine's inbox.

use crate::inbox::Event;
use link::{LinkError, Local, Session, answer};
use shared::wire::handshake::{Capacity, Layout, Role};
use shared::wire::messages::{GatewayToPrefill, PrefillToGateway};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

/// Messages that may wait for one gateway's socket; the rest waits in its outbox.
const OUTBOX: usize = 1024;
/// Connections that may be in their handshake.
const STRANGERS: usize = 64;

/// What every connection needs.
pub(crate) struct Door {
    pub(crate) local: Local,
    pub(crate) layout: Layout,
    pub(crate) capacity: Capacity,
    pub(crate) inbox: mpsc::Sender<Event>,
}

impl Door {
    /// Accepts for ever; each connection is a task.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener) {
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        loop {
            let permit = strangers.clone().acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let door = self.clone();
                    tokio::spawn(async move {
                        let roles = [Role::Gateway];
                        let (layout, capacity) = (door.layout, door.capacity);
                        let session = answer(stream, &door.local, layout, capacity, &roles).await;
                        drop(permit);
                        match session {
                            Ok(session) => door.gateway(session).await,
                            Err(error) => tracing::warn!(%error, "a connection was turned down"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn gateway(&self, session: Session) {
        let (epoch, id) = (session.peer.epoch, session.peer.id.clone());
        tracing::info!(%id, %epoch, "gateway joined");
        let (sender, mut receiver) = session.start::<PrefillToGateway, GatewayToPrefill>(OUTBOX);
        self.tell(Event::GatewayUp(epoch, sender)).await;
        let why: LinkError = loop {
            match receiver.recv().await {
                Ok(message) => self.tell(Event::Gateway(epoch, message)).await,
                Err(error) => break error,
            }
        };
        tracing::info!(%id, %epoch, %why, "gateway left");
        self.tell(Event::GatewayLost(epoch)).await;
    }

    async fn tell(&self, event: Event) {
        drop(self.inbox.send(event).await); // the engine thread ends only with the server
    }
}
