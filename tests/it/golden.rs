//! Greedy tokens over HTTP against golden data made with transformers: what a client gets is what
//! the model says.

use crate::ask::Ask;
use crate::plan::{Plan, demo_model, golden_path};
use crate::ring::Ring;
use model::equal::{judge_margins, near_tie};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::ids::TokenId;
use shared::kv::KvDtype;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    #[serde(default)]
    id: String,
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    margin: Vec<f32>,
    /// Where a server that stops at the end-of-text token stops.
    #[serde(default)]
    stop_at: Option<usize>,
    #[serde(default)]
    output_text: String,
    #[serde(default)]
    messages: Option<Value>,
}

fn cases(file: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(golden_path(file)).unwrap();
    serde_json::from_str::<Golden>(&text).unwrap().cases
}

impl Case {
    fn ask(&self) -> Ask {
        Ask::greedy(&self.prompt_ids, u32::try_from(self.output_ids.len()).unwrap())
    }

    /// Whether the tokens are the golden ones to the end; else they part at a near-tie.
    #[track_caller]
    fn check(&self, found: &[u32]) -> bool {
        let id = |&id: &u32| TokenId::new(id);
        let expected: Vec<_> =
            self.output_ids.iter().map(id).zip(self.margin.iter().copied()).collect();
        let found: Vec<_> = found.iter().map(id).collect();
        let agreement = judge_margins(&expected, &found, near_tie(KvDtype::F32));
        let agreement = agreement.unwrap_or_else(|differs| panic!("{}: {differs}", self.id));
        agreement == model::equal::Agreement::Same
    }
}

/// Whether each case's tokens are the golden ones to the end.
#[track_caller]
fn check_ids(ring: &Ring, cases: &[Case], stream: bool) -> Vec<bool> {
    let asks: Vec<_> = cases.iter().map(|case| Ask { stream, ..case.ask() }).collect();
    let outcomes = ring.generate_all(&asks, 4);
    outcomes.iter().for_each(|outcome| outcome.assert_done());
    cases.iter().zip(&outcomes).map(|(case, outcome)| case.check(&outcome.ids)).collect()
}

#[test]
fn tiny_models_over_http() {
    for name in ["tiny-qwen3", "tiny-llama3", "tiny-qwen2"] {
        let ring = Plan::tiny(name).start();
        let cases = cases(&format!("{name}/golden.json"));
        check_ids(&ring, &cases, false);
        check_ids(&ring, &cases, true);
        ring.wait_settled();
    }
}

#[test]
fn the_demo_model_over_http() {
    let cases = cases("smollm2-135m.json");
    let ring = Plan::new(demo_model()).servers("threads", 2).start();
    let same = check_ids(&ring, &cases, true);
    let same: Vec<_> = cases.iter().zip(same).filter(|(_, same)| *same).collect();
    assert!(!same.is_empty(), "every case parted at a near-tie: no text was compared");
    same.into_iter().for_each(|(case, _)| check_text(&ring, case));
    ring.wait_settled();
}

/// The text of the same case, which ends at the end-of-text token.
#[track_caller]
fn check_text(ring: &Ring, case: &Case) {
    let body = json!({"max_tokens": case.output_ids.len(), "temperature": 0});
    let (path, name, content) = match &case.messages {
        Some(messages) => ("/v1/chat/completions", "messages", messages.clone()),
        None => ("/v1/completions", "prompt", json!(case.prompt_ids)),
    };
    let mut body = body;
    body[name] = content;
    let reply = ring.post(path, &body).whole().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer = reply.json();
    let choice = &answer["choices"][0];
    let text = choice["text"].as_str().or(choice["message"]["content"].as_str()).unwrap();
    assert_eq!(text, case.output_text, "{}", case.id);
    let reason = if case.stop_at.is_some() { "stop" } else { "length" };
    assert_eq!(choice["finish_reason"], reason, "{}", case.id);
    assert_eq!(answer["usage"]["prompt_tokens"], case.prompt_ids.len(), "{}", case.id);
}
