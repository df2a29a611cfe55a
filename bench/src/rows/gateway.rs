//! What a gateway costs: CPU a request and a streamed token, and the time that it adds.
//!
//! Behind it stands the echo, a process that computes nothing and speaks the ring's wire. Requests
//! come at 300 a second, Poisson, each with a text of 64 tokens, from one client of this process.
//! Two loads in alternation, of few and of many tokens a request: their difference is the tokens',
//! what is left is the request's. A third load, of few tokens at 2,000 a second, finds the process
//! awake and its caches its own. The floor is the same client at the echo's HTTP server, with
//! nothing between; what the gateway adds is what a rank of the latencies has above the floor's.
//!
//! `--peer-router` names routers of others to measure beside it, in front of the echo's HTTP
//! server.

use crate::echo::EchoConfig;
use crate::fleet::client::Client as Asker;
use crate::fleet::free_ports;
use crate::fleet::process::{Process, Program};
use crate::numbers::{Random, median, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use crate::serve::client::{Ask, Client};
use crate::serve::load::{open, poisson};
use crate::serve::report::Ranks;
use anyhow::{Context, ensure};
use serde_json::json;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use toml::{Table, Value};

pub const GROUP: Group = Group {
    name: "gateway",
    title: "The gateway in front of an echo: 300 requests/s, prompts of 64 tokens as text",
    rows: &[
        Row {
            name: "gateway-request",
            what: "CPU of the gateway a request, its tokens apart, median of rounds",
            unit: "µs",
            bar: Bar::AtMost(100.0),
        },
        Row {
            name: "gateway-request-busy",
            what: "the same at 2,000 requests/s",
            unit: "µs",
            bar: Bar::AtMost(100.0),
        },
        Row {
            name: "gateway-token",
            what: "CPU of the gateway a streamed token, median of rounds",
            unit: "µs",
            bar: Bar::AtMost(6.0),
        },
        Row {
            name: "gateway-added-p50",
            what: "p50 of the time to the first token, less the floor's, median of rounds",
            unit: "ms",
            bar: Bar::AtMost(0.3),
        },
        Row {
            name: "gateway-added-p99",
            what: "p99 of the time to the first token, less the floor's, median of rounds",
            unit: "ms",
            bar: Bar::AtMost(2.0),
        },
    ],
    measure,
    slow: false,
};

const USUAL: Pace = Pace { rate: 300.0, requests: 1_500 };
const BUSY: Pace = Pace { rate: 2_000.0, requests: 4_000 };
const FEW: usize = 2;
const MANY: usize = 66;
const STEP_MS: u64 = 5;
const ROUNDS: usize = 5;
const VOCAB: u32 = 49_152;
const READY_MAX: Duration = Duration::from_secs(60);
/// Each is one token of the demo model after a space; what it counts is checked.
const WORDS: [&str; 32] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
];

/// How requests come.
#[derive(Clone, Copy)]
struct Pace {
    /// A second, Poisson.
    rate: f64,
    requests: usize,
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let stand = Stand::start(place)?;
    let peers = stand.peers(place)?;
    let mut found = Findings::new("target,rate,tokens,cpu_us_a_request,ttft_p50_ms,ttft_p99_ms");
    let mut rounds = vec![vec![]; 1 + peers.len()];
    let mut floors = vec![];
    for round in 0..=place.rounds(ROUNDS) {
        let echo = stand.loads(&stand.echo, stand.http)?;
        let floor = echo.many.ttft;
        let gateway = (&stand.gateway, stand.listen);
        let targets = [gateway].into_iter().chain(peers.iter().map(|peer| (&peer.0, peer.1)));
        for ((process, address), rounds) in targets.zip(&mut rounds) {
            let loads = stand.loads(process, address)?;
            // The first round finds caches cold and lets buffers grow.
            if round > 0 {
                found.raw.extend(loads.lines(&process.name));
                rounds.push(Round::new(&loads, &floor));
            }
        }
        if round > 0 {
            floors.push((Round::new(&echo, &floor), floor));
        }
    }
    let of = |rounds: &[Round], pick: fn(&Round) -> f64| median(rounds.iter().map(pick).collect());
    let rank = |pick: fn(&Ranks) -> f64| {
        short(median(floors.iter().map(|(_, ttft)| pick(ttft)).collect()))
    };
    let (p50, p99) = (rank(|ranks| ranks.p50), rank(|ranks| ranks.p99));
    let cpu = |pick: fn(&Round) -> f64| {
        short(median(floors.iter().map(|(round, _)| pick(round)).collect()))
    };
    let (request, busy) = (cpu(|round| round.request_us), cpu(|round| round.busy_us));
    let token = cpu(|round| round.token_us);
    found.note(format!("floor, the echo's HTTP server: first token p50 {p50} ms, p99 {p99} ms"));
    found.note(format!(
        "floor of CPU, the same server: {request} µs a request, {busy} busy, {token} µs a token"
    ));
    for ((peer, _), rounds) in peers.iter().zip(&rounds[1..]) {
        found.note(format!(
            "{}: {} µs a request, {} busy, {} µs a token, adds p50 {} ms, p99 {} ms",
            peer.name,
            short(of(rounds, |round| round.request_us)),
            short(of(rounds, |round| round.busy_us)),
            short(of(rounds, |round| round.token_us)),
            short(of(rounds, |round| round.added.0)),
            short(of(rounds, |round| round.added.1)),
        ));
    }
    found.set("gateway-request", of(&rounds[0], |round| round.request_us));
    found.set("gateway-request-busy", of(&rounds[0], |round| round.busy_us));
    found.set("gateway-token", of(&rounds[0], |round| round.token_us));
    found.set("gateway-added-p50", of(&rounds[0], |round| round.added.0));
    found.set("gateway-added-p99", of(&rounds[0], |round| round.added.1));
    Ok(found)
}

/// What one load found.
struct Seen {
    /// Of the process in the middle, a request.
    cpu_us: f64,
    ttft: Ranks,
}

/// What the loads of a round found.
struct Loads {
    few: Seen,
    many: Seen,
    /// Few tokens a request, and many requests.
    busy: Seen,
}

impl Loads {
    fn lines(&self, name: &str) -> [String; 3] {
        [(USUAL, FEW, &self.few), (USUAL, MANY, &self.many), (BUSY, FEW, &self.busy)].map(
            |(pace, tokens, Seen { cpu_us, ttft })| {
                let (rate, p50, p99) = (pace.rate, ttft.p50, ttft.p99);
                format!("{name},{rate},{tokens},{cpu_us:.1},{p50:.3},{p99:.3}")
            },
        )
    }
}

#[derive(Clone)]
struct Round {
    request_us: f64,
    /// The same under the busy load.
    busy_us: f64,
    token_us: f64,
    /// At p50 and p99, ms.
    added: (f64, f64),
}

impl Round {
    fn new(Loads { few, many, busy }: &Loads, floor: &Ranks) -> Self {
        let token_us = (many.cpu_us - few.cpu_us) / (MANY - FEW) as f64;
        let added = (many.ttft.p50 - floor.p50, many.ttft.p99 - floor.p99);
        let request_us = |seen: &Seen| seen.cpu_us - FEW as f64 * token_us;
        Self { request_us: request_us(few), busy_us: request_us(busy), token_us, added }
    }
}

/// The echo and the gateway before it.
struct Stand {
    echo: Process,
    gateway: Process,
    http: SocketAddr,
    listen: SocketAddr,
    runtime: Runtime,
    // Last: the processes are dead when their files go.
    folder: TempDir,
}

impl Stand {
    fn start(place: &Place) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        let [decode, prefill, http, listen] = free_ports(4)?[..] else {
            anyhow::bail!("no free ports")
        };
        fs::write(path("key"), "5a".repeat(32))?;
        let key_file = path("key");
        let config = EchoConfig {
            decode,
            prefill,
            http,
            key_file: key_file.clone(),
            step_ms: STEP_MS,
            vocab: VOCAB,
        };
        fs::write(path("echo.toml"), toml::to_string(&config)?)?;
        let start = |name: &str, binary, command: Option<&str>| {
            let command = command.map(Into::into);
            let config = [Into::into("--config"), path(&format!("{name}.toml")).into()];
            let arguments = command.into_iter().chain(config).collect();
            let (name, log) = (name.to_owned(), path(&format!("{name}.log")));
            Process::start(&Program { name, binary, arguments, log, environment: vec![] }, &[])
        };
        let echo = start("echo", std::env::current_exe()?, Some("echo"))?;
        let text = |path: &std::path::Path| path.to_str().map(Value::from).context("not UTF-8");
        let mut config = Table::new();
        config.insert("listen".into(), listen.to_string().into());
        config.insert("model".into(), text(place.demo()?)?);
        config.insert("key_file".into(), text(&key_file)?);
        config.insert("prefill".into(), vec![prefill.to_string()].into());
        config.insert("decode".into(), vec![decode.to_string()].into());
        fs::write(path("gateway.toml"), toml::to_string(&config)?)?;
        let gateway = start("gateway", place.binaries()?.join("tandem-gateway"), None)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let mut stand = Self { echo, gateway, http, listen, runtime, folder };
        wait(&mut stand.echo, http, "/health")?;
        wait(&mut stand.gateway, listen, "/ready")?;
        Ok(stand)
    }

    /// Routers of others before the echo's HTTP server.
    fn peers(&self, place: &Place) -> anyhow::Result<Vec<(Process, SocketAddr)>> {
        let mut peers = vec![];
        for (number, command) in place.peer_routers().iter().enumerate() {
            let mut words = command.split_whitespace();
            let binary = words.next().context("--peer-router names no command")?.into();
            let [address] = free_ports(1)?[..] else { anyhow::bail!("no free port") };
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            let url = format!("http://{}", self.http);
            let own = ["--worker-urls", &url, "--host", &host, "--port", &port];
            let program = Program {
                name: command.rsplit('/').next().unwrap_or(command).to_owned(),
                binary,
                arguments: words.chain(own).map(Into::into).collect(),
                log: self.folder.path().join(format!("peer-{number}.log")),
                environment: vec![],
            };
            let mut process = Process::start(&program, &[])?;
            wait(&mut process, address, "/health")?;
            peers.push((process, address));
        }
        Ok(peers)
    }

    /// All loads on `process`.
    fn loads(&self, process: &Process, address: SocketAddr) -> anyhow::Result<Loads> {
        let load = |tokens, pace| self.load((process, address), tokens, pace);
        Ok(Loads { few: load(FEW, USUAL)?, many: load(MANY, USUAL)?, busy: load(FEW, BUSY)? })
    }

    /// Sends a load and says what it took of the process.
    fn load(
        &self,
        (process, address): (&Process, SocketAddr),
        tokens: usize,
        Pace { rate, requests }: Pace,
    ) -> anyhow::Result<Seen> {
        let mut random = Random::new(tokens as u64);
        let model = (address != self.listen).then_some("echo");
        let client = Arc::new(Client::new(&format!("http://{address}"), model.map(str::to_owned))?);
        let prompts: Vec<String> = (0..requests)
            .map(|_| (0..64).map(|_| format!(" {}", WORDS[random.below(WORDS.len())])).collect())
            .collect();
        let asks =
            poisson(&mut random, rate).zip(prompts).enumerate().map(|(number, (at, text))| {
                (at, Ask::new(format!("bench-{number}"), &json!(text), tokens, model))
            });
        let asks = asks.collect();
        let before = process.cpu()?;
        let run = self.runtime.block_on(open(&client, asks));
        let cpu = process.cpu()?.checked_sub(before).context("a thread of it has ended")?;
        for sample in &run.samples {
            let failure = sample.failure.as_deref().unwrap_or_default();
            ensure!(failure.is_empty(), "{}: {}: {failure}", process.name, sample.name);
            ensure!(sample.prompt_tokens == 64, "a prompt of {} tokens", sample.prompt_tokens);
        }
        let ttft = Ranks::of(run.samples.iter().filter_map(|sample| sample.ttft()));
        Ok(Seen { cpu_us: cpu.as_secs_f64() * 1e6 / requests as f64, ttft })
    }
}

fn wait(process: &mut Process, address: SocketAddr, path: &str) -> anyhow::Result<()> {
    let asker = Asker::new(format!("http://{address}"));
    let (url, start) = (format!("{}{path}", asker.url()), Instant::now());
    while asker.get(&url).is_err() {
        process.must_live()?;
        let waited = start.elapsed();
        ensure!(waited < READY_MAX, "not ready after {waited:?}\n{}", process.tail());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
