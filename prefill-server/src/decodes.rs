//! Links to decode servers: joined for ever, one task a server.
//!
//! 1. Dial; say `Join`. Everything that an earlier connection could write is destroyed by then.
//! 2. Connect the offered transports, take the chosen one, test it on scratch pages of both sides.
//! 3. Start the push thread; the engine may open tickets from here on.
//! 4. The link ends, or the transport breaks: the push thread and its writer are destroyed, the
//!    engine is told, and it begins again.
//!
//! A decode incarnation is joined once, by whatever addresses it is configured: its `Join` could
//! prove nothing while another link's writer lives.

use crate::inbox::{Event, Peer};
use crate::metrics;
use kv_transfer::{
    Answered, Link, PushConfig, Pusher, Report, SelfTest, Sources, TransferError, self_test,
};
use link::{HandshakeError, LinkError, Local, Receiver, Sender, Session, dial};
use shared::ids::{Epoch, PageId, ServerId};
use shared::pool::Owned;
use shared::wire::handshake::{Layout, Role};
use shared::wire::messages::{DecodeToPrefill, PageRun, PrefillToDecode};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Messages that may wait for one decode server's socket: more than it can grant tickets.
const OUTBOX: usize = 4096;
/// Pages that a self-test may use.
const SCRATCH_PAGES: u32 = 8;
/// Longest wait for each of decode's answers in a join; its engine may be in a long step.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// First and longest pause before a link is tried again.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
/// A link that held for so long is tried again after the first pause; one that did not, after
/// twice the last.
const HELD: Duration = Duration::from_secs(1);

/// What every link needs.
pub(crate) struct Dialler {
    pub(crate) local: Local,
    pub(crate) layout: Layout,
    pub(crate) sources: Sources,
    pub(crate) inbox: mpsc::Sender<Event>,
    pub(crate) push: PushConfig,
    pub(crate) self_test: SelfTest,
    pub(crate) served: Served,
}

/// Decode incarnations with a link.
#[derive(Default)]
pub(crate) struct Served(Mutex<HashSet<Epoch>>);

/// One of them; dropped with its link.
struct Only<'a>(&'a Served, Epoch);

impl Served {
    fn enter(&self, epoch: Epoch) -> Option<Only<'_>> {
        self.lock().insert(epoch).then_some(Only(self, epoch))
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Epoch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Only<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

/// Rings when the transport breaks, or the push thread ends however it does.
struct Alarm(Arc<Notify>);

impl Alarm {
    fn ring(&self) {
        self.0.notify_one();
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.ring();
    }
}

/// A link that works, how it was chosen, and what it reached, MB/s.
type Tested = (Box<dyn Link>, Report, u64);

/// Why a link is not, or no longer.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("{0}")]
    Transfer(#[from] TransferError),
    #[error("decode turned the join down: {0}")]
    Refused(String),
    #[error("the transport broke")]
    Broken,
    #[error("{0} has a link by another address already; name it once in `decode`")]
    Twice(ServerId),
}

impl Dialler {
    /// Keeps `address` joined for ever.
    pub(crate) async fn keep(self: Arc<Self>, address: String) {
        let mut said = String::new();
        let mut pause = PAUSES[0];
        loop {
            let local = Local { layout: Some(self.layout), ..self.local.clone() };
            let began = Instant::now();
            let ended = match dial(&address, Role::Decode, &local).await {
                Ok(session) => self.serve(session).await,
                Err(error) => error.into(),
            };
            if began.elapsed() >= HELD && !matches!(ended, Ended::Handshake(_)) {
                pause = PAUSES[0];
            }
            let why = ended.to_string();
            if why != said {
                tracing::warn!(%address, %why, "no link to decode; trying again");
                said = why;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    async fn serve(&self, session: Session) -> Ended {
        let (epoch, id) = (session.peer.epoch, session.peer.id.clone());
        let Some(_only) = self.served.enter(epoch) else { return Ended::Twice(id) };
        let (sender, mut receiver) = session.start::<PrefillToDecode, DecodeToPrefill>(OUTBOX);
        let (link, report, mb_s) = match self.join(&sender, &mut receiver).await {
            Ok(tested) => tested,
            Err(ended) => return ended,
        };
        let (inbox, broken) = (self.inbox.clone(), Arc::new(Notify::new()));
        let alarm = Alarm(broken.clone());
        let pushed = move |event: kv_transfer::Event| {
            let (op, result) = (event.id(), event.result().clone());
            if result.is_err() {
                alarm.ring();
            }
            drop(event); // the source pages go back here, before the engine hears of it
            drop(inbox.blocking_send(Event::Pushed { peer: epoch, op, result }));
        };
        let pusher = match Pusher::spawn(id.as_str(), link, self.push, pushed) {
            Ok(pusher) => Arc::new(pusher),
            Err(error) => return error.into(),
        };
        tracing::info!(%id, %epoch, transport = %report, mb_s, "decode joined");
        metrics::joined(self.local.identity.id.as_str(), id.as_str(), report.kind, mb_s);
        let peer = Peer { sender, pusher: pusher.clone() };
        self.tell(Event::PeerUp(epoch, peer)).await;
        let kind = report.kind;
        let ended = loop {
            let message = tokio::select! {
                message = receiver.recv() => message,
                () = broken.notified() => break Ended::Broken,
            };
            match message {
                Ok(DecodeToPrefill::Opened { ticket, held, runs }) => {
                    self.tell(Event::Opened { peer: epoch, ticket, held, runs }).await;
                }
                Ok(DecodeToPrefill::Revoked { ticket }) => {
                    self.tell(Event::Revoked { peer: epoch, ticket }).await;
                }
                Ok(_) => break LinkError::Protocol("a join message after the join".into()).into(),
                Err(error) => break error.into(),
            }
        };
        metrics::joined(self.local.identity.id.as_str(), id.as_str(), kind, 0);
        drop(spawn_blocking(move || pusher.close()).await);
        self.tell(Event::PeerLost(epoch)).await;
        ended
    }

    async fn join(
        &self,
        sender: &Sender<PrefillToDecode>,
        receiver: &mut Receiver<DecodeToPrefill>,
    ) -> Result<Tested, Ended> {
        send(sender, PrefillToDecode::Join).await?;
        let offer = match answer(receiver).await? {
            DecodeToPrefill::Offer(offer) => offer,
            DecodeToPrefill::NotJoined { reason } => return Err(Ended::Refused(reason)),
            _ => return Err(out_of_turn("Offer")),
        };
        let sources = self.sources.clone();
        let answered = blocking(move || sources.answer(&offer)).await?;
        send(sender, PrefillToDecode::Answer(answered.bytes().to_vec())).await?;
        let (verdict, scratch) = match answer(receiver).await? {
            DecodeToPrefill::Verdict { verdict, scratch } => (verdict, scratch),
            DecodeToPrefill::NotJoined { reason } => return Err(Ended::Refused(reason)),
            _ => return Err(out_of_turn("Verdict")),
        };
        let tested = self.test(answered, verdict, scratch).await?;
        let (_, _, mb_s) = tested;
        send(sender, PrefillToDecode::Joined { megabytes_per_second: mb_s }).await?;
        Ok(tested)
    }

    /// Takes the chosen link and measures it. Both ends grant pages for it; while one of them has
    /// none there is no measurement, and no link.
    async fn test(
        &self,
        answered: Answered,
        verdict: Vec<u8>,
        scratch: Vec<PageRun>,
    ) -> Result<Tested, Ended> {
        let (reply, own) = oneshot::channel();
        self.tell(Event::Scratch(SCRATCH_PAGES, reply)).await;
        let own = own.await.unwrap_or_default();
        let (page_bytes, test) = (self.layout.geometry.page_bytes(), self.self_test);
        blocking(move || {
            let (mut link, report) = answered.settled(&verdict)?;
            let target = PageRun::unpack(&scratch, link.target_pages(), SCRATCH_PAGES)
                .map_err(|cause| TransferError::Broken { cause })?;
            let source = own.iter().map(Owned::id);
            let pairs: Vec<(PageId, PageId)> = source.zip(target).collect();
            match self_test(&mut *link, &pairs, page_bytes, test) {
                Ok(measured) => Ok((link, report, measured.mb_s)),
                Err(error) => {
                    drop(link.close());
                    Err(error)
                }
            }
        })
        .await
    }

    async fn tell(&self, event: Event) {
        drop(self.inbox.send(event).await); // the engine thread ends only with the server
    }
}

async fn answer(receiver: &mut Receiver<DecodeToPrefill>) -> Result<DecodeToPrefill, LinkError> {
    let late = || LinkError::Protocol(format!("no answer to the join within {ANSWER_LIMIT:?}"));
    timeout(ANSWER_LIMIT, receiver.recv()).await.unwrap_or_else(|_| Err(late()))
}

fn out_of_turn(want: &str) -> Ended {
    LinkError::Protocol(format!("another message where {want} belongs")).into()
}

async fn send(sender: &Sender<PrefillToDecode>, message: PrefillToDecode) -> Result<(), Ended> {
    sender.send(message).await.map_err(|_| LinkError::Closed.into())
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, Ended> {
    let panicked = || TransferError::Broken { cause: "the join panicked".into() };
    Ok(spawn_blocking(run).await.map_err(|_| panicked())??)
}
