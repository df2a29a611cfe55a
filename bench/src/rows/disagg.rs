//! Equal tokens from three processes and from the plain loop of one sequence in this process.
//!
//! Prompts are random. Some are one token shorter or longer than whole pages; some come twice, so
//! that the second finds all its pages cached; some end with their first token, by its number or by
//! being told that it is an end; a third is sampled with a seed. f32, so that a near-tie excuses
//! almost nothing.

use crate::fleet::client::{Client, output_ids};
use crate::fleet::{Fleet, Plan};
use crate::numbers::Random;
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use checkpoint::Checkpoint;
use model::equal::{Agreement, judge};
use model::reference::{Ask, generate};
use model::sample::Drawn;
use model::{CpuEngine, EngineConfig, WeightFormat};
use serde_json::{Value, json};
use shared::ids::TokenId;
use shared::kv::KvDtype;
use shared::request::Sampling;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

pub const GROUP: Group = Group {
    name: "disagg",
    title: "Disaggregated against one process, f32",
    rows: &[
        Row {
            name: "disagg-tiny",
            what: "random prompts with equal tokens, of 1,000 on the three tiny models",
            unit: "prompts",
            bar: Bar::AtLeast(1_000.0),
        },
        Row {
            name: "disagg-demo",
            what: "random prompts with equal tokens, of 50 on the demo model",
            unit: "prompts",
            bar: Bar::AtLeast(50.0),
        },
    ],
    measure,
    slow: false,
};

const TINY: [(&str, usize); 3] = [("tiny-qwen3", 334), ("tiny-llama3", 333), ("tiny-qwen2", 333)];
const DEMO: usize = 50;
const PAGE: usize = 16;
const CLIENTS: usize = 6;

/// Kinds of prompts, in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    OneLess,
    OneMore,
    WholePages,
    /// The prompt of the case before, again.
    Again,
    OneToken,
    FirstIsEnd,
    Sampled,
    SampledFiltered,
}

const KINDS: [Kind; 9] = [
    Kind::Plain,
    Kind::OneLess,
    Kind::OneMore,
    Kind::WholePages,
    Kind::Again,
    Kind::OneToken,
    Kind::FirstIsEnd,
    Kind::Sampled,
    Kind::SampledFiltered,
];

struct Case {
    kind: Kind,
    prompt: Vec<TokenId>,
    max_tokens: u32,
    sampling: Sampling,
    stop: Option<TokenId>,
    expected: Vec<Drawn>,
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let mut found = Findings::new("model,case,kind,prompt_tokens,verdict");
    let mut tiny = 0;
    for (name, count) in TINY {
        // Ids 3..500: none is special in any of the three.
        let vocabulary = (3, 497);
        let model = place.tiny(name);
        tiny += compare(place, (&model, name), (place.rounds(count), vocabulary), &mut found)?;
    }
    let demo = (place.demo()?, "smollm2-135m");
    let demo = compare(place, demo, (place.rounds(DEMO), (1_000, 40_000)), &mut found)?;
    found.set("disagg-tiny", tiny as f64);
    found.set("disagg-demo", demo as f64);
    Ok(found)
}

/// How many of `count` cases are equal.
fn compare(
    place: &Place,
    (model, name): (&Path, &str),
    (count, vocabulary): (usize, (u32, u32)),
    found: &mut Findings,
) -> anyhow::Result<usize> {
    let cases = cases(model, count, vocabulary)?;
    let plan = Plan::new(model, "f32").set("page_size", PAGE as i64).set("page_checksums", true);
    let fleet = Fleet::start(place, &plan)?;
    let answers = ask_all(&fleet.client, &cases);
    let (mut equal, mut ties) = (0, 0);
    for (number, (case, answer)) in cases.iter().zip(answers).enumerate() {
        let Case { kind, prompt, .. } = case;
        let verdict = match answer {
            Ok(ids) => match judge(&case.expected, &ids, KvDtype::F32) {
                Ok(Agreement::Same) => Ok("same"),
                Ok(Agreement::NearTie(_)) => Ok("near tie"),
                Err(differs) => Err(differs.to_string()),
            },
            Err(error) => Err(error),
        };
        equal += usize::from(verdict.is_ok());
        ties += usize::from(verdict == Ok("near tie"));
        let tokens = prompt.len();
        let word = verdict.as_ref().map_or("different", |word| word);
        found.raw.push(format!("{name},{number},{kind:?},{tokens},{word}"));
        if let Err(what) = verdict {
            found.note(format!("{name} case {number}, {kind:?}, {tokens} tokens: {what}"));
        }
    }
    found.note(format!("{name}: {equal} of {count} prompts equal, {ties} of them by a near-tie"));
    Ok(equal)
}

/// The cases, with what the plain loop makes of them.
fn cases(model: &Path, count: usize, (from, span): (u32, u32)) -> anyhow::Result<Vec<Case>> {
    let (dtype, page_tokens) = (KvDtype::F32, PAGE as u32);
    let weights = WeightFormat::Bf16;
    let config =
        EngineConfig { dtype, weights, pages: 64, page_tokens, threads: None, memory: None };
    let mut engine = CpuEngine::load(&Checkpoint::open(model)?, config, &mut |_, _| {})?;
    let mut random = Random::new(u64::from(span));
    let mut prompt: Vec<TokenId> = Vec::new();
    let mut cases = Vec::new();
    for kind in KINDS.into_iter().cycle().take(count) {
        let pages = PAGE * (1 + random.below(12));
        let length = match kind {
            Kind::OneLess => pages - 1,
            Kind::OneMore => pages + 1,
            Kind::WholePages => pages,
            _ => 1 + random.below(250),
        };
        if kind != Kind::Again {
            prompt = random.ids(length, from, span).into_iter().map(TokenId::new).collect();
        }
        let max_tokens = if kind == Kind::OneToken { 1 } else { 4 + random.below(20) as u32 };
        let sampling = sampling(kind, random.next() >> 1);
        let ask = Ask { sampling, ..Ask::greedy(&prompt, max_tokens) };
        let mut expected = generate(&mut engine, &ask)?;
        let stop = (kind == Kind::FirstIsEnd).then(|| expected[0].token.id);
        expected.truncate(if stop.is_some() { 1 } else { expected.len() });
        cases.push(Case { kind, prompt: prompt.clone(), max_tokens, sampling, stop, expected });
    }
    Ok(cases)
}

fn sampling(kind: Kind, seed: u64) -> Sampling {
    let sampled = Sampling { temperature: 0.8, seed, ..Sampling::GREEDY };
    match kind {
        Kind::Sampled => sampled,
        Kind::SampledFiltered => Sampling { top_p: 0.9, top_k: 40, min_p: 0.01, ..sampled },
        _ => Sampling::GREEDY,
    }
}

fn body(case: &Case) -> Value {
    let Sampling { temperature, top_p, top_k, min_p, seed, .. } = case.sampling;
    let ids: Vec<u32> = case.prompt.iter().map(|id| id.get()).collect();
    let mut parameters = json!({
        "temperature": temperature, "top_p": top_p, "min_p": min_p, "sampling_seed": seed,
        "max_new_tokens": case.max_tokens, "ignore_eos": true,
    });
    if top_k > 0 {
        parameters["top_k"] = json!(top_k);
    }
    if let Some(stop) = case.stop {
        parameters["stop_token_ids"] = json!([stop.get()]);
    }
    json!({"input_ids": ids, "sampling_params": parameters})
}

/// Answers in the order of the cases, asked by a few clients at once.
fn ask_all(client: &Client, cases: &[Case]) -> Vec<Result<Vec<TokenId>, String>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut mine = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(number) else { return mine };
            let ids = client.generate(&body(case)).map(|answer| output_ids(&answer));
            let ids = ids.map(|ids| ids.into_iter().map(TokenId::new).collect());
            mine.push((number, ids.map_err(|ended| ended.to_string())));
        }
    };
    let mut answers: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap_or_default()).collect()
    });
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}
