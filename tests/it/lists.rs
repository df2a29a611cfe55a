//! SGLang's lists on `/generate`: each prompt of a call with values of its own is answered as if it
//! had been asked alone.

use crate::ask::Ask;
use crate::plan::Plan;
use crate::ring::Ring;
use serde_json::{Map, Value, json};

/// Fields that are one value for all prompts, or a list with one for each.
const FIELDS: [&str; 7] = [
    "rid",
    "sampling_params",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "token_ids_logprob",
    "cache_salt",
];

/// Three prompts that differ in everything.
fn calls() -> Vec<Value> {
    let prompt = |len: u32, by: u32| (0..len).map(|i| (i * by + 3) % 512).collect::<Vec<_>>();
    let sampling = |tokens: u32, temperature: f32, stop: &[u32]| {
        json!({"max_new_tokens": tokens, "temperature": temperature, "sampling_seed": 7,
               "ignore_eos": true, "stop_token_ids": stop})
    };
    let greedy = json!({
        "input_ids": prompt(20, 5), "rid": "a", "sampling_params": sampling(6, 0.0, &[]),
        "return_logprob": true, "logprob_start_len": 4, "top_logprobs_num": 2,
        "token_ids_logprob": [9, 11], "cache_salt": "x",
    });
    let drawn = json!({
        "input_ids": prompt(33, 7), "rid": "b", "sampling_params": sampling(9, 0.9, &[5]),
        "return_logprob": false, "logprob_start_len": -1, "top_logprobs_num": 0,
        "token_ids_logprob": [], "cache_salt": "y",
    });
    let told = json!({
        "input_ids": prompt(7, 11), "rid": "c", "sampling_params": sampling(0, 0.0, &[]),
        "return_logprob": true, "logprob_start_len": 0, "top_logprobs_num": 1,
        "token_ids_logprob": [3], "cache_salt": "",
    });
    vec![greedy, drawn, told]
}

/// The calls as one, each field as a list.
fn together(calls: &[Value]) -> Value {
    let list = |name: &str| calls.iter().map(|call| call[name].clone()).collect::<Value>();
    let names = FIELDS.into_iter().chain(["input_ids"]);
    names.map(|name| (name.to_owned(), list(name))).collect::<Map<_, _>>().into()
}

#[track_caller]
fn whole(ring: &Ring, body: &Value) -> Value {
    let reply = ring.post("/generate", body).whole().unwrap();
    assert_eq!(reply.status, 200, "{body}: {}", reply.body);
    reply.json()
}

/// The last event of each output.
fn streamed(ring: &Ring, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let mut answer = ring.post("/generate", &body).answer().unwrap();
    let mut last = vec![];
    while let Some(event) = answer.event().unwrap().filter(|event| event != "[DONE]") {
        let mut event: Value = serde_json::from_str(&event).unwrap();
        let index = event.as_object_mut().unwrap().remove("index").unwrap().as_u64().unwrap();
        let index = usize::try_from(index).unwrap();
        last.resize(last.len().max(index + 1), Value::Null);
        last[index] = event;
    }
    last
}

/// Equal but for what a cache or a clock says, and the last digits of a probability.
#[track_caller]
fn assert_same(path: &str, a: &Value, b: &Value) {
    match (a, b) {
        _ if path.ends_with("cached_tokens") || path.ends_with("e2e_latency") => {}
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()), "{path}: {a:?}, {b:?}");
            a.iter().for_each(|(key, a)| assert_same(&format!("{path}.{key}"), a, &b[key]));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{path}");
            let both = a.iter().zip(b).enumerate();
            both.for_each(|(at, (a, b))| assert_same(&format!("{path}[{at}]"), a, b));
        }
        (Value::Number(one), Value::Number(other)) => {
            let apart = one.as_f64().unwrap() - other.as_f64().unwrap();
            assert!(apart.abs() < 1e-3, "{path}: {a}, {b}");
        }
        _ => assert_eq!(a, b, "{path}"),
    }
}

#[test]
fn every_prompt_of_a_list_is_answered_as_if_it_were_alone() {
    let ring = Plan::tiny("tiny-qwen3").start();
    let calls = calls();
    let alone: Vec<_> = calls.iter().map(|call| whole(&ring, call)).collect();
    let lists = together(&calls);
    assert_same("", &whole(&ring, &lists), &json!(alone));
    assert_same("", &json!(streamed(&ring, lists.clone())), &json!(alone));
    // Each field as a list while all others are as the first prompt's.
    for name in FIELDS {
        let mut mixed = calls[0].clone();
        let alone = calls.iter().enumerate().map(|(at, own)| {
            let mut call = calls[0].clone();
            call["input_ids"] = own["input_ids"].clone();
            call[name] = own[name].clone();
            let mut answer = whole(&ring, &call);
            if name != "rid" {
                answer["meta_info"]["id"] = json!(format!("a_{at}"));
            }
            answer
        });
        let alone: Vec<_> = alone.collect();
        mixed["input_ids"] = lists["input_ids"].clone();
        mixed[name] = lists[name].clone();
        assert_same(name, &whole(&ring, &mixed), &json!(alone));
    }
    ring.wait_settled();
}

#[test]
fn outputs_of_a_named_prompt_have_its_name_and_a_number() {
    let ring = Plan::tiny("tiny-qwen3").start();
    let sampling = |temperature| json!({"max_new_tokens": 2, "n": 2, "temperature": temperature, "ignore_eos": true});
    let body = json!({
        "input_ids": [[1, 2], [3, 4, 5]], "rid": ["a", "b"],
        "sampling_params": [sampling(0.0), sampling(0.5)], "top_logprobs_num": [1, 2],
        "return_logprob": true,
    });
    let answer = whole(&ring, &body);
    let about = |one: &Value| {
        let meta = &one["meta_info"];
        let top = meta["output_top_logprobs"][0].as_array().unwrap().len();
        (meta["id"].as_str().unwrap().to_owned(), meta["prompt_tokens"].as_u64().unwrap(), top)
    };
    let about: Vec<_> = answer.as_array().unwrap().iter().map(about).collect();
    let expected = [("a_0", 2, 1), ("a_1", 2, 1), ("b_0", 3, 2), ("b_1", 3, 2)];
    assert_eq!(about, expected.map(|(id, prompt, top)| (id.to_owned(), prompt, top)));
    ring.wait_settled();
}

#[test]
fn a_prompts_own_name_finds_its_story_and_ends_its_call() {
    let ring = Plan::tiny("tiny-qwen3").start();
    let mut body = Ask::greedy(&[], 1900).streamed().body();
    body["input_ids"] = json!([[1, 2, 3], [4, 5, 6]]);
    body["rid"] = json!(["one", "two"]);
    let mut answer = ring.post("/generate", &body).answer().unwrap();
    answer.event().unwrap().expect("a first token");
    let stories = ring.get("/ring/requests/two").json();
    assert_eq!(stories["requests"].as_array().unwrap().len(), 1, "{stories}");
    let aborted = ring.post("/abort_request", &json!({"rid": "two"})).whole().unwrap().json();
    assert_eq!(aborted["aborted"], 2, "one answer, so one end");
    let mut last = String::new();
    while let Some(event) = answer.event().unwrap().filter(|event| event != "[DONE]") {
        last = event;
    }
    assert!(last.contains("\"aborted\""), "{last}");
    ring.wait_settled();
}
