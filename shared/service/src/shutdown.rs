//! When to drain: SIGTERM or SIGINT, or a word from whoever runs several roles in one process.

use std::io;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Tells a role to drain. Dropping it tells too.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// What a role waits on.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// A trigger and what it triggers.
pub fn pair() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Says it.
    pub fn pull(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Returns once the trigger is pulled or dropped. Cancel safe.
    pub async fn wait(&mut self) {
        drop(self.0.wait_for(|pulled| *pulled).await);
    }
}

/// What the first SIGTERM or SIGINT of this process triggers. Must be called within a tokio
/// runtime.
///
/// # Errors
/// If the handlers cannot be installed.
pub fn on_signal() -> io::Result<Shutdown> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (trigger, shutdown) = pair();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        trigger.pull();
    });
    Ok(shutdown)
}
