//! `steps`: measures an engine's step times and what a request pays beside them, and writes the
//! table that `tandem plan` and the `sim` engine read.

use crate::fleet::{Fleet, Plan};
use crate::numbers::{Random, median};
use crate::place::{Place, PlaceOptions};
use crate::serve::client::{Ask, Client};
use anyhow::{Context, ensure};
use checkpoint::Checkpoint;
use clap::Args;
use model::engine::{Batch, Engine, Input, Row, Sample};
use model::{CpuEngine, EngineConfig};
use plan::table::{Handoff, Point, StepTable, Steps};
use serde_json::json;
use shared::ids::{PageId, TokenId};
use shared::kv::KvDtype;
use shared::request::Sampling;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PAGE_TOKENS: u32 = 16;
/// Prompt tokens of a step, and tokens before them.
const PREFILL: [(u32, u32); 7] =
    [(16, 0), (64, 0), (64, 512), (256, 0), (256, 512), (512, 0), (512, 512)];
/// Rows of a step, and tokens before each.
const DECODE: [(u32, u32); 8] =
    [(1, 64), (1, 768), (2, 64), (4, 64), (8, 64), (8, 768), (16, 64), (16, 768)];
/// Prompts whose handoff is measured, tokens.
const HANDOFF: [u32; 3] = [32, 256, 768];
const ROUNDS: usize = 5;

/// `tandem-bench steps`
#[derive(Args)]
pub struct MeasureSteps {
    /// The model, a folder or a GGUF file [the demo model].
    #[arg(long)]
    model: Option<PathBuf>,
    /// Threads that compute [all cores].
    #[arg(long)]
    threads: Option<usize>,
    /// Where the table goes.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    place: PlaceOptions,
}

impl MeasureSteps {
    /// Measures the CPU engine, then a ring of it, and writes the table.
    ///
    /// # Errors
    /// The model cannot be loaded, the ring does not start, or the file cannot be written.
    pub fn run(self) -> anyhow::Result<()> {
        let place = Place::open(self.place)?;
        let model = match self.model {
            Some(path) => path.canonicalize().context("--model")?,
            None => place.demo()?.to_owned(),
        };
        let threads = self.threads;
        let mut steps = cpu(&model, threads)?;
        let mut plan = Plan::new(&model, "bf16").set("weights", "auto");
        if let Some(threads) = threads {
            plan = plan.set("threads", threads as i64);
        }
        let table = StepTable::new(steps.clone())?;
        let fleet = Fleet::start(&place, &plan)?;
        steps.handoff = handoffs(fleet.client.url(), &table, vocab(&model)?)?;
        steps.about = format!("{}; {}", steps.about, crate::machine::describe().join("; "));
        let text = serde_json::to_string_pretty(&steps)? + "\n";
        fs::write(&self.out, text).with_context(|| self.out.display().to_string())
    }
}

/// Ids of a model's vocabulary.
pub fn vocab(model: &Path) -> anyhow::Result<u32> {
    Ok(Checkpoint::open(model)?.config().vocab as u32)
}

/// Steps of the CPU engine, with weights as the file has them. Its handoffs are 0 until they are
/// measured.
pub fn cpu(model: &Path, threads: Option<usize>) -> anyhow::Result<Steps> {
    let config = EngineConfig {
        dtype: KvDtype::Bf16,
        weights: model::WeightFormat::default(),
        pages: 1024,
        page_tokens: PAGE_TOKENS,
        threads,
        memory: None,
    };
    let mut engine = CpuEngine::load(&Checkpoint::open(model)?, config, &mut |_, _| {})?;
    let mut measured = |cases: &[(u32, u32)], is_decode: bool| {
        let one = |&(tokens, start): &(u32, u32)| {
            let (rows, new) = if is_decode { (tokens, 1) } else { (1, tokens) };
            let context = f64::from(start) + f64::from(new - 1) / 2.0;
            let times = (0..=ROUNDS).map(|_| step(&mut engine, rows, (start, new)));
            // The first touches its pages for the first time.
            let times = times.skip(1).collect::<anyhow::Result<Vec<_>>>()?;
            Ok(Point { tokens, context, ms: median(times) })
        };
        cases.iter().map(one).collect::<anyhow::Result<Vec<_>>>()
    };
    let (prefill, decode) = (measured(&PREFILL, false)?, measured(&DECODE, true)?);
    let name = model.file_name().map(|name| name.to_string_lossy().into_owned());
    let threads = threads.map_or_else(|| "all cores".to_owned(), |n| format!("{n} threads"));
    Ok(Steps {
        about: format!("{}, CPU engine, {threads}", name.unwrap_or_default()),
        overlaps: false,
        pool_tokens: 16_384,
        page_tokens: PAGE_TOKENS,
        chunk_tokens: 512,
        rows_max: 64,
        prefill,
        decode,
        handoff: vec![Handoff { tokens: 0, ms: 0.0 }],
    })
}

/// ms of a step of `rows` sequences that have `start` tokens and take `new` more.
fn step(engine: &mut CpuEngine, rows: u32, (start, new): (u32, u32)) -> anyhow::Result<f64> {
    let each = (start + new).div_ceil(PAGE_TOKENS);
    let row = |row: u32| Row {
        input: Input::Tokens((0..new).map(|i| TokenId::new(100 + i)).collect()),
        start,
        pages: (row * each..(row + 1) * each).map(|page| PageId::new(page % 1024)).collect(),
        sample: Some(Sample::new(Sampling::GREEDY, 0)),
        reads: None,
    };
    let batch = Batch { rows: (0..rows).map(row).collect() };
    let begun = Instant::now();
    engine.launch(&batch)?;
    engine.collect()?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// What lone requests to an idle ring pay beside the steps that `table` names, at some lengths:
/// their time to the first token less that.
pub fn handoffs(url: &str, table: &StepTable, vocab: u32) -> anyhow::Result<Vec<Handoff>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::new(url, None)?;
    let mut random = Random::new(17);
    let mut all = vec![];
    for tokens in HANDOFF {
        let mut times = vec![];
        for round in 0..=ROUNDS {
            let prompt = random.ids(tokens as usize, 100, vocab - 100);
            let ask = Ask::new(format!("handoff-{tokens}-{round}"), &json!(prompt), 2, None);
            let sample = runtime.block_on(client.ask(&ask));
            ensure!(sample.failure.is_none(), "a lone request: {:?}", sample.failure);
            let ttft = sample.ttft().context("no token")?;
            times.push(ttft.saturating_sub(prompt_time(table, tokens)).as_secs_f64() * 1e3);
        }
        all.push(Handoff { tokens, ms: median(times.split_off(1)) });
    }
    Ok(all)
}

/// All steps of a prompt, in the table's chunks.
fn prompt_time(table: &StepTable, tokens: u32) -> Duration {
    let chunk = table.steps().chunk_tokens;
    let starts = (0..tokens).step_by(chunk as usize);
    starts.map(|start| table.step([(start, chunk.min(tokens - start))].into_iter())).sum()
}
