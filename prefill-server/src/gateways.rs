//! Gateways' connections, and what becomes of them in the engine's inbox.

use crate::inbox::Event;
use link::{LinkError, Session};
use role::place::Places;
use shared::wire::messages::{GatewayToPrefill, PrefillToGateway};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Messages that may wait for one gateway's socket; the rest waits in its outbox.
const OUTBOX: usize = 1024;

/// What every gateway's connection needs.
pub(crate) struct Gateways {
    inbox: mpsc::Sender<Event>,
    places: Places<()>,
}

impl Gateways {
    pub(crate) fn new(inbox: mpsc::Sender<Event>) -> Self {
        Self { inbox, places: Places::new(|()| false) }
    }

    /// Serves one gateway until its link ends.
    pub(crate) async fn serve(self: Arc<Self>, session: Session) {
        // The engine thread ends only with the server, so nobody misses what it does not get.
        let tell = async |event| drop(self.inbox.send(event).await);
        let (epoch, id) = (session.peer.epoch, session.peer.id.clone());
        let mut place = self.places.take(epoch).await;
        tracing::info!(%id, %epoch, "gateway joined");
        let (sender, mut receiver) = session.start::<PrefillToGateway, GatewayToPrefill>(OUTBOX);
        tell(Event::GatewayUp(epoch, sender)).await;
        let why: LinkError = loop {
            let message = tokio::select! {
                message = receiver.recv() => message,
                () = place.taken.wait() => {
                    break LinkError::Protocol("it connected again".into());
                }
            };
            match message {
                Ok(message) if message.key().is_some_and(|key| key.id.gateway() != epoch) => {
                    break LinkError::Protocol("a request of another gateway".into());
                }
                Ok(message) => tell(Event::Gateway(epoch, message)).await,
                Err(error) => break error,
            }
        };
        tracing::info!(%id, %epoch, %why, "gateway left");
        tell(Event::GatewayLost(epoch)).await;
    }
}
