//! The fleet behind the gateway: links to every server, routing, and one journey a request.
//!
//! Data flows one way: HTTP → [`Ring::submit`] → a [`ticket::Journey`] task → servers; and back:
//! server links → [`mailbox::Mailbox`] → [`Answer`], and what is no token → journey. A link never
//! waits for a client.

mod hear;
mod loads;
mod mailbox;
pub mod otlp;
mod peers;
mod pulse;
pub mod route;
mod server;
mod snapshot;
mod story;
mod ticket;

use crate::metrics;
use crate::ring::{Answer, Failure, FailureKind, Limits, Line, Origin};
use link::{Local, Timing};
use mailbox::{Mailbox, Note};
use otlp::{Collector, Exporter};
use pulse::Pulse;
use route::{DecodeView, Hashes, LeastTokens, Policy, PrefillView, Seen};
use serde_json::{Value, json};
use server::{Server, Up};
use shared::ids::{Epoch, RequestId};
use shared::request::Request;
use shared::wire::handshake::{Identity, RingKey, Role};
use shared::wire::messages::{GatewayToDecode, GatewayToPrefill, Message, RequestKey};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use story::{Recent, Story};
use tokio::sync::{Semaphore, watch};

/// Deadlines of a request; each starts when its phase starts.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Waiting for a ticket.
    pub queue: Duration,
    /// From the ticket to the first token.
    pub first_token: Duration,
    /// Between two tokens.
    pub next_token: Duration,
    /// For servers to acknowledge a cancel or a flush.
    pub acknowledge: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            queue: Duration::from_secs(120),
            first_token: Duration::from_secs(300),
            next_token: Duration::from_secs(60),
            acknowledge: Duration::from_secs(2),
        }
    }
}

/// What the fleet is made of.
#[derive(Debug)]
pub struct FleetConfig {
    /// This gateway.
    pub identity: Identity,
    /// The ring's key.
    pub key: RingKey,
    /// `host:port` of every prefill server.
    pub prefill: Vec<String>,
    /// `host:port` of every decode server.
    pub decode: Vec<String>,
    /// Requests that may wait for a ticket.
    pub max_queued: usize,
    /// Times a request may be sent round again because a server failed it.
    pub retries: u32,
    /// Deadlines of control connections.
    pub timing: Timing,
    /// Deadlines of requests.
    pub deadlines: Deadlines,
    /// Where traces of requests go, if anywhere.
    pub collector: Option<Collector>,
}

/// Which requests to abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortTarget {
    /// Every one.
    All,
    /// One.
    Id(RequestId),
}

/// The ring as HTTP sees it. Clones share it.
#[derive(Clone)]
pub struct Ring(Arc<Fleet>);

pub(crate) struct Fleet {
    epoch: Epoch,
    prefill: Vec<Arc<Server<GatewayToPrefill>>>,
    decode: Vec<Arc<Server<GatewayToDecode>>>,
    policy: Box<dyn Policy>,
    seen: Mutex<Seen>,
    /// Bound: queued requests (`max_queued`) and those that hold a ticket (the servers' pages).
    journeys: Mutex<Journeys>,
    recent: Recent,
    pulse: Pulse,
    numbers: AtomicU64,
    flushed: AtomicU64,
    queue: Arc<Semaphore>,
    max_queued: usize,
    /// Held by the one journey that may ask for a ticket: first come, first served.
    turn: tokio::sync::Mutex<()>,
    /// Ticks when a server comes, goes, or reports a load.
    changed: watch::Sender<()>,
    retries: u32,
    deadlines: Deadlines,
}

type Prefills = Vec<Arc<Up<GatewayToPrefill>>>;
type Decodes = Vec<Arc<Up<GatewayToDecode>>>;
/// Requests in the ring, with what hears for them.
type Journeys = HashMap<RequestId, Travelling, foldhash::fast::RandomState>;

#[derive(Clone)]
struct Travelling {
    key: RequestKey,
    mailbox: Arc<Mailbox>,
    story: Arc<Story>,
}

impl Ring {
    /// Starts a task per server and returns at once; servers come up as they answer. Must be
    /// called within a tokio runtime.
    pub fn start(config: FleetConfig) -> Self {
        let local = Arc::new(Local {
            identity: config.identity.clone(),
            key: config.key,
            layout: None,
            timing: config.timing,
        });
        let fleet = Arc::new(Fleet {
            epoch: config.identity.epoch,
            prefill: servers(config.prefill),
            decode: servers(config.decode),
            policy: Box::new(LeastTokens),
            seen: Mutex::default(),
            journeys: Mutex::default(),
            recent: Recent::new(config.collector.map(Exporter::start)),
            pulse: Pulse::new(),
            numbers: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            queue: Arc::new(Semaphore::new(config.max_queued)),
            max_queued: config.max_queued,
            turn: tokio::sync::Mutex::new(()),
            changed: watch::Sender::new(()),
            retries: config.retries,
            deadlines: config.deadlines,
        });
        for server in fleet.prefill.iter().cloned() {
            let (hears, notes) = (fleet.clone(), fleet.clone());
            tokio::spawn(server.keep(
                Role::Prefill,
                local.clone(),
                move |server, message| hears.hear_prefill(server, message),
                move |lost| notes.changed(lost),
            ));
        }
        for server in fleet.decode.iter().cloned() {
            let (hears, notes) = (fleet.clone(), fleet.clone());
            tokio::spawn(server.keep(
                Role::Decode,
                local.clone(),
                move |server, message| hears.hear_decode(server, message),
                move |lost| notes.changed(lost),
            ));
        }
        Self(fleet)
    }

    /// Queues a request of that call. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`FailureKind::NotReady`], [`FailureKind::QueueFull`] or [`FailureKind::TooLarge`], at once.
    pub fn submit(&self, request: Request, origin: Origin) -> Result<Answer, Failure> {
        self.queue(request, origin).inspect_err(|failure| metrics::failed(failure.kind))
    }

    fn queue(&self, request: Request, origin: Origin) -> Result<Answer, Failure> {
        let fleet = &self.0;
        let limits = self.limits().ok_or_else(|| fleet.not_ready())?;
        let most = limits.context_length.min(limits.pool_tokens);
        if request.tokens_max() > most {
            let message = format!(
                "prompt and max_tokens add up to {} tokens, at most {most} fit",
                request.tokens_max()
            );
            return Err(Failure { kind: FailureKind::TooLarge, message });
        }
        let permit = fleet.queue.clone().try_acquire_owned().map_err(|_| Failure {
            kind: FailureKind::QueueFull,
            message: format!("{} requests are waiting already; try again soon", fleet.max_queued),
        })?;
        let number = fleet.numbers.fetch_add(1, Ordering::Relaxed);
        let id = RequestId::new(fleet.epoch, number);
        let line = Arc::<Line>::default();
        let call = (id, origin);
        let journey = ticket::Journey::new(fleet.clone(), call, request, line.clone());
        // Boxed here, its state of some kilobytes is moved once, and not with every hand of tokio.
        tokio::spawn(Box::pin(journey.run(permit)));
        Ok(Answer::new(id, line))
    }

    /// What validation needs, once a joined pair is up.
    pub fn limits(&self) -> Option<Limits> {
        let fleet = &self.0;
        let (prefill, decode) = (fleet.prefill_up(), fleet.decode_up());
        if !Fleet::any_joined(&prefill, &decode) {
            return None;
        }
        let capacities =
            || prefill.iter().map(|p| &p.capacity).chain(decode.iter().map(|d| &d.capacity));
        let largest_prefill = prefill.iter().map(|up| up.pool_tokens()).max()?;
        let largest_decode = decode.iter().map(|up| up.pool_tokens()).max()?;
        Some(Limits {
            context_length: capacities().map(|c| c.context_length).min()?,
            pool_tokens: largest_prefill.min(largest_decode),
            vocab: capacities().map(|c| c.vocab).min()?,
        })
    }

    /// Ends requests; each ends with [`FailureKind::Aborted`]. Returns how many there were.
    pub fn abort(&self, target: AbortTarget) -> usize {
        let journeys = self.0.journeys();
        let wanted = |id: &RequestId| target == AbortTarget::All || target == AbortTarget::Id(*id);
        let hit = journeys.iter().filter(|(id, _)| wanted(id)).map(|(_, t)| &t.mailbox);
        hit.map(|mailbox| mailbox.deliver(Note::Abort)).count()
    }

    /// Drops cached pages on every server that is up.
    ///
    /// # Errors
    /// [`FailureKind::Deadline`] if a server does not acknowledge in time.
    pub async fn flush_cache(&self) -> Result<(), Failure> {
        let fleet = &self.0;
        let mut changed = fleet.changed.subscribe();
        let before = fleet.flushed.load(Ordering::Acquire);
        let mut asked = 0;
        for up in fleet.prefill_up() {
            asked += u64::from(up.sender.send(GatewayToPrefill::FlushCache).await.is_ok());
            lock(&fleet.seen).forget(up.epoch);
        }
        for up in fleet.decode_up() {
            asked += u64::from(up.sender.send(GatewayToDecode::FlushCache).await.is_ok());
        }
        let all = changed.wait_for(|()| fleet.flushed.load(Ordering::Acquire) >= before + asked);
        match tokio::time::timeout(fleet.deadlines.acknowledge, all).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure {
                kind: FailureKind::Deadline,
                message: "not every server acknowledged the flush in time".into(),
            }),
        }
    }

    /// The end of a gateway that no client is connected to any more: the servers know of every
    /// request that it is over, and the collector has its trace. Whether that was in time.
    pub async fn finish(&self, patience: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + patience;
        let over = async {
            while !self.0.journeys().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let over = tokio::time::timeout_at(deadline, over).await.is_ok();
        self.0.recent.finish(deadline).await && over
    }

    /// Whether a request can be served now.
    ///
    /// # Errors
    /// What is missing, server by server.
    pub fn ready(&self) -> Result<(), String> {
        match self.limits() {
            Some(_) => Ok(()),
            None => Err(self.0.not_ready().message),
        }
    }

    /// Every server with its state, for `/server_info`.
    pub fn server_info(&self) -> Value {
        let fleet = &self.0;
        let prefill = fleet.prefill.iter().map(|s| s.describe());
        let decode = fleet.decode.iter().map(|s| s.describe());
        json!({
            "gateway_epoch": fleet.epoch.to_string(),
            "requests": fleet.journeys().len(),
            "queued": fleet.max_queued - fleet.queue.available_permits(),
            "prefill": prefill.collect::<Vec<_>>(),
            "decode": decode.collect::<Vec<_>>(),
        })
    }

    /// Requests in flight and of those the ones that wait for a ticket.
    pub fn depth(&self) -> (usize, usize) {
        (self.0.journeys().len(), self.0.max_queued - self.0.queue.available_permits())
    }
}

impl Fleet {
    fn journeys(&self) -> MutexGuard<'_, Journeys> {
        lock(&self.journeys)
    }

    fn prefill_up(&self) -> Prefills {
        self.prefill.iter().filter_map(|s| s.up()).collect()
    }

    fn decode_up(&self) -> Decodes {
        self.decode.iter().filter_map(|s| s.up()).collect()
    }

    fn any_joined(prefill: &Prefills, decode: &Decodes) -> bool {
        prefill.iter().any(|p| decode.iter().any(|d| p.joined.contains(&d.epoch)))
    }

    /// Servers that are up and whose pools hold the request.
    fn candidates(&self, request: &Request) -> Result<(Prefills, Decodes), Failure> {
        let (mut prefill, mut decode) = (self.prefill_up(), self.decode_up());
        if !Self::any_joined(&prefill, &decode) {
            return Err(self.not_ready());
        }
        let (prompt, longest) = (request.tokens.len() as u32, request.tokens_max());
        prefill.retain(|up| up.pool_tokens() >= prompt);
        decode.retain(|up| up.pool_tokens() >= longest);
        if Self::any_joined(&prefill, &decode) {
            return Ok((prefill, decode));
        }
        let message = format!("no pair of servers that are up holds {longest} tokens");
        Err(Failure { kind: FailureKind::TooLarge, message })
    }

    /// A request goes to this pair: so many tokens are computed, and so many run after that.
    fn dispatched(&self, prefill: (Epoch, u32), decode: Option<(Epoch, u32)>) {
        self.prefill.iter().for_each(|server| server.count(prefill.0, prefill.1));
        if let Some((epoch, tokens)) = decode {
            self.decode.iter().for_each(|server| server.count(epoch, tokens));
        }
    }

    fn not_ready(&self) -> Failure {
        let down =
            self.prefill.iter().filter_map(|s| s.down_reason().map(|w| format!("prefill {w}")));
        let also =
            self.decode.iter().filter_map(|s| s.down_reason().map(|w| format!("decode {w}")));
        let down: Vec<_> = down.chain(also).collect();
        let message = if down.is_empty() {
            "no prefill server has joined a decode server yet".to_string()
        } else {
            format!("the fleet is not ready: {}", down.join("; "))
        };
        Failure { kind: FailureKind::NotReady, message }
    }

    fn views(
        &self,
        (request, hashes): (&Request, &mut Hashes),
        prefill: &Prefills,
        decode: &Decodes,
    ) -> (Vec<PrefillView>, Vec<DecodeView>) {
        let seen = lock(&self.seen);
        let view = |up: &Arc<Up<GatewayToPrefill>>| {
            let hashes = hashes.of(request, &up.layout);
            let overlap = seen.overlap(up.epoch, hashes) * up.layout.geometry.page_tokens;
            let (id, joined) = (up.id.clone(), up.joined.clone());
            PrefillView { id, epoch: up.epoch, load: up.load, joined, overlap }
        };
        let prefill = prefill.iter().map(view).collect();
        let view = |up: &Arc<Up<GatewayToDecode>>| DecodeView {
            id: up.id.clone(),
            epoch: up.epoch,
            load: up.load,
        };
        (prefill, decode.iter().map(view).collect())
    }
}

fn servers<Out: Message>(addresses: Vec<String>) -> Vec<Arc<Server<Out>>> {
    addresses.into_iter().enumerate().map(|placed| Arc::new(Server::new(placed))).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
