//! Greedy tokens and log-probabilities of the ring, f32, against golden data made with
//! transformers.

use crate::fleet::client::output_ids;
use crate::fleet::{Fleet, Plan};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use anyhow::Context;
use model::equal::{judge_margins, near_tie};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::ids::TokenId;
use shared::kv::KvDtype;
use std::path::Path;

pub const GROUP: Group = Group {
    name: "golden",
    title: "Golden data, f32, through three processes",
    rows: &[
        Row {
            name: "golden-demo",
            what: "cases of the demo model whose greedy tokens are equal, of 8",
            unit: "cases",
            bar: Bar::AtLeast(8.0),
        },
        Row {
            name: "golden-tiny",
            what: "cases of the three tiny models whose greedy tokens are equal, of 12",
            unit: "cases",
            bar: Bar::AtLeast(12.0),
        },
        Row {
            name: "golden-logprobs",
            what: "largest difference of a log-probability, five best of every token",
            unit: "nats",
            bar: Bar::AtMost(2e-3),
        },
    ],
    measure,
    slow: false,
};

const TINY: [&str; 3] = ["tiny-qwen3", "tiny-llama3", "tiny-qwen2"];
const TOP: usize = 5;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

/// One prompt; the demo model's cases have `top5_logprobs`, the tiny ones' `last_logits`.
#[derive(Deserialize)]
struct Case {
    #[serde(default)]
    id: String,
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    margin: Vec<f32>,
    #[serde(default)]
    top5_logprobs: Vec<Vec<(u32, f32)>>,
    #[serde(default)]
    last_logits: Vec<f32>,
}

impl Case {
    /// The best log-probabilities of each token that the golden data has.
    fn best(&self) -> Vec<Vec<(u32, f32)>> {
        if self.last_logits.is_empty() {
            return self.top5_logprobs.clone();
        }
        let exponents = self.last_logits.iter().map(|&logit| f64::from(logit).exp());
        let total = exponents.sum::<f64>().ln();
        let logprob = |(id, &logit): (usize, &f32)| (id as u32, (f64::from(logit) - total) as f32);
        let mut all: Vec<_> = self.last_logits.iter().enumerate().map(logprob).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all.truncate(TOP);
        vec![all]
    }
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let mut found = Findings::new("model,case,prompt_tokens,equal,logprob_difference");
    let demo = check(place, (place.demo()?, "smollm2-135m"), &mut found)?;
    let (mut tiny, mut largest) = (0, demo.1);
    for name in TINY {
        let (equal, difference) = check(place, (&place.tiny(name), name), &mut found)?;
        tiny += equal;
        largest = largest.max(difference);
    }
    found.set("golden-demo", demo.0 as f64);
    found.set("golden-tiny", tiny as f64);
    found.set("golden-logprobs", f64::from(largest));
    Ok(found)
}

/// Equal cases, and the largest difference of a log-probability.
fn check(
    place: &Place,
    (model, name): (&Path, &str),
    found: &mut Findings,
) -> anyhow::Result<(usize, f32)> {
    let folder = place.golden();
    let single = folder.join(format!("{name}.json"));
    let file = if single.is_file() { single } else { folder.join(name).join("golden.json") };
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let golden: Golden = serde_json::from_str(&text)?;
    let fleet = Fleet::start(place, &Plan::new(model, "f32"))?;
    let (mut equal, mut largest) = (0, 0.0_f32);
    for (number, case) in golden.cases.iter().enumerate() {
        let answer = fleet.client.generate(&ask(case))?;
        let ids = output_ids(&answer);
        let expected: Vec<_> = tokens(&case.output_ids).zip(case.margin.iter().copied()).collect();
        let made: Vec<_> = tokens(&ids).collect();
        let verdict = judge_margins(&expected, &made, near_tie(KvDtype::F32));
        let difference = difference(case, &ids, &answer);
        equal += usize::from(verdict.is_ok());
        largest = largest.max(difference);
        let prompt = case.prompt_ids.len();
        let is_equal = verdict.is_ok();
        found.raw.push(format!("{name},{number} {},{prompt},{is_equal},{difference:e}", case.id));
        if let Err(differs) = verdict {
            found.note(format!("{name} case {number} {}: {differs}", case.id));
        }
    }
    let count = golden.cases.len();
    found.note(format!(
        "{name}: {equal} of {count} cases equal, log-probabilities within {largest:.1e}"
    ));
    Ok((equal, largest))
}

fn ask(case: &Case) -> Value {
    json!({
        "input_ids": case.prompt_ids,
        "return_logprob": true,
        "top_logprobs_num": TOP,
        "sampling_params": {
            "temperature": 0, "max_new_tokens": case.output_ids.len(), "ignore_eos": true,
        },
    })
}

fn tokens(ids: &[u32]) -> impl Iterator<Item = TokenId> {
    ids.iter().map(|&id| TokenId::new(id))
}

/// Compares rank by rank and id by id, as far as the same text is continued.
fn difference(case: &Case, ids: &[u32], answer: &Value) -> f32 {
    let mut largest = 0.0_f32;
    for (step, expected) in case.best().iter().enumerate() {
        if ids.get(..step) != case.output_ids.get(..step) {
            break;
        }
        let rows = answer["meta_info"]["output_top_logprobs"][step].as_array();
        let pair = |row: &Value| Some((row[1].as_u64()? as u32, row[0].as_f64()? as f32));
        let ours: Vec<_> = rows.into_iter().flatten().filter_map(pair).collect();
        if ours.len() != expected.len() {
            return f32::INFINITY;
        }
        for (&(id, logprob), ranked) in expected.iter().zip(&ours) {
            largest = largest.max((ranked.1 - logprob).abs());
            if let Some((_, same)) = ours.iter().find(|(other, _)| *other == id) {
                largest = largest.max((same - logprob).abs());
            }
        }
    }
    largest
}
