//! `tandem-bench transfer`: how fast pages move between the pools of two processes, on one GPU or
//! from one to another, by each way of moving them, beside the link's own rate in the same run.
//!
//! The parent receives, the peer sends 256 pages of 16 tokens a round, a prompt of 4,096 tokens:
//! one put, one flush, the time until the flush's event. What landed is verified at the end of each
//! way. [`case`] has the pages, [`send`] the peer's side; [`beside`] says what copies without end
//! cost a forward pass' work at either end.

mod beside;
mod case;
mod send;

pub use send::send;

use crate::bars::{Bars, Scope};
use crate::numbers::median;
use crate::pair::peer::Job;
use crate::pair::{Control, Other, join_as_target};
use anyhow::{Context, ensure};
use case::{CASES, Case, digests, gathered, pairs, spoil};
use clap::Args;
use kernels::cuda::ship::{Copier, Kernel, PAIRS, Shipper, Target};
use kernels::cuda::{Device, PagePool, nvml};
use kv_transfer::select::Choice;
use kv_transfer::tcp::TcpConfig;
use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

/// Puts of a stream of them with one flush.
const STREAM: usize = 8;
/// How many blocks ship; the last are eight a multiprocessor of an H100.
const BLOCKS: [u32; 9] = [2, 4, 8, 16, 32, 64, 132, 264, 1056];
/// Blocks of a copy that is to be as fast as it can.
const ALL: u32 = 1056;
/// Pages of a run that a copy engine takes at a time.
const RUNS: [u32; 4] = [1, 4, 16, 64];

/// `tandem-bench transfer`
#[derive(Args)]
pub struct Transfer {
    /// GPU of the process that sends, and of the one that receives.
    #[arg(long, default_value = "0,0")]
    gpus: Gpus,
    /// Folder for the table and, between two GPUs, its rows in `bars.json`.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Which GPU sends and which receives, as the driver counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpus {
    pub source: usize,
    pub target: usize,
}

impl FromStr for Gpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse().ok();
        let both = text.split_once(',').and_then(|(a, b)| Some((number(a)?, number(b)?)));
        let (source, target) =
            both.ok_or_else(|| format!("{text:?} is no pair of GPUs; want two numbers: 0,1"))?;
        Ok(Self { source, target })
    }
}

impl fmt::Display for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.source, self.target)
    }
}

/// How pages are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `cuda_ipc` by its kernel, so many blocks, scattered pages.
    Blocks(u32),
    /// `cuda_ipc` by copy engines, pages in runs of so many.
    Engines(u32),
    /// UCX, a put a page, scattered.
    Ucx,
    /// Gathered by a kernel, UCX with one put, scattered by a kernel.
    UcxGathered,
    /// TCP through pinned host memory, scattered.
    Tcp,
}

impl Way {
    /// All that there are for these pages. UCX needs a folder with one that knows GPUs.
    fn all(case: &Case) -> Vec<Self> {
        let runs = RUNS.into_iter().filter(|&run| run == 1 || case.is_whole());
        let own = BLOCKS.map(Self::Blocks).into_iter().chain(runs.map(Self::Engines));
        let ucx = case.is_whole().then_some(Self::UcxGathered);
        let ucx = [Self::Ucx].into_iter().chain(ucx).filter(|_| ucx_folder().is_some());
        own.chain(ucx).chain([Self::Tcp]).collect()
    }

    fn choice(self) -> Choice {
        match self {
            Self::Blocks(_) | Self::Engines(_) => Choice::CudaIpc,
            Self::Ucx | Self::UcxGathered => Choice::Ucx,
            Self::Tcp => Choice::Tcp,
        }
    }

    /// Neighbours that its pages come in.
    fn run(self) -> u32 {
        if let Self::Engines(run) = self { run } else { 1 }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks(blocks) => write!(f, "cuda_ipc, {blocks} blocks"),
            Self::Engines(1) => write!(f, "cuda_ipc, copy engine, page by page"),
            Self::Engines(run) => write!(f, "cuda_ipc, copy engine, runs of {run} pages"),
            Self::Ucx => write!(f, "ucx, a put a page"),
            Self::UcxGathered => write!(f, "ucx, gather, one put, scatter"),
            Self::Tcp => write!(f, "tcp"),
        }
    }
}

/// What the bar is of: how whole pages are shipped that a request waits for.
const SERVED: Way = Way::Blocks(kv_transfer::cuda_ipc::BLOCKS);

/// One line of the table.
struct Row {
    case: &'static Case,
    way: String,
    /// Of a stream of puts, bytes a ns.
    rate: f64,
    /// Of the link's rate.
    of_link: f64,
    /// One put and its flush, µs: the median, and 99 % of them.
    single: Option<[f64; 2]>,
}

impl Row {
    fn record(&self) -> Value {
        let Self { case, way, rate, of_link, single } = self;
        json!({"pages": case.name, "way": way, "gb_s": rate, "of_link": of_link, "put_us": single})
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, way, rate, of_link, single } = self;
        write!(f, "| {} | {way} | {rate:.1} | {of_link:.2} |", case.name)?;
        match single {
            Some([p50, p99]) => write!(f, " {p50:.0} | {p99:.0} |"),
            None => write!(f, " | |"),
        }
    }
}

impl Transfer {
    /// Measures everything and prints tables.
    ///
    /// # Errors
    /// A GPU is missing, a way that should work does not, or what landed is not what was sent.
    pub fn run(&self) -> anyhow::Result<()> {
        println!("{}\n", linked(self.gpus)?);
        println!(
            "| pages | way | GB/s, {STREAM} puts a flush | of the link | one put and its flush, µs: \
             p50 | p99 |"
        );
        println!("|---|---|---|---|---|---|");
        let command = format!("tandem-bench transfer --gpus {}", self.gpus);
        let mut bars = Bars::new(self.gpus.scope(), command, true);
        let mut rows = vec![];
        for (number, case) in CASES.iter().enumerate() {
            rows.extend(self.measure(number, case, &mut bars)?);
        }
        let beside = beside::run(self.gpus)?;
        bars.print();
        let Some(folder) = &self.out else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let rows: Vec<_> = rows.iter().map(Row::record).collect();
        let record = json!({"gpus": self.gpus.to_string(), "rows": rows, "beside": beside});
        let name = format!("transfer{}.json", self.gpus.scope().suffix());
        fs::write(folder.join(name), serde_json::to_string_pretty(&record)?)?;
        bars.file(folder)
    }

    /// Every way of moving one case's pages.
    fn measure(
        &self,
        number: usize,
        case: &'static Case,
        bars: &mut Bars,
    ) -> anyhow::Result<Vec<Row>> {
        let pool = case.pool(&Device::open(self.gpus.target)?, 2)?;
        let mut other = Other::start(Job::Transfer, &self.gpus.to_string(), number)?;
        let control = &mut other.control;
        let raw: [f64; 2] = words(control)?.map(f64::from_bits);
        let rate = |seconds: f64| case.moved_bytes() / seconds / 1e9;
        let link = raw.map(rate).into_iter().fold(0.0, f64::max);
        let mut rows = vec![];
        let mut add = |way: String, rate, single| {
            let row = Row { case, way, rate, of_link: rate / link, single };
            println!("{row}");
            rows.push(row);
        };
        for (name, seconds) in ["the link, copy engine", "the link, all blocks"].iter().zip(raw) {
            add(format!("{name}, in order"), rate(seconds), None);
        }
        let own = Own::new(&pool)?;
        for way in Way::all(case) {
            let ends = (ucx_folder(), TcpConfig::default());
            let ends = (ends.0.as_deref(), ends.1);
            let targets = way.choice().device_targets(&pool, case.geometry(), ends)?;
            let session = join_as_target(&targets, control)?;
            let pairs = pairs(way.run());
            own.ship(&spoil(&pairs))?;
            control.send(b"go")?;
            let [mut stream, p50, p99] = words(control)?.map(f64::from_bits);
            let mut single = [p50, p99];
            if way == Way::UcxGathered {
                let seconds = own.scatter_seconds()?;
                stream += seconds * STREAM as f64;
                single = single.map(|put| put + seconds);
            }
            let of_stream = rate(stream / STREAM as f64);
            if let (SERVED, Some(row)) = (way, case.row) {
                bars.set(row, rate(p50) / link);
            }
            add(way.to_string(), of_stream, Some(single.map(|put| put * 1e6)));
            let landed = pairs.into_iter().map(|(_, target)| target);
            let same = digests(&pool, landed, &case.bytes())? == control.receive_words()?;
            ensure!(same, "what landed by {way} is not what was sent");
            drop(session);
        }
        ensure!(other.wait()?, "the sending peer failed");
        Ok(rows)
    }
}

impl Gpus {
    fn scope(self) -> Scope {
        if self.source == self.target { Scope::OneGpu } else { Scope::TwoGpus }
    }
}

/// How the two are linked, in words.
fn linked(gpus: Gpus) -> anyhow::Result<String> {
    let open = |gpu| Device::open(gpu).with_context(|| format!("cuda:{gpu}"));
    let (source, target) = (open(gpus.source)?, open(gpus.target)?);
    let names = format!(
        "cuda:{} ({}) to cuda:{} ({})",
        gpus.source,
        source.name(),
        gpus.target,
        target.name()
    );
    if gpus.source == gpus.target {
        return Ok(format!("{names}: one GPU"));
    }
    let (from, to) = (source.uuid()?, target.uuid()?);
    let access = source.reach(&to)?;
    let links = match nvml::nvlinks(&from, &to) {
        Ok(links) if links.reach => format!("NVLink, {} links up", links.up),
        Ok(links) => format!("no NVLink between them, {} links up", links.up),
        Err(why) => format!("link not known: {why}"),
    };
    Ok(format!("{names}: {access}; {links}"))
}

/// The folder of a UCX that knows GPUs; without it UCX has no rows.
fn ucx_folder() -> Option<PathBuf> {
    std::env::var_os("TANDEM_UCX_DIR").map(PathBuf::from)
}

fn words<const N: usize>(control: &mut Control) -> anyhow::Result<[u64; N]> {
    let words = control.receive_words()?;
    words.try_into().map_err(|words| anyhow::anyhow!("{words:?} is not {N} words"))
}

/// Copies within the receiving pool, by all of its GPU.
struct Own(Shipper);

impl Own {
    fn new(pool: &Arc<PagePool>) -> anyhow::Result<Self> {
        let kernel = Kernel::load(pool.device())?;
        Ok(Self(Shipper::new(kernel, Arc::clone(pool), Target::Own(Arc::clone(pool)))?))
    }

    /// Whole pages; returns when they are there.
    fn ship(&self, pairs: &[(u32, u32)]) -> anyhow::Result<()> {
        for list in pairs.chunks(PAIRS) {
            drop(self.0.ship(list, 0..self.0.page_bytes(), Copier::Blocks(ALL))?);
        }
        Ok(self.0.stream().synchronize()?)
    }

    /// Spreads gathered pages over the pool; the median time.
    fn scatter_seconds(&self) -> anyhow::Result<f64> {
        let targets = pairs(1).into_iter().map(|(_, target)| target.get());
        let lists: Vec<_> = gathered().zip(targets).collect();
        let mut times = vec![];
        for _ in 0..20 {
            let start = Instant::now();
            self.ship(&lists)?;
            times.push(start.elapsed().as_secs_f64());
        }
        Ok(median(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_two_numbers() {
        assert_eq!("0,1".parse(), Ok(Gpus { source: 0, target: 1 }));
        assert_eq!("0,1".parse::<Gpus>().unwrap().to_string(), "0,1");
        assert!("1".parse::<Gpus>().unwrap_err().contains("0,1"));
    }
}
