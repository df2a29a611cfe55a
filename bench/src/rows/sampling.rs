//! Sampling: whether draws follow the exact distribution, and whether a seed gives the same tokens
//! wherever they are drawn.
//!
//! The distribution is worked out here in f64 from logits of the demo model, by what the filters
//! say. A seed's tokens come of the plain loop of one sequence, of steps of 16 sequences, and of a
//! ring of processes with one request and with 16 at a time.

use crate::chi_square;
use crate::fleet::client::{Client, output_ids};
use crate::fleet::{Fleet, Plan};
use crate::numbers::{Random, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use anyhow::Context;
use checkpoint::Checkpoint;
use kernels::cpu::Softmax;
use model::engine::{Batch, Engine, Input, Row as SequenceRow, Sample};
use model::equal::{Agreement, judge};
use model::reference::{Ask, Observed, generate};
use model::sample::{Drawn, draw};
use model::{CpuEngine, EngineConfig, WeightFormat};
use serde_json::json;
use shared::ids::{PageId, TokenId};
use shared::kv::KvDtype;
use shared::request::Sampling;
use std::thread;

pub const GROUP: Group = Group {
    name: "sampling",
    title: "Sampling, demo model, f32",
    rows: &[
        Row {
            name: "sampler-chi2",
            what: "draws against the exact distribution: least p of χ² tests, by Bonferroni for all",
            unit: "p",
            bar: Bar::AtLeast(0.001),
        },
        Row {
            name: "seed-equal",
            what: "answers of a seed that differ, batch 1 and 16, one process and a ring",
            unit: "answers",
            bar: Bar::AtMost(0.0),
        },
    ],
    measure,
    slow: false,
};

const DRAWS: usize = 20_000;
const WIDTH: usize = 16;
const PROMPTS: usize = 3 * WIDTH;
const PAGE: u32 = 16;
/// Of each sequence: room for its prompt and its output.
const PAGES: u32 = 6;
const PROMPT_MOST: usize = 64;
const TOKENS: u32 = 24;

const PLAIN: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

/// Each with a seed of its own.
const CASES: [(&str, Sampling); 8] = [
    ("plain", Sampling { seed: 1, ..PLAIN }),
    ("cold", Sampling { temperature: 0.7, seed: 2, ..PLAIN }),
    ("hot", Sampling { temperature: 1.5, seed: 3, ..PLAIN }),
    ("top_k", Sampling { top_k: 40, seed: 4, ..PLAIN }),
    ("top_p", Sampling { top_p: 0.9, seed: 5, ..PLAIN }),
    ("min_p", Sampling { min_p: 0.05, seed: 6, ..PLAIN }),
    ("top_k and top_p", Sampling { top_k: 100, top_p: 0.8, seed: 7, ..PLAIN }),
    ("all", Sampling { temperature: 1.2, top_k: 200, top_p: 0.95, min_p: 0.01, seed: 8, ..PLAIN }),
];

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let mut found = Findings::new("what,case,value");
    let (dtype, weights) = (KvDtype::F32, WeightFormat::Bf16);
    let pages = WIDTH as u32 * PAGES;
    let config =
        EngineConfig { dtype, weights, pages, page_tokens: PAGE, threads: None, memory: None };
    let mut engine = CpuEngine::load(&Checkpoint::open(place.demo()?)?, config, &mut |_, _| {})?;
    let mut random = Random::new(16);
    follow_the_distribution(&mut engine, (&mut random, place.rounds(DRAWS)), &mut found)?;
    let cases = cases(&mut engine, &mut random, place.rounds(PROMPTS))?;
    let fleet = Fleet::start(place, &Plan::new(place.demo()?, "f32"))?;
    let answers = [
        ("one process, 16 at once", in_steps(&mut engine, &cases)?),
        ("ring, one at a time", asked(&fleet.client, &cases, 1)?),
        ("ring, 16 at once", asked(&fleet.client, &cases, WIDTH)?),
    ];
    let mut different = 0;
    for (what, answers) in answers {
        let verdicts = cases.iter().zip(&answers);
        let verdicts = verdicts.map(|(case, ids)| judge(&case.expected, ids, dtype));
        let verdicts: Vec<_> = verdicts.collect();
        let ties = verdicts.iter().filter(|v| matches!(v, Ok(Agreement::NearTie(_)))).count();
        let bad = verdicts.iter().filter(|verdict| verdict.is_err()).count();
        found.note(format!("{what}: {bad} of {} differ, {ties} part at a near-tie", cases.len()));
        for (number, verdict) in verdicts.iter().enumerate() {
            let word = match verdict {
                Ok(Agreement::Same) => "same",
                Ok(Agreement::NearTie(_)) => "near tie",
                Err(_) => "different",
            };
            found.raw.push(format!("{what},{number},{word}"));
        }
        different += bad;
    }
    found.set("seed-equal", different as f64);
    Ok(found)
}

fn follow_the_distribution(
    engine: &mut CpuEngine,
    (random, draws): (&mut Random, usize),
    found: &mut Findings,
) -> anyhow::Result<()> {
    let prompt: Vec<_> = ids(random, 32);
    generate(engine, &Ask::greedy(&prompt, 1))?;
    let logits = engine.logits().to_vec();
    let mut least = f64::INFINITY;
    for (what, sampling) in CASES {
        let exact = exact(&logits, &sampling);
        let counts = counts(&logits, sampling, draws);
        let (p, classes) = chi_square::p_value(&counts, &exact);
        found.raw.push(format!("p,{what},{p:e}"));
        found.note(format!("{what}: p {} over {classes} classes, {draws} draws", short(p)));
        least = least.min(p);
    }
    found.set("sampler-chi2", (least * CASES.len() as f64).min(1.0));
    Ok(())
}

/// How often each token is drawn, on all threads.
fn counts(logits: &[f32], sampling: Sampling, draws: usize) -> Vec<u64> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let count = |thread: usize| {
        let mut counts = vec![0; logits.len()];
        for index in (thread..draws).step_by(threads) {
            let sample = Sample::new(sampling, index as u32);
            counts[draw(Softmax::detect(), logits, &sample).token.id.get() as usize] += 1;
        }
        counts
    };
    let mut all = vec![0; logits.len()];
    thread::scope(|scope| {
        let counts = (0..threads).map(|thread| scope.spawn(move || count(thread)));
        for counts in counts.collect::<Vec<_>>() {
            let counts = counts.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all.iter_mut().zip(counts).for_each(|(all, count): (&mut u64, u64)| *all += count);
        }
    });
    all
}

/// Probabilities by temperature, then `min_p`, `top_k`, `top_p`, each of what the one before left.
fn exact(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let temperature = f64::from(sampling.temperature);
    let weight = |logit: &f32| ((f64::from(*logit) - f64::from(largest)) / temperature).exp();
    let mut weights: Vec<f64> = logits.iter().map(weight).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    order.retain(|&id| weights[id] >= f64::from(sampling.min_p));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k as usize);
    }
    let total: f64 = order.iter().map(|&id| weights[id]).sum();
    let mut sum = 0.0;
    let reached = order.iter().position(|&id| {
        sum += weights[id];
        sum >= f64::from(sampling.top_p) * total
    });
    order.truncate(reached.map_or(order.len(), |last| last + 1));
    let total: f64 = order.iter().map(|&id| weights[id]).sum();
    let kept = std::mem::replace(&mut weights, vec![0.0; logits.len()]);
    order.into_iter().for_each(|id| weights[id] = kept[id] / total);
    weights
}

struct Case {
    prompt: Vec<TokenId>,
    sampling: Sampling,
    /// What the plain loop makes.
    expected: Vec<Drawn>,
}

fn ids(random: &mut Random, count: usize) -> Vec<TokenId> {
    random.ids(count, 1_000, 40_000).into_iter().map(TokenId::new).collect()
}

fn cases(engine: &mut CpuEngine, random: &mut Random, count: usize) -> anyhow::Result<Vec<Case>> {
    let samplings = CASES.iter().cycle().take(count);
    let case = |&(_, sampling): &(_, Sampling)| {
        let length = 1 + random.below(PROMPT_MOST);
        let prompt = ids(random, length);
        let sampling = Sampling { seed: random.next() >> 1, ..sampling };
        let ask = Ask { sampling, ..Ask::greedy(&prompt, TOKENS) };
        let expected = generate(engine, &ask)?;
        Ok(Case { prompt, sampling, expected })
    };
    samplings.map(case).collect()
}

/// The tokens of steps of [`WIDTH`] sequences.
fn in_steps(engine: &mut CpuEngine, cases: &[Case]) -> anyhow::Result<Vec<Vec<TokenId>>> {
    let mut all = Vec::new();
    for cases in cases.chunks(WIDTH) {
        let mut made = vec![Vec::new(); cases.len()];
        for index in 0..TOKENS {
            let row = |(number, (case, made)): (usize, (&Case, &Vec<TokenId>))| {
                let (start, tokens) = match made.last() {
                    None => (0, case.prompt.clone()),
                    Some(&last) => (case.prompt.len() + made.len() - 1, vec![last]),
                };
                let first = number as u32 * PAGES;
                let pages = (start + tokens.len()).div_ceil(PAGE as usize) as u32;
                SequenceRow {
                    input: Input::Tokens(tokens),
                    start: start as u32,
                    pages: (first..first + pages).map(PageId::new).collect(),
                    sample: Some(Sample::new(case.sampling, index)),
                    reads: None,
                }
            };
            let rows = cases.iter().zip(&made).enumerate().map(row).collect();
            engine.launch(&Batch { rows })?;
            for (made, token) in made.iter_mut().zip(engine.collect()?) {
                made.push(token.context("a row made no token")?.id);
            }
        }
        all.extend(made);
    }
    Ok(all)
}

/// The ring's answers, `width` requests at a time.
fn asked(client: &Client, cases: &[Case], width: usize) -> anyhow::Result<Vec<Vec<TokenId>>> {
    let ask = |case: &Case| -> anyhow::Result<Vec<TokenId>> {
        let Sampling { temperature, top_p, top_k, min_p, seed, .. } = case.sampling;
        let mut sampling = json!({
            "temperature": temperature, "top_p": top_p, "min_p": min_p, "sampling_seed": seed,
            "max_new_tokens": TOKENS, "ignore_eos": true,
        });
        if top_k > 0 {
            sampling["top_k"] = json!(top_k);
        }
        let prompt: Vec<u32> = case.prompt.iter().map(|id| id.get()).collect();
        let body = json!({"input_ids": prompt, "sampling_params": sampling});
        Ok(output_ids(&client.generate(&body)?).into_iter().map(TokenId::new).collect())
    };
    let mut all = Vec::new();
    for cases in cases.chunks(width) {
        let answers = thread::scope(|scope| {
            let asks: Vec<_> = cases.iter().map(|case| scope.spawn(|| ask(case))).collect();
            let join = |ask: thread::ScopedJoinHandle<'_, _>| {
                ask.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            asks.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
        })?;
        all.extend(answers);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_leave_what_they_say() {
        let logits = [0.3, 0.1, 0.4, 0.2].map(|p: f64| p.ln() as f32);
        let check = |sampling: Sampling, expect: [f64; 4]| {
            for (found, expect) in exact(&logits, &sampling).into_iter().zip(expect) {
                assert!((found - expect).abs() < 1e-6, "{sampling:?}: {found} {expect}");
            }
        };
        check(PLAIN, [0.3, 0.1, 0.4, 0.2]);
        check(Sampling { temperature: 0.5, ..PLAIN }, [0.3, 0.1 / 3.0, 1.6 / 3.0, 0.4 / 3.0]);
        check(Sampling { top_k: 2, ..PLAIN }, [3.0 / 7.0, 0.0, 4.0 / 7.0, 0.0]);
        check(Sampling { top_p: 0.65, ..PLAIN }, [3.0 / 7.0, 0.0, 4.0 / 7.0, 0.0]);
        check(Sampling { min_p: 0.4, ..PLAIN }, [3.0 / 9.0, 0.0, 4.0 / 9.0, 2.0 / 9.0]);
    }
}
