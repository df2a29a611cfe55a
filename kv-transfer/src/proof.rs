//! Proof of a writer's end where the writer stores into this memory itself (DESIGN 2.7).
//!
//! 1. At confirm the target opens a pidfd of the writer and checks that this very process maps the
//!    pool. A pid that was reused in between cannot pass: the pidfd is opened first, and the
//!    mapping of the pool is looked for under the pid while the pidfd still says "alive".
//! 2. The session ends. Its pages stay quarantined.
//! 3. [`WriterProcess::ended`]: the process is dead, or maps the pool no longer.

use crate::TransferError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A shared mapping as `/proc/<pid>/maps` names it: `major:minor` of the device, and the inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    device: String,
    inode: u64,
}

/// One line of `/proc/<pid>/maps`: the half-open address range and what is mapped there.
pub(crate) fn parse_line(line: &str) -> Option<(u64, u64, Mapping)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let device = words.nth(2)?.to_owned();
    let inode = words.next()?.parse().ok()?;
    let range = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    Some((range.0, range.1, Mapping { device, inode }))
}

impl Mapping {
    /// The inode.
    pub(crate) const fn inode(&self) -> u64 {
        self.inode
    }

    /// The shared mapping that holds `address` in this process; `None` for private memory.
    pub(crate) fn of_own(address: u64) -> Option<Self> {
        let maps = BufReader::new(File::open("/proc/self/maps").ok()?);
        maps.lines().map_while(Result::ok).filter_map(|line| parse_line(&line)).find_map(
            |(start, end, mapping)| {
                ((start..end).contains(&address) && mapping.inode != 0).then_some(mapping)
            },
        )
    }

    /// Whether process `pid` maps it, as far as this process may look.
    fn is_in(&self, pid: Pid) -> std::io::Result<bool> {
        let maps = BufReader::new(File::open(format!("/proc/{}/maps", pid.as_raw_nonzero()))?);
        for line in maps.lines() {
            if parse_line(&line?).is_some_and(|(_, _, mapping)| mapping == *self) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A process that maps this server's pool and stores into it.
#[derive(Debug)]
pub struct WriterProcess {
    pid: Pid,
    pidfd: OwnedFd,
    mapping: Mapping,
}

impl WriterProcess {
    /// Watches `pid`, which must be alive and map `mapping` now.
    ///
    /// # Errors
    /// [`TransferError::Refused`] if it is not, or may not be looked at.
    pub(crate) fn watch(pid: u32, mapping: Mapping) -> Result<Self, TransferError> {
        let refused = |reason: String| TransferError::Refused { transport: "ucx", reason };
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| refused(format!("writer pid {pid} is no process id")))?;
        let number = pid.as_raw_nonzero();
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|e| refused(format!("cannot watch the writer's process {number}: {e}")))?;
        let writer = Self { pid, pidfd, mapping };
        let maps = writer.mapping.is_in(pid).map_err(|e| {
            refused(format!(
                "cannot read /proc/{number}/maps of the writer: {e}; run both as one user"
            ))
        })?;
        if maps && !writer.is_dead() {
            Ok(writer)
        } else {
            Err(refused(format!("process {number} is dead or does not map this pool")))
        }
    }

    /// The writer's process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether the process is dead (a zombie is: it has no memory any more).
    pub fn is_dead(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(n) if n > 0)
    }

    /// Whether it can write no more: dead, or the pool unmapped. Reads `/proc`, so it is for the
    /// slow path; wait for the pidfd ([`AsFd`], readable at death) where only death matters.
    pub fn ended(&self) -> bool {
        // The pid is the writer's while the pidfd says alive, so the order matters: look at the
        // mapping first, then make sure that it was the writer's.
        let maps = self.mapping.is_in(self.pid).unwrap_or(true);
        self.is_dead() || !maps
    }
}

impl AsFd for WriterProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lines_are_read_and_private_memory_is_no_mapping() {
        let line = "7f10-7f20 rw-s 00000000 00:1a 4242  /dev/shm/x (deleted)";
        let mapping = Mapping { device: "00:1a".into(), inode: 4242 };
        assert_eq!(parse_line(line), Some((0x7f10, 0x7f20, mapping)));
        assert_eq!(parse_line("nonsense"), None);
        let private = vec![0u8; 1 << 20];
        assert_eq!(Mapping::of_own(private.as_ptr().addr() as u64), None);
    }

    #[test]
    fn a_process_without_the_mapping_is_refused() {
        let mapping = Mapping { device: "ff:ff".into(), inode: 1 };
        let refused = WriterProcess::watch(std::process::id(), mapping.clone()).unwrap_err();
        assert!(refused.to_string().contains("does not map this pool"), "{refused}");
        assert!(WriterProcess::watch(0, mapping).is_err());
    }
}
