//! Segments that a killed process left behind.
//!
//! UCX gives a segment a name for the moment between making and mapping it, and then unlinks it. A
//! process that is killed in that very moment leaves the name, and the memory stays taken for good.
//! So whoever allocates a pool next takes away what is this user's, is mapped by no process, and is
//! older than the moment can last.

use crate::proof::parse_line;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

const PREFIX: &str = "ucx_shm_posix_";
/// A segment is made, filled with zeroes and mapped in less, however large.
const MOMENT: Duration = Duration::from_secs(60);

/// Takes leftovers out of `folder`; their number and bytes.
pub(super) fn sweep(folder: &Path) -> (u32, u64) {
    let Ok(entries) = fs::read_dir(folder) else { return (0, 0) };
    let candidates = entries.flatten().filter(|entry| {
        entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|found| is_old_and_ours(&found))
    });
    let candidates: Vec<_> = candidates.collect();
    if candidates.is_empty() {
        return (0, 0);
    }
    let mapped = mapped_inodes();
    let mut swept = (0, 0);
    for entry in candidates {
        let Ok(found) = entry.metadata() else { continue };
        if !mapped.contains(&found.ino()) && fs::remove_file(entry.path()).is_ok() {
            swept = (swept.0 + 1, swept.1 + found.len());
        }
    }
    swept
}

fn is_old_and_ours(found: &fs::Metadata) -> bool {
    let age = found.modified().ok().and_then(|made| SystemTime::now().duration_since(made).ok());
    let ours = found.uid() == rustix::process::geteuid().as_raw();
    found.is_file() && ours && age.is_some_and(|age| age > MOMENT)
}

/// Inodes of UCX's segments in the maps of every process that may be looked at; those of this user
/// may.
fn mapped_inodes() -> HashSet<u64> {
    let mut inodes = HashSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(maps) = File::open(process.path().join("maps")) else { continue };
        let lines = BufReader::new(maps).lines().map_while(Result::ok);
        let ours = lines.filter(|line| line.contains(PREFIX));
        inodes.extend(ours.filter_map(|line| parse_line(&line)).map(|(_, _, m)| m.inode()));
    }
    inodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_old_named_so_and_unmapped_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, age: Duration| {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_len(64).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        make("ucx_shm_posix_old", 2 * MOMENT);
        make("ucx_shm_posix_young", Duration::ZERO);
        make("another_old", 2 * MOMENT);
        assert_eq!(sweep(folder.path()), (1, 64));
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["another_old", "ucx_shm_posix_young"]);
        assert_eq!(sweep(Path::new("/nonexistent")), (0, 0));
    }
}
