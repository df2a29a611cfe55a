//! A ring of real processes.
//!
//! 1. [`Ring::new`] claims ports and writes config files; nothing runs.
//! 2. [`Ring::start_all`], or member by member; [`Ring::wait_ready`] waits for every pair.
//! 3. Members are killed, stopped, started again on the same address.
//! 4. Dropping the ring ends whatever of it still runs, and nothing else. If the test fails, the
//!    ends of the logs are printed.

use crate::ask::{Ask, Outcome};
use crate::http::{self, Call, Reply};
use crate::plan::Plan;
use crate::ports::Port;
use crate::process::{Member, wait_for};
use serde_json::{Value, json};
use shared::metrics as names;
use std::net::SocketAddr;
use std::path::Path;
use tempfile::TempDir;
use toml::Table;

/// A ring; in one process, `gateway` is that process and the others are empty.
pub struct Ring {
    pub gateway: Member,
    pub prefill: Vec<Member>,
    pub decode: Vec<Member>,
    /// How many of each role there are, wherever they run.
    size: (usize, usize),
    folder: TempDir,
}

impl Ring {
    pub fn new(plan: &Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let server = |role: &str, index: usize| {
            let ports = (Port::claim(), Some(Port::claim()));
            Member::new(path, format!("{role}-{index}"), &format!("tandem-{role}"), ports)
        };
        let decode: Vec<_> = (0..plan.decode).map(|index| server("decode", index)).collect();
        let prefill: Vec<_> = (0..plan.prefill).map(|index| server("prefill", index)).collect();
        let ports = (Port::claim(), None);
        let gateway = Member::new(path, "gateway".into(), "tandem-gateway", ports);
        let size = (plan.prefill, plan.decode);
        let ring = Self { gateway, prefill, decode, size, folder };
        ring.write_configs(plan);
        ring
    }

    /// The ring in one process; servers' settings are those of decode.
    pub fn one_process(plan: &Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = write_key(&folder);
        let ports = (Port::claim(), None);
        let ring = Member::new(folder.path(), "ring".into(), "tandem", ports).with_command("ring");
        let mut table = Table::new();
        table.insert("listen".into(), ring.listen.address.to_string().into());
        table.insert("model".into(), plan.model.to_str().unwrap().into());
        table.insert("key_file".into(), key.into());
        table.insert("server".into(), plan.decode_settings.clone().into());
        table.insert("gateway".into(), plan.gateway_settings.clone().into());
        ring.write_config(&table);
        Self { gateway: ring, prefill: vec![], decode: vec![], size: (1, 1), folder }
    }

    fn write_configs(&self, plan: &Plan) {
        let key = write_key(&self.folder);
        let addresses = |members: &[Member]| -> toml::Value {
            members
                .iter()
                .map(|member| member.listen.address.to_string())
                .collect::<Vec<_>>()
                .into()
        };
        let config = |member: &Member, settings: &Table| {
            let mut table = Table::new();
            table.insert("id".into(), member.name.clone().into());
            table.insert("listen".into(), member.listen.address.to_string().into());
            if let Some(admin) = &member.admin {
                table.insert("admin".into(), admin.address.to_string().into());
            }
            table.insert("key_file".into(), key.clone().into());
            table.insert("model".into(), plan.model.to_str().unwrap().into());
            table.extend(settings.clone());
            table
        };
        for member in &self.decode {
            member.write_config(&config(member, &plan.decode_settings));
        }
        for member in &self.prefill {
            let mut table = config(member, &plan.prefill_settings);
            table.entry("decode").or_insert_with(|| addresses(&self.decode));
            member.write_config(&table);
        }
        let mut table = config(&self.gateway, &plan.gateway_settings);
        table.insert("prefill".into(), addresses(&self.prefill));
        table.insert("decode".into(), addresses(&self.decode));
        self.gateway.write_config(&table);
    }

    pub fn start_all(&mut self) {
        self.servers_mut().for_each(|member| member.start(&[]));
        self.gateway.start(&[]);
    }

    /// Waits until the gateway sees every server up and every prefill joined to every decode.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        wait_for("a ready ring", || {
            self.servers_mut().for_each(Member::assert_alive);
            self.gateway.assert_alive();
            let info = http::get(self.url(), "/server_info").ok()?.json();
            let up = |role: &str| {
                let servers = info[role].as_array().unwrap().clone();
                servers.into_iter().filter(|server| server["up"] == true).collect::<Vec<_>>()
            };
            let (prefill, decode) = (up("prefill"), up("decode"));
            let joined = |prefill: &Value| {
                let epochs = prefill["joined"].as_array().unwrap();
                decode.iter().all(|decode| epochs.contains(&decode["epoch"]))
            };
            let all = (prefill.len(), decode.len()) == self.size;
            (all && prefill.iter().all(joined) && info["ready"] == true).then_some(())
        });
    }

    /// Where the gateway listens.
    pub fn url(&self) -> SocketAddr {
        self.gateway.listen.address
    }

    /// Where config files, logs and the key lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn servers(&self) -> impl Iterator<Item = &Member> {
        self.decode.iter().chain(&self.prefill)
    }

    pub fn servers_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.decode.iter_mut().chain(&mut self.prefill)
    }

    /// Sends a call and reads nothing of its answer.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Call {
        http::post(self.url(), path, body).unwrap()
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        http::get(self.url(), path).unwrap()
    }

    /// Sends a request to `/generate` and reads its answer.
    #[track_caller]
    pub fn generate(&self, ask: &Ask) -> Outcome {
        ask.send(self.url()).unwrap()
    }

    /// Sends requests, at most `width` at once; outcomes in order.
    pub fn generate_all(&self, asks: &[Ask], width: usize) -> Vec<Outcome> {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(ask) = asks.get(index) else { return done };
                done.push((index, self.generate(ask)));
            }
        };
        let mut all: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..width.min(asks.len())).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, outcome)| outcome).collect()
    }

    pub fn flush_cache(&self) {
        assert_eq!(self.get("/flush_cache").status, 200);
    }

    /// Aborts everything; how many requests there were.
    pub fn abort_all(&self) -> u64 {
        let reply = self.post("/abort_request", &json!({"abort_all": true})).whole().unwrap();
        reply.json()["aborted"].as_u64().unwrap()
    }

    /// Waits until the gateway has no request.
    #[track_caller]
    pub fn wait_idle(&self) {
        wait_for("an idle gateway", || {
            let info = self.get("/server_info").json();
            (info["requests"] == 0 && info["queued"] == 0 && info["calls"] == 0).then_some(())
        });
    }

    /// Waits until no request is left anywhere, and no page is held but by a cache.
    #[track_caller]
    pub fn wait_settled(&self) {
        self.wait_idle();
        let one_process = self.servers().next().is_none().then_some(&self.gateway);
        self.servers().chain(one_process).for_each(Member::wait_settled);
    }
}

fn write_key(folder: &TempDir) -> String {
    let path = folder.path().join("key");
    std::fs::write(&path, "5a".repeat(32)).unwrap();
    path.to_str().unwrap().to_owned()
}

impl Member {
    /// Pages of a server in a state.
    pub fn pages(&self, state: &str) -> Option<f64> {
        self.metric(names::PAGES, &[("state", state)])
    }

    /// Waits until a server holds nothing for any request.
    #[track_caller]
    pub fn wait_settled(&self) {
        let what = format!("no held pages on {}", self.name);
        wait_for(&what, || self.is_settled().then_some(()));
    }

    /// Whether a server holds nothing for any request.
    pub fn is_settled(&self) -> bool {
        let none = |value: Option<f64>| value == Some(0.0);
        let idle = self.pages("idle").is_some() && self.pages("idle") == self.pages("sealed");
        let pages = ["owned", "granted", "quarantined"].iter().all(|s| none(self.pages(s)));
        let requests =
            none(self.metric(names::RUNNING, &[])) && none(self.metric(names::WAITING, &[]));
        let tickets = self.metric(names::TICKETS, &[]).is_none_or(|tickets| tickets == 0.0);
        idle && pages && requests && tickets
    }
}
