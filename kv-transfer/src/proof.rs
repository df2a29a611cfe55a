//! Proof of a writer's end where the writer stores into this memory itself (DESIGN 2.7).
//!
//! Host memory:
//! 1. At confirm the target opens a pidfd of the writer and checks that this very process maps the
//!    pool. A pid that was reused in between cannot pass: the pidfd is opened first, and the
//!    mapping of the pool is looked for under the pid while the pidfd still says "alive".
//! 2. The session ends. Its pages stay quarantined.
//! 3. [`WriterProcess::ended`]: the process is dead, or maps the pool no longer.
//!
//! Device memory, of whose mappings no file tells:
//! 1. The process is checked by when it was started, and whether NVML names it on its GPU.
//! 2. As above.
//! 3. Ended: the process is dead, **and** NVML names it no longer. Kernels of a dead process run on
//!    while anything holds the driver's files that it had open, a child that it forked for one.
//!    Where NVML did not name it at 1 (a namespace of other numbers, no NVML), its death must do.
//!    That a living process unmapped the pool, only its next join says.

use crate::host::ProcessName;
use crate::{Kind, TransferError};
use kernels::cuda::nvml;
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
    access: Access,
}

/// By what it stores.
#[derive(Debug)]
enum Access {
    /// By itself, through this mapping.
    Host(Mapping),
    /// By kernels on the GPU of this UUID; and whether NVML names the process there.
    Gpu([u8; 16], bool),
}

fn open_pidfd(transport: Kind, pid: u32) -> Result<(Pid, OwnedFd), TransferError> {
    let refused = |reason| TransferError::Refused { transport: transport.name(), reason };
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| refused(format!("writer pid {pid} is no process id")))?;
    let pidfd = pidfd_open(number, PidfdFlags::empty())
        .map_err(|e| refused(format!("cannot watch the writer's process {pid}: {e}")))?;
    Ok((number, pidfd))
}

impl WriterProcess {
    /// Watches `pid`, which must be alive and map `mapping` now.
    ///
    /// # Errors
    /// [`TransferError::Refused`] if it is not, or may not be looked at.
    pub(crate) fn watch(pid: u32, mapping: Mapping) -> Result<Self, TransferError> {
        let refused = |reason| TransferError::Refused { transport: Kind::Ucx.name(), reason };
        let (number, pidfd) = open_pidfd(Kind::Ucx, pid)?;
        let maps = mapping.is_in(number).map_err(|e| {
            refused(format!(
                "cannot read /proc/{pid}/maps of the writer: {e}; run both as one user"
            ))
        })?;
        let writer = Self { pid: number, pidfd, access: Access::Host(mapping) };
        if maps && !writer.is_dead() {
            Ok(writer)
        } else {
            Err(refused(format!("process {pid} is dead or does not map this pool")))
        }
    }

    /// Watches `process`, which must be alive and says that it stores by kernels on the GPU that is
    /// named `uuid`.
    ///
    /// # Errors
    /// [`TransferError::Refused`] if it is dead, or of another PID namespace.
    pub(crate) fn watch_on_gpu(
        process: ProcessName,
        uuid: [u8; 16],
    ) -> Result<Self, TransferError> {
        let pid = process.pid;
        let (number, pidfd) = open_pidfd(Kind::CudaIpc, pid)?;
        // The name is looked at under a pid that the pidfd holds: if it fits, both are right.
        if ProcessName::of(pid).ok() != Some(process) {
            let reason = format!(
                "process {pid} is not the writer: it is dead, or of another PID namespace; run \
                 both servers in one container"
            );
            return Err(TransferError::Refused { transport: Kind::CudaIpc.name(), reason });
        }
        let named = nvml::computes(&uuid, pid);
        if named != Ok(true) {
            let reason = named.as_ref().err().map_or("it is not on NVML's list", String::as_str);
            tracing::warn!(pid, reason, "of a writer's end only its process will tell");
        }
        Ok(Self { pid: number, pidfd, access: Access::Gpu(uuid, named == Ok(true)) })
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

    /// Whether it can write no more: dead, and nothing of it left on its GPU, or the pool unmapped.
    /// Reads `/proc` or asks NVML, so it is for the slow path; wait for the pidfd ([`AsFd`],
    /// readable at death) where only death matters.
    pub fn ended(&self) -> bool {
        match &self.access {
            // The pid is the writer's while the pidfd says alive, so the order matters: look at the
            // mapping first, then make sure that it was the writer's.
            Access::Host(mapping) => {
                let maps = mapping.is_in(self.pid).unwrap_or(true);
                self.is_dead() || !maps
            }
            Access::Gpu(_, false) => self.is_dead(),
            // What NVML cannot say any more it has not said.
            Access::Gpu(uuid, true) => {
                self.is_dead() && !nvml::computes(uuid, self.pid()).unwrap_or(true)
            }
        }
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

    #[test]
    fn a_writer_on_a_gpu_is_the_process_that_it_says() {
        let own = ProcessName::own().unwrap();
        let writer = WriterProcess::watch_on_gpu(own, [0x5a; 16]).unwrap();
        assert!(!writer.is_dead() && !writer.ended());
        let mut other = own;
        other.pid = std::os::unix::process::parent_id();
        let refused = WriterProcess::watch_on_gpu(other, [0x5a; 16]).unwrap_err();
        assert!(refused.to_string().contains("is not the writer"), "{refused}");
    }

    #[test]
    fn without_nvml_the_death_of_a_gpu_writer_is_its_end() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let name = ProcessName::of(child.id()).unwrap();
        let writer = WriterProcess::watch_on_gpu(name, [0x5a; 16]).unwrap();
        assert!(!writer.ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(writer.ended());
    }
}
