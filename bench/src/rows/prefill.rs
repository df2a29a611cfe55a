//! Prompts of 256 and 1,500 tokens through the ring, beside transformers in the same run.
//!
//! Rows are of weights as the file has them, which is the default; a ring with weights in bf16,
//! which multiplies in f32, runs beside it.
//! Transformers computes what a prompt's first token needs, without HTTP or a tokenizer; the ring's
//! time is the client's. Rounds take turns. Of the peer's two dtypes the faster counts.

use crate::fleet::{Fleet, Plan};
use crate::numbers::{Random, median, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use crate::rows::speed::{greedy, prompt};
use anyhow::{Context, ensure};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub const GROUP: Group = Group {
    name: "prefill",
    title: "Prefill of the demo model on the CPU, through the ring, beside transformers",
    rows: &[
        Row {
            name: "prefill-256",
            what: "256 tokens by TTFT",
            unit: "tok/s",
            bar: Bar::AtLeast(500.0),
        },
        Row {
            name: "prefill-1500",
            what: "1,500 tokens by TTFT",
            unit: "tok/s",
            bar: Bar::AtLeast(500.0),
        },
        Row {
            name: "prefill-256-peer",
            what: "256 tokens, tokens/s of transformers' faster dtype (wants --peer-python)",
            unit: "ratio",
            bar: Bar::AtLeast(1.0),
        },
        Row {
            name: "prefill-1500-peer",
            what: "1,500 tokens, tokens/s of transformers' faster dtype (wants --peer-python)",
            unit: "ratio",
            bar: Bar::AtLeast(1.0),
        },
    ],
    measure,
    slow: false,
};

const DTYPES: [&str; 2] = ["float32", "bfloat16"];

const WEIGHTS: [&str; 2] = ["auto", "bf16"];

/// A length, its rows, and the seconds of each round: the rings' by weights, the peer's by dtype.
struct Length {
    tokens: usize,
    rows: [&'static str; 2],
    rings: [Vec<f64>; WEIGHTS.len()],
    peer: [Vec<f64>; DTYPES.len()],
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let plan = |weights: &str| anyhow::Ok(Plan::new(place.demo()?, "bf16").set("weights", weights));
    let fleets = WEIGHTS.map(|weights| Fleet::start(place, &plan(weights)?));
    let fleets = fleets.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let folder = tempfile::tempdir()?;
    let mut peer = match place.peer_python() {
        Some(python) => Some(Peer::start(place, python, &folder.path().join("model"))?),
        None => None,
    };
    let mut random = Random::new(256);
    let lengths = [
        (256, ["prefill-256", "prefill-256-peer"]),
        (1_500, ["prefill-1500", "prefill-1500-peer"]),
    ];
    let mut lengths = lengths.map(|(tokens, rows)| Length {
        tokens,
        rows,
        rings: Default::default(),
        peer: Default::default(),
    });
    for round in 0..=place.rounds(7) {
        for length in &mut lengths {
            // The first round touches everything for the first time.
            for (fleet, times) in fleets.iter().zip(&mut length.rings) {
                let body = greedy(&prompt(&mut random, length.tokens), 2);
                let time = fleet.client.stream(&body)?.first.as_secs_f64();
                times.extend((round > 0).then_some(time));
            }
            let Some(peer) = &mut peer else { continue };
            for (dtype, times) in DTYPES.iter().zip(&mut length.peer) {
                let time = peer.time(dtype, length.tokens)?;
                times.extend((round > 0).then_some(time));
            }
        }
    }
    let header = "tokens,ring_auto_s,ring_bf16_s,transformers_float32_s,transformers_bfloat16_s";
    let mut found = Findings::new(header);
    match &peer {
        Some(peer) => found.note(&peer.version),
        None => found.note("no peer: name a Python that has transformers by --peer-python"),
    }
    for length in lengths {
        length.report(&mut found);
    }
    Ok(found)
}

impl Length {
    fn report(self, found: &mut Findings) {
        let Self { tokens, rows, rings, peer } = self;
        for round in 0..rings[0].len() {
            let times = rings.iter().chain(&peer).map(|times| times.get(round));
            let times = times.map(|time| time.map_or(String::new(), |time| format!("{time:.6}")));
            found.raw.push(format!("{tokens},{}", times.collect::<Vec<_>>().join(",")));
        }
        let rate = |time: f64| tokens as f64 / time;
        let (rings, peer) = (rings.map(median), peer.map(median));
        let named = |what: &str, names: &[&str], times: &[f64]| {
            let rates = names.iter().zip(times).filter(|(_, time)| time.is_finite());
            let rates = rates.map(|(name, time)| format!("{what} {name} {}", short(rate(*time))));
            rates.collect::<Vec<_>>()
        };
        let rates = [named("ring", &WEIGHTS, &rings), named("transformers", &DTYPES, &peer)];
        found.note(format!("{tokens} tokens, tok/s: {}", rates.concat().join(", ")));
        found.set(rows[0], rate(rings[0]));
        let best = peer.into_iter().fold(f64::INFINITY, f64::min);
        if best.is_finite() {
            found.set(rows[1], best / rings[0]);
        }
    }
}

/// `bench/peers/transformers_prefill.py`, with the demo model as a folder.
struct Peer {
    child: Child,
    asked: ChildStdin,
    said: BufReader<ChildStdout>,
    /// What it said first.
    version: String,
}

impl Peer {
    fn start(place: &Place, python: &Path, model: &Path) -> anyhow::Result<Self> {
        let tandem = place.binaries()?.join("tandem");
        let mut convert = Command::new(&tandem);
        convert.args(["model", "convert"]).arg(place.demo()?).arg(model);
        let status = convert.stdout(Stdio::null()).status();
        let status = status.with_context(|| tandem.display().to_string())?;
        ensure!(status.success(), "tandem model convert: {status}");
        let mut child = Command::new(python)
            .arg(place.root().join("bench/peers/transformers_prefill.py"))
            .arg(model)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("--peer-python {}", python.display()))?;
        let asked = child.stdin.take().context("the peer's input")?;
        let said = BufReader::new(child.stdout.take().context("the peer's output")?);
        let mut peer = Self { child, asked, said, version: String::new() };
        peer.version = peer.line()?;
        Ok(peer)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let read = self.said.read_line(&mut line)?;
        ensure!(read > 0, "the peer ended; what it wrote on standard error is above");
        Ok(line.trim().to_owned())
    }

    /// Seconds of one prompt.
    fn time(&mut self, dtype: &str, tokens: usize) -> anyhow::Result<f64> {
        writeln!(self.asked, "{dtype} {tokens}")?;
        let line = self.line()?;
        line.parse().with_context(|| format!("the peer said {line:?}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.kill()); // where it has ended, that is as well
        drop(self.child.wait());
    }
}
