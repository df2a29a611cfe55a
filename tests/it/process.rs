//! One process of a ring: started, signalled and always reaped by the test that owns it.

use crate::http;
use crate::ports::Port;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A condition that does not come true within this fails the test.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks at `probe` until it gives a value.
#[track_caller]
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A member of the ring: what it takes to start it again, and the process if there is one.
pub struct Member {
    pub name: String,
    program: PathBuf,
    /// What stands before `--config FILE`.
    command: Option<&'static str>,
    config: PathBuf,
    log: PathBuf,
    pub listen: Port,
    /// `/metrics`; the gateway's is where it listens.
    pub admin: Option<Port>,
    /// Over what it inherits.
    environment: Vec<(&'static str, String)>,
    child: Option<Child>,
}

impl Member {
    /// One that is not started yet; its config file lies in `folder`.
    pub fn new(folder: &Path, name: String, program: &str, ports: (Port, Option<Port>)) -> Self {
        let program = program_folder().join(program);
        let built = program.is_file();
        assert!(built, "{} is not built: cargo build --workspace --bins", program.display());
        let config = folder.join(&name).with_extension("toml");
        let log = folder.join(&name).with_extension("log");
        let (listen, admin) = ports;
        let environment = vec![];
        Self { name, program, command: None, config, log, listen, admin, environment, child: None }
    }

    /// One whose program has commands, of which this is one.
    pub fn with_command(mut self, command: &'static str) -> Self {
        self.command = Some(command);
        self
    }

    /// Has it find a variable in its environment, from its next start on.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, value.to_owned()));
    }

    pub fn write_config(&self, table: &toml::Table) {
        fs::write(&self.config, toml::to_string(table).unwrap()).unwrap();
    }

    /// Starts it, with flags that go over its config file.
    pub fn start(&mut self, flags: &[&str]) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new(&self.program)
            .args(self.command)
            .arg("--config")
            .arg(&self.config)
            .args(flags)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it runs"))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Ends it by SIGKILL, stopped or not.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.take().expect("it runs").wait().unwrap();
    }

    /// Waits for it to end by itself.
    #[track_caller]
    pub fn exited(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        let status = wait_for("its end", || child.try_wait().unwrap());
        self.child = None;
        status
    }

    /// Fails the test if it has ended.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        let child = self.child.as_mut().expect("it runs");
        let ended = child.try_wait().unwrap();
        assert_eq!(ended, None, "{} ended:\n{}", self.name, self.log());
    }

    /// Waits until it is stopped by a signal, its own or another's.
    #[track_caller]
    pub fn wait_stopped(&self) {
        wait_for("a stopped process", || self.stat("stat")?.contains(") T ").then_some(()));
    }

    pub fn threads(&self) -> usize {
        self.count("task")
    }

    pub fn descriptors(&self) -> usize {
        self.count("fd")
    }

    /// Resident memory, KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = self.stat("status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// KiB of libc's code that this process has changed.
    pub fn patched_libc_kib(&self) -> u64 {
        let maps = self.stat("smaps").unwrap();
        let (mut in_code, mut dirty_kib) = (None, 0);
        for line in maps.lines() {
            if line.contains("/libc.so") {
                in_code = line.split_whitespace().nth(1).filter(|may| may.contains('x'));
            }
            if let (Some(_), Some(dirty)) = (in_code, line.strip_prefix("Private_Dirty:")) {
                dirty_kib += dirty.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
                in_code = None;
            }
        }
        assert!(maps.contains("/libc.so"), "libc is mapped");
        dirty_kib
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The sum of a metric's series that have all of `labels`; `None` if there are none, or it
    /// does not answer.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let address = self.admin.as_ref().map_or(self.listen.address, |admin| admin.address);
        let text = http::get(address, "/metrics").ok()?.body;
        let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let series = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            let fits = found == name && labels.iter().all(|label| rest.contains(label));
            fits.then(|| value.parse::<f64>().ok())?
        });
        series.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    fn stat(&self, file: &str) -> Option<String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid().as_raw_nonzero())).ok()
    }

    fn count(&self, folder: &str) -> usize {
        fs::read_dir(format!("/proc/{}/{folder}", self.pid().as_raw_nonzero())).unwrap().count()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only if it has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("---- end of {}'s log\n{tail}", self.name);
        }
    }
}

/// Where the binaries are: beside the folder of this test's own.
pub fn program_folder() -> PathBuf {
    if let Some((_, folder)) = std::env::vars_os().find(|(name, _)| name == "TANDEM_BIN_DIR") {
        return folder.into();
    }
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).expect("target/PROFILE/deps/it").to_owned()
}
