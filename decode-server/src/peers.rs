//! The sockets' side: who connects, and what becomes of it in the engine's inbox.
//!
//! Of each incarnation one connection serves, an earlier one ends first (`role::place`).
//!
//! Life of a prefill incarnation here:
//! 1. It connects.
//! 2. Its first message is `Join`, which it sends only after its earlier writers are destroyed: the
//!    proof that ends their quarantine.
//! 3. It gets an offer of every transport, answers with those that connect, and tests the one that
//!    is chosen on scratch pages.
//! 4. It opens tickets, writes, hands over.
//! 5. The link ends. Its session is revoked; if the receiver does the writing that is the proof of
//!    its end, otherwise its process is watched until it is dead or has unmapped the pool. Scratch
//!    pages of a join that failed wait for that proof too.

use crate::inbox::Event;
use kv_transfer::{Proof, Session as Writing, Targets};
use link::{LinkError, Receiver, Sender, Session};
use role::place::{Places, Taken};
use shared::ids::Epoch;
use shared::pool::Owned;
use shared::wire::handshake::Role;
use shared::wire::messages::{
    DecodeToGateway, DecodeToPrefill, GatewayToDecode, PageRun, PrefillToDecode,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Messages that may wait for one peer's socket: an answer for every ticket, and the join.
const OUTBOX: usize = 4096;
/// Pages that a self-test writes to.
const SCRATCH_PAGES: u32 = 8;
/// Between two looks at a lost writer's process.
const PROOF_EVERY: Duration = Duration::from_millis(20);

/// Longest time that each step of a join may take: `Join`, and then all up to a tested transport.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// What waits for the proven end of a prefill incarnation's last connection.
type Proving = Option<JoinHandle<()>>;

/// What every connection needs.
pub(crate) struct Peers {
    targets: Targets,
    inbox: mpsc::Sender<Event>,
    gateways: Places<()>,
    writers: Places<Proving>,
}

/// What a connecting prefill server can write so far.
#[derive(Default)]
struct Joining {
    writing: Option<Writing>,
    scratch: Vec<Owned>,
}

impl Peers {
    pub(crate) fn new(targets: Targets, inbox: mpsc::Sender<Event>) -> Self {
        let proving = |proof: &Proving| proof.as_ref().is_some_and(|p| !p.is_finished());
        let (gateways, writers) = (Places::new(|()| false), Places::new(proving));
        Self { targets, inbox, gateways, writers }
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
        let mut place = self.gateways.take(epoch).await;
        let (sender, mut receiver) = session.start::<DecodeToGateway, GatewayToDecode>(OUTBOX);
        self.tell(Event::GatewayUp(epoch, sender)).await;
        let why = loop {
            let message = tokio::select! {
                message = receiver.recv() => message,
                () = place.taken.wait() => break replaced(),
            };
            match message {
                Ok(message) if message.key().is_some_and(|key| key.id.gateway() != epoch) => {
                    break LinkError::Protocol("a request of another gateway".into());
                }
                Ok(message) => self.tell(Event::Gateway(epoch, message)).await,
                Err(error) => break error,
            }
        };
        self.tell(Event::GatewayLost(epoch)).await;
        why
    }

    async fn prefill(&self, session: Session) -> LinkError {
        let epoch = session.peer.epoch;
        let mut place = self.writers.take(epoch).await;
        let (sender, mut receiver) = session.start::<DecodeToPrefill, PrefillToDecode>(OUTBOX);
        if let Err(why) = in_time(&mut place.taken, said_join(&mut receiver)).await {
            return why;
        }
        self.end_earlier(epoch, &mut place.kept).await;
        let mut joining = Joining::default();
        let join = self.join(&mut joining, &sender, &mut receiver);
        let joined = in_time(&mut place.taken, join).await;
        let Joining { writing, mut scratch } = joining;
        let why = match joined {
            Ok(megabytes_per_second) => {
                scratch.clear(); // the self-test is over
                if let Some(writing) = &writing {
                    let transport = writing.report();
                    tracing::info!(%epoch, %transport, megabytes_per_second, "pages by");
                }
                self.tell(Event::WriterUp(epoch, sender)).await;
                let why = self.serve_writer(epoch, &mut receiver, &mut place.taken).await;
                self.tell(Event::WriterLost(epoch)).await;
                why
            }
            Err(why) => why,
        };
        *place.kept = writing.map(|writing| self.revoke(epoch, writing, scratch));
        why
    }

    /// Passes on what a joined prefill server says, until the end.
    async fn serve_writer(
        &self,
        epoch: Epoch,
        receiver: &mut Receiver<PrefillToDecode>,
        taken: &mut Taken,
    ) -> LinkError {
        loop {
            let message = tokio::select! {
                message = receiver.recv() => message,
                () = taken.wait() => return replaced(),
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
                Ok(other) => return LinkError::Protocol(format!("{other:?} after the join")),
                Err(error) => return error,
            }
        }
    }

    /// `Join` is the proof that nothing of an earlier connection is written any more.
    async fn end_earlier(&self, epoch: Epoch, proving: &mut Proving) {
        if let Some(proof) = proving.take() {
            proof.abort(); // or its word could come when the next tickets are open
            drop(proof.await);
        }
        self.tell(Event::WriterEnded(epoch)).await;
    }

    /// Agrees on a transport and has it tested; what it reached, MB/s. What the peer can write is
    /// in `joining` at every moment, so that it is accounted for wherever this ends.
    async fn join(
        &self,
        joining: &mut Joining,
        sender: &Sender<DecodeToPrefill>,
        receiver: &mut Receiver<PrefillToDecode>,
    ) -> Result<u64, LinkError> {
        let (writing, verdict) = match self.agree(sender, receiver).await {
            Ok(agreed) => agreed,
            Err(LinkError::Protocol(reason)) => {
                send(sender, DecodeToPrefill::NotJoined { reason: reason.clone() }).await?;
                return Err(LinkError::Protocol(reason));
            }
            Err(other) => return Err(other),
        };
        joining.writing = Some(writing);
        joining.scratch = self.scratch().await;
        let scratch = PageRun::pack(joining.scratch.iter().map(Owned::id));
        send(sender, DecodeToPrefill::Verdict { verdict, scratch }).await?;
        match receiver.recv().await? {
            PrefillToDecode::Joined { megabytes_per_second } => Ok(megabytes_per_second),
            _ => Err(out_of_turn("Joined")),
        }
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

    /// Ends a lost writer's session and, once it is proven, gives `scratch` back and tells the
    /// engine.
    fn revoke(&self, epoch: Epoch, writing: Writing, scratch: Vec<Owned>) -> JoinHandle<()> {
        let held: Vec<_> = scratch.into_iter().map(Owned::quarantine).collect();
        let (proof, inbox) = (writing.revoke(), self.inbox.clone());
        tokio::spawn(async move {
            if let Proof::ProcessEnd(process) = proof {
                tracing::warn!(%epoch, pid = process.pid(), "waiting for a lost writer's proven end");
                while !process.ended() {
                    tokio::time::sleep(PROOF_EVERY).await;
                }
            }
            drop(held);
            drop(inbox.send(Event::WriterEnded(epoch)).await);
        })
    }
}

async fn said_join(receiver: &mut Receiver<PrefillToDecode>) -> Result<(), LinkError> {
    match receiver.recv().await? {
        PrefillToDecode::Join => Ok(()),
        _ => Err(out_of_turn("Join")),
    }
}

/// A step of a join, unless it takes too long or the peer connects again.
async fn in_time<T>(
    taken: &mut Taken,
    step: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    let too_slow = || LinkError::Protocol(format!("not joined within {JOIN_LIMIT:?}"));
    tokio::select! {
        done = timeout(JOIN_LIMIT, step) => done.unwrap_or_else(|_| Err(too_slow())),
        () = taken.wait() => Err(replaced()),
    }
}

fn replaced() -> LinkError {
    LinkError::Protocol("it connected again".into())
}

fn out_of_turn(want: &str) -> LinkError {
    LinkError::Protocol(format!("another message where {want} belongs"))
}

async fn send(sender: &Sender<DecodeToPrefill>, message: DecodeToPrefill) -> Result<(), LinkError> {
    sender.send(message).await.map_err(|_| LinkError::Closed)
}
