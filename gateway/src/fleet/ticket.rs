//! Walk 5/12. Before: `route.rs`. After: `prefill-server/src/intake.rs`.
//!
//! One request's journey, a task of its own:
//! 1. It waits its turn, picks a pair, and asks decode for a ticket; refused, it tries another
//!    decode server or waits for a load report.
//! 2. It hands request and ticket to prefill.
//! 3. Its mailbox passes on what prefill reads of the prompt, then tokens as decode makes them,
//!    until the end.
//! 4. Retracted, revoked, or with a lost server: prompt and tokens so far go round again as the
//!    next attempt, while the budget lasts. The client sees a pause. It had its turn already:
//!    decode gives younger requests nothing while one that it retracted is expected back, so this
//!    one asks at once, and says so if it does not come back there.
//! 5. Whatever ends it early cancels it on both servers.

use super::mailbox::{Heard, Mailbox, Note};
use super::route::Hashes;
use super::server::Up;
use super::story::{Ending, Story};
use super::{Fleet, Travelling, lock};
use crate::metrics;
use crate::ring::{Event, Failure, FailureKind, Line, Origin};
use link::Sender;
use shared::ids::{Attempt, Epoch, RequestId};
use shared::request::{Finish, Request};
use shared::wire::handshake::Role;
use shared::wire::messages::{
    Fault, FaultKind, GatewayToDecode, GatewayToPrefill, Refusal, RequestKey, Target,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout};

/// A load report is due whenever pages return; this only bounds the wait if one is lost.
const RETRY_AT_LATEST: Duration = Duration::from_millis(250);

pub(crate) struct Journey {
    fleet: Arc<Fleet>,
    key: RequestKey,
    request: Request,
    submitted: Instant,
    mailbox: Arc<Mailbox>,
    story: Arc<Story>,
    line: Arc<Line>,
    retries_left: u32,
    /// The decode server that waits for this request's return.
    expected_by: Option<Arc<Up<GatewayToDecode>>>,
}

/// A pair that holds, or is about to hold, this attempt.
struct Pair {
    prefill: Arc<Up<GatewayToPrefill>>,
    decode: Option<(Arc<Up<GatewayToDecode>>, shared::ids::TicketId)>,
    /// When its ticket was asked for, or would have been.
    asked: Instant,
}

impl Pair {
    fn has(&self, epoch: Epoch) -> bool {
        self.prefill.epoch == epoch || self.decode.as_ref().is_some_and(|(d, _)| d.epoch == epoch)
    }
}

/// Why an attempt ended without a result.
enum Stop {
    /// Decode took its pages back: send it round again.
    Retracted,
    /// Send it round again, at once.
    Again { costs: bool, why: Failure },
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

impl Drop for Journey {
    fn drop(&mut self) {
        self.line.end(); // whatever became of this task, nobody waits for it
    }
}

impl Journey {
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        (id, origin): (RequestId, Origin),
        request: Request,
        line: Arc<Line>,
    ) -> Self {
        let key = RequestKey { id, attempt: Attempt::new(0) };
        let mailbox = Arc::new(Mailbox::new(line.clone(), request.prompt_len));
        let story = Arc::new(Story::new(id, origin, request.prompt_len));
        let travelling = Travelling { key, mailbox: mailbox.clone(), story: story.clone() };
        fleet.journeys().insert(id, travelling);
        let (submitted, retries_left, expected_by) = (Instant::now(), fleet.retries, None);
        Self { fleet, key, request, submitted, mailbox, story, line, retries_left, expected_by }
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
            let after = match &stop {
                Stop::Again { why, .. } => Some(why.kind),
                _ => None,
            };
            let why = match stop {
                Stop::Gone => break None,
                Stop::Fail(failure) => break Some(Event::Failed(failure)),
                Stop::Retracted => {
                    internal("the request was retracted and has nothing left to make")
                }
                Stop::Again { costs: true, why } if self.retries_left == 0 => {
                    break Some(Event::Failed(why));
                }
                Stop::Again { costs, why } => {
                    self.retries_left -= u32::from(costs);
                    why
                }
            };
            let (made, read) = self.mailbox.take_told();
            match self.request.replay(&made, read) {
                Some(request) => self.request = request,
                None => break Some(Event::Failed(why)),
            }
            metrics::retried(after);
            self.next_attempt();
        };
        let ending = match event {
            Some(Event::Failed(_)) => Ending::Failed,
            Some(_) => Ending::Finished,
            None => Ending::Dropped,
        };
        self.fleet.recent.end(&self.story, ending, &self.fleet.pulse);
        self.fleet.journeys().remove(&self.key.id);
        if let Some(Event::Failed(failure)) = &event {
            metrics::failed(failure.kind);
        }
        self.line.leave(event); // unless it came with the last token
    }

    fn next_attempt(&mut self) {
        self.key.attempt = self.key.attempt.next();
        self.story.again();
        if let Some(travelling) = self.fleet.journeys().get_mut(&self.key.id) {
            travelling.key = self.key; // from here on, what servers say of the old one is dropped
            self.mailbox.forget_attempt();
        }
        tracing::info!(request = %self.key, "replay");
    }

    async fn attempt(&mut self, queued: &mut Option<OwnedSemaphorePermit>) -> Result<Finish, Stop> {
        let first = queued.is_some();
        let pair = self.admitted(queued).await?;
        if first {
            metrics::admitted(pair.asked - self.submitted, pair.asked.elapsed());
        }
        let target = pair.decode.as_ref().map(|(decode, ticket)| Target {
            decode: decode.id.clone(),
            epoch: decode.epoch,
            ticket: *ticket,
        });
        let prefill =
            GatewayToPrefill::Prefill { key: self.key, request: self.request.clone(), target };
        tracing::debug!(target: "story", request = %self.key, "sent to prefill");
        let decode = pair.decode.as_ref().map(|(decode, _)| decode.part());
        self.story.sent(pair.prefill.part(), decode, self.request.tokens.len() as u32);
        // A loss of prefill that was noted while decode was asked is not noted again.
        let up = self.fleet.prefill_up().iter().any(|up| up.epoch == pair.prefill.epoch);
        self.mailbox.open(self.request.reads_left());
        let ended = match up && pair.prefill.sender.send(prefill).await.is_ok() {
            true => self.listen(&pair).await,
            false => Err(self.lost(Role::Prefill)),
        };
        // An end that was told stands, whatever crossed it: nothing is left to cancel.
        let stop = match (self.mailbox.close(), ended) {
            (Some(finish), _) | (None, Ok(finish)) => return Ok(finish),
            (None, Err(stop)) => stop,
        };
        if let Stop::Retracted = stop {
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
            () = self.line.dropped() => Stop::Gone,
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
                    return Ok(Pair { prefill, decode: None, asked: Instant::now() });
                }
                decode_views.remove(d);
                let decode = decode.remove(d);
                let asked = Instant::now();
                if let Some(ticket) = self.ask(&prefill, &decode, deadline).await? {
                    fleet.dispatched(computes, Some((decode.epoch, prompt)));
                    return Ok(Pair { prefill, decode: Some((decode, ticket)), asked });
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
        self.story.asked();
        if decode.sender.send(reserve).await.is_err() {
            return Ok(None);
        }
        let stop = loop {
            let note = tokio::select! {
                note = self.mailbox.next() => note,
                () = self.line.dropped() => break Stop::Gone,
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

    /// While tokens go to the client: returns with their end, or what cut it short.
    async fn listen(&self, pair: &Pair) -> Result<Finish, Stop> {
        let deadlines = self.fleet.deadlines;
        let start = Instant::now();
        // Tokens wake nobody here: whether they came in time is looked up when they are due.
        let look = sleep_until(start + deadlines.first_token.min(deadlines.next_token));
        tokio::pin!(look);
        loop {
            let note = tokio::select! {
                note = self.mailbox.next() => note,
                () = self.line.dropped() => return Err(Stop::Gone),
                () = &mut look => {
                    let (since, within, phase) = match self.mailbox.heard() {
                        None => (start, deadlines.first_token, "the first token"),
                        Some(Heard::Read(at)) => (at, deadlines.first_token, "the first token"),
                        Some(Heard::Tokens(at)) => (at, deadlines.next_token, "the next token"),
                    };
                    let now = Instant::now();
                    if since + within <= now {
                        return Err(deadline_of(phase, within));
                    }
                    look.as_mut().reset((since + within).min(now + deadlines.next_token));
                    continue;
                }
            };
            match note {
                Note::Finished(finish) => return Ok(finish),
                Note::Retracted => return Err(Stop::Retracted),
                Note::Refused(role, refusal) => return Err(refused(role, &refusal)),
                Note::Failed(_, fault) => return Err(self.fault(&fault)),
                Note::Lost(epoch) if pair.has(epoch) => {
                    let role =
                        if epoch == pair.prefill.epoch { Role::Prefill } else { Role::Decode };
                    // Prefill's part is over with the first token, after all that it reads.
                    let over = matches!(self.mailbox.heard(), Some(Heard::Tokens(_)));
                    if role == Role::Decode || !over {
                        return Err(self.lost(role));
                    }
                }
                Note::Abort => return Err(aborted_by_request()),
                Note::Ticket(_) | Note::Cancelled(_) | Note::Lost(_) => {}
            }
        }
    }

    fn fault(&self, fault: &Fault) -> Stop {
        match fault.kind {
            FaultKind::Revoked
            | FaultKind::Draining
            | FaultKind::Checksum
            | FaultKind::PeerLost => self.again_if_other(failed(fault)),
            FaultKind::Deadline | FaultKind::Internal => Stop::Fail(failed(fault)),
        }
    }

    fn lost(&self, role: Role) -> Stop {
        let message = format!("the {role} server that held this request is gone");
        self.again_if_other(Failure { kind: FailureKind::PeerLost, message })
    }

    /// Round again while a pair is up; otherwise the failure itself, now.
    fn again_if_other(&self, why: Failure) -> Stop {
        if Fleet::any_joined(&self.fleet.prefill_up(), &self.fleet.decode_up()) {
            Stop::Again { costs: true, why }
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
                    Note::Finished(_) => expected -= 1,
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

fn refused(role: Role, refusal: &Refusal) -> Stop {
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
            Stop::Again { costs: !free, why: Failure { kind, message } }
        }
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
