//! Walk 5/12. Before: `route.rs`. After: `prefill-server/src/intake.rs`.
//!
//! One request's journey, a task of its own:
//! 1. It waits its turn, picks a pair, and asks decode for a ticket; refused, it tries another
//!    decode server or waits for a load report.
//! 2. It hands request and ticket to prefill.
//! 3. It passes on what prefill reads of the prompt, then tokens as decode makes them, to the end.
//! 4. Retracted, revoked, or with a lost server: prompt and tokens so far go round again as the
//!    next attempt, while the budget lasts. The client sees a pause. It had its turn already:
//!    decode gives younger requests nothing while one that it retracted is expected back, so this
//!    one asks at once, and says so if it does not come back there.
//! 5. Whatever ends it early cancels it on both servers.

use super::mailbox::{Mailbox, Note};
use super::route::Hashes;
use super::server::Up;
use super::{Fleet, Travelling, lock};
use crate::ring::{Event, Failure, FailureKind};
use link::Sender;
use shared::ids::{Attempt, Epoch, RequestId, TokenId};
use shared::request::{Finish, Read, Request, Token};
use shared::wire::handshake::Role;
use shared::wire::messages::{
    Fault, FaultKind, GatewayToDecode, GatewayToPrefill, Refusal, RequestKey, Target, token_ids,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

/// A load report is due whenever pages return; this only bounds the wait if one is lost.
const RETRY_AT_LATEST: Duration = Duration::from_millis(250);

pub(crate) struct Journey {
    fleet: Arc<Fleet>,
    key: RequestKey,
    prompt_len: u32,
    request: Request,
    mailbox: Arc<Mailbox>,
    events: mpsc::Sender<Event>,
    retries_left: u32,
    told_cached: bool,
    /// Tokens of the prompt that the client was told of in this attempt.
    told_read: u32,
    /// The decode server that waits for this request's return.
    expected_by: Option<Up<GatewayToDecode>>,
}

/// A pair that holds, or is about to hold, this attempt.
struct Pair {
    prefill: Up<GatewayToPrefill>,
    decode: Option<(Up<GatewayToDecode>, shared::ids::TicketId)>,
}

impl Pair {
    fn has(&self, epoch: Epoch) -> bool {
        self.prefill.epoch == epoch || self.decode.as_ref().is_some_and(|(d, _)| d.epoch == epoch)
    }
}

/// Why an attempt ended without a result.
enum Stop {
    /// Decode took its pages back: send it round again.
    Retracted { made: Vec<TokenId> },
    /// Send it round again, at once.
    Again { made: Vec<TokenId>, costs: bool, why: Failure },
    /// Tell the client.
    Fail(Failure),
    /// The client is gone.
    Gone,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Fail(failure)
    }
}

impl Journey {
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        id: RequestId,
        request: Request,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let key = RequestKey { id, attempt: Attempt::new(0) };
        let mailbox = Arc::new(Mailbox::default());
        fleet.journeys().insert(id, Travelling { key, mailbox: mailbox.clone() });
        let (retries_left, prompt_len) = (fleet.retries, request.prompt_len);
        Self {
            fleet,
            key,
            prompt_len,
            request,
            mailbox,
            events,
            retries_left,
            told_cached: false,
            told_read: 0,
            expected_by: None,
        }
    }

    /// Travels to the end and reports it. `queued` is this request's place in the queue, given up
    /// with the first ticket.
    pub(crate) async fn run(mut self, queued: OwnedSemaphorePermit) {
        let mut queued = Some(queued);
        let event = loop {
            let stop = match self.attempt(&mut queued).await {
                Ok(finish) => break Some(Event::Finished(finish)),
                Err(stop) => stop,
            };
            let (made, why) = match stop {
                Stop::Gone => break None,
                Stop::Fail(failure) => break Some(Event::Failed(failure)),
                Stop::Retracted { made } => {
                    (made, internal("the request was retracted and has nothing left to make"))
                }
                Stop::Again { costs: true, why, .. } if self.retries_left == 0 => {
                    break Some(Event::Failed(why));
                }
                Stop::Again { made, costs, why } => {
                    self.retries_left -= u32::from(costs);
                    (made, why)
                }
            };
            match self.request.replay(&made, std::mem::take(&mut self.told_read)) {
                Some(request) => self.request = request,
                None => break Some(Event::Failed(why)),
            }
            self.next_attempt();
        };
        self.fleet.journeys().remove(&self.key.id);
        if let Some(event) = event {
            let _ = self.events.send(event).await; // the client may have left meanwhile
        }
    }

    fn next_attempt(&mut self) {
        self.key.attempt = self.key.attempt.next();
        if let Some(travelling) = self.fleet.journeys().get_mut(&self.key.id) {
            travelling.key = self.key; // from here on, what servers say of the old one is dropped
            self.mailbox.forget_attempt();
        }
        tracing::info!(request = %self.key, "replay");
    }

    async fn attempt(&mut self, queued: &mut Option<OwnedSemaphorePermit>) -> Result<Finish, Stop> {
        let pair = self.admitted(queued).await?;
        let target = pair.decode.as_ref().map(|(decode, ticket)| Target {
            decode: decode.id.clone(),
            epoch: decode.epoch,
            ticket: *ticket,
        });
        let prefill =
            GatewayToPrefill::Prefill { key: self.key, request: self.request.clone(), target };
        tracing::debug!(target: "story", request = %self.key, "sent to prefill");
        // A loss of prefill that was noted while decode was asked is not noted again.
        let up = self.fleet.prefill_up().iter().any(|up| up.epoch == pair.prefill.epoch);
        let ended = match up && pair.prefill.sender.send(prefill).await.is_ok() {
            true => self.listen(&pair).await,
            false => Err(self.lost(Role::Prefill, vec![])),
        };
        let stop = match ended {
            Ok(finish) => return Ok(finish),
            Err(stop) => stop,
        };
        if let Stop::Retracted { .. } = stop {
            // Neither server has anything of it any more.
            self.expected_by = pair.decode.map(|(decode, _)| decode);
            return Err(stop);
        }
        let expected = self.cancel(&pair).await;
        if let Stop::Gone = stop {
            self.acknowledged(&pair, expected).await;
        } // or the client would wait for servers that may be in a long step
        Err(stop)
    }

    /// Waits for this journey's turn and a ticket. A replay is older than all who wait for theirs.
    async fn admitted(&mut self, queued: &mut Option<OwnedSemaphorePermit>) -> Result<Pair, Stop> {
        let deadline = Instant::now() + self.fleet.deadlines.queue;
        let fleet = self.fleet.clone();
        let turn = match queued {
            None => None,
            Some(_) => tokio::select! {
                turn = fleet.turn.lock() => Some(turn),
                stop = self.interrupted(deadline) => return Err(stop),
            },
        };
        let pair = self.reserve(deadline).await;
        if let Some(waits) = self.expected_by.take() {
            let back = pair.as_ref().is_ok_and(|pair| pair.has(waits.epoch));
            if !back {
                self.send_cancel(None, Some(&waits.sender)).await;
            }
        }
        let pair = pair?;
        drop((turn, queued.take()));
        Ok(pair)
    }

    /// While waiting without any server involved: ends on abort, a gone client, or the deadline.
    async fn interrupted(&self, deadline: Instant) -> Stop {
        let aborted = async {
            while self.mailbox.next().await != Note::Abort {} // others are of no attempt now
        };
        tokio::select! {
            () = aborted => aborted_by_request(),
            () = self.events.closed() => Stop::Gone,
            () = sleep_until(deadline) => deadline_of("a place in the ring", self.fleet.deadlines.queue),
        }
    }

    async fn reserve(&self, deadline: Instant) -> Result<Pair, Stop> {
        let fleet = &self.fleet;
        let mut changed = fleet.changed.subscribe();
        let mut hashes = Hashes::default();
        loop {
            let (prefill, mut decode) = fleet.candidates(&self.request)?;
            decode.retain(|up| self.may_fit(up));
            let request = (&self.request, &mut hashes);
            let (views, mut decode_views) = fleet.views(request, &prefill, &decode);
            while let Some((p, d)) = fleet.policy.pick(&self.request, &views, &decode_views) {
                let prefill = prefill[p].clone();
                let prompt = self.request.tokens.len() as u32;
                let computes = (prefill.epoch, prompt.saturating_sub(views[p].overlap));
                let hashes = hashes.of(&self.request, &prefill.layout);
                lock(&fleet.seen).remember(prefill.epoch, hashes);
                if !self.request.needs_decode() {
                    fleet.dispatched(computes, None);
                    return Ok(Pair { prefill, decode: None });
                }
                decode_views.remove(d);
                let decode = decode.remove(d);
                if let Some(ticket) = self.ask(&prefill, &decode, deadline).await? {
                    fleet.dispatched(computes, Some((decode.epoch, prompt)));
                    return Ok(Pair { prefill, decode: Some((decode, ticket)) });
                }
            }
            let more = async {
                let _ = timeout(RETRY_AT_LATEST, changed.changed()).await;
            };
            tokio::select! {
                () = more => {}
                stop = self.interrupted(deadline) => return Err(stop),
            }
        }
    }

    /// Whether a decode server could take the prompt, by its last word: one that could not is not
    /// sent the whole request at every report.
    fn may_fit(&self, decode: &Up<GatewayToDecode>) -> bool {
        let pages = decode.layout.geometry.pages_for(self.request.tokens.len() as u32);
        !self.request.needs_decode() || decode.load.pages_available >= pages
    }

    /// Asks one decode server; `None` if it has no room now or went away.
    async fn ask(
        &self,
        prefill: &Up<GatewayToPrefill>,
        decode: &Up<GatewayToDecode>,
        deadline: Instant,
    ) -> Result<Option<shared::ids::TicketId>, Stop> {
        let request = self.request.clone();
        let reserve = GatewayToDecode::Reserve { key: self.key, writer: prefill.epoch, request };
        tracing::debug!(target: "story", request = %self.key, "ticket asked");
        if decode.sender.send(reserve).await.is_err() {
            return Ok(None);
        }
        let stop = loop {
            let note = tokio::select! {
                note = self.mailbox.next() => note,
                () = self.events.closed() => break Stop::Gone,
                () = sleep_until(deadline) => {
                    break deadline_of("a ticket", self.fleet.deadlines.queue);
                }
            };
            match note {
                Note::Ticket(ticket) => {
                    tracing::debug!(target: "story", request = %self.key, "ticket granted");
                    return Ok(Some(ticket));
                }
                Note::Refused(Role::Decode, Refusal::TooLarge { pages, pool }) => {
                    let message = format!("the request takes {pages} pages, the pool has {pool}");
                    return Err(Failure { kind: FailureKind::TooLarge, message }.into());
                }
                Note::Refused(Role::Decode, refusal) => {
                    tracing::debug!(request = %self.key, ?refusal, server = %decode.id, "no ticket");
                    return Ok(None);
                }
                Note::Failed(Role::Decode, fault) => return Err(failed(&fault).into()),
                Note::Lost(epoch) if epoch == decode.epoch => return Ok(None),
                Note::Abort => break aborted_by_request(),
                _ => {}
            }
        };
        self.send_cancel(None, Some(&decode.sender)).await;
        Err(stop)
    }

    async fn listen(&mut self, pair: &Pair) -> Result<Finish, Stop> {
        let deadlines = self.fleet.deadlines;
        let mut made: Vec<TokenId> = vec![];
        // Decode's tokens may overtake what prefill has read: they come by another link.
        let mut early = VecDeque::new();
        let (mut within, mut phase) = (deadlines.first_token, "the first token");
        let mut deadline = Instant::now() + within;
        loop {
            let awaits_reads = self.told_read < self.request.reads_left();
            let held = if awaits_reads { None } else { early.pop_front() };
            let note = match held {
                Some(note) => note,
                None => tokio::select! {
                    note = self.mailbox.next() => note,
                    () = self.events.closed() => return Err(Stop::Gone),
                    () = sleep_until(deadline) => return Err(deadline_of(phase, within)),
                },
            };
            match note {
                Note::Read(read) => {
                    self.tell_read(read).await?;
                    deadline = Instant::now() + within;
                }
                tokens @ Note::Tokens { .. } if awaits_reads => early.push_back(tokens),
                Note::Tokens { cached, tokens, finish } => {
                    if made.is_empty() {
                        tracing::debug!(target: "story", request = %self.key, "first token heard");
                    }
                    made.extend(token_ids(&tokens));
                    self.tell_client(cached, tokens).await?;
                    if let Some(finish) = finish {
                        return Ok(finish);
                    }
                    (within, phase) = (deadlines.next_token, "the next token");
                    deadline = Instant::now() + within;
                }
                Note::Retracted => return Err(Stop::Retracted { made }),
                Note::Refused(role, refusal) => return Err(self.refused(role, &refusal, made)),
                Note::Failed(_, fault) => return Err(self.fault(&fault, made)),
                Note::Lost(epoch) if pair.has(epoch) => {
                    let role =
                        if epoch == pair.prefill.epoch { Role::Prefill } else { Role::Decode };
                    if role == Role::Decode || made.is_empty() {
                        return Err(self.lost(role, made));
                    } // prefill's part was over with the first token
                }
                Note::Abort => return Err(aborted_by_request()),
                Note::Ticket(_) | Note::Accepted | Note::Cancelled(_) | Note::Lost(_) => {}
            }
        }
    }

    async fn tell_read(&mut self, read: Read) -> Result<(), Stop> {
        if let Read::Tokens(tokens) = &read {
            self.told_read += tokens.len() as u32;
        }
        self.events.send(Event::Read(read)).await.map_err(|_| Stop::Gone)
    }

    async fn tell_client(&mut self, cached: u32, tokens: Vec<Token>) -> Result<(), Stop> {
        // A replay finds its own output cached; what counts is the prompt, once.
        let cached = (!std::mem::replace(&mut self.told_cached, true))
            .then_some(Event::Cached(cached.min(self.prompt_len)));
        let tokens = (!tokens.is_empty()).then_some(Event::Tokens(tokens));
        for event in cached.into_iter().chain(tokens) {
            self.events.send(event).await.map_err(|_| Stop::Gone)?;
        }
        Ok(())
    }

    fn refused(&self, role: Role, refusal: &Refusal, made: Vec<TokenId>) -> Stop {
        match refusal {
            Refusal::TooLarge { pages, pool } => Stop::Fail(Failure {
                kind: FailureKind::TooLarge,
                message: format!("the request takes {pages} pages, {role} has {pool}"),
            }),
            other => {
                let message = format!("{role} did not take the request: {other:?}");
                let kind = match other {
                    Refusal::QueueFull => FailureKind::QueueFull,
                    _ => FailureKind::NotReady,
                };
                // One that drains has said that it takes no more, so this one goes elsewhere.
                let free = matches!(other, Refusal::Draining);
                Stop::Again { made, costs: !free, why: Failure { kind, message } }
            }
        }
    }

    fn fault(&self, fault: &Fault, made: Vec<TokenId>) -> Stop {
        match fault.kind {
            FaultKind::Revoked
            | FaultKind::Draining
            | FaultKind::Checksum
            | FaultKind::PeerLost => self.again_if_other(made, failed(fault)),
            FaultKind::Deadline | FaultKind::Internal => Stop::Fail(failed(fault)),
        }
    }

    fn lost(&self, role: Role, made: Vec<TokenId>) -> Stop {
        let message = format!("the {role} server that held this request is gone");
        self.again_if_other(made, Failure { kind: FailureKind::PeerLost, message })
    }

    /// Round again while a pair is up; otherwise the failure itself, now.
    fn again_if_other(&self, made: Vec<TokenId>, why: Failure) -> Stop {
        if Fleet::any_joined(&self.fleet.prefill_up(), &self.fleet.decode_up()) {
            Stop::Again { made, costs: true, why }
        } else {
            Stop::Fail(why)
        }
    }

    /// Cancels this attempt on both servers; how many acknowledgements are due.
    async fn cancel(&self, pair: &Pair) -> usize {
        // One that is gone acknowledges nothing.
        let (prefills, decodes) = (self.fleet.prefill_up(), self.fleet.decode_up());
        let prefill = prefills.iter().find(|up| up.epoch == pair.prefill.epoch).map(|p| &p.sender);
        let decode = pair.decode.as_ref().map(|(decode, _)| decode);
        let decode = decode.filter(|d| decodes.iter().any(|up| up.epoch == d.epoch));
        self.send_cancel(prefill, decode.map(|d| &d.sender)).await
    }

    /// Waits until nothing more can come of a cancelled attempt.
    async fn acknowledged(&self, pair: &Pair, mut expected: usize) {
        let acknowledged = async {
            while expected > 0 {
                match self.mailbox.next().await {
                    Note::Cancelled(_) | Note::Refused(..) | Note::Failed(..) => expected -= 1,
                    Note::Lost(epoch) if pair.has(epoch) => expected -= 1,
                    // The end crossed the cancel.
                    Note::Tokens { finish: Some(_), .. } => expected -= 1,
                    _ => {}
                }
            }
        };
        if timeout(self.fleet.deadlines.acknowledge, acknowledged).await.is_err() {
            tracing::warn!(request = %self.key, "a cancel was not acknowledged in time");
        }
    }

    async fn send_cancel(
        &self,
        prefill: Option<&Sender<GatewayToPrefill>>,
        decode: Option<&Sender<GatewayToDecode>>,
    ) -> usize {
        let mut sent = 0;
        if let Some(sender) = prefill {
            sent += usize::from(sender.send(GatewayToPrefill::Cancel(self.key)).await.is_ok());
        }
        if let Some(sender) = decode {
            sent += usize::from(sender.send(GatewayToDecode::Cancel(self.key)).await.is_ok());
        }
        sent
    }
}

fn aborted_by_request() -> Stop {
    let message = "the request was aborted".to_string();
    Stop::Fail(Failure { kind: FailureKind::Aborted, message })
}

fn deadline_of(phase: &str, after: Duration) -> Stop {
    let message = format!("waited {after:?} for {phase}");
    Stop::Fail(Failure { kind: FailureKind::Deadline, message })
}

fn internal(message: &str) -> Failure {
    Failure { kind: FailureKind::Internal, message: message.into() }
}

fn failed(fault: &Fault) -> Failure {
    let kind = match fault.kind {
        FaultKind::PeerLost | FaultKind::Revoked | FaultKind::Draining => FailureKind::PeerLost,
        FaultKind::Deadline => FailureKind::Deadline,
        FaultKind::Checksum | FaultKind::Internal => FailureKind::Internal,
    };
    Failure { kind, message: fault.message.clone() }
}
