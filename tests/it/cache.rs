//! Cached prefixes over the ring: who hits, who must not, and how it is counted.

use crate::ask::Ask;
use crate::plan::Plan;
use crate::ring::Ring;
use serde_json::{Value, json};

/// `cached_tokens` of a request of this prompt and salt.
#[track_caller]
fn cached(ring: &Ring, prompt: &[u32], salt: &str) -> u64 {
    let outcome = ring.generate(&Ask { salt: salt.into(), ..Ask::greedy(prompt, 4) });
    outcome.assert_done();
    outcome.meta["cached_tokens"].as_u64().unwrap()
}

/// Bytes that prefill writes to decode while `what` runs.
fn shipped(ring: &Ring, what: impl FnOnce()) -> f64 {
    let total = || ring.prefill[0].metric(shared::metrics::TRANSFERRED, &[]).unwrap_or(0.0);
    let before = total();
    what();
    total() - before
}

fn prompt(tokens: u32) -> Vec<u32> {
    (0..tokens).map(|i| (i * 13 + 5) % 512).collect()
}

/// At most all but one token of the prompt, in whole pages.
#[test]
fn a_repeated_prefix_is_counted_in_whole_pages() {
    let ring = Plan::tiny("tiny-qwen3").start();
    assert_eq!(cached(&ring, &prompt(100), ""), 0);
    assert_eq!(cached(&ring, &prompt(100), ""), 96);
    assert_eq!(cached(&ring, &prompt(96), ""), 80, "one token is always computed");
    assert_eq!(cached(&ring, &prompt(97), ""), 96);
    assert_eq!(cached(&ring, &prompt(15), ""), 0, "no whole page");
    let mut other = prompt(100);
    other[40] = 511;
    assert_eq!(cached(&ring, &other, ""), 32, "up to the page that differs");
}

/// Of requests that come together, one computes what they have in common, in several chunks, and
/// one brings it to decode.
#[test]
fn a_prefix_that_is_being_computed_is_waited_for() {
    let ring = Plan::tiny("tiny-qwen3").on_prefill("chunked_prefill_size", 64).start();
    let page_bytes = shipped(&ring, || ring.generate(&Ask::greedy(&[1], 2)).assert_done());
    let ask = |tail: u32| {
        let mut prompt = prompt(300);
        prompt.extend([tail, 7, tail]);
        Ask::greedy(&prompt, 4)
    };
    let asks: Vec<_> = (0..8).map(ask).collect();
    let mut outcomes = vec![];
    let bytes = shipped(&ring, || outcomes = ring.generate_all(&asks, 8));
    assert_eq!(bytes / page_bytes, 26.0, "18 common pages, and each request's last");
    let mut cached: Vec<_> = outcomes.iter().map(|o| o.meta["cached_tokens"].as_u64()).collect();
    cached.sort_unstable();
    let mut expected = [Some(288); 8];
    expected[0] = Some(0);
    assert_eq!(cached, expected, "18 whole pages of 300 tokens");
    ring.wait_settled();
}

#[test]
fn salts_keep_tenants_apart() {
    let ring = Plan::tiny("tiny-qwen3").start();
    assert_eq!(cached(&ring, &prompt(100), "tenant-a"), 0);
    assert_eq!(cached(&ring, &prompt(100), "tenant-b"), 0);
    assert_eq!(cached(&ring, &prompt(100), ""), 0);
    assert_eq!(cached(&ring, &prompt(100), "tenant-a"), 96);
    assert_eq!(cached(&ring, &prompt(100), "tenant-b"), 96);
}

#[test]
fn a_flush_empties_every_cache() {
    let ring = Plan::tiny("tiny-qwen3").of(2, 2).start();
    cached(&ring, &prompt(100), "");
    let tokens = |load: &Value| load["num_tokens"] == 0;
    let idle =
        || ring.get("/v1/loads").json()["loads"].as_array().is_some_and(|l| l.iter().all(tokens));
    crate::process::wait_for("a gateway that knows of idle servers", || idle().then_some(()));
    assert_eq!(cached(&ring, &prompt(100), ""), 96, "routed to where it is cached");
    ring.flush_cache();
    ring.wait_settled();
    for server in ring.servers() {
        crate::process::wait_for("an empty cache", || {
            (server.pages("sealed") == Some(0.0)).then_some(())
        });
    }
    assert_eq!(cached(&ring, &prompt(100), ""), 0);
}

#[test]
fn openai_usage_counts_cached_tokens_streamed_or_not() {
    let ring = Plan::tiny("tiny-qwen3").start();
    let mut body = json!({"prompt": prompt(100), "max_tokens": 4, "temperature": 0});
    let usage = |body: &Value| {
        let usage = ring.post("/v1/completions", body).whole().unwrap().json()["usage"].clone();
        let cached = &usage["prompt_tokens_details"]["cached_tokens"];
        (usage["prompt_tokens"].clone(), cached.as_u64().unwrap())
    };
    assert_eq!(usage(&body), (json!(100), 0));
    assert_eq!(usage(&body), (json!(100), 96));
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let mut answer = ring.post("/v1/completions", &body).answer().unwrap();
    let mut cached = None;
    while let Some(event) = answer.event().unwrap() {
        if event != "[DONE]" {
            let chunk: Value = serde_json::from_str(&event).unwrap();
            let details = &chunk["usage"]["prompt_tokens_details"];
            cached = details["cached_tokens"].as_u64().or(cached);
        }
    }
    assert_eq!(cached, Some(96));
}

/// Prompts that decode holds already are not shipped again, and come out the same.
#[test]
fn held_pages_are_not_shipped_again() {
    let ring = Plan::tiny("tiny-qwen3").start();
    let ask = Ask::greedy(&prompt(161), 8);
    let mut ids = vec![];
    let first = shipped(&ring, || ids = ring.generate(&ask).ids);
    let second = shipped(&ring, || assert_eq!(ring.generate(&ask).ids, ids));
    // 11 pages, of which the last is part-filled; then the last alone.
    assert!(first > 0.0 && (second - first / 11.0).abs() < 1.0, "{first} bytes, then {second}");
}
