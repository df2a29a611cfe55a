//! What a prompt says of itself, over HTTP, against golden data made with transformers: embeddings,
//! log-probabilities of its own tokens, scores. And that a server's death neither loses nor repeats
//! any of it.

use crate::plan::{Plan, golden_path};
use crate::ring::Ring;
use serde::Deserialize;
use serde_json::{Value, json};
use shared::metrics as names;

const MODELS: [&str; 3] = ["tiny-qwen3", "tiny-llama3", "tiny-qwen2"];
/// Largest difference of a number to transformers'.
const BAR: f64 = 1e-3;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt_ids: Vec<u32>,
    last: Vec<f64>,
    mean: Vec<f64>,
    token_logprobs: Vec<f64>,
}

fn cases(name: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(golden_path(name).join("hidden.json")).unwrap();
    serde_json::from_str::<Golden>(&text).unwrap().cases
}

/// Steps of few tokens, so that long prompts take several.
fn plan(name: &str) -> Plan {
    Plan::tiny(name).on_prefill("chunked_prefill_size", 96)
}

#[track_caller]
fn ask(ring: &Ring, path: &str, body: &Value) -> Value {
    let reply = ring.post(path, body).whole().unwrap();
    assert_eq!(reply.status, 200, "{path} {body}: {}", reply.body);
    reply.json()
}

fn normalised(vector: &[f64]) -> Vec<f64> {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    vector.iter().map(|x| x / length).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap_or(f64::NAN)).collect()
}

/// The largest difference.
#[track_caller]
fn error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= BAR, "{worst}");
    worst
}

#[track_caller]
fn check_embeddings(answer: &Value, cases: &[Case], of: impl Fn(&Case) -> &Vec<f64>) -> f64 {
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), cases.len());
    let prompts: usize = cases.iter().map(|case| case.prompt_ids.len()).sum();
    assert_eq!(answer["usage"]["prompt_tokens"], prompts);
    let errors = data
        .iter()
        .zip(cases)
        .map(|(one, case)| error(&numbers(&one["embedding"]), &normalised(of(case))));
    errors.fold(0.0, f64::max)
}

#[test]
fn embeddings_of_tiny_models() {
    for name in MODELS {
        let ring = plan(name).start();
        let cases = cases(name);
        let input: Vec<_> = cases.iter().map(|case| &case.prompt_ids).collect();
        let mut worst = 0.0_f64;
        // The second time all but the last page of each prompt is cached.
        for _ in 0..2 {
            let answer = ask(&ring, "/v1/embeddings", &json!({"input": input}));
            worst = worst.max(check_embeddings(&answer, &cases, |case| &case.last));
            let body = json!({"input": input, "pooling": "mean"});
            let answer = ask(&ring, "/v1/embeddings", &body);
            worst = worst.max(check_embeddings(&answer, &cases, |case| &case.mean));
        }
        println!("embeddings-error {name} {worst:.1e} (bar {BAR:.0e})");
        let tickets = ring.decode[0].metric(names::TICKETS, &[]);
        assert!(tickets.is_none_or(|tickets| tickets == 0.0), "no decode server is asked");
        ring.wait_settled();
    }
}

#[test]
fn log_probabilities_of_prompts_of_tiny_models() {
    for name in MODELS {
        let ring = plan(name).start();
        for case in cases(name) {
            check_echo(&ring, &case);
            check_generate(&ring, &case);
            check_named(&ring, &case);
            check_vllm(&ring, &case);
        }
        ring.wait_settled();
    }
}

/// OpenAI's `echo`, with and without an output, whole and streamed.
#[track_caller]
fn check_echo(ring: &Ring, case: &Case) {
    let len = case.prompt_ids.len();
    let body = |made: u32| {
        json!({"prompt": case.prompt_ids, "echo": true, "logprobs": 2, "max_tokens": made,
               "temperature": 0, "ignore_eos": true, "return_tokens_as_token_ids": true})
    };
    for made in [0, 1, 3] {
        let answer = ask(ring, "/v1/completions", &body(made));
        let logprobs = &answer["choices"][0]["logprobs"];
        let told = numbers(&logprobs["token_logprobs"]);
        assert_eq!(told.len(), len + made as usize);
        assert!(logprobs["token_logprobs"][0].is_null() && logprobs["top_logprobs"][0].is_null());
        error(&told[1..len], &case.token_logprobs);
        let names = case.prompt_ids.iter().map(|id| json!(format!("token_id:{id}")));
        let written = logprobs["tokens"].as_array().unwrap();
        assert!(names.eq(written[..len].iter().cloned()));
        let top = logprobs["top_logprobs"].as_array().unwrap();
        assert!(top[1..].iter().all(|top| [2, 3].contains(&top.as_object().unwrap().len())));
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["prompt_tokens"], len);
        assert_eq!(answer["usage"]["completion_tokens"], made);
        let mut streamed = body(made);
        streamed["stream"] = json!(true);
        let mut stream = ring.post("/v1/completions", &streamed).answer().unwrap();
        let (mut text, mut told_in_pieces) = (String::new(), vec![]);
        while let Some(event) = stream.event().unwrap().filter(|event| event != "[DONE]") {
            let choice = serde_json::from_str::<Value>(&event).unwrap()["choices"][0].take();
            text.push_str(choice["text"].as_str().unwrap());
            told_in_pieces.extend(numbers(&choice["logprobs"]["token_logprobs"]));
        }
        assert_eq!(text, answer["choices"][0]["text"].as_str().unwrap());
        error(&told_in_pieces[1..], &told[1..]);
    }
}

/// SGLang's shape: the first token that is told of has no log-probability.
#[track_caller]
fn check_generate(ring: &Ring, case: &Case) {
    let len = case.prompt_ids.len();
    for start in [0, len / 2, len - 1] {
        let body = json!({
            "input_ids": case.prompt_ids, "return_logprob": true, "logprob_start_len": start,
            "top_logprobs_num": 1, "sampling_params": {"max_new_tokens": 2, "ignore_eos": true},
        });
        let meta = ask(ring, "/generate", &body)["meta_info"].take();
        let told = meta["input_token_logprobs"].as_array().unwrap();
        assert!(told[0][0].is_null());
        let logprobs: Vec<f64> = told[1..].iter().map(|row| row[0].as_f64().unwrap()).collect();
        error(&logprobs, &case.token_logprobs[start..]);
        let ids: Vec<_> = told.iter().map(|row| row[1].as_u64().unwrap() as u32).collect();
        assert_eq!(ids, case.prompt_ids[start..]);
        let top = meta["input_top_logprobs"].as_array().unwrap();
        assert!(top[0].is_null() && top[1..].iter().all(|top| top.as_array().unwrap().len() == 1));
        assert_eq!(top.len(), told.len());
        assert_eq!(meta["output_token_logprobs"].as_array().unwrap().len(), 2);
    }
}

/// Tokens that are named by id, beside the prompt's own and beside what was made: the tokens that
/// really follow are among them, and have the log-probabilities that are told of these.
#[track_caller]
fn check_named(ring: &Ring, case: &Case) {
    let body = |ids: &[u64]| {
        json!({
            "input_ids": case.prompt_ids, "return_logprob": true, "logprob_start_len": 0,
            "top_logprobs_num": 2, "token_ids_logprob": ids,
            "sampling_params": {"max_new_tokens": 3, "ignore_eos": true, "temperature": 0},
        })
    };
    let plain = ask(ring, "/generate", &body(&[]));
    assert!(plain["meta_info"].get("output_token_ids_logprobs").is_none());
    let list = |value: &Value| value.as_array().unwrap().clone();
    let last = u64::from(case.prompt_ids[case.prompt_ids.len() - 1]);
    let made = list(&plain["output_ids"]).into_iter().map(|id| id.as_u64().unwrap());
    let ids: Vec<u64> = [last].into_iter().chain(made).collect();
    let meta = ask(ring, "/generate", &body(&ids))["meta_info"].take();
    let told = list(&meta["input_token_ids_logprobs"]);
    assert_eq!(told.len(), case.prompt_ids.len());
    assert!(told[0].is_null());
    for entry in told[1..].iter().chain(&list(&meta["output_token_ids_logprobs"])) {
        assert!(list(entry).iter().map(|row| row[1].as_u64().unwrap()).eq(ids.iter().copied()));
    }
    let own = |rows: &Value| list(rows).last().unwrap()[0].as_f64().unwrap();
    if let [_, .., last] = &told[..] {
        error(&[last[0][0].as_f64().unwrap()], &[own(&meta["input_token_logprobs"])]);
    }
    let made = list(&meta["output_token_ids_logprobs"]).into_iter().enumerate();
    let made: Vec<f64> = made.map(|(at, rows)| rows[at + 1][0].as_f64().unwrap()).collect();
    let own = list(&meta["output_token_logprobs"]);
    let own: Vec<f64> = own.iter().map(|row| row[0].as_f64().unwrap()).collect();
    error(&made, &own);
    assert!(list(&meta["output_top_logprobs"]).iter().all(|top| list(top).len() == 2));
}

/// vLLM's shape, of completions and chat.
#[track_caller]
fn check_vllm(ring: &Ring, case: &Case) {
    let body = json!({"prompt": case.prompt_ids, "prompt_logprobs": 0, "max_tokens": 1});
    let answer = ask(ring, "/v1/completions", &body);
    let told = answer["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert!(told[0].is_null());
    let own = told[1..].iter().zip(&case.prompt_ids[1..]);
    let own: Vec<f64> =
        own.map(|(entry, id)| entry[id.to_string()]["logprob"].as_f64().unwrap()).collect();
    error(&own, &case.token_logprobs);
}

/// Each output has its own seed; each tells of the prompt.
#[test]
fn generate_makes_several_outputs_of_a_prompt() {
    let ring = plan("tiny-qwen3").start();
    let case = cases("tiny-qwen3").remove(1);
    let body = |n: u32, seed: u32| {
        json!({
            "input_ids": case.prompt_ids, "return_logprob": true, "logprob_start_len": 0,
            "sampling_params": {"max_new_tokens": 6, "ignore_eos": true, "n": n,
                                "temperature": 1, "sampling_seed": seed},
        })
    };
    let several = ask(&ring, "/generate", &body(3, 5));
    for (index, seed) in (5..8).enumerate() {
        let alone = ask(&ring, "/generate", &body(1, seed));
        assert_eq!(several[index]["output_ids"], alone["output_ids"]);
        let told = several[index]["meta_info"]["input_token_logprobs"].as_array().unwrap();
        assert_eq!(told.len(), case.prompt_ids.len());
        assert_eq!(several[index]["meta_info"]["prompt_tokens"], case.prompt_ids.len());
    }
    ring.wait_settled();
}

#[test]
fn chat_tells_of_its_prompt() {
    let ring = plan("tiny-qwen3").start();
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let body = json!({"messages": messages, "prompt_logprobs": 1, "max_tokens": 2});
    let answer = ask(&ring, "/v1/chat/completions", &body);
    let told = answer["prompt_logprobs"].as_array().unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], told.len());
    let best = |entry: &Value| entry.as_object().unwrap().values().any(|token| token["rank"] == 1);
    assert!(told[0].is_null() && told[1..].iter().all(best), "{told:?}");
}

#[test]
fn scores_are_what_completions_and_embeddings_say() {
    let ring = plan("tiny-qwen3").start();
    let query = [5, 6, 7];
    let labels = [9, 300];
    let score = |more: Value| {
        let mut body = json!({"query": query, "items": [[8, 9], [10]], "label_token_ids": labels});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = ask(&ring, "/v1/score", &body);
        answer["scores"].as_array().unwrap().iter().map(numbers).collect::<Vec<_>>()
    };
    for (first, prompt) in [(false, [5, 6, 7, 10]), (true, [10, 5, 6, 7])] {
        let found = score(json!({"item_first": first}));
        // The same token, as if it were the prompt's next one.
        for (label, found) in labels.iter().zip(&found[1]) {
            let prompt = [&prompt[..], &[*label]].concat();
            let body = json!({"prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 0});
            let answer = ask(&ring, "/v1/completions", &body);
            let told = numbers(&answer["choices"][0]["logprobs"]["token_logprobs"]);
            assert!((found.ln() - told[4]).abs() < 1e-4, "{found} {told:?}");
        }
        let shares = score(json!({"item_first": first, "apply_softmax": true}));
        assert!((shares[1].iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!((shares[1][0] / shares[1][1] - found[1][0] / found[1][1]).abs() < 1e-4);
    }
    let texts = ["Once upon", "a time", "Once upon"];
    let answer = ask(&ring, "/v1/score", &json!({"text_1": texts[0], "text_2": texts}));
    let data = answer["data"].as_array().unwrap();
    let scores: Vec<f64> = data.iter().map(|one| one["score"].as_f64().unwrap()).collect();
    let vectors = ask(&ring, "/v1/embeddings", &json!({"input": texts}));
    let vectors: Vec<_> = (0..3).map(|at| numbers(&vectors["data"][at]["embedding"])).collect();
    let cosine = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let expected: Vec<f64> = vectors.iter().map(|other| cosine(&vectors[0], other)).collect();
    error(&scores, &expected);
    ring.wait_settled();
}

/// The server stops itself with chunks of a prompt computed; only then is it killed.
#[test]
fn with_retries_nobody_notices_a_prefill_server_that_dies_with_an_embedding() {
    let plan = plan("tiny-qwen3").of(2, 1).on_gateway("retries", 2);
    let mut ring = Ring::new(&plan.on_prefill("chunked_prefill_size", 32));
    ring.decode[0].start(&[]);
    ring.prefill[0].start(&["--stop-at", "prefill-computed:2"]);
    ring.prefill[1].start(&[]);
    ring.gateway.start(&[]);
    ring.wait_ready();
    // A long prompt takes several steps; alone among equals, it goes to the first server.
    let long = [cases("tiny-qwen3").pop().unwrap()];
    let body = json!({"input": long[0].prompt_ids, "pooling": "mean"});
    let call = ring.post("/v1/embeddings", &body);
    ring.prefill[0].wait_stopped();
    ring.prefill[0].kill();
    let reply = call.whole().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    check_embeddings(&reply.json(), &long, |case| &case.mean);
    ring.wait_idle();
    ring.prefill[1].wait_settled();
}

/// A request whose prompt was told of goes round again, without its telling.
#[test]
fn a_replay_tells_nothing_of_the_prompt_twice() {
    let plan = plan("tiny-qwen3").of(1, 2).on_gateway("retries", 2);
    let mut ring = Ring::new(&plan);
    ring.prefill[0].start(&[]);
    ring.decode[0].start(&["--stop-at", "decode-stepped:3"]);
    ring.decode[1].start(&[]);
    ring.gateway.start(&[]);
    ring.wait_ready();
    let case = cases("tiny-qwen3").pop().unwrap();
    let body = json!({
        "input_ids": case.prompt_ids, "return_logprob": true, "logprob_start_len": 0,
        "sampling_params": {"max_new_tokens": 30, "temperature": 0, "ignore_eos": true},
    });
    let calls: Vec<_> = (0..2).map(|_| ring.post("/generate", &body)).collect();
    ring.decode[0].wait_stopped();
    ring.decode[0].kill();
    for call in calls {
        let answer = call.whole().unwrap().json();
        let told = answer["meta_info"]["input_token_logprobs"].as_array().unwrap();
        let logprobs: Vec<f64> = told[1..].iter().map(|row| row[0].as_f64().unwrap()).collect();
        error(&logprobs, &case.token_logprobs);
        assert_eq!(answer["output_ids"].as_array().unwrap().len(), 30);
    }
    ring.wait_idle();
}
