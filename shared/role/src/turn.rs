//! The loop of an engine thread: hear what came, take a turn, say what is to be said.
//!
//! A role is the only owner of its state; everything reaches it through one bounded inbox. It never
//! waits while there is work, hears and answers while its engine computes, and sleeps on the inbox
//! when there is nothing to do.

use model::engine::EngineError;
use service::notify::{self, Pulse};
use service::shutdown::Shutdown;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, error::TryRecvError};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A role's part of the loop.
pub trait Turn {
    /// What it is told.
    type Event: Send + 'static;
    /// Takes in one event.
    fn hear(&mut self, event: Self::Event);
    /// Whether a turn would wait for the engine.
    ///
    /// # Errors
    /// As [`Self::turn`].
    fn computing(&mut self) -> Result<bool, EngineError>;
    /// Waits a moment between two looks at [`Self::computing`], and no longer than the engine
    /// computes.
    ///
    /// # Errors
    /// As [`Self::turn`].
    fn rest(&mut self) -> Result<(), EngineError>;
    /// Does what can be done now; whether there was anything, or a step still runs.
    ///
    /// # Errors
    /// If the engine fails; the process must end.
    fn turn(&mut self) -> Result<bool, EngineError>;
    /// Hands outgoing messages to the links; whether some had to stay.
    fn flush(&mut self) -> bool;
    /// Whether it is draining, nothing is left, and what it said is on the wire: the process may
    /// end.
    fn drained(&self) -> bool;
    /// How long nothing can happen without an event, when there was nothing to do.
    fn idle(&self) -> Duration;
}

/// Between two tries to hand over what a link did not take.
const RETRY_EVERY: Duration = Duration::from_millis(5);

/// Events heard between two turns: peers that never stop talking do not stop the work.
const EVENTS_A_TURN: usize = 4096;

/// Runs until drained, or until the inbox's senders are gone.
///
/// # Errors
/// If the engine fails.
pub fn run<R: Turn>(
    mut role: R,
    mut inbox: Receiver<R::Event>,
    (runtime, pulse): (&Handle, &Pulse),
) -> Result<(), EngineError> {
    loop {
        pulse.beat();
        while role.computing()? {
            match inbox.try_recv() {
                Ok(event) => {
                    role.hear(event);
                    role.flush();
                }
                Err(TryRecvError::Empty) => role.rest()?,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        let worked = role.turn()?;
        let blocked = role.flush();
        if !worked {
            if role.drained() && !blocked {
                return Ok(());
            }
            let wait = if blocked { role.idle().min(RETRY_EVERY) } else { role.idle() };
            match runtime.block_on(async { timeout(wait, inbox.recv()).await }) {
                Ok(Some(event)) => role.hear(event),
                Ok(None) => return Ok(()),
                Err(_) => {}
            }
        }
        for _ in 0..EVENTS_A_TURN {
            match inbox.try_recv() {
                Ok(event) => role.hear(event),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        // What was just heard is answered now, not after a whole step: a gateway that waits for a
        // ticket holds up all behind it. What does not go out is tried again below the next turn.
        role.flush();
    }
}

/// A role that runs on a thread of its own.
#[derive(Debug)]
pub struct Engine {
    /// Yields how it ended; an error if it panicked.
    ended: oneshot::Receiver<Result<(), EngineError>>,
    /// Beats once a turn: a step that never ends stops it.
    pulse: Pulse,
}

/// Runs `role` on a thread of its own.
///
/// # Errors
/// If the thread cannot be started.
pub fn spawn<R: Turn + Send + 'static>(
    role: R,
    inbox: Receiver<R::Event>,
) -> std::io::Result<Engine> {
    let (done, ended) = oneshot::channel();
    let (runtime, pulse) = (Handle::current(), Pulse::default());
    let beats = pulse.clone();
    std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || done.send(run(role, inbox, (&runtime, &beats))))?;
    Ok(Engine { ended, pulse })
}

/// Waits for a role's end; when `shutdown` says so it sends `drain`, and gives the role `deadline`
/// to finish. A role that is not finished by then is left to the end of its process. Until then the
/// service manager's watchdog hears of every turn.
///
/// # Errors
/// If the engine failed, or its thread panicked.
pub async fn supervise<E>(
    Engine { mut ended, pulse }: Engine,
    mut shutdown: Shutdown,
    (inbox, drain): (Sender<E>, E),
    deadline: Duration,
) -> Result<(), EngineError> {
    let watched = tokio::spawn(notify::sign_of_life(Some(pulse)));
    let result = tokio::select! {
        result = &mut ended => result,
        () = shutdown.wait() => {
            tracing::info!("draining");
            let drained = async {
                drop(inbox.send(drain).await); // it is gone only if the role has ended
                ended.await
            };
            match timeout(deadline, drained).await {
                Ok(result) => result,
                Err(_) => {
                    tracing::warn!(?deadline, "the drain ran out of time");
                    Ok(Ok(()))
                }
            }
        }
    };
    watched.abort();
    result.unwrap_or_else(|_| Err(EngineError("the engine thread panicked".into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tokio::sync::mpsc;

    /// Notes what the loop calls; ends after three turns that worked.
    struct Noted {
        calls: Arc<Mutex<Vec<&'static str>>>,
        /// Answers to whether it computes; then it does not.
        computing: std::vec::IntoIter<bool>,
    }

    impl Noted {
        fn note(&self, call: &'static str) -> usize {
            let mut calls = self.calls.lock().unwrap();
            calls.push(call);
            calls.iter().filter(|other| **other == call).count()
        }
    }

    impl Turn for Noted {
        type Event = ();
        fn hear(&mut self, (): ()) {
            self.note("hear");
        }
        fn computing(&mut self) -> Result<bool, EngineError> {
            Ok(self.computing.next().unwrap_or(false))
        }
        fn rest(&mut self) -> Result<(), EngineError> {
            Ok(())
        }
        fn turn(&mut self) -> Result<bool, EngineError> {
            Ok(self.note("turn") < 3)
        }
        fn flush(&mut self) -> bool {
            self.note("flush");
            false
        }
        fn drained(&self) -> bool {
            true
        }
        fn idle(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// The first calls of a loop that finds two events.
    #[track_caller]
    fn check(computing: Vec<bool>, first: &[&str]) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (events, inbox) = mpsc::channel(4);
        events.try_send(()).unwrap();
        events.try_send(()).unwrap();
        let calls = Arc::default();
        let noted = Noted { calls: Arc::clone(&calls), computing: computing.into_iter() };
        run(noted, inbox, (runtime.handle(), &Pulse::default())).unwrap();
        assert_eq!(calls.lock().unwrap()[..first.len()], *first);
    }

    #[test]
    fn what_is_heard_is_answered_before_the_next_step() {
        check(vec![], &["turn", "flush", "hear", "hear", "flush", "turn"]);
    }

    #[test]
    fn what_comes_while_the_engine_computes_is_answered_at_once() {
        let first = ["hear", "flush", "hear", "flush", "turn"];
        check(vec![true; 3], &first);
        check(vec![true, false], &["hear", "flush", "turn", "flush", "hear", "flush", "turn"]);
    }
}
