//! What a client sees of a ring: `serve`, `experiments`, `startup`, `story`, `memory`.
//!
//! [`ring`] starts or finds it; [`client`] speaks to it and notes every token's time; [`load`] says
//! how requests arrive; [`experiments`] what they are; [`report`] sums them up, and
//! [`crate::bars`] has the rows. [`workload`] sends what [`dataset`] plans, and [`plan::plot`]
//! draws how it went. [`seed`] puts the seed report's tables beside ours. [`log`] reads what the
//! processes wrote, for [`startup`] and [`story`].

pub mod client;
mod dataset;
mod experiments;
pub mod load;
pub mod log;
mod mps;
pub mod report;
mod ring;
mod seed;
mod startup;
mod story;
mod workload;

use crate::bars::{Bars, Scope};
use anyhow::Context;
use clap::Args;
use client::Client;
use experiments::{Lab, LoadOptions};
use report::Summary;
use ring::RingOptions;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use story::StoryOptions;
use tokio::runtime::Runtime;
use workload::WorkloadOptions;

/// Threads of the load generator; more would be taken from the ring.
const THREADS: usize = 4;

/// `tandem-bench serve`
#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    ring: RingOptions,
    #[command(flatten)]
    load: LoadOptions,
    #[command(flatten)]
    workload: WorkloadOptions,
    #[command(flatten)]
    out: Out,
}

/// `tandem-bench experiments`
#[derive(Args)]
pub struct Experiments {
    #[command(flatten)]
    ring: RingOptions,
    #[command(flatten)]
    load: LoadOptions,
    #[command(flatten)]
    out: Out,
}

/// `tandem-bench startup` and `memory`
#[derive(Args)]
pub struct Start {
    #[command(flatten)]
    ring: RingOptions,
    #[command(flatten)]
    out: Out,
}

/// `tandem-bench story`
#[derive(Args)]
pub struct Story {
    #[command(flatten)]
    ring: RingOptions,
    #[command(flatten)]
    story: StoryOptions,
    #[command(flatten)]
    out: Out,
}

#[derive(Args)]
struct Out {
    /// Folder for `bars.json` and everything that was observed.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Serve {
    /// Starts the ring unless there is one, and runs the workload, or else the experiments.
    ///
    /// # Errors
    /// The ring does not start, or a request fails.
    pub fn run(&self) -> anyhow::Result<()> {
        let place = self.ring.place()?;
        let mut ring = self.ring.start(&place, "info")?;
        let mut bars = bars("serve", &self.ring, ring.scope, place.share());
        let logged = ring.logged();
        let startup = startup::timeline(&logged, ring.ready_us, &mut bars);
        let memory = startup::memory(&logged);
        let client = Arc::new(Client::new(&ring.url, ring.served_model.clone())?);
        if self.workload.is_wanted() {
            let about = (self.load.vocab, self.load.seed());
            let outcome = runtime()?.block_on(self.workload.run(client, about))?;
            print!("{outcome}");
            if let Some(folder) = &self.out.out {
                for (name, svg) in outcome.plots() {
                    save(folder, &format!("workload-{name}.svg"), &svg)?;
                }
            }
            return self.out.file("workload", &outcome.record(), &bars);
        }
        let mut lab = Lab::new(client, self.load.clone(), place.share());
        println!("{}", Summary::HEADER);
        let done = runtime()?.block_on(lab.run(&mut bars));
        bars.print();
        let mut record = lab.record();
        record["startup"] = startup;
        record["memory"] = memory;
        self.out.file("serve", &record, &bars)?;
        done
    }
}

impl Experiments {
    /// Starts the ring unless there is one, and runs the seed report's experiments.
    ///
    /// # Errors
    /// The ring does not start, or a request fails.
    pub fn run(&self) -> anyhow::Result<()> {
        let place = self.ring.place()?;
        let ring = self.ring.start(&place, "info")?;
        let mut bars = bars("experiments", &self.ring, ring.scope, place.share());
        let client = Arc::new(Client::new(&ring.url, ring.served_model.clone())?);
        let mut load = self.load.clone();
        load.only = seed::EXPERIMENTS.to_vec();
        let mut lab = Lab::new(client, load, place.share());
        println!("{}", Summary::HEADER);
        let done = runtime()?.block_on(lab.run(&mut bars));
        println!("{}", seed::tables(lab.summaries()));
        self.out.file("experiments", &lab.record(), &bars)?;
        done
    }
}

impl Start {
    /// Starts the ring and says how that went.
    ///
    /// # Errors
    /// It does not start.
    pub fn startup(&self) -> anyhow::Result<()> {
        let place = self.ring.place()?;
        let mut ring = self.ring.start(&place, "info")?;
        let mut bars = bars("startup", &self.ring, ring.scope, place.share());
        let record = startup::timeline(&ring.logged(), ring.ready_us, &mut bars);
        bars.print();
        self.out.file("startup", &record, &bars)
    }

    /// Starts the ring and says what it holds of a GPU.
    ///
    /// # Errors
    /// It does not start.
    pub fn memory(&self) -> anyhow::Result<()> {
        let place = self.ring.place()?;
        let mut ring = self.ring.start(&place, "info")?;
        let record = startup::memory(&ring.logged());
        let bars = bars("memory", &self.ring, ring.scope, place.share());
        self.out.file("memory", &record, &bars)
    }
}

impl Story {
    /// Follows requests through the ring.
    ///
    /// # Errors
    /// The ring does not start, a request fails, or its processes do not say what they did.
    pub fn run(&self) -> anyhow::Result<()> {
        let place = self.ring.place()?;
        let mut ring = self.ring.start(&place, "info,story=debug")?;
        let mut bars = bars("story", &self.ring, ring.scope, place.share());
        let client = Client::new(&ring.url, ring.served_model.clone())?;
        let samples = runtime()?.block_on(self.story.send(&client))?;
        let told = story::tell(&samples, &ring.logged())?;
        told.print(&mut bars);
        bars.print();
        if let Some(folder) = &self.out.out {
            write(folder, "story-trace", &told.trace())?;
        }
        self.out.file("story", &told.record(), &bars)
    }
}

impl Out {
    /// Writes what was observed, and the rows.
    fn file(&self, what: &str, record: &Value, bars: &Bars) -> anyhow::Result<()> {
        let Some(folder) = &self.out else { return Ok(()) };
        let about = json!({
            "machine": crate::machine::describe(),
            "measured": crate::machine::now(),
            "command": bars.command(),
            "observed": record,
        });
        write(folder, &format!("{what}{}", bars.suffix()), &about)?;
        bars.file(folder)
    }
}

fn write(folder: &Path, name: &str, value: &Value) -> anyhow::Result<()> {
    save(folder, &format!("{name}.json"), &(value.to_string() + "\n"))
}

fn save(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    let shown = path.display().to_string();
    std::fs::create_dir_all(folder).with_context(|| shown.clone())?;
    std::fs::write(&path, text).context(shown)
}

fn bars(verb: &str, ring: &RingOptions, scope: Scope, share: f64) -> Bars {
    let command = format!("tandem-bench {verb} {}", ring.words());
    Bars::new(scope, command, share >= 1.0 && !ring.is_on_cpu())
}

fn runtime() -> anyhow::Result<Runtime> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(threads).enable_all().build()?)
}
