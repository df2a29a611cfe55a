//! `tandem plan`'s simulation against what it simulates: a ring of real processes whose engines
//! take the time of a table, and one whose engines compute.
//!
//! 1. The table of an H100, many times as slow, so that noise of the machine does not decide.
//! 2. The ring plays the first requests of two traces, at a rate that keeps it busy. Those that a
//!    trace has in one instant come a little apart: else their order, which decides who shares a
//!    step, would be chance at the gateway and the trace's in the simulation.
//! 3. The simulation plays the same requests; what a lone request pays beside its steps was
//!    measured on that ring before, since wires are this machine's and not the H100's.
//! 4. The CPU engine likewise, by a table that is measured just before.

use crate::fleet::{Fleet, Plan};
use crate::machine;
use crate::numbers::{Random, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use crate::serve::client::{Ask as Sent, Client};
use crate::serve::load::{Run, open};
use crate::serve::log::{Line, lines};
use crate::serve::report::{Ranks, Summary};
use crate::steps::{cpu, handoffs, vocab};
use ::plan::load::{self, Ask, Load};
use ::plan::ring::{DecodeLimits, Outcome, PrefillLimits, Ring, run};
use ::plan::table::{StepTable, Steps};
use ::plan::trace;
use anyhow::{Context, ensure};
use serde_json::json;
use shared::sched::prefill::PrefillPolicy;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub const SIM: Group = Group {
    name: "plan-sim",
    title: "The simulation of `tandem plan` against rings of `sim` engines",
    rows: &[
        Row {
            name: "plan-sim-p50",
            what: "largest error of TTFT and ITL p50, ring of `sim` engines, two traces",
            unit: "%",
            bar: Bar::AtMost(10.0),
        },
        Row {
            name: "plan-sim-p99",
            what: "largest error of TTFT and ITL p99, ring of `sim` engines, two traces",
            unit: "%",
            bar: Bar::AtMost(15.0),
        },
    ],
    measure: on_sim,
    slow: true,
};

pub const CPU: Group = Group {
    name: "plan-cpu",
    title: "The simulation of `tandem plan` against a ring of the CPU engine",
    rows: &[Row {
        name: "plan-cpu",
        what: "largest error of TTFT and ITL p50, ring of the CPU engine",
        unit: "%",
        bar: Bar::AtMost(20.0),
    }],
    measure: on_cpu,
    slow: true,
};

/// Header of the raw data.
const RAW: &str = "engine,trace,figure,real_ms,simulated_ms";
/// How much slower than the H100 the simulated engines are.
const SLOWED: f64 = 40.0;
/// Tokens of each pool: the pages are real.
const POOL_TOKENS: u32 = 16_384;
/// Between two requests at least: more than a ticket takes, and less than any step.
const APART: Duration = Duration::from_millis(2);
/// Of the simulated model.
const LONGEST: u32 = 1900;

/// What one ring is asked.
struct Case {
    file: &'static str,
    divisor: u32,
    requests: usize,
    /// Requests a second.
    rate: f64,
}

const SIM_CASES: [Case; 2] = [
    Case { file: "mooncake_conversation.jsonl", divisor: 16, requests: 400, rate: 7.0 },
    Case { file: "azure_llm_2023_conv.csv", divisor: 4, requests: 400, rate: 7.0 },
];
const CPU_CASE: Case =
    Case { file: "azure_llm_2023_conv.csv", divisor: 16, requests: 80, rate: 0.8 };

/// The errors of one case, %.
struct Errors {
    p50: f64,
    p99: f64,
}

fn on_sim(place: &Place) -> anyhow::Result<Findings> {
    let mut found = Findings::new(RAW);
    found.note(format!("load before: {}", machine::load()));
    let (mut p50, mut p99) = (0.0_f64, 0.0_f64);
    for case in &SIM_CASES {
        let errors = sim(place, case, &mut found)?;
        (p50, p99) = (p50.max(errors.p50), p99.max(errors.p99));
    }
    found.set("plan-sim-p50", p50);
    found.set("plan-sim-p99", p99);
    found.note(format!("load after: {}", machine::load()));
    Ok(found)
}

/// Two servers a role, that take the time of a slow H100.
fn sim(place: &Place, case: &Case, found: &mut Findings) -> anyhow::Result<Errors> {
    let model = place.tiny("tiny-qwen3");
    let h100 = StepTable::read(&place.root().join("bench/tables/h100-qwen3-0.6b.json"))?;
    let slow = h100.slowed(SLOWED);
    let steps = Steps { pool_tokens: POOL_TOKENS, rows_max: 64, ..slow.steps().clone() };
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("table.json");
    std::fs::write(&file, serde_json::to_string(&steps)?)?;
    let device = format!("sim:{}", file.display());
    let plan = Plan::new(&model, "bf16")
        .set("device", device)
        .set("max_total_tokens", i64::from(POOL_TOKENS))
        .set("mem_fraction", 0.5)
        .servers(2, 2);
    against("sim", case, place, (&plan, &model, steps), found)
}

/// One server a role, each on one thread: on two cores neither takes the other's.
fn on_cpu(place: &Place) -> anyhow::Result<Findings> {
    let mut found = Findings::new(RAW);
    found.note(format!("load before: {}", machine::load()));
    let model = place.demo()?.to_owned();
    let plan = Plan::new(&model, "bf16")
        .set("weights", "auto")
        .set("threads", 1)
        .set("max_total_tokens", i64::from(POOL_TOKENS));
    let steps = Steps { pool_tokens: POOL_TOKENS, ..cpu(&model, Some(1))? };
    let errors = against("cpu", &CPU_CASE, place, (&plan, &model, steps), &mut found)?;
    found.set("plan-cpu", errors.p50);
    found.note(format!("load after: {}", machine::load()));
    Ok(found)
}

/// Plays a case on a ring and in the simulation.
fn against(
    engine: &str,
    case: &Case,
    place: &Place,
    (plan, model, mut steps): (&Plan, &Path, Steps),
    found: &mut Findings,
) -> anyhow::Result<Errors> {
    let load = case.load(place)?;
    let mut fleet = Fleet::start(place, plan)?;
    let vocab = vocab(model)?;
    steps.handoff = handoffs(fleet.client.url(), &StepTable::new(steps.clone())?, vocab)?;
    let real = played(fleet.client.url(), &load, vocab)?;
    let gateway = fleet.processes().last().context("a ring has a gateway")?.log();
    drop(fleet);
    let ring = Ring {
        prefills: plan.prefill,
        decodes: plan.decode,
        prefill: PrefillLimits {
            policy: PrefillPolicy::Lpm,
            chunk_tokens: steps.chunk_tokens,
            page_tokens: steps.page_tokens,
            pool_tokens: POOL_TOKENS,
        },
        decode: DecodeLimits {
            rows_max: steps.rows_max as usize,
            growth_tokens: 512,
            page_tokens: steps.page_tokens,
            pool_tokens: POOL_TOKENS,
        },
    };
    let handoff: Vec<_> =
        steps.handoff.iter().map(|h| format!("{} ms of {}", short(h.ms), h.tokens)).collect();
    let outcome = run(&ring, &Arc::new(StepTable::new(steps)?), &load, None);
    let Case { file, rate, .. } = case;
    found.note(format!(
        "{engine}, {file}: {} requests at {rate}/s, {} prefill and {} decode; busy {:.0} % and \
         {:.0} %, {:.0} % cached; handoff {}",
        load.asks.len(),
        ring.prefills,
        ring.decodes,
        outcome.busy.0 * 100.0,
        outcome.busy.1 * 100.0,
        outcome.cached * 100.0,
        handoff.join(", ")
    ));
    each((engine, file), (&real, &gateway), &outcome, found)?;
    Ok(compare((engine, file), &Summary::of(engine, &real), &outcome, found))
}

/// Notes every request's time to its first token, and how many the gateway sent to another prefill
/// server than the simulation did.
fn each(
    (engine, file): (&str, &str),
    (real, gateway): (&Run, &str),
    outcome: &Outcome,
    found: &mut Findings,
) -> anyhow::Result<()> {
    let server =
        |line: &Line<'_>| Some((line.field("call")?.to_owned(), line.field("prefill")?.to_owned()));
    let servers: HashMap<_, _> = lines(gateway).filter_map(|line| server(&line)).collect();
    let samples: HashMap<_, _> = real.samples.iter().map(|s| (s.name.as_str(), s)).collect();
    let mut elsewhere = 0;
    for (number, course) in outcome.courses.iter().enumerate() {
        let name = name(number);
        let ms = |time: Option<Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
        let sample = samples.get(name.as_str()).with_context(|| format!("{name} was not sent"))?;
        let (real, simulated) = (ms(sample.ttft()), ms(course.ttft));
        found.raw.push(format!("{engine},{file},TTFT of {number},{real:.3},{simulated:.3}"));
        let server = servers.get(&name).with_context(|| format!("no log names {name}"))?;
        elsewhere += usize::from(*server != format!("prefill-{}", course.prefill));
    }
    found.note(format!("  {elsewhere} were computed by another prefill server than simulated"));
    Ok(())
}

fn compare(
    (engine, file): (&str, &str),
    real: &Summary,
    outcome: &Outcome,
    found: &mut Findings,
) -> Errors {
    let mut errors = Errors { p50: 0.0, p99: 0.0 };
    let (ttft, itl) = (outcome.ttft(), outcome.itl());
    let pairs: [(&str, Ranks, ::plan::numbers::Ranks); 2] =
        [("TTFT", real.ttft, ttft), ("ITL", real.itl, itl)];
    for (name, real, simulated) in pairs {
        let error = |real: f64, simulated: f64| 100.0 * (simulated - real).abs() / real;
        let (p50, p99) = (error(real.p50, simulated.p50), error(real.p99, simulated.p99));
        errors = Errors { p50: errors.p50.max(p50), p99: errors.p99.max(p99) };
        found.note(format!(
            "  {name}: p50 {} ms, simulated {} ({p50:.1} % off); p99 {}, simulated {} ({p99:.1} %)",
            short(real.p50),
            short(simulated.p50),
            short(real.p99),
            short(simulated.p99)
        ));
        for (rank, real, simulated) in
            [("p50", real.p50, simulated.p50), ("p99", real.p99, simulated.p99)]
        {
            found.raw.push(format!("{engine},{file},{name} {rank},{real:.3},{simulated:.3}"));
        }
    }
    errors
}

impl Case {
    /// Its first requests that fit.
    fn load(&self, place: &Place) -> anyhow::Result<Load> {
        let mut entries = trace::read(&place.traces()?.join(self.file))?;
        entries.retain(|entry| (entry.input + entry.output) as u32 / self.divisor < LONGEST);
        let count = place.rounds(self.requests);
        entries.truncate(count);
        let pace = load::rate(&entries) / self.rate;
        let mut load = Load::repeated(&entries, self.divisor, count, pace);
        let mut next = Duration::ZERO;
        for ask in &mut load.asks {
            ask.at = ask.at.max(next);
            next = ask.at + APART;
        }
        Ok(load)
    }
}

/// Sends the requests at their times and reads every answer to its end.
fn played(url: &str, load: &Load, vocab: u32) -> anyhow::Result<Run> {
    let client = Arc::new(Client::new(url, None)?);
    let sent = |(number, ask): (usize, &Ask)| {
        let prompt = prompt(ask, load.block_tokens, number, vocab);
        let sent = Sent::new(name(number), &json!(prompt), ask.output as usize, None);
        // The first is late otherwise: it would be sent before the generator runs.
        (ask.at + Duration::from_millis(50), sent)
    };
    let asks = load.asks.iter().enumerate().map(sent).collect();
    let run = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(open(&client, asks));
    let failure = run.samples.iter().find_map(|sample| sample.failure.as_deref());
    ensure!(failure.is_none(), "a request failed: {}", failure.context("it was just there")?);
    Ok(run)
}

/// What a request is called.
fn name(number: usize) -> String {
    format!("plan-{number}")
}

/// Tokens of its blocks' names, and its own after them.
fn prompt(ask: &Ask, block_tokens: u32, number: usize, vocab: u32) -> Vec<u32> {
    let named = |name: u64, count| Random::new(name).ids(count, 100, vocab - 100);
    let block = |name: &shared::ids::TokenId| named(u64::from(name.get()), block_tokens as usize);
    let mut prompt: Vec<u32> = ask.blocks.iter().flat_map(block).collect();
    prompt.extend(named(u64::MAX / 2 + number as u64, ask.input as usize - prompt.len()));
    prompt
}
