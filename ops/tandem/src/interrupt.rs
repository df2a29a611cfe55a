//! Ctrl-C, SIGTERM and a closed terminal, turned into something that a loop can wait for.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Once [`Interrupt::within`] has said true, it says true for ever.
pub struct Interrupt {
    signals: Receiver<()>,
}

impl Interrupt {
    /// Takes the signals over for the rest of the process's life.
    ///
    /// # Errors
    /// Where the kernel refuses a handler.
    pub fn listen() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let mut signals = [
            signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            signal(SignalKind::hangup()).context("listen for SIGHUP")?,
        ];
        drop(entered);
        let (first, receiver) = sync_channel(1);
        thread::Builder::new().name("signals".into()).spawn(move || {
            let [interrupt, terminate, hangup] = &mut signals;
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            // Dropping the sender is the message: it stays true. The handlers stay as well, so
            // that a second Ctrl-C does not leave servers behind.
            drop(first);
            runtime.block_on(std::future::pending::<()>());
        })?;
        Ok(Self { signals: receiver })
    }

    /// Waits at most this long for the user to want an end.
    pub fn within(&self, wait: Duration) -> bool {
        !matches!(self.signals.recv_timeout(wait), Err(RecvTimeoutError::Timeout))
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[test]
    fn a_signal_is_seen_and_stays_seen() {
        let interrupt = Interrupt::listen().unwrap();
        assert!(!interrupt.within(Duration::ZERO));
        kill_process(getpid(), Signal::TERM).unwrap();
        assert!(interrupt.within(Duration::from_secs(60)));
        assert!(interrupt.within(Duration::ZERO));
        kill_process(getpid(), Signal::INT).unwrap();
        assert!(interrupt.within(Duration::ZERO));
    }
}
