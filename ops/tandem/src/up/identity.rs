//! Which process is meant: a pid alone may be someone else's by the time it is read again.
//!
//! 1. [`Identity::of`] writes down pid, boot, start time and executable.
//! 2. [`Identity::find`] opens a pidfd and only then compares them, so that the process that is
//!    signalled is the one that was compared.
//! 3. [`Found`] signals and waits through the pidfd; the pid is not used again.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Enough of a process to know it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks from boot to its start, as in `/proc/PID/stat`.
    started_ticks: u64,
    /// The kernel's id of this boot: ticks start again at the next one.
    boot: String,
    executable: PathBuf,
}

impl Identity {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// Where `/proc` does not show it: it has ended, or belongs to another user.
    pub fn of(pid: i32) -> anyhow::Result<Self> {
        ensure!(pid > 0, "{pid} is not a process id");
        let read = || -> anyhow::Result<Self> {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let (state, started_ticks) = parse_stat(&stat).context("an odd /proc/PID/stat")?;
            ensure!(!matches!(state, 'Z' | 'X'), "it has ended");
            let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
            let executable = without_deleted(&fs::read_link(format!("/proc/{pid}/exe"))?);
            Ok(Self { pid, started_ticks, boot, executable })
        };
        read().with_context(|| format!("look at process {pid}"))
    }

    /// # Errors
    /// Where `/proc` is not mounted.
    pub fn of_this_process() -> anyhow::Result<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// The very process, if it still runs.
    pub fn find(&self) -> Option<Found> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        let now = Self::of(self.pid).ok()?;
        (now == *self).then_some(Found { pidfd })
    }
}

/// State letter and start time. The name in brackets may itself hold brackets and spaces.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3 of proc(5), the start time field 22.
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

/// A rebuild replaces the file of a running executable, and the kernel says so in the link.
fn without_deleted(executable: &Path) -> PathBuf {
    let name = executable.to_string_lossy();
    PathBuf::from(name.strip_suffix(" (deleted)").unwrap_or(&name))
}

/// A running process that was compared with its [`Identity`].
pub struct Found {
    pidfd: OwnedFd,
}

impl Found {
    /// Sends the signal; a process that has just ended is no error.
    ///
    /// # Errors
    /// Where the kernel refuses, which it does for another user's process.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error).context("signal a process"),
        }
    }

    /// Whether the process ended within the time.
    pub fn ended_within(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut events = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut events, Some(&timeout)) {
                Err(Errno::INTR) => {}
                Ok(ready) => return ready > 0,
                Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    fn pid(child: &Child) -> i32 {
        child.id().try_into().unwrap()
    }

    #[test]
    fn a_running_process_is_found_and_ended() {
        let mut child = sleeper();
        let found = Identity::of(pid(&child)).unwrap().find().unwrap();
        assert!(!found.ended_within(Duration::ZERO));
        found.signal(Signal::TERM).unwrap();
        assert!(found.ended_within(Duration::from_secs(60)));
        // Ended, though not yet waited for: a zombie is not running.
        assert!(Identity::of(pid(&child)).is_err());
        child.wait().unwrap();
        found.signal(Signal::TERM).unwrap();
    }

    #[test]
    fn another_process_under_the_same_pid_is_not_found() {
        let mut child = sleeper();
        let known = Identity::of(pid(&child)).unwrap();
        for other in [
            Identity { started_ticks: known.started_ticks + 1, ..known.clone() },
            Identity { boot: "another".into(), ..known.clone() },
            Identity { executable: "/bin/other".into(), ..known.clone() },
        ] {
            assert!(other.find().is_none(), "{other:?}");
        }
        assert!(known.find().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(known.find().is_none());
    }

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let fields = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1";
        assert_eq!(parse_stat(&format!("7 (a) R 2 (b) {fields}")), Some(('S', 777)));
        assert_eq!(parse_stat("7 (a) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_replaced_executable_is_the_same() {
        assert_eq!(without_deleted(Path::new("/a/b (deleted)")), Path::new("/a/b"));
        assert_eq!(without_deleted(Path::new("/a/b")), Path::new("/a/b"));
    }
}
