//! Gateways' connections, and what becomes of them in the engine's inbox.

use crate::inbox::Event;
use link::{LinkError, Session};
use shared::wire::messages::{GatewayToPrefill, PrefillToGateway};
use tokio::sync::mpsc;

/// Messages that may wait for one gateway's socket; the rest waits in its outbox.
const OUTBOX: usize = 1024;

/// Serves one gateway until its link ends.
pub(crate) async fn serve(session: Session, inbox: mpsc::Sender<Event>) {
    // The engine thread ends only with the server, so nobody misses what it does not get.
    let tell = async |event| drop(inbox.send(event).await);
    let (epoch, id) = (session.peer.epoch, session.peer.id.clone());
    tracing::info!(%id, %epoch, "gateway joined");
    let (sender, mut receiver) = session.start::<PrefillToGateway, GatewayToPrefill>(OUTBOX);
    tell(Event::GatewayUp(epoch, sender)).await;
    let why: LinkError = loop {
        match receiver.recv().await {
            Ok(message) => tell(Event::Gateway(epoch, message)).await,
            Err(error) => break error,
        }
    };
    tracing::info!(%id, %epoch, %why, "gateway left");
    tell(Event::GatewayLost(epoch)).await;
}
