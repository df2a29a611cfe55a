//! The experiments: which requests are sent how, and which rows their figures are.
//!
//! Prompts are random ids, distinct unless an experiment is about sharing them, so that no server
//! finds any in its cache.

use super::client::{Ask, Client, Sample};
use super::load::{Run, at_once, beside, closed};
use super::report::{Ranks, Summary, gaps, raw};
use crate::bars::Bars;
use crate::numbers::{Random, short};
use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is sent.
#[derive(Args, Clone)]
pub struct LoadOptions {
    /// Only these experiments.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Experiment>,
    /// Prompts are of ids below this, which the model must have.
    #[arg(long, default_value_t = 32_000)]
    pub vocab: u32,
    /// Tokens of the long prompts that arrive beside running requests.
    #[arg(long, default_value_t = 8192)]
    long_prompt: usize,
    /// Instead of the experiments: a file of JSON lines, {"prompt": IDS OR TEXT, "max_tokens": N}.
    #[arg(long, conflicts_with = "only")]
    prompts: Option<PathBuf>,
    /// How many of that file's requests run at a time.
    #[arg(long, default_value_t = 1, requires = "prompts")]
    width: usize,
    /// Seed of the prompts; the same one finds its prompts cached in a server that saw it before
    /// [the time].
    #[arg(long)]
    seed: Option<u64>,
}

impl LoadOptions {
    /// The seed that was given, or one of this moment.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| super::log::clock_us(std::time::SystemTime::now()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Experiment {
    /// 50 prompts at once, lengths as SGLang's benchmark draws them (the seed report's first).
    Burst,
    /// One request and eight at once; latency at 64 to 512 tokens of prompt (its second).
    Latency,
    /// A shared prefix, cold and warm, one by one and at once (its third).
    Prefix,
    /// A short prefix cold, warm, and after others (its cache tests).
    Cache,
    /// Throughput at 1 to 50 requests at a time, 256 tokens in and 64 out.
    Batch,
    /// 512 tokens in and 128 out, 64 at a time.
    Serving,
    /// The same at 1 to 256 at a time.
    Sweep,
    /// Time to the first token of 512, on an idle server.
    Idle,
    /// Tokens of one request after a prompt of 512.
    Decode,
    /// Running requests while long prompts arrive that end after two tokens.
    Mixed,
}

/// Ids below this are special in many vocabularies.
const FIRST_ID: u32 = 100;

/// `np.random.seed(1); np.random.randint(1, 257, size=50)`, as SGLang's `random` data set draws
/// lengths of up to 256 tokens for 50 prompts: 7,243 tokens in all.
const BURST_INPUT: [usize; 50] = [
    38, 236, 141, 73, 256, 138, 204, 134, 80, 193, 145, 130, 205, 72, 238, 253, 135, 26, 179, 21,
    255, 102, 147, 213, 140, 253, 235, 157, 158, 143, 51, 69, 216, 216, 234, 242, 248, 223, 97, 87,
    142, 234, 138, 8, 64, 62, 23, 58, 2, 129,
];
/// `np.random.randint(1, 65, size=50)` after it: 1,462 tokens.
const BURST_OUTPUT: [usize; 50] = [
    61, 18, 9, 25, 14, 52, 48, 43, 58, 9, 31, 8, 4, 7, 22, 50, 58, 4, 5, 25, 50, 44, 13, 27, 53,
    17, 46, 52, 42, 19, 16, 1, 5, 26, 48, 35, 24, 8, 27, 26, 41, 23, 10, 4, 40, 63, 24, 62, 37, 28,
];
const BURST_ROUNDS: usize = 5;

const BATCH_WIDTHS: [usize; 8] = [1, 2, 4, 8, 16, 32, 40, 50];

const SERVING_WIDTH: usize = 64;
const SERVING_REQUESTS: usize = 512;

const SWEEP_WIDTHS: [usize; 5] = [1, 8, 32, 128, 256];

const RUNNING: usize = 8;
const RUNNING_OUTPUT: usize = 1024;
const LONG_EVERY: Duration = Duration::from_millis(200);

/// Sends the experiments' requests and keeps what came.
pub struct Lab {
    client: Arc<Client>,
    options: LoadOptions,
    random: Random,
    /// Part of the rounds to run.
    share: f64,
    sent: usize,
    summaries: Vec<Summary>,
    raw: Map<String, Value>,
}

impl Lab {
    pub fn new(client: Arc<Client>, options: LoadOptions, share: f64) -> Self {
        let random = Random::new(options.seed());
        Self { client, options, random, share, sent: 0, summaries: vec![], raw: Map::new() }
    }

    /// Runs what was asked for and sets its rows.
    ///
    /// # Errors
    /// A request that failed: what is left of the figures would be of another load.
    pub async fn run(&mut self, bars: &mut Bars) -> anyhow::Result<()> {
        if let Some(path) = self.options.prompts.clone() {
            return self.replay(&path).await;
        }
        self.warm_up().await?;
        let only = self.options.only.clone();
        for &experiment in Experiment::value_variants() {
            if only.is_empty() || only.contains(&experiment) {
                self.experiment(experiment, bars).await?;
            }
        }
        Ok(())
    }

    async fn experiment(&mut self, which: Experiment, bars: &mut Bars) -> anyhow::Result<()> {
        match which {
            Experiment::Burst => self.burst(bars).await,
            Experiment::Latency => self.latency().await,
            Experiment::Prefix => self.prefix().await,
            Experiment::Cache => self.cache().await,
            Experiment::Batch => self.batch().await,
            Experiment::Serving => self.serving(bars).await,
            Experiment::Sweep => self.sweep().await,
            Experiment::Idle => self.idle(bars).await,
            Experiment::Decode => self.decode(bars).await,
            Experiment::Mixed => self.mixed(bars).await,
        }
    }

    /// Every summary so far.
    pub fn summaries(&self) -> &[Summary] {
        &self.summaries
    }

    /// Every summary and every request so far.
    pub fn record(&self) -> Value {
        json!({"summaries": self.summaries, "requests": self.raw})
    }

    /// Sends what a file says.
    async fn replay(&mut self, path: &Path) -> anyhow::Result<()> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| shown.to_string())?;
        let mut asks = vec![];
        for (number, line) in text.lines().enumerate() {
            let at = || format!("{shown}, line {}", number + 1);
            let said: Value = serde_json::from_str(line).with_context(at)?;
            let output = said["max_tokens"].as_u64().with_context(at)?;
            asks.push(self.ask_for(&said["prompt"], output as usize));
        }
        let run = closed(&self.client, asks, self.options.width).await;
        self.keep(&format!("{} at a time", self.options.width), &run)?;
        Ok(())
    }

    /// Lets a server compile and tune what it does lazily: no experiment pays for it.
    async fn warm_up(&mut self) -> anyhow::Result<()> {
        let width = self.rounds(SERVING_WIDTH);
        let asks = self.asks(2 * width, 512, 8);
        let run = closed(&self.client, asks, width).await;
        self.keep("warm-up", &run)?;
        let one = self.asks(1, 512, 64);
        let run = at_once(&self.client, one).await;
        self.keep("warm-up, one", &run)?;
        Ok(())
    }

    async fn burst(&mut self, bars: &mut Bars) -> anyhow::Result<()> {
        let lengths = || BURST_INPUT.into_iter().zip(BURST_OUTPUT);
        let mut rounds = vec![];
        for round in 0..self.rounds(BURST_ROUNDS) {
            let asks = lengths().map(|(input, output)| self.ask(input, output)).collect();
            let run = at_once(&self.client, asks).await;
            rounds.push(self.keep(&format!("burst of 50, {}", round + 1), &run)?);
        }
        let median =
            |of: fn(&Summary) -> f64| crate::numbers::median(rounds.iter().map(of).collect());
        bars.set("seed-1-requests", median(|summary| summary.requests_a_second));
        bars.set("seed-1-ttft-p50", median(|summary| summary.ttft.p50));
        bars.set("seed-1-itl-p99", median(|summary| summary.itl.p99));
        Ok(())
    }

    async fn latency(&mut self) -> anyhow::Result<()> {
        for (what, count) in [("one, 256 in, 64 out", 1), ("eight at once", 8)] {
            let asks = self.asks(count, 256, 64);
            let run = at_once(&self.client, asks).await;
            self.keep(what, &run)?;
        }
        for input in [64, 128, 256, 512] {
            let asks = self.asks(self.rounds(5), input, 64);
            let run = closed(&self.client, asks, 1).await;
            self.keep(&format!("{input} in, 64 out"), &run)?;
        }
        Ok(())
    }

    async fn prefix(&mut self) -> anyhow::Result<()> {
        let shared = self.ids(2048);
        let one = |lab: &mut Self| {
            let ids = [shared.clone(), lab.ids(64)].concat();
            lab.ask_for(&json!(ids), 64)
        };
        let tails = |lab: &mut Self, count: usize| (0..count).map(|_| one(lab)).collect::<Vec<_>>();
        for (what, count) in [("prefix of 2048, cold", 1), ("warm, one by one", 8)] {
            let asks = tails(self, count);
            let run = closed(&self.client, asks, 1).await;
            self.keep(what, &run)?;
        }
        let asks = tails(self, 16);
        let run = at_once(&self.client, asks).await;
        self.keep("warm, 16 at once", &run)?;
        let asks = self.asks(16, 2048 + 64, 64);
        let run = at_once(&self.client, asks).await;
        self.keep("nothing shared, 16", &run)?;
        Ok(())
    }

    /// As the seed report does it: 103 tokens of 107 in common, and 50 others of 100 between.
    async fn cache(&mut self) -> anyhow::Result<()> {
        let shared = self.ids(103);
        let one = |lab: &mut Self| {
            let ids = [shared.clone(), lab.ids(4)].concat();
            lab.ask_for(&json!(ids), 64)
        };
        for (what, count, width) in [("cold", 1, 1), ("warm", 8, 1), ("at once", 8, 8)] {
            let asks = (0..count).map(|_| one(self)).collect();
            let run = closed(&self.client, asks, width).await;
            self.keep(&format!("103 shared, {what}"), &run)?;
        }
        let others = self.asks(50, 100, 2);
        let run = closed(&self.client, others, 8).await;
        self.keep("50 others", &run)?;
        let again = vec![one(self)];
        let run = at_once(&self.client, again).await;
        self.keep("after 50 others", &run)?;
        Ok(())
    }

    async fn batch(&mut self) -> anyhow::Result<()> {
        for width in BATCH_WIDTHS {
            let asks = self.asks(self.rounds(4 * width), 256, 64);
            let run = closed(&self.client, asks, width).await;
            self.keep(&format!("{width} at a time"), &run)?;
        }
        Ok(())
    }

    async fn serving(&mut self, bars: &mut Bars) -> anyhow::Result<()> {
        let asks = self.asks(self.rounds(SERVING_REQUESTS), 512, 128);
        let run = closed(&self.client, asks, SERVING_WIDTH).await;
        let summary = self.keep("512 in, 128 out, c 64", &run)?;
        bars.set("serving-512-128-c64", summary.output_tokens_a_second);
        Ok(())
    }

    async fn sweep(&mut self) -> anyhow::Result<()> {
        for width in SWEEP_WIDTHS {
            let asks = self.asks(self.rounds(8 * width), 512, 128);
            let run = closed(&self.client, asks, width).await;
            self.keep(&format!("512 in, 128 out, c {width}"), &run)?;
        }
        Ok(())
    }

    async fn idle(&mut self, bars: &mut Bars) -> anyhow::Result<()> {
        let asks = self.asks(self.rounds(30), 512, 2);
        let run = closed(&self.client, asks, 1).await;
        let summary = self.keep("512 in, idle", &run)?;
        bars.set("ttft-512", summary.ttft.p50);
        Ok(())
    }

    async fn decode(&mut self, bars: &mut Bars) -> anyhow::Result<()> {
        let asks = self.asks(self.rounds(3), 512, 128);
        let run = closed(&self.client, asks, 1).await;
        let summary = self.keep("512 in, 128 out, c 1", &run)?;
        bars.set("decode-1-itl", summary.itl.p50);
        Ok(())
    }

    async fn mixed(&mut self, bars: &mut Bars) -> anyhow::Result<()> {
        let output = self.rounds(RUNNING_OUTPUT);
        let asks = self.asks(RUNNING, 512, output);
        let quiet = at_once(&self.client, asks).await;
        self.keep("8 running", &quiet)?;

        let asks = self.asks(RUNNING, 512, output);
        let (client, before) = (self.client.clone(), self.client.started());
        let mut running = tokio::spawn(async move { at_once(&client, asks).await });
        while self.client.started() < before + RUNNING && !running.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (client, long) = (self.client.clone(), self.options.long_prompt);
        let make = || self.ask(long, 2);
        let (busy, arrivals) = beside(&client, &mut running, LONG_EVERY, make).await;
        let busy = busy.context("the running requests")?;
        self.keep("8 running, and", &busy)?;
        self.keep(&format!("{long} in, each 200 ms"), &arrivals)?;
        let (quiet, busy) = (all_running(&quiet.samples), all_running(&busy.samples));
        println!(
            "ITL p99 of 8 running: {} ms alone, {} ms beside long prompts",
            short(quiet.p99),
            short(busy.p99)
        );
        bars.set("itl-p99-under-long-prompts", busy.p99 / quiet.p99);
        Ok(())
    }

    /// Prints and keeps what came of a run.
    fn keep(&mut self, what: &str, run: &Run) -> anyhow::Result<Summary> {
        let summary = Summary::of(what, run);
        println!("{}", summary.line());
        self.raw.insert(format!("{what} ({})", self.summaries.len()), raw(run));
        self.summaries.push(summary.clone());
        let failures: Vec<_> = run.samples.iter().filter_map(|s| s.failure.as_deref()).collect();
        let first = failures.first().copied().unwrap_or_default();
        let (failed, all) = (failures.len(), run.samples.len());
        ensure!(
            failures.is_empty(),
            "{what}: {failed} of {all} requests failed, the first: {first}"
        );
        Ok(summary)
    }

    fn rounds(&self, full: usize) -> usize {
        ((full as f64 * self.share).ceil() as usize).clamp(1, full)
    }

    fn asks(&mut self, count: usize, input: usize, output: usize) -> Vec<Ask> {
        (0..count).map(|_| self.ask(input, output)).collect()
    }

    fn ask(&mut self, input: usize, output: usize) -> Ask {
        let ids = self.ids(input);
        self.ask_for(&json!(ids), output)
    }

    fn ask_for(&mut self, prompt: &Value, output: usize) -> Ask {
        self.sent += 1;
        Ask::new(format!("bench-{}", self.sent), prompt, output, self.client.model())
    }

    fn ids(&mut self, count: usize) -> Vec<u32> {
        self.random.ids(count, FIRST_ID, self.options.vocab - FIRST_ID)
    }
}

/// Gaps between tokens from when all requests had their first, so that no prompt of theirs counts.
fn all_running(samples: &[Sample]) -> Ranks {
    let firsts = samples.iter().filter_map(|sample| Some(sample.chunks.first()?.at));
    let from: Option<Instant> = firsts.max();
    Ranks::of(samples.iter().flat_map(|sample| gaps(sample, from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_is_the_one_that_others_were_measured_with() {
        assert_eq!(BURST_INPUT.iter().sum::<usize>(), 7243);
        assert_eq!(BURST_OUTPUT.iter().sum::<usize>(), 1462);
    }
}
