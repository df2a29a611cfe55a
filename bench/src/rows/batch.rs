//! Eight requests at once against one alone, through the ring, with weights as the demo model's
//! file has them and in bf16.
//!
//! Each round streams one answer, then eight at once, at each of two rings in turn; before them
//! all bytes of the weights are summed plainly, which is the floor of a step.

use crate::fleet::client::Streamed;
use crate::fleet::{Fleet, Plan};
use crate::numbers::{Random, median, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use crate::rows::speed::{greedy, prompt};
use anyhow::{Context, ensure};
use checkpoint::Checkpoint;
use model::{CpuEngine, EngineConfig};
use shared::kv::KvDtype;
use std::hint::black_box;
use std::thread;
use std::time::Instant;

pub const GROUP: Group = Group {
    name: "batch",
    title: "8 requests at once, demo model, through the ring",
    rows: &[
        Row {
            name: "batch-8-stored",
            what: "tokens/s of 8 streams at once / of one, weights as the file has them",
            unit: "ratio",
            bar: Bar::AtLeast(3.5),
        },
        Row {
            name: "batch-8-bf16",
            what: "tokens/s of 8 streams at once / of one, weights in bf16",
            unit: "ratio",
            bar: Bar::AtLeast(3.5),
        },
        Row {
            name: "decode-stored",
            what: "one stream, weights as the file has them: 4 bits, and 8 in the embedding",
            unit: "tok/s",
            bar: Bar::AtLeast(100.0),
        },
    ],
    measure,
    slow: false,
};

const STREAMS: usize = 8;
/// Tokens of each answer.
const TOKENS: u32 = 96;
/// Tokens of each prompt.
const CONTEXT: usize = 16;
const SUMS: u32 = 4;

/// One way to keep the weights.
struct Side {
    row: &'static str,
    fleet: Fleet,
    /// Only its weights are read.
    engine: CpuEngine,
    /// Tokens/s of one stream and of eight, seconds of the floor; one a round.
    rounds: Vec<(f64, f64, f64)>,
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let mut random = Random::new(8);
    let sides = [("batch-8-stored", "auto"), ("batch-8-bf16", "bf16")];
    let sides = sides.map(|(row, weights)| Side::start(place, row, weights));
    let mut sides = sides.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let rounds = place.rounds(9);
    for round in 0..=rounds {
        for side in &mut sides {
            let times = side.round(&mut random)?;
            if round > 0 {
                side.rounds.push(times); // the first touches everything for the first time
            }
        }
    }
    let mut found = Findings::new("row,one_tok_s,eight_tok_s,floor_s");
    for Side { row, engine, rounds, .. } in &sides {
        let line =
            |(one, eight, floor): &(f64, f64, f64)| format!("{row},{one:.2},{eight:.2},{floor:.6}");
        found.raw.extend(rounds.iter().map(line));
        let [one, eight, floor] = [
            median(rounds.iter().map(|round| round.0).collect()),
            median(rounds.iter().map(|round| round.1).collect()),
            median(rounds.iter().map(|round| round.2).collect()),
        ];
        found.note(format!(
            "{row}: {} tok/s alone, {} together; floor {} ms for {:.1} MB of weights",
            short(one),
            short(eight),
            short(floor * 1e3),
            engine.weight_bytes() as f64 / 1e6
        ));
        if *row == "batch-8-stored" {
            found.set("decode-stored", one);
        }
        found.set(row, median(rounds.iter().map(|(one, eight, _)| eight / one).collect()));
    }
    Ok(found)
}

impl Side {
    fn start(place: &Place, row: &'static str, weights: &str) -> anyhow::Result<Self> {
        let plan = Plan::new(place.demo()?, "bf16").set("weights", weights);
        let config = EngineConfig {
            dtype: KvDtype::Bf16,
            weights: weights.parse().map_err(anyhow::Error::msg)?,
            pages: 1,
            page_tokens: 16,
            threads: None,
            memory: None,
        };
        let engine = CpuEngine::load(&Checkpoint::open(place.demo()?)?, config, &mut |_, _| {})?;
        Ok(Self { row, fleet: Fleet::start(place, &plan)?, engine, rounds: vec![] })
    }

    fn round(&mut self, random: &mut Random) -> anyhow::Result<(f64, f64, f64)> {
        let start = Instant::now();
        (0..SUMS).for_each(|_| {
            black_box(self.engine.sum_weights());
        });
        let floor = start.elapsed().as_secs_f64() / f64::from(SUMS);
        Ok((self.rate(random, 1)?, self.rate(random, STREAMS)?, floor))
    }

    /// Tokens/s of `count` streams at once, each from its first token on.
    fn rate(&self, random: &mut Random, count: usize) -> anyhow::Result<f64> {
        let prompts: Vec<_> = (0..count).map(|_| prompt(random, CONTEXT)).collect();
        let stream = |prompt: &[u32]| -> anyhow::Result<f64> {
            let streamed = self.fleet.client.stream(&greedy(prompt, TOKENS))?;
            let Streamed { rest, tokens_first, answer, .. } = streamed;
            let all = answer["meta_info"]["completion_tokens"].as_u64().context("tokens")?;
            ensure!(all == u64::from(TOKENS), "{all} tokens came: {answer}");
            Ok((all - tokens_first) as f64 / rest.as_secs_f64())
        };
        let rates = thread::scope(|scope| {
            let streams: Vec<_> =
                prompts.iter().map(|prompt| scope.spawn(|| stream(prompt))).collect();
            let join = |stream: thread::ScopedJoinHandle<'_, _>| {
                stream.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            streams.into_iter().map(join).collect::<anyhow::Result<Vec<f64>>>()
        })?;
        Ok(rates.into_iter().sum())
    }
}
