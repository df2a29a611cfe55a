//! Proof that a process has ended, by pidfd.

use crate::identity;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use shared::wire::handshake::ProcessId;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Holds a process by pidfd, whatever becomes of its PID.
#[derive(Debug)]
pub struct ProcessWatch(Held);

#[derive(Debug)]
enum Held {
    /// It had ended before we could hold it.
    Ended,
    Running(AsyncFd<OwnedFd>),
}

impl ProcessWatch {
    /// Holds `process`, or `None` if its PID means nothing here (another host or PID namespace).
    /// A PID that now belongs to another process counts as ended: start times tell them apart.
    ///
    /// # Errors
    /// If the kernel refuses a pidfd for another reason than the process being gone.
    pub fn open(process: &ProcessId) -> io::Result<Option<Self>> {
        if process.host != identity::host()? {
            return Ok(None);
        }
        let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
            return Err(io::Error::other(format!("PID {} cannot be", process.pid)));
        };
        let fd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(Some(Self(Held::Ended))),
            Err(e) => return Err(e.into()),
        };
        match identity::started(process.pid) {
            Ok(started) if started == process.started => Ok(Some(Self(Held::Running(watch(fd)?)))),
            _ => Ok(Some(Self(Held::Ended))),
        }
    }

    /// Returns once the process has ended. Cancel safe.
    ///
    /// # Errors
    /// If the pidfd cannot be polled; nothing is known then.
    pub async fn ended(&self) -> io::Result<()> {
        match &self.0 {
            Held::Ended => Ok(()),
            Held::Running(fd) => fd.readable().await.map(drop),
        }
    }
}

fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(deprecated, reason = "an OwnedFd keeps its number, which is all that is asked")]
    AsyncFd::with_interest(fd, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identify(pid: u32) -> ProcessId {
        let (host, started) = (identity::host().unwrap(), identity::started(pid).unwrap());
        ProcessId { host, pid, started }
    }

    #[tokio::test]
    async fn a_killed_child_has_ended_and_a_running_one_has_not() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = identify(child.id());
        let watch = ProcessWatch::open(&process).unwrap().unwrap();
        let Held::Running(_) = watch.0 else { panic!("a running child was taken for dead") };
        child.kill().unwrap();
        watch.ended().await.unwrap();
        child.wait().unwrap();
        let late = ProcessWatch::open(&process).unwrap().unwrap();
        late.ended().await.unwrap();
    }

    #[tokio::test]
    async fn a_reused_pid_is_another_process() {
        let mut process = identify(std::process::id());
        process.started += 1;
        ProcessWatch::open(&process).unwrap().unwrap().ended().await.unwrap();
        process.host[0] ^= 1;
        assert!(ProcessWatch::open(&process).unwrap().is_none());
    }
}
