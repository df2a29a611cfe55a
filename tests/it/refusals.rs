//! What a ring does not take, and how it says so.

use crate::ask::Ask;
use crate::plan::{Plan, golden_path};
use crate::process::{Member, wait_for};
use crate::ring::Ring;
use serde_json::json;

/// Waits until a member's log has a line with all of `words`.
#[track_caller]
fn wait_log(member: &Member, words: &[&str]) {
    let fits = |line: &str| words.iter().all(|word| line.contains(word));
    wait_for(&format!("{words:?} in the log of {}", member.name), || {
        member.log().lines().any(fits).then_some(())
    });
}

#[test]
fn a_full_queue_is_429_with_retry_after() {
    let ring = Plan::tiny("tiny-qwen3")
        .on_decode("max_total_tokens", 512)
        .on_decode("num_reserved_decode_tokens", 2048)
        .on_gateway("max_queued", 2)
        .start();
    let ask = |seed: u32| Ask::greedy(&[1, 2, 3, seed], 500).streamed().body();
    let mut running = ring.post("/generate", &ask(1)).answer().unwrap();
    running.event().unwrap().expect("a first token");
    let waiting: Vec<_> = (2..4).map(|seed| ring.post("/generate", &ask(seed))).collect();
    wait_for("a queue", || (ring.get("/server_info").json()["queued"] == 2).then_some(()));
    let refused = ring.post("/generate", &ask(4)).whole().unwrap();
    assert_eq!(refused.status, 429);
    assert!(refused.header("retry-after").is_some_and(|s| s.parse::<u32>().is_ok()));
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    drop((running, waiting));
    ring.wait_settled();
    ring.generate(&Ask::greedy(&[1, 2, 3], 4)).assert_done();
}

#[test]
fn what_never_fits_is_400_with_its_field() {
    let ring = Plan::tiny("tiny-qwen3").on_decode("max_total_tokens", 512).start();
    let check = |path: &str, body: serde_json::Value, param: &str| {
        let reply = ring.post(path, &body).whole().unwrap();
        assert_eq!(reply.status, 400, "{}", reply.body);
        let error = &reply.json()["error"];
        assert_eq!(
            (&error["param"], &error["type"]),
            (&json!(param), &json!("invalid_request_error"))
        );
    };
    let prompt = vec![5; 400];
    check("/v1/completions", json!({"prompt": prompt, "max_tokens": 200}), "max_tokens");
    check("/v1/completions", json!({"prompt": vec![5; 600], "max_tokens": 1}), "prompt");
    check("/v1/completions", json!({"prompt": [1, 512], "max_tokens": 1}), "prompt[1]");
    let sampling = json!({"max_new_tokens": 513});
    let body = json!({"input_ids": [1], "sampling_params": sampling});
    check("/generate", body, "sampling_params.max_new_tokens");
    let outcome = ring.generate(&Ask::greedy(&[1; 400], 112));
    outcome.assert_done();
    assert_eq!(outcome.ids.len(), 112, "exactly what fits, fits");
    ring.wait_settled();
}

#[test]
fn a_fleet_that_is_not_ready_is_503() {
    let mut ring = Ring::new(&Plan::tiny("tiny-qwen3"));
    ring.gateway.start(&[]);
    ring.decode[0].start(&[]);
    let url = ring.url();
    wait_for("the gateway", || crate::http::get(url, "/health").ok());
    let reply = ring.post("/generate", &Ask::greedy(&[1], 4).body()).whole().unwrap();
    assert_eq!(reply.status, 503);
    assert!(reply.header("retry-after").is_some());
    assert_eq!(reply.json()["error"]["code"], "not_ready");
    let ready = ring.get("/ready");
    let address = ring.prefill[0].listen.address.to_string();
    assert!(ready.status == 503 && ready.body.contains(&address), "{}", ready.body);
    ring.prefill[0].start(&[]);
    ring.wait_ready();
    ring.generate(&Ask::greedy(&[1], 4)).assert_done();
}

/// A member with another key is a stranger to all others, and each end says why.
#[test]
fn a_wrong_key_never_joins() {
    let mut ring = Ring::new(&Plan::tiny("tiny-qwen3"));
    let key = ring.folder().join("other-key");
    std::fs::write(&key, "a5".repeat(32)).unwrap();
    ring.decode[0].start(&["--key-file", key.to_str().unwrap()]);
    ring.prefill[0].start(&[]);
    ring.gateway.start(&[]);
    wait_log(&ring.decode[0], &["turned down", "key"]);
    wait_log(&ring.prefill[0], &["no link to decode", "key"]);
    let decode = ring.decode[0].listen.address.to_string();
    let ready = wait_for("a reason in /ready", || {
        let ready = ring.get("/ready");
        ready.body.contains("key").then_some(ready)
    });
    assert!(ready.status == 503 && ready.body.contains(&decode), "{}", ready.body);
    ring.decode[0].kill();
    ring.decode[0].start(&[]);
    ring.wait_ready();
}

/// Both ends' values are in the log of each end.
#[track_caller]
fn check_mismatch(plan: &Plan, words: &[&str]) {
    let mut ring = Ring::new(plan);
    ring.start_all();
    wait_log(&ring.decode[0], words);
    wait_log(&ring.prefill[0], words);
    let url = ring.url();
    wait_for("the gateway", || crate::http::get(url, "/health").ok());
    let ready = ring.get("/ready");
    assert_eq!(ready.status, 503, "{}", ready.body);
    ring.servers_mut().for_each(Member::assert_alive);
}

#[test]
fn pages_of_another_type_are_refused_at_join() {
    check_mismatch(&Plan::tiny("tiny-qwen3").on_prefill("dtype", "bf16"), &["F32", "Bf16"]);
}

/// The same file, but not the same numbers.
#[test]
fn weights_kept_otherwise_are_refused_at_join() {
    let plan = Plan::tiny("tiny-qwen3").on_prefill("weights", "q8_0");
    check_mismatch(&plan, &["model"]);
}

#[test]
fn pages_of_another_size_are_refused_at_join() {
    let plan = Plan::tiny("tiny-qwen3").on_prefill("page_size", 32);
    check_mismatch(&plan, &["page_tokens: 16", "page_tokens: 32"]);
}

/// Same shape, other weights.
#[test]
fn another_model_is_refused_at_join() {
    let other = golden_path("tiny-qwen2");
    let plan = Plan::tiny("tiny-qwen3").on_prefill("model", other.to_str().unwrap());
    check_mismatch(&plan, &["model digest differs"]);
}

#[test]
fn settings_that_do_not_fit_end_the_process_with_their_name() {
    let check = |key: &str, value: toml::Value, words: &[&str]| {
        let plan = Plan::tiny("tiny-qwen3").on_decode("transport", "ucx");
        let mut ring = Ring::new(&plan.on_decode(key, value));
        ring.decode[0].start(&[]);
        let status = ring.decode[0].exited();
        assert!(!status.success());
        let log = ring.decode[0].log();
        assert!(words.iter().all(|word| log.contains(word)), "{log}");
    };
    check("model", "/nonexistent/model".into(), &["/nonexistent/model"]);
    check("dtype", "int4".into(), &["dtype", "int4", "bf16"]);
    check("page_sise", 16.into(), &["page_sise"]);
    check("ucx_dir", "/nonexistent".into(), &["ucx", "/nonexistent"]);
}
