//! One server process of this run: started, signalled, looked at through `/proc`, and always
//! killed and waited for when it is dropped.

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// A drain that takes longer is an error of the server.
const DRAIN_MAX: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// How a process is started; the same every time but for extra flags.
pub struct Program {
    pub name: String,
    pub binary: PathBuf,
    pub arguments: Vec<OsString>,
    pub log: PathBuf,
    /// Beside what it inherits.
    pub environment: Vec<(String, String)>,
}

pub struct Process {
    pub name: String,
    /// Just before it was started.
    pub started: SystemTime,
    log: PathBuf,
    child: Child,
}

/// What a process holds of the system.
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    /// Resident memory that is no file's and not shared.
    pub private_bytes: u64,
    pub threads: usize,
    pub files: usize,
}

impl Process {
    pub fn start(program: &Program, flags: &[&str]) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(&program.log)?;
        let started = SystemTime::now();
        let child = Command::new(&program.binary)
            .args(&program.arguments)
            .args(flags)
            .env("NO_COLOR", "1")
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", program.binary.display()))?;
        Ok(Self { name: program.name.clone(), started, log: program.log.clone(), child })
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("signal {}", self.name))
    }

    /// kill -9; returns the moment just before it. The process is dead and waited for afterwards.
    pub fn kill(&mut self) -> anyhow::Result<Instant> {
        let before = Instant::now();
        self.signal(Signal::KILL)?;
        self.child.wait()?;
        Ok(before)
    }

    /// SIGTERM, and waits for the end; how it ended, or had ended before.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(start.elapsed() < DRAIN_MAX, "{} does not drain\n{}", self.name, self.tail());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// An error with the end of the log if the process has ended.
    pub fn must_live(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} has ended ({status})\n{}", self.name, self.tail()),
        }
    }

    pub fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether all of it is stopped by a signal.
    pub fn is_stopped(&self) -> bool {
        let stat = self.read("stat").unwrap_or_default();
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
        state == Some('T')
    }

    pub fn holdings(&self) -> anyhow::Result<Holdings> {
        let status = self.read("status")?;
        let number = |name: &str| -> Option<u64> {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_ascii_whitespace().nth(1)?.parse().ok()
        };
        let kilobytes = number("RssAnon:").context("no RssAnon in /proc/PID/status")?;
        let threads = number("Threads:").context("no Threads in /proc/PID/status")?;
        let files = fs::read_dir(self.proc("fd"))?.count();
        Ok(Holdings { private_bytes: kilobytes << 10, threads: threads as usize, files })
    }

    /// CPU time so far of its threads that live, by the scheduler's clock, in nanoseconds: the
    /// ticks of /proc/PID/stat are 10 ms.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let mut nanos = 0;
        for thread in fs::read_dir(self.proc("task"))? {
            let path = thread?.path().join("schedstat");
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let first =
                text.split_ascii_whitespace().next().and_then(|word| word.parse::<u64>().ok());
            nanos += first.with_context(|| format!("no time in {}", path.display()))?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Inodes of the shared memory that this process made for UCX.
    pub fn own_memory(&self) -> anyhow::Result<HashSet<u64>> {
        own_memory(self.child.id())
    }

    /// Inodes of the shared memory that this process maps for UCX, its peers' too.
    pub fn mapped_memory(&self) -> anyhow::Result<HashSet<u64>> {
        mapped_memory(self.child.id())
    }

    /// All that it has logged, its earlier lives' words too.
    pub fn log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn read(&self, file: &str) -> std::io::Result<String> {
        fs::read_to_string(self.proc(file))
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(file)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it is dead and waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Inodes of the shared memory that process `pid` made for UCX: the maker keeps it open, so that
/// peers can find it, and others only map it.
pub fn own_memory(pid: u32) -> anyhow::Result<HashSet<u64>> {
    let files = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))?.flatten();
    let is_ucx = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains("ucx_shm"))
    };
    let paths = files.map(|entry| entry.path()).filter(is_ucx);
    Ok(paths.filter_map(|path| fs::metadata(path).ok()).map(|data| data.ino()).collect())
}

/// Inodes of the shared memory that process `pid` maps for UCX, its peers' too.
pub fn mapped_memory(pid: u32) -> anyhow::Result<HashSet<u64>> {
    let maps = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("maps"))?;
    let lines = maps.lines().filter(|line| line.contains("ucx_shm"));
    let inode = |line: &str| line.split_ascii_whitespace().nth(4)?.parse().ok();
    Ok(lines.filter_map(inode).collect())
}

/// How many of these inodes still have a name in `/dev/shm`.
pub fn names_left(inodes: &HashSet<u64>) -> anyhow::Result<usize> {
    let entries = fs::read_dir("/dev/shm")?.flatten();
    // An entry may go while it is looked at: then it is not left.
    Ok(entries.filter_map(|e| e.metadata().ok()).filter(|m| inodes.contains(&m.ino())).count())
}
