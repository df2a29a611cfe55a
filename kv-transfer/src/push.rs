//! The source's half: one plain thread a peer that owns the [`Link`].
//!
//! Life of an operation:
//! 1. queued: [`Pusher::put`] or [`Pusher::flush`] puts it into a bounded queue, or gives it back;
//! 2. taken by the thread while fewer than [`PushConfig::window`] are outstanding; its deadline
//!    starts here;
//! 3. ended: exactly one [`Event`] goes to the callback, on the push thread.
//!
//! When the link breaks or a deadline passes, the link is destroyed first, and only then do the
//! outstanding operations end, each with the cause; so do all later ones, until [`Pusher::close`].
//! Closing destroys the link and joins the thread: after it no source page is read and, for a
//! writer that stores itself, the mapping of the peer's pool is gone.
//! The Handoff is sent by whoever receives the flush's event.

use crate::{Event, Kind, Link, OpId, PutOp, TransferError};
use rustix::thread::set_current_timer_slack;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// First and longest wait of the link while it has operations outstanding and nothing happens;
/// the longest also bounds how late a new command or a close is noticed then.
const WAIT_MIN: Duration = Duration::from_micros(100);
const WAIT_MAX: Duration = Duration::from_millis(2);

/// How late the end of a nap may be noticed, nanoseconds.
const SLACK_NS: u64 = 1_000;

/// Bounds of one peer's push thread.
#[derive(Clone, Copy, Debug)]
pub struct PushConfig {
    /// Operations that may wait in the queue, at least 1.
    pub queue: usize,
    /// Operations that the link may have outstanding, at least 1.
    pub window: usize,
    /// Longest time from being taken by the thread to the event.
    pub deadline: Duration,
}

impl Default for PushConfig {
    fn default() -> Self {
        Self { queue: 256, window: 64, deadline: Duration::from_secs(2) }
    }
}

/// Why an operation was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unqueued {
    /// The queue is full: try again after an event.
    #[error("the push queue is full")]
    Full,
    /// The pusher was closed.
    #[error("the pusher is closed")]
    Closed,
}

enum Command {
    Put(PutOp),
    Flush(OpId),
    Wake,
}

struct Shared {
    closing: AtomicBool,
    broken: OnceLock<TransferError>,
}

/// Handle of a push thread; dropping it closes it.
pub struct Pusher {
    commands: SyncSender<Command>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    kind: Kind,
    target_pages: u32,
}

impl Pusher {
    /// Starts the thread. `on_event` runs on it and must not block for long, nor close the pusher.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] if the thread cannot be started.
    pub fn spawn(
        name: &str,
        link: Box<dyn Link>,
        config: PushConfig,
        on_event: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, TransferError> {
        let (kind, target_pages) = (link.kind(), link.target_pages());
        let (commands, inbox) = sync_channel(config.queue.max(1));
        let shared = Arc::new(Shared { closing: AtomicBool::new(false), broken: OnceLock::new() });
        let run = Run {
            inbox,
            config,
            shared: Arc::clone(&shared),
            started: Vec::new(),
            ended: Instant::now(),
            on_event: Box::new(on_event),
        };
        let thread = Builder::new()
            .name(format!("push-{name}"))
            .spawn(move || run.run(link))
            .map_err(|e| TransferError::Unavailable {
                transport: kind.name(),
                reason: format!("cannot start the push thread: {e}"),
            })?;
        Ok(Self { commands, shared, thread: Mutex::new(Some(thread)), kind, target_pages })
    }

    /// The link's transport.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Pages in the target's pool.
    pub fn target_pages(&self) -> u32 {
        self.target_pages
    }

    /// Queues a put; never blocks.
    ///
    /// # Errors
    /// The operation itself, with the reason.
    pub fn put(&self, op: PutOp) -> Result<(), (PutOp, Unqueued)> {
        self.queue(Command::Put(op)).map_err(|(command, why)| match command {
            Command::Put(op) => (op, why),
            Command::Flush(_) | Command::Wake => unreachable!("the channel gives back what it got"),
        })
    }

    /// Queues a flush of every put queued before it; never blocks.
    ///
    /// # Errors
    /// The reason.
    pub fn flush(&self, id: OpId) -> Result<(), Unqueued> {
        self.queue(Command::Flush(id)).map_err(|(_, why)| why)
    }

    /// Why the link is dead, if it is.
    pub fn broken(&self) -> Option<&TransferError> {
        self.shared.broken.get()
    }

    /// Destroys the link, ends what is outstanding with [`TransferError::Closed`], joins the
    /// thread. Idempotent. Blocks for a few milliseconds.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        // A full queue needs no wake: its thread is not asleep.
        let _ = self.commands.try_send(Command::Wake);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(transport = %self.kind, "the push thread panicked");
        }
    }

    fn queue(&self, command: Command) -> Result<(), (Command, Unqueued)> {
        if self.shared.closing.load(Ordering::Acquire) {
            return Err((command, Unqueued::Closed));
        }
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(command) => (command, Unqueued::Full),
            TrySendError::Disconnected(command) => (command, Unqueued::Closed),
        })
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Pusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pusher({}, broken {:?})", self.kind, self.broken())
    }
}

/// The thread's state.
struct Run {
    inbox: Receiver<Command>,
    config: PushConfig,
    shared: Arc<Shared>,
    /// When each outstanding operation was taken, oldest first; at most `window` long.
    started: Vec<(OpId, Instant)>,
    /// When one ended last: a link on which operations end is alive, however many there are.
    ended: Instant,
    on_event: Box<dyn FnMut(Event) + Send>,
}

impl Run {
    fn run(mut self, mut link: Box<dyn Link>) {
        // By default a nap may last 50 µs longer; where that is not allowed it does.
        let _ = set_current_timer_slack(NonZeroU64::new(SLACK_NS));
        let cause = match self.serve(link.as_mut()) {
            Ok(()) => TransferError::Closed,
            Err(cause) => {
                tracing::warn!(transport = %link.kind(), %cause, "link given up");
                let _ = self.shared.broken.set(cause.clone());
                cause
            }
        };
        for event in link.close() {
            (self.on_event)(caused_by(event, &cause));
        }
        self.refuse_the_rest(&cause);
    }

    /// Serves commands until closed (`Ok`) or the link is to be given up (`Err`).
    fn serve(&mut self, link: &mut dyn Link) -> Result<(), TransferError> {
        let mut events = Vec::new();
        let mut wait = WAIT_MIN;
        loop {
            let took = self.take_commands(link);
            if self.shared.closing.load(Ordering::Acquire) {
                return Ok(());
            }
            if link.outstanding() == 0 {
                continue;
            }
            let progress = link.progress(wait, &mut events);
            wait = if took || !events.is_empty() { WAIT_MIN } else { (wait * 2).min(WAIT_MAX) };
            if !events.is_empty() {
                self.ended = Instant::now();
            }
            for event in events.drain(..) {
                let id = event.id();
                if let Some(at) = self.started.iter().position(|&(started, _)| started == id) {
                    self.started.remove(at);
                }
                (self.on_event)(event);
            }
            progress?;
            self.check_deadline()?;
        }
    }

    /// Moves commands from the queue to the link as far as the window goes; sleeps on the queue
    /// when nothing is outstanding. Returns whether there was any.
    fn take_commands(&mut self, link: &mut dyn Link) -> bool {
        let mut took = false;
        while link.outstanding() < self.config.window.max(1) {
            let command = if link.outstanding() == 0 && !took {
                self.inbox.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.inbox.try_recv()
            };
            match command {
                Ok(Command::Put(op)) => {
                    self.started.push((op.id, Instant::now()));
                    link.put(op);
                }
                Ok(Command::Flush(id)) => {
                    self.started.push((id, Instant::now()));
                    link.flush(id);
                }
                Ok(Command::Wake) => {}
                Err(_) => break,
            }
            took = true;
        }
        took
    }

    fn check_deadline(&self) -> Result<(), TransferError> {
        let limit = self.config.deadline;
        match self.started.first() {
            Some((_, start)) if self.ended.max(*start).elapsed() > limit => {
                Err(TransferError::Deadline {
                    limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
                })
            }
            _ => Ok(()),
        }
    }

    /// Ends queued and later operations until the handle closes.
    fn refuse_the_rest(mut self, cause: &TransferError) {
        loop {
            let command = if self.shared.closing.load(Ordering::Acquire) {
                self.inbox.try_recv().ok()
            } else {
                self.inbox.recv().ok()
            };
            let result = Err(cause.clone());
            match command {
                Some(Command::Put(PutOp { id, owner, .. })) => {
                    (self.on_event)(Event::Put { id, owner, result });
                }
                Some(Command::Flush(id)) => (self.on_event)(Event::Flush { id, result }),
                Some(Command::Wake) => {}
                None => return,
            }
        }
    }
}

/// An operation that ended because the link was closed ended, to its owner, for `cause`.
fn caused_by(event: Event, cause: &TransferError) -> Event {
    let told = |result| match result {
        Err(TransferError::Closed) => Err(cause.clone()),
        other => other,
    };
    match event {
        Event::Put { id, owner, result } => Event::Put { id, owner, result: told(result) },
        Event::Flush { id, result } => Event::Flush { id, result: told(result) },
    }
}
