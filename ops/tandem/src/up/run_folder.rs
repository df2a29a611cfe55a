//! The files of one run: `NAME.toml`, `NAME.log`, `NAME.pid`, `key` and `lock`.
//!
//! 1. The lock is held while an `up` is starting or in the foreground; the kernel drops it with
//!    the process, however that ends.
//! 2. `NAME.pid` is written right after a process starts and removed once it is known to have
//!    ended. What is left over from a crash is told apart by [`Identity::find`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::fleet::Server;
use super::identity::Identity;

const KEY_BYTES: usize = 32;

/// How much of a log is looked at for its last lines.
const TAIL_BYTES: u64 = 16 * 1024;
const TAIL_LINES: usize = 20;

pub struct RunFolder {
    path: PathBuf,
}

/// Held while an `up` starts or runs in the foreground.
pub struct Lock {
    _file: File,
}

impl RunFolder {
    /// Makes the folder where it is missing, for this user only.
    ///
    /// # Errors
    /// Where the folder cannot be made.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("make the run folder {}", path.display()))?;
        let path = path.canonicalize().context("find the run folder")?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The right to start: no other `up` holds the folder and nothing of an earlier one runs.
    ///
    /// # Errors
    /// Where a ring already runs, with how to stop it.
    pub fn lock_for_start(&self, called_as: &str) -> anyhow::Result<Lock> {
        let path = self.path.join("lock");
        let file = OpenOptions::new().create(true).append(true).open(&path).context("open lock")?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("a ring is already starting or running here; stop it by `{called_as} --stop`")
            }
            Err(TryLockError::Error(error)) => return Err(error).context("lock the run folder"),
        }
        for (name, identity) in self.remembered()? {
            if identity.find().is_some() {
                let pid = identity.pid;
                bail!(
                    "a ring already runs here ({name}, process {pid}); stop it by \
                     `{called_as} --stop`"
                );
            }
            self.forget(&name);
        }
        Ok(Lock { _file: file })
    }

    /// Draws the key that the servers of this run share.
    ///
    /// # Errors
    /// Where the system has no randomness or the file cannot be written.
    pub fn write_key(&self) -> anyhow::Result<()> {
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("draw a key: {error}"))?;
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.write_private(&self.key_path(), &hex)
    }

    pub fn key_path(&self) -> PathBuf {
        self.path.join("key")
    }

    /// # Errors
    /// Where the file cannot be written.
    pub fn write_config(&self, server: &Server) -> anyhow::Result<()> {
        let text = server.config(&self.key_path())?;
        self.write_private(&self.config_path(&server.name), &text)
    }

    pub fn config_path(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.toml"))
    }

    pub fn log_path(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.log"))
    }

    /// Only this user may read it: keys and API keys stand in these files.
    fn write_private(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        let written = || {
            let new = path.with_extension("new");
            let mut options = OpenOptions::new();
            options.create(true).truncate(true).write(true).mode(0o600);
            options.open(&new)?.write_all(text.as_bytes())?;
            fs::rename(&new, path)
        };
        written().with_context(|| format!("write {}", path.display()))
    }

    /// A fresh log for the process of this name.
    ///
    /// # Errors
    /// Where the file cannot be made.
    pub fn create_log(&self, name: &str) -> anyhow::Result<File> {
        let path = self.log_path(name);
        File::create(&path).with_context(|| format!("make {}", path.display()))
    }

    /// The last lines that the process of this name wrote; empty where there are none.
    pub fn log_tail(&self, name: &str) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(self.log_path(name))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let text = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// # Errors
    /// Where the file cannot be written: a process that cannot be found again must not run.
    pub fn remember(&self, name: &str, identity: &Identity) -> anyhow::Result<()> {
        let text = toml::to_string(identity).context("write down a process")?;
        self.write_private(&self.pid_path(name), &text)
    }

    pub fn forget(&self, name: &str) {
        // Nothing is lost where this fails: the process is known to have ended, and a left-over
        // file is compared before it is believed.
        let _ = fs::remove_file(self.pid_path(name));
    }

    fn pid_path(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.pid"))
    }

    /// Every process that was written down and not yet known to have ended, by name.
    ///
    /// # Errors
    /// Where the folder or one of its files cannot be read.
    pub fn remembered(&self) -> anyhow::Result<Vec<(String, Identity)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).context("read the run folder")? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|stem| stem.to_str());
            let (Some(name), Some("pid")) = (name, path.extension().and_then(|e| e.to_str()))
            else {
                continue;
            };
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let identity = toml::from_str(&text).with_context(|| {
                format!("{} is not a process file; remove it if no server runs", path.display())
            })?;
            found.push((name.to_owned(), identity));
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> (tempfile::TempDir, RunFolder) {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(&place.path().join("a/run")).unwrap();
        (place, folder)
    }

    #[test]
    fn only_one_may_start() {
        let (_place, folder) = folder();
        let lock = folder.lock_for_start("./ops/up").unwrap();
        let refusal = folder.lock_for_start("./ops/up").err().unwrap().to_string();
        assert!(refusal.contains("`./ops/up --stop`"), "{refusal}");
        drop(lock);
        folder.lock_for_start("./ops/up").unwrap();
    }

    #[test]
    fn a_process_that_still_runs_forbids_a_start_and_a_dead_one_is_forgotten() {
        let (_place, folder) = folder();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let identity = Identity::of(child.id().try_into().unwrap()).unwrap();
        folder.remember("decode-0", &identity).unwrap();
        let refusal = folder.lock_for_start("tandem up").err().unwrap().to_string();
        assert!(refusal.contains("decode-0"), "{refusal}");
        child.kill().unwrap();
        child.wait().unwrap();
        folder.lock_for_start("tandem up").unwrap();
        assert!(folder.remembered().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_process_file_is_named() {
        let (_place, folder) = folder();
        fs::write(folder.pid_path("gateway"), "pid = \"x\"").unwrap();
        let error = format!("{:#}", folder.remembered().unwrap_err());
        assert!(error.contains("gateway.pid"), "{error}");
    }

    #[test]
    fn the_key_is_long_fresh_and_private() {
        let (_place, folder) = folder();
        folder.write_key().unwrap();
        let first = fs::read_to_string(folder.key_path()).unwrap();
        assert_eq!(first.len(), 2 * KEY_BYTES);
        assert_eq!(fs::metadata(folder.key_path()).unwrap().permissions().mode() & 0o777, 0o600);
        folder.write_key().unwrap();
        assert_ne!(fs::read_to_string(folder.key_path()).unwrap(), first);
    }

    #[test]
    fn the_tail_is_the_end_of_the_log() {
        let (_place, folder) = folder();
        assert_eq!(folder.log_tail("gateway"), "");
        let mut log = folder.create_log("gateway").unwrap();
        for line in 0..5000 {
            writeln!(log, "line {line}").unwrap();
        }
        let tail = folder.log_tail("gateway");
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 4999"));
    }
}
