//! Who this process is: a fresh epoch, and what peers on the same host need to hold a pidfd on it.

use shared::ids::{Epoch, ServerId};
use shared::wire::handshake::{Identity, ProcessId, Role};
use std::io;

/// The identity of this incarnation. The epoch is drawn here, so call it once a start.
///
/// # Errors
/// If the kernel gives no random bytes or `/proc` is not readable.
pub fn draw(role: Role, id: ServerId) -> io::Result<Identity> {
    Ok(Identity { role, id, epoch: Epoch::new(getrandom::u64()?), process: this_process()? })
}

/// Random bytes for nonces.
///
/// # Errors
/// If the kernel gives none.
pub(crate) fn nonce() -> io::Result<[u8; 16]> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)?;
    Ok(nonce)
}

fn this_process() -> io::Result<ProcessId> {
    let pid = std::process::id();
    Ok(ProcessId { host: host()?, pid, started: started(pid)? })
}

/// Hash of boot id and PID namespace: equal on both sides means that PIDs mean the same.
pub(crate) fn host() -> io::Result<[u8; 16]> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id")?;
    let namespace = std::fs::read_link("/proc/self/ns/pid")?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&boot).update(namespace.as_os_str().as_encoded_bytes());
    let mut host = [0; 16];
    hasher.finalize_xof().fill(&mut host);
    Ok(host)
}

/// Start time of a process in clock ticks since boot: field 22 of `/proc/PID/stat`, counted after
/// the command name, which may hold spaces and parentheses.
pub(crate) fn started(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))
}
