//! The servers that this run started, in the order in which they started.
//!
//! Dropping [`Servers`] stops them, unless [`Servers::leave_running`] was called: an error path
//! cannot forget it.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::fleet::Server;
use super::identity::Identity;
use super::run_folder::RunFolder;

/// A server drains within this time of SIGTERM; then it is killed.
const DRAIN_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub struct Servers<'f> {
    folder: &'f RunFolder,
    running: Vec<Running>,
}

struct Running {
    name: String,
    child: Child,
}

impl<'f> Servers<'f> {
    pub fn new(folder: &'f RunFolder) -> Self {
        Self { folder, running: Vec::new() }
    }

    /// Starts one server in a process group of its own, so that a Ctrl-C in the terminal reaches
    /// this process alone and the stop keeps its order.
    ///
    /// # Errors
    /// Where the program cannot be started or its identity cannot be written down.
    pub fn start(&mut self, server: &Server) -> anyhow::Result<()> {
        let log = self.folder.create_log(&server.name)?;
        let program = server.program.display();
        let child = Command::new(&server.program)
            .args(&server.arguments)
            .arg("--config")
            .arg(self.folder.config_path(&server.name))
            // The log is read by people and by `grep`, not by a terminal.
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {program}; is it built?"))?;
        let pid = child.id().try_into().context("a process id out of range")?;
        self.running.push(Running { name: server.name.clone(), child });
        // One that ended at once has nothing to write down; its log is shown by the next look.
        match Identity::of(pid) {
            Ok(identity) => self.folder.remember(&server.name, &identity),
            Err(_) => Ok(()),
        }
    }

    /// Which server has died, how, and what it last wrote.
    pub fn report_of_a_death(&mut self) -> Option<String> {
        let (name, status) = self.running.iter_mut().find_map(Running::ended)?;
        let mut report = format!("{name} has died ({status})");
        let tail = self.folder.log_tail(&name);
        if !tail.is_empty() {
            let path = self.folder.log_path(&name);
            let _ = write!(report, "; the end of {}:\n{tail}", path.display());
        }
        Some(report)
    }

    /// As [`Servers::report_of_a_death`], for one that may be dying.
    pub fn death_within(&mut self, wait: Duration) -> Option<String> {
        let until = Instant::now() + wait;
        loop {
            let report = self.report_of_a_death();
            if report.is_some() || Instant::now() > until {
                return report;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What each server last wrote.
    pub fn log_tails(&self) -> Vec<String> {
        self.running.iter().map(|server| self.folder.log_tail(&server.name)).collect()
    }

    /// Lets the servers live on after this process.
    pub fn leave_running(mut self) {
        self.running.clear();
    }

    /// Stops all, last started first: the gateway, then prefill, then decode.
    ///
    /// # Errors
    /// Where a server can neither be asked nor killed.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        while let Some(mut server) = self.running.pop() {
            match server.stop(DRAIN_MAX) {
                Ok(()) => self.folder.forget(&server.name),
                Err(error) => outcome = Err(error.context(format!("stop {}", server.name))),
            }
        }
        outcome
    }
}

impl Drop for Servers<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

impl Running {
    /// None while it runs.
    fn ended(&mut self) -> Option<(String, ExitStatus)> {
        let status = self.child.try_wait().ok().flatten()?;
        Some((self.name.clone(), status))
    }

    /// The child is not yet waited for, so its pid cannot be another's.
    fn stop(&mut self, drain_max: Duration) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process id out of range")?, Signal::TERM)?;
        let until = Instant::now() + drain_max;
        while Instant::now() < until {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let name = &self.name;
        eprintln!("{name} did not drain within {} s: killed", drain_max.as_secs());
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Any program stands for a server here: what is tested is how processes start and end.
    fn script(name: &str, script: &str) -> Server {
        Server {
            name: name.to_owned(),
            program: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".into(), script.into()],
            settings: toml::Table::new(),
        }
    }

    /// Waits for ever inside the shell itself: an `exec` would change the executable by which a
    /// process is known again.
    const WAIT: &str = "mkfifo \"$1.fifo\"; read line <\"$1.fifo\"";

    fn folder() -> (tempfile::TempDir, RunFolder) {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(place.path()).unwrap();
        (place, folder)
    }

    #[test]
    fn a_stop_ends_all_and_forgets_them() {
        let (_place, folder) = folder();
        let mut servers = Servers::new(&folder);
        servers.start(&script("decode-0", WAIT)).unwrap();
        servers.start(&script("gateway", WAIT)).unwrap();
        let remembered = folder.remembered().unwrap();
        assert_eq!(remembered.len(), 2);
        assert!(servers.report_of_a_death().is_none());
        servers.stop().unwrap();
        assert!(remembered.iter().all(|(_, identity)| identity.find().is_none()));
        assert!(folder.remembered().unwrap().is_empty());
    }

    #[test]
    fn what_is_left_running_lives_on_and_what_is_dropped_does_not() {
        let (_place, folder) = folder();
        let mut servers = Servers::new(&folder);
        servers.start(&script("decode-0", WAIT)).unwrap();
        servers.leave_running();
        let (_, left) = folder.remembered().unwrap().remove(0);
        let found = left.find().unwrap();
        let mut servers = Servers::new(&folder);
        servers.start(&script("prefill-0", WAIT)).unwrap();
        let (_, dropped) = folder.remembered().unwrap().remove(1);
        drop(servers);
        assert!(dropped.find().is_none());
        assert!(left.find().is_some());
        found.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn a_death_is_reported_with_the_end_of_its_log() {
        let (_place, folder) = folder();
        let mut servers = Servers::new(&folder);
        servers.start(&script("prefill-0", "echo no such tensor >&2; exit 3")).unwrap();
        let report = servers.death_within(Duration::from_secs(60)).unwrap();
        assert!(report.starts_with("prefill-0 has died (exit status: 3)"), "{report}");
        assert!(report.ends_with("no such tensor"), "{report}");
    }

    #[test]
    fn one_that_does_not_drain_is_killed() {
        let (_place, folder) = folder();
        let mut servers = Servers::new(&folder);
        let stubborn = "trap '' TERM; echo ready; while :; do sleep 1; done";
        servers.start(&script("decode-0", stubborn)).unwrap();
        while folder.log_tail("decode-0").is_empty() {
            std::thread::yield_now();
        }
        servers.running[0].stop(Duration::from_millis(50)).unwrap();
        assert!(servers.running[0].child.try_wait().unwrap().is_some());
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let (_place, folder) = folder();
        let missing = Server { program: "/nowhere/tandem-decode".into(), ..script("decode-0", "") };
        let error = Servers::new(&folder).start(&missing).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/tandem-decode"));
    }
}
