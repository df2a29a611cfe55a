//! The sockets' side: who connects, and what becomes of it in the engine's inbox.
//!
//! Life of a prefill incarnation here:
//! 1. It connects. An earlier connection of the same incarnation ends first.
//! 2. Its first message is `Join`, which it sends only after its earlier writers are destroyed: the
//!    proof that ends their quarantine.
//! 3. It gets an offer of every transport, answers with those that connect, and tests the one that
//!    is chosen on scratch pages.
//! 4. It opens tickets, writes, hands over.
//! 5. The link ends. Its session is revoked; if the receiver does the writing that is the proof of
//!    its end, otherwise its process is watched until it is dead or has unmapped the pool.

use crate::inbox::Event;
use kv_transfer::{Proof, Session as Writing, Targets};
use link::{LinkError, Receiver, Sender, Session};
use shared::ids::Epoch;
use shared::pool::Owned;
use shared::wire::handshake::Role;
use shared::wire::messages::{
    DecodeToGateway, DecodeToPrefill, GatewayToDecode, PageRun, PrefillToDecode,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Messages that may wait for one peer's socket: an answer for every ticket, and the join.
const OUTBOX: usize = 4096;
/// Pages that a self-test writes to.
const SCRATCH_PAGES: u32 = 8;
/// Between two looks at a lost writer's process.
const PROOF_EVERY: Duration = Duration::from_millis(20);

/// What every connection needs.
pub(crate) struct Peers {
    targets: Targets,
    inbox: mpsc::Sender<Event>,
    writers: Mutex<HashMap<Epoch, Arc<Writer>>>,
}

/// The one connection that a prefill incarnation may have.
#[derive(Default)]
struct Writer {
    /// Dropped to end the connection in `busy`.
    stop: Mutex<Option<oneshot::Sender<()>>>,
    /// Held for a connection's life; what waits for the proven end of the one before.
    busy: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Whether a connection, or the wait for a proven end, still needs it.
    fn in_use(self: &Arc<Self>) -> bool {
        let waiting =
            |proof: &Option<JoinHandle<()>>| proof.as_ref().is_some_and(|p| !p.is_finished());
        Arc::strong_count(self) > 1 || self.busy.try_lock().is_ok_and(|proof| waiting(&proof))
    }
}

impl Peers {
    pub(crate) fn new(targets: Targets, inbox: mpsc::Sender<Event>) -> Self {
        Self { targets, inbox, writers: Mutex::default() }
    }

    /// Serves one peer until its link ends.
    pub(crate) async fn serve(self: Arc<Self>, session: Session) {
        let peer = session.peer.clone();
        tracing::info!(role = %peer.role, id = %peer.id, epoch = %peer.epoch, "joined");
        let why = match peer.role {
            Role::Gateway => self.gateway(session).await,
            Role::Prefill | Role::Decode => self.prefill(session).await,
        };
        tracing::info!(role = %peer.role, id = %peer.id, epoch = %peer.epoch, %why, "left");
    }

    async fn tell(&self, event: Event) {
        // The engine thread is gone only when the whole server ends.
        drop(self.inbox.send(event).await);
    }

    async fn gateway(&self, session: Session) -> LinkError {
        let epoch = session.peer.epoch;
        let (sender, mut receiver) = session.start::<DecodeToGateway, GatewayToDecode>(OUTBOX);
        self.tell(Event::GatewayUp(epoch, sender)).await;
        let why = loop {
            match receiver.recv().await {
                Ok(message) => self.tell(Event::Gateway(epoch, message)).await,
                Err(error) => break error,
            }
        };
        self.tell(Event::GatewayLost(epoch)).await;
        why
    }

    async fn prefill(&self, session: Session) -> LinkError {
        let epoch = session.peer.epoch;
        let writer = self.writer(epoch);
        let (stop, mut stopped) = oneshot::channel();
        drop(writer.stop.lock().unwrap_or_else(PoisonError::into_inner).replace(stop));
        let mut proof = writer.busy.lock().await;
        let (sender, mut receiver) = session.start::<DecodeToPrefill, PrefillToDecode>(OUTBOX);
        let joined = match self.join(epoch, &mut proof, &sender, &mut receiver).await {
            Ok(joined) => joined,
            Err(error) => return error,
        };
        self.tell(Event::WriterUp(epoch, sender)).await;
        let why = loop {
            let message = tokio::select! {
                message = receiver.recv() => message,
                _ = &mut stopped => break LinkError::Protocol("it connected again".into()),
            };
            match message {
                Ok(PrefillToDecode::Open { ticket, key }) => {
                    self.tell(Event::Open(epoch, ticket, key)).await;
                }
                Ok(PrefillToDecode::Handoff(handoff)) => {
                    self.tell(Event::Handoff(epoch, handoff)).await;
                }
                Ok(PrefillToDecode::Closed { ticket, fault }) => {
                    tracing::info!(%ticket, ?fault, "closed without a handoff");
                    self.tell(Event::Closed(epoch, ticket)).await;
                }
                Ok(other) => break LinkError::Protocol(format!("{other:?} after the join")),
                Err(error) => break error,
            }
        };
        self.tell(Event::WriterLost(epoch)).await;
        *proof = Some(self.revoke(epoch, joined));
        why
    }

    /// Agrees on a transport and has it tested.
    async fn join(
        &self,
        epoch: Epoch,
        proof: &mut Option<JoinHandle<()>>,
        sender: &Sender<DecodeToPrefill>,
        receiver: &mut Receiver<PrefillToDecode>,
    ) -> Result<Writing, LinkError> {
        let PrefillToDecode::Join = receiver.recv().await? else { return Err(out_of_turn("Join")) };
        if let Some(proof) = proof.take() {
            proof.abort(); // or its word could come when the next tickets are open
            drop(proof.await);
        }
        self.tell(Event::WriterEnded(epoch)).await;
        let writing = match self.agree(sender, receiver).await {
            Ok(agreed) => agreed,
            Err(LinkError::Protocol(reason)) => {
                send(sender, DecodeToPrefill::NotJoined { reason: reason.clone() }).await?;
                return Err(LinkError::Protocol(reason));
            }
            Err(other) => return Err(other),
        };
        let (writing, verdict) = writing;
        let scratch = self.scratch().await;
        let runs = PageRun::pack(scratch.iter().map(Owned::id));
        send(sender, DecodeToPrefill::Verdict { verdict, scratch: runs }).await?;
        let PrefillToDecode::Joined { megabytes_per_second } = receiver.recv().await? else {
            return Err(out_of_turn("Joined"));
        };
        tracing::info!(%epoch, transport = %writing.report(), megabytes_per_second, "pages by");
        Ok(writing)
    }

    async fn agree(
        &self,
        sender: &Sender<DecodeToPrefill>,
        receiver: &mut Receiver<PrefillToDecode>,
    ) -> Result<(Writing, Vec<u8>), LinkError> {
        let offered = self.targets.offer().map_err(|e| LinkError::Protocol(e.to_string()))?;
        send(sender, DecodeToPrefill::Offer(offered.bytes().to_vec())).await?;
        let PrefillToDecode::Answer(answer) = receiver.recv().await? else {
            return Err(out_of_turn("Answer"));
        };
        offered.settle(&answer).map_err(|e| LinkError::Protocol(e.to_string()))
    }

    async fn scratch(&self) -> Vec<Owned> {
        let (reply, pages) = oneshot::channel();
        self.tell(Event::Scratch(SCRATCH_PAGES, reply)).await;
        pages.await.unwrap_or_default()
    }

    /// Ends a lost writer's session and, once it is proven, tells the engine.
    fn revoke(&self, epoch: Epoch, writing: Writing) -> JoinHandle<()> {
        let (proof, inbox) = (writing.revoke(), self.inbox.clone());
        tokio::spawn(async move {
            if let Proof::ProcessEnd(process) = proof {
                tracing::warn!(%epoch, pid = process.pid(), "waiting for a lost writer's proven end");
                while !process.ended() {
                    tokio::time::sleep(PROOF_EVERY).await;
                }
            }
            drop(inbox.send(Event::WriterEnded(epoch)).await);
        })
    }

    fn writer(&self, epoch: Epoch) -> Arc<Writer> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        writers.retain(|_, writer| writer.in_use());
        writers.entry(epoch).or_default().clone()
    }
}

fn out_of_turn(want: &str) -> LinkError {
    LinkError::Protocol(format!("another message where {want} belongs"))
}

async fn send(sender: &Sender<DecodeToPrefill>, message: DecodeToPrefill) -> Result<(), LinkError> {
    sender.send(message).await.map_err(|_| LinkError::Closed)
}
