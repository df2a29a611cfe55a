//! Both servers of a ring, as far as a gateway can tell.
//!
//! Decode grants every request a ticket; prefill accepts it and tells [`Steps`], which gives the
//! first token at once and the others one a step: all running requests of a gateway in one frame,
//! as a decode server does.

use super::EchoConfig;
use anyhow::Context;
use link::{Door, Local, Sender, Session, Timing, identity};
use shared::ids::{Epoch, ServerId, TicketId};
use shared::kv::{KvDtype, KvGeometry};
use shared::request::{Finish, Request, Token};
use shared::wire::handshake::{Capacity, Layout, RingKey, Role};
use shared::wire::messages::{
    DecodeToGateway, Emitted, GatewayToDecode, GatewayToPrefill, Load, PrefillToGateway, RequestKey,
};
use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

/// Messages that wait for a gateway's socket, and events that wait for the steps.
const QUEUE: usize = 4096;
const PAGE_TOKENS: u32 = 16;
/// More than any load holds at a time.
const PAGES: u32 = 1 << 20;
const CONTEXT: u32 = 1 << 17;

/// What the steps are told.
#[expect(clippy::large_enum_variant, reason = "most of what is told is requests")]
enum Event {
    /// A gateway can be sent tokens.
    Up(Epoch, Sender<DecodeToGateway>),
    Down(Epoch),
    Start(RequestKey, Request),
    Cancel(RequestKey),
}

/// Serves for ever.
///
/// # Errors
/// An address or the key cannot be had.
pub(super) async fn serve(config: &EchoConfig) -> anyhow::Result<()> {
    let key = fs::read_to_string(&config.key_file).context("the key file")?;
    let key = RingKey::from_hex(&key).map_err(anyhow::Error::msg)?;
    let (events, heard) = mpsc::channel(QUEUE);
    let steps = Steps { gateways: HashMap::new(), running: vec![], reported: 0 };
    let decode = door(config, Role::Decode, &key)?;
    let prefill = door(config, Role::Prefill, &key)?;
    let joined = decode.local.identity.epoch;
    let tickets = Arc::new(AtomicU64::new(0));
    let decode_events = events.clone();
    let decodes = decode.keep(TcpListener::bind(config.decode).await?, move |session| {
        serve_decode(session, decode_events.clone(), tickets.clone())
    });
    let prefills = prefill.keep(TcpListener::bind(config.prefill).await?, move |session| {
        serve_prefill(session, joined, events.clone())
    });
    tokio::join!(decodes, prefills, steps.run(heard, Duration::from_millis(config.step_ms)));
    Ok(())
}

fn door(config: &EchoConfig, role: Role, key: &RingKey) -> anyhow::Result<Door> {
    let geometry = KvGeometry {
        layers: 1,
        kv_heads: 1,
        head_dim: 64,
        page_tokens: PAGE_TOKENS,
        dtype: KvDtype::Bf16,
    };
    let layout = Layout { model: [0; 32], geometry, tensor_parallel: 1 };
    let identity = identity::draw(role, ServerId::new(format!("echo-{role}"))?)?;
    let timing = Timing::default();
    let local = Local { identity, key: key.clone(), layout: Some(layout), timing };
    let capacity = Capacity { pages: PAGES, context_length: CONTEXT, vocab: config.vocab };
    Ok(Door { local, layout, capacity, roles: &[Role::Gateway] })
}

/// Never full.
fn load(running: usize) -> Load {
    Load { pages_available: PAGES, running: running as u32, ..Load::default() }
}

async fn serve_decode(session: Session, events: mpsc::Sender<Event>, tickets: Arc<AtomicU64>) {
    let gateway = session.peer.epoch;
    let (sender, mut receiver) = session.start::<DecodeToGateway, GatewayToDecode>(QUEUE);
    // Whoever is not heard any more is missed below, at the next message.
    let _ = events.send(Event::Up(gateway, sender.clone())).await;
    let _ = sender.send(DecodeToGateway::Load(load(0))).await;
    while let Ok(message) = receiver.recv().await {
        let heard = match message {
            GatewayToDecode::Reserve { key, .. } => {
                let ticket = TicketId::new(tickets.fetch_add(1, Ordering::Relaxed));
                sender.send(DecodeToGateway::Ticket { key, ticket }).await.is_ok()
            }
            GatewayToDecode::Cancel(key) => events.send(Event::Cancel(key)).await.is_ok(),
            GatewayToDecode::FlushCache => sender.send(DecodeToGateway::Flushed).await.is_ok(),
        };
        if !heard {
            break;
        }
    }
    let _ = events.send(Event::Down(gateway)).await;
}

async fn serve_prefill(session: Session, decode: Epoch, events: mpsc::Sender<Event>) {
    let (sender, mut receiver) = session.start::<PrefillToGateway, GatewayToPrefill>(QUEUE);
    let _ = sender.send(PrefillToGateway::Joined(vec![decode])).await;
    let _ = sender.send(PrefillToGateway::Load(load(0))).await;
    while let Ok(message) = receiver.recv().await {
        let answer = match message {
            GatewayToPrefill::Prefill { key, request, target: None } => {
                PrefillToGateway::Result(emitted(key, &request, 0))
            }
            GatewayToPrefill::Prefill { key, request, target: Some(_) } => {
                if events.send(Event::Start(key, request)).await.is_err() {
                    return;
                }
                continue;
            }
            GatewayToPrefill::Cancel(key) => PrefillToGateway::Cancelled(key),
            GatewayToPrefill::FlushCache => PrefillToGateway::Flushed,
        };
        if sender.send(answer).await.is_err() {
            return;
        }
    }
}

struct Running {
    key: RequestKey,
    request: Request,
    made: u32,
}

/// The engine's loop, without an engine.
struct Steps {
    gateways: HashMap<Epoch, Sender<DecodeToGateway>>,
    running: Vec<Running>,
    /// How many ran by the last report.
    reported: usize,
}

impl Steps {
    async fn run(mut self, mut heard: mpsc::Receiver<Event>, step: Duration) {
        let mut clock = interval(step);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = heard.recv() => match event {
                    Some(event) => self.take(event).await,
                    None => return,
                },
                _ = clock.tick() => self.step().await,
            }
        }
    }

    async fn take(&mut self, event: Event) {
        match event {
            Event::Up(gateway, sender) => {
                self.gateways.insert(gateway, sender);
            }
            Event::Down(gateway) => {
                self.gateways.remove(&gateway);
                self.running.retain(|running| running.key.id.gateway() != gateway);
            }
            Event::Start(key, request) => {
                let first = emitted(key, &request, 0);
                if first.finish.is_none() {
                    self.running.push(Running { key, request, made: 1 });
                }
                self.tell(key.id.gateway(), DecodeToGateway::Tokens(vec![first])).await;
            }
            Event::Cancel(key) => {
                self.running.retain(|running| running.key != key);
                self.tell(key.id.gateway(), DecodeToGateway::Cancelled(key)).await;
            }
        }
    }

    /// One more token for everyone, and a report where something changed.
    async fn step(&mut self) {
        let mut frames: HashMap<Epoch, Vec<Emitted>> = HashMap::new();
        self.running.retain_mut(|running| {
            let next = emitted(running.key, &running.request, running.made);
            running.made += 1;
            let goes_on = next.finish.is_none();
            frames.entry(running.key.id.gateway()).or_default().push(next);
            goes_on
        });
        for (gateway, tokens) in frames {
            self.tell(gateway, DecodeToGateway::Tokens(tokens)).await;
        }
        if self.reported != self.running.len() {
            self.reported = self.running.len();
            for sender in self.gateways.values() {
                let _ = sender.send(DecodeToGateway::Load(load(self.reported))).await;
            }
        }
    }

    async fn tell(&self, gateway: Epoch, message: DecodeToGateway) {
        if let Some(sender) = self.gateways.get(&gateway) {
            let _ = sender.send(message).await; // its link says that it is gone
        }
    }
}

/// Token number `made` of the output: the prompt's, over and over.
fn emitted(key: RequestKey, request: &Request, made: u32) -> Emitted {
    let id = request.tokens[made as usize % request.tokens.len()];
    let finish = (made + 1 >= request.max_tokens).then_some(Finish::Length);
    let token = Token { id, logprob: 0.0, top: vec![] };
    Emitted { key, cached_tokens: 0, tokens: vec![token], finish, times: None }
}
