//! This host and its processes, by names that a peer's claims about itself can be checked with.

use crate::offer::{Reader, Writer};
use crate::{Kind, TransferError};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Bytes of a boot id: a UUID in letters.
pub(crate) const BOOT_ID_BYTES: usize = 36;

/// This boot of this machine: what one host shares reaches as far as it is equal.
pub(crate) fn boot_id(kind: Kind) -> Result<[u8; BOOT_ID_BYTES], TransferError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let unavailable = |reason| TransferError::Unavailable { transport: kind.name(), reason };
    let text = fs::read(path).map_err(|e| unavailable(format!("cannot read {path}: {e}")))?;
    let id = text.trim_ascii().try_into();
    id.map_err(|_| unavailable(format!("{path} is not a {BOOT_ID_BYTES}-letter id")))
}

/// Refuses a pair of which `there` is the other's boot id, unless it is this host's.
pub(crate) fn same_host(kind: Kind, there: &[u8; BOOT_ID_BYTES]) -> Result<(), TransferError> {
    let here = boot_id(kind)?;
    if *there == here {
        return Ok(());
    }
    let show = |id: &[u8]| String::from_utf8_lossy(id).into_owned();
    let (there, here) = (show(there), show(&here));
    let reason = format!("not one host: boot id {there} there, {here} here");
    Err(TransferError::Refused { transport: kind.name(), reason })
}

/// One process for as long as this host runs: its number, which may be used again, when it was
/// started, and in which namespace it has the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessName {
    pub(crate) pid: u32,
    /// Clock ticks since boot.
    started: u64,
    namespace: u64,
}

impl ProcessName {
    /// This process' own.
    pub(crate) fn own() -> std::io::Result<Self> {
        Self::of(std::process::id())
    }

    /// That of process `pid` of this process' namespace, as it is now.
    pub(crate) fn of(pid: u32) -> std::io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let started = started(&stat).ok_or_else(|| {
            std::io::Error::other(format!("/proc/{pid}/stat names no time of start"))
        })?;
        let namespace = fs::metadata("/proc/self/ns/pid")?.ino();
        Ok(Self { pid, started, namespace })
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.u32(self.pid).u64(self.started).u64(self.namespace);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, TransferError> {
        Ok(Self {
            pid: reader.u32("reply.pid")?,
            started: reader.u64("reply.started")?,
            namespace: reader.u64("reply.namespace")?,
        })
    }
}

/// The 22nd field; the second is a name in brackets that may hold anything.
fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_more_than_its_number() {
        let own = ProcessName::own().unwrap();
        assert_eq!(own, ProcessName::of(std::process::id()).unwrap());
        let mut writer = Writer::default();
        own.write(&mut writer);
        let mut reader = Reader(&writer.0);
        assert_eq!(ProcessName::read(&mut reader).unwrap(), own);
        reader.end().unwrap();
        assert_ne!(own.started, ProcessName::of(1).unwrap().started);
        assert!(ProcessName::of(u32::MAX).is_err());
    }

    #[test]
    fn a_name_with_brackets_and_spaces_is_no_hindrance() {
        let numbers: Vec<_> = (4..=52).map(|field: u32| field.to_string()).collect();
        assert_eq!(started(&format!("7 (a) b (c)) S {}", numbers.join(" "))), Some(22));
        assert_eq!(started("7 (a) S 4 5"), None);
        assert_eq!(started(""), None);
    }
}
