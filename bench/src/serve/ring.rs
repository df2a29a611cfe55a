//! A ring to measure: in one process, in three, or one that runs already.
//!
//! What this starts it ends: dropping a [`Ring`] kills its processes and removes their folder.

use super::log::clock_us;
use super::mps::Mps;
use crate::bars::Scope;
use crate::fleet::client::Client as Asker;
use crate::fleet::process::{Process, Program};
use crate::fleet::{Fleet, Plan, free_ports};
use crate::place::{Place, PlaceOptions};
use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;
use toml::{Table, Value};

/// A large model's weights are read within this.
const READY_MAX: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Which ring.
#[derive(Args, Clone)]
pub struct RingOptions {
    /// A server that runs already, http://HOST:PORT; no ring is started then.
    #[arg(long)]
    url: Option<String>,
    /// What that server calls its model, if it wants to be told.
    #[arg(long, requires = "url")]
    served_model: Option<String>,
    /// Model of the ring to start, a folder or a GGUF file [the demo model].
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where it runs: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Where decode runs, if not there: cuda:N. Wants three processes.
    #[arg(long, requires = "mode")]
    decode_device: Option<String>,
    /// How many processes the ring has.
    #[arg(long, value_enum, default_value_t = Mode::One)]
    mode: Mode,
    /// A setting of both servers, as in their files: `max_running_requests=64`.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, Value)>,
    #[command(flatten)]
    place: PlaceOptions,
}

/// How many processes the ring has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Gateway, prefill and decode in one: `tandem ring`.
    One,
    /// One each.
    Three,
    /// One each, on one GPU under the Multi-Process Service.
    Mps,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "one",
            Self::Three => "three",
            Self::Mps => "mps",
        })
    }
}

fn setting(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("want NAME=VALUE")?;
    let number = value.parse::<i64>().map(Value::from).or_else(|_| value.parse().map(Value::Float));
    let value = match (number, value.parse::<bool>()) {
        (Ok(number), _) => number,
        (_, Ok(truth)) => truth.into(),
        _ => value.into(),
    };
    Ok((name.to_owned(), value))
}

pub struct Ring {
    pub url: String,
    pub served_model: Option<String>,
    pub scope: Scope,
    /// When the last process was up and the gateway said that it is ready, by the logs' clock, µs.
    pub ready_us: u64,
    processes: Processes,
}

enum Processes {
    Theirs,
    One {
        process: Box<Process>,
        // Last: the process is dead when its files go.
        _folder: TempDir,
    },
    Three {
        fleet: Box<Fleet>,
        // Last: nobody runs under it when it ends.
        _mps: Option<Mps>,
    },
}

/// A process with what it has logged.
pub struct Logged {
    pub name: String,
    /// Just before it was started, by the logs' clock, µs.
    pub started_us: u64,
    pub log: String,
}

impl RingOptions {
    /// Starts the ring and waits until it is ready; its processes log by the filter `logs`.
    ///
    /// # Errors
    /// A process ends, or the ring is not ready in time: with the end of its log.
    pub fn start(&self, place: &Place, logs: &str) -> anyhow::Result<Ring> {
        if let Some(url) = &self.url {
            let processes = Processes::Theirs;
            let served_model = self.served_model.clone();
            return Ok(Ring {
                url: url.clone(),
                served_model,
                scope: Scope::Elsewhere,
                ready_us: 0,
                processes,
            });
        }
        let model = match &self.model {
            Some(path) => path.canonicalize().context("--model")?,
            None => place.demo()?.to_owned(),
        };
        let mut plan = Plan::new(&model, "bf16").set("device", self.device.as_str());
        plan.settings.extend(self.settings.iter().cloned());
        if let Some(device) = &self.decode_device {
            ensure!(self.mode == Mode::Three, "--decode-device wants --mode three");
            let both = gpu(device).and(gpu(&self.device));
            ensure!(
                both.is_some(),
                "--decode-device {device}, --device {}: want two GPUs, cuda:N",
                self.device
            );
            plan.decode_settings.insert("device".to_owned(), device.as_str().into());
        }
        plan.logs = logs.to_owned();
        let (url, processes) = match self.mode {
            Mode::One => one(place, &plan)?,
            Mode::Three => three(place, &plan, None)?,
            Mode::Mps => {
                let mps = Mps::start()?;
                plan.environment = mps.environment();
                three(place, &plan, Some(mps))?
            }
        };
        let ready_us = clock_us(SystemTime::now());
        Ok(Ring { url, served_model: None, scope: self.scope(), ready_us, processes })
    }

    fn scope(&self) -> Scope {
        match (self.mode, &self.decode_device) {
            (_, Some(decode)) if gpu(decode) != gpu(&self.device) => Scope::TwoGpus,
            (Mode::One, _) => Scope::One,
            (Mode::Three, _) => Scope::Three,
            (Mode::Mps, _) => Scope::Mps,
        }
    }

    /// The checkout, binaries and models of this machine.
    ///
    /// # Errors
    /// An option does not fit.
    pub fn place(&self) -> anyhow::Result<Place> {
        Place::open(self.place.clone())
    }

    /// Whether the bars, which are of a GPU, say nothing about this ring.
    pub fn is_on_cpu(&self) -> bool {
        self.url.is_none() && self.device == "cpu"
    }

    /// Says which ring, as in a command that measures it again.
    pub fn words(&self) -> String {
        let mut words = match &self.url {
            Some(url) => format!("--url {url}"),
            None => format!("--device {} --mode {}", self.device, self.mode),
        };
        if let Some(device) = &self.decode_device {
            words += &format!(" --decode-device {device}");
        }
        if self.model.is_some() {
            words += " --model MODEL";
        }
        for (name, value) in &self.settings {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            words += &format!(" --set {name}={value}");
        }
        words
    }
}

/// The GPU that a device names, as the driver counts; none of another device.
fn gpu(device: &str) -> Option<&str> {
    if device == "cuda" { Some("0") } else { device.strip_prefix("cuda:") }
}

fn three(place: &Place, plan: &Plan, mps: Option<Mps>) -> anyhow::Result<(String, Processes)> {
    let fleet = Box::new(Fleet::start(place, plan)?);
    Ok((fleet.client.url().to_owned(), Processes::Three { fleet, _mps: mps }))
}

/// `tandem ring`.
fn one(place: &Place, plan: &Plan) -> anyhow::Result<(String, Processes)> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let [address] = free_ports(1)?[..] else { bail!("no free port") };
    fs::write(path("key"), "5a".repeat(32))?;
    let text = |path: PathBuf| path.into_os_string().into_string().ok().context("not UTF-8");
    let mut config = Table::new();
    config.insert("listen".into(), address.to_string().into());
    config.insert("model".into(), text(plan.model.clone())?.into());
    config.insert("key_file".into(), text(path("key"))?.into());
    config.insert("server".into(), Value::Table(plan.settings.clone()));
    fs::write(path("ring.toml"), toml::to_string(&config)?)?;
    let program = Program {
        name: "ring".to_owned(),
        binary: place.binaries()?.join("tandem"),
        arguments: vec!["ring".into(), "--config".into(), path("ring.toml").into()],
        log: path("ring.log"),
        environment: plan.environment(),
    };
    let mut process = Process::start(&program, &[])?;
    let asker = Asker::new(format!("http://{address}"));
    let ready = format!("{}/ready", asker.url());
    let start = Instant::now();
    while asker.get(&ready).is_err() {
        process.must_live()?;
        let tail = || process.tail();
        ensure!(start.elapsed() < READY_MAX, "not ready after {READY_MAX:?}\n{}", tail());
        std::thread::sleep(LOOK_EVERY);
    }
    let process = Box::new(process);
    Ok((asker.url().to_owned(), Processes::One { process, _folder: folder }))
}

impl Ring {
    /// Every process of it with its log; none of a server that ran already.
    pub fn logged(&mut self) -> Vec<Logged> {
        let logged = |process: &mut Process| Logged {
            name: process.name.clone(),
            started_us: clock_us(process.started),
            log: process.log(),
        };
        match &mut self.processes {
            Processes::Theirs => vec![],
            Processes::One { process, .. } => vec![logged(process)],
            Processes::Three { fleet, .. } => fleet.processes().map(logged).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_numbers_truths_or_words() {
        let check = |text, name: &str, value: Value| {
            assert_eq!(setting(text), Ok((name.to_owned(), value)));
        };
        check("threads=2", "threads", 2.into());
        check("mem_fraction=0.4", "mem_fraction", 0.4.into());
        check("page_checksums=true", "page_checksums", true.into());
        check("transport=tcp", "transport", "tcp".into());
        assert!(setting("threads").is_err());
    }
}
