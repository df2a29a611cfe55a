//! What a service manager hears and says: ready, reloading, stopping and signs of life
//! (`sd_notify(3)`), SIGHUP for a reload. Without a manager all of it does nothing.

use sd_notify::NotifyState;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// Says that this process serves; `status` is shown by `systemctl status`.
pub fn ready(status: &str) {
    say(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that it drains.
pub fn stopping() {
    say(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Counts turns of a loop that has to go on.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// The loop went round.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it went round.
    pub fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Tells the manager's watchdog that this process lives, for as long as `pulse` beats between two
/// looks; without a pulse, for as long as this runtime runs tasks. Never returns; returns at once
/// where no watchdog watches.
pub async fn sign_of_life(pulse: Option<Pulse>) {
    let Some(deadline) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = interval((deadline / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = None;
    loop {
        ticks.tick().await;
        let beats = pulse.as_ref().map(Pulse::beats);
        if pulse.is_none() || beats != before {
            say(&[NotifyState::Watchdog]);
        }
        before = beats;
    }
}

/// Calls `reload` at every SIGHUP, in a task of its own. What it returns is logged, and a failure
/// leaves all as it was. Must be called within a tokio runtime.
///
/// # Errors
/// If the handler cannot be installed.
pub fn on_reload<E: std::fmt::Display>(
    reload: impl Fn() -> Result<(), E> + Send + 'static,
) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            say(&[NotifyState::Reloading]);
            match reload() {
                Ok(()) => tracing::info!("config reloaded"),
                Err(error) => tracing::error!(%error, "config not reloaded; all is as it was"),
            }
            say(&[NotifyState::Ready]);
        }
    });
    Ok(())
}
