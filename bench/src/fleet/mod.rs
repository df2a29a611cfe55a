//! A ring of real processes on this machine.
//!
//! 1. [`Plan`] says which model, how many servers, and any setting of theirs.
//! 2. [`Fleet::start`] writes configs into a folder of its own, starts all, and waits until the
//!    gateway says that it is ready.
//! 3. Members are killed, frozen and started again on their addresses by [`Member`].
//! 4. Dropping the fleet kills what is left of it and removes the folder.
//!
//! Only processes that this fleet started are ever signalled.

pub mod client;
pub mod metrics;
pub mod process;

use crate::place::Place;
use anyhow::{Context, bail};
use client::Client;
use process::{Process, Program};
use rustix::process::Signal;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use toml::{Table, Value};

const READY_MAX: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Which process of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    Prefill(usize),
    Decode(usize),
}

/// What ring to start.
pub struct Plan {
    pub model: PathBuf,
    pub prefill: usize,
    pub decode: usize,
    /// Settings of both kinds of server.
    pub settings: Table,
    /// Settings of decode servers, over those.
    pub decode_settings: Table,
    /// Which logs all processes write, as `RUST_LOG` has it.
    pub logs: String,
    /// Of all processes, beside what they inherit.
    pub environment: Vec<(String, String)>,
}

impl Plan {
    /// One prefill and one decode server, with the weights of the golden data: bf16.
    pub fn new(model: &Path, dtype: &str) -> Self {
        let plan = Self {
            model: model.to_owned(),
            prefill: 1,
            decode: 1,
            settings: Table::new(),
            decode_settings: Table::new(),
            logs: "info".to_owned(),
            environment: vec![],
        };
        plan.set("dtype", dtype).set("weights", "bf16")
    }

    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.settings.insert(name.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn servers(mut self, prefill: usize, decode: usize) -> Self {
        (self.prefill, self.decode) = (prefill, decode);
        self
    }

    /// The environment of its processes.
    pub fn environment(&self) -> Vec<(String, String)> {
        let logs = ("RUST_LOG".to_owned(), self.logs.clone());
        self.environment.iter().cloned().chain([logs]).collect()
    }
}

struct Server {
    member: Member,
    program: Program,
    admin: SocketAddr,
    process: Process,
}

pub struct Fleet {
    servers: Vec<Server>,
    gateway: Process,
    pub client: Client,
    // Last: the processes are dead when their files go.
    _folder: TempDir,
}

impl Fleet {
    pub fn start(place: &Place, plan: &Plan) -> anyhow::Result<Self> {
        let binaries = place.binaries()?;
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("key"), "5a".repeat(32))?;
        let ports = free_ports(1 + 2 * (plan.prefill + plan.decode))?;
        let (listen, ports) = ports.split_first().context("there is a gateway")?;
        let (decodes, prefills) = ports.split_at(2 * plan.decode);
        let addresses = |ports: &[SocketAddr]| -> Value {
            let listens = ports.iter().step_by(2).map(|address| Value::from(address.to_string()));
            listens.collect::<Vec<_>>().into()
        };
        let mut servers = Vec::new();
        for (role, ports) in [("decode", decodes), ("prefill", prefills)] {
            for (index, pair) in ports.chunks(2).enumerate() {
                let mut config = plan.settings.clone();
                config.insert("admin".into(), pair[1].to_string().into());
                let member = match role {
                    "decode" => {
                        config.extend(plan.decode_settings.clone());
                        Member::Decode(index)
                    }
                    _ => {
                        config.insert("decode".into(), addresses(decodes));
                        Member::Prefill(index)
                    }
                };
                let id = format!("{role}-{index}");
                let program = program(&folder, binaries, (&id, role), pair[0], (config, plan))?;
                let process = Process::start(&program, &[])?;
                servers.push(Server { member, program, admin: pair[1], process });
            }
        }
        let mut config = Table::new();
        config.insert("prefill".into(), addresses(prefills));
        config.insert("decode".into(), addresses(decodes));
        config.insert("log".into(), plan.logs.clone().into());
        let gateway = program(&folder, binaries, ("gateway", "gateway"), *listen, (config, plan))?;
        let gateway = Process::start(&gateway, &[])?;
        let client = Client::new(format!("http://{listen}"));
        let mut fleet = Self { servers, gateway, client, _folder: folder };
        fleet.wait_ready()?;
        Ok(fleet)
    }

    /// Waits until the gateway would answer a request and every pair has joined.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let url = format!("{}/ready", self.client.url());
        let count = |role: fn(&Member) -> bool| self.members().iter().filter(|m| role(m)).count();
        let decodes = count(|member| matches!(member, Member::Decode(_)));
        self.wait("the ring is ready", |fleet| {
            if fleet.client.get(&url).is_err() {
                return Ok(false);
            }
            let info = fleet.client.server_info()?;
            let prefills = info["prefill"].as_array().context("server_info has no `prefill`")?;
            let joined = |server: &serde_json::Value| server["joined"].as_array().map(Vec::len);
            Ok(prefills.iter().all(|server| joined(server) == Some(decodes)))
        })
    }

    /// Looks until `is_so`, while all processes live.
    pub fn wait(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        while !is_so(self)? {
            self.gateway.must_live()?;
            if start.elapsed() > READY_MAX {
                let logs = self.servers.iter().map(|server| server.process.tail());
                let logs = logs.chain([self.gateway.tail()]).collect::<Vec<_>>().join("\n");
                bail!("waited {READY_MAX:?} in vain until {what}\n{logs}");
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    pub fn process(&mut self, member: Member) -> anyhow::Result<&mut Process> {
        let found = self.servers.iter_mut().find(|server| server.member == member);
        Ok(&mut found.with_context(|| format!("no {member:?} in this ring"))?.process)
    }

    /// All processes, the gateway last.
    pub fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        let servers = self.servers.iter_mut().map(|server| &mut server.process);
        servers.chain([&mut self.gateway])
    }

    /// Ends a member if it lives, starts it again on its addresses with `flags`, and waits until
    /// the ring is ready with the new one.
    pub fn restart(&mut self, member: Member, flags: &[&str]) -> anyhow::Result<()> {
        let at = self.servers.iter().position(|server| server.member == member);
        let at = at.with_context(|| format!("no {member:?} in this ring"))?;
        let before = self.epochs()?;
        let server = &mut self.servers[at];
        if server.process.lives() {
            server.process.signal(Signal::CONT)?;
            server.process.stop()?;
        }
        server.process = Process::start(&server.program, flags)?;
        let id = server.program.name.clone();
        self.wait("the gateway knows the new server", |fleet| {
            fleet.process(member)?.must_live()?;
            let now = fleet.epochs()?;
            let new = now
                .iter()
                .any(|(name, epoch)| *name == id && !before.iter().any(|(_, old)| old == epoch));
            Ok(new)
        })?;
        self.wait_ready()
    }

    /// (id, epoch) of every server that the gateway has a link to.
    fn epochs(&self) -> anyhow::Result<Vec<(String, String)>> {
        let info = self.client.server_info()?;
        let servers = ["prefill", "decode"].into_iter().filter_map(|role| info[role].as_array());
        let pair = |server: &serde_json::Value| {
            let text = |key: &str| server[key].as_str().map(str::to_owned);
            Some((text("id")?, text("epoch")?))
        };
        Ok(servers.flatten().filter_map(pair).collect())
    }

    /// Requests that the gateway holds.
    pub fn requests(&self) -> anyhow::Result<u64> {
        self.client.server_info()?["requests"].as_u64().context("server_info has no `requests`")
    }

    /// Pages of a server in any of these states.
    pub fn pages(&self, member: Member, states: &[&str]) -> anyhow::Result<u64> {
        let text = self.metrics(member)?;
        let count = |state: &&str| {
            let label = format!("state=\"{state}\"");
            metrics::sum(&text, shared::metrics::PAGES, &[&label]) as u64
        };
        Ok(states.iter().map(count).sum())
    }

    /// What a server says on `/metrics`.
    pub fn metrics(&self, member: Member) -> anyhow::Result<String> {
        let found = self.servers.iter().find(|server| server.member == member);
        let server = found.with_context(|| format!("no {member:?} in this ring"))?;
        self.client.get(&format!("http://{}/metrics", server.admin))
    }

    pub fn members(&self) -> Vec<Member> {
        self.servers.iter().map(|server| server.member).collect()
    }
}

/// Writes a config file and says how its process starts.
fn program(
    folder: &TempDir,
    binaries: &Path,
    (id, role): (&str, &str),
    listen: SocketAddr,
    (mut config, plan): (Table, &Plan),
) -> anyhow::Result<Program> {
    let path = |end: &str| folder.path().join(format!("{id}{end}"));
    let text = |path: &Path| -> anyhow::Result<Value> {
        Ok(path.to_str().context("a path that is not UTF-8")?.into())
    };
    config.insert("id".into(), id.into());
    config.insert("listen".into(), listen.to_string().into());
    config.insert("model".into(), text(&plan.model)?);
    config.insert("key_file".into(), text(&folder.path().join("key"))?);
    let (file, log) = (path(".toml"), path(".log"));
    fs::write(&file, toml::to_string(&config)?)?;
    let binary = binaries.join(format!("tandem-{role}"));
    let (name, environment) = (id.to_owned(), plan.environment());
    let arguments = vec!["--config".into(), file.into()];
    Ok(Program { name, binary, arguments, log, environment })
}

/// Free ports of the loopback address, all different.
pub fn free_ports(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let bind = |_| TcpListener::bind("127.0.0.1:0");
    let held = (0..count).map(bind).collect::<Result<Vec<_>, _>>()?;
    Ok(held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}
