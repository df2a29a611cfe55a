//! Endpoints that ask the whole ring: its health, its loads.

use crate::ask::Ask;
use crate::plan::Plan;
use crate::process::wait_for;
use rustix::process::Signal;
use serde_json::json;

#[test]
fn health_generate_is_tokens_of_the_whole_ring_or_503_in_time() {
    let ring = Plan::tiny("tiny-qwen3")
        .on_gateway("health_ms", 300)
        .on_gateway("silence_ms", 60_000)
        .start();
    let reply = ring.get("/health_generate");
    assert_eq!(reply.status, 200, "{}", reply.body);
    ring.decode[0].signal(Signal::STOP);
    assert_eq!(ring.get("/health").status, 200);
    let reply = ring.get("/health_generate");
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &"not_ready".into()));
    ring.decode[0].signal(Signal::CONT);
    wait_for("health", || (ring.get("/health_generate").status == 200).then_some(()));
    ring.wait_settled();
}

#[test]
fn loads_count_requests_and_pages_of_every_server() {
    let ring = Plan::tiny("tiny-qwen3").start();
    let ask = Ask::greedy(&[1, 2, 3], 1500).streamed();
    let mut running = ring.post("/generate", &ask.body()).answer().unwrap();
    running.event().unwrap().expect("a first token");
    wait_for("a running request in the loads", || {
        let loads = ring.get("/v1/loads").json();
        let decode = &loads["loads"][1];
        let pages = decode["pages_used"].as_u64()? + decode["pages_free"].as_u64()?;
        let page_size = decode["page_size"].as_u64()?;
        assert_eq!(decode["max_total_num_tokens"].as_u64(), Some(pages * page_size));
        assert_eq!(
            (&loads["loads"][0]["role"], &decode["role"]),
            (&"prefill".into(), &"decode".into())
        );
        let runs = decode["num_running_reqs"] == 1 && loads["aggregate"]["total_reqs"] == 1;
        (runs && decode["pages_used"].as_u64()? > 0).then_some(())
    });
    drop(running);
    wait_for("idle loads", || {
        (ring.get("/v1/loads").json()["aggregate"]["total_reqs"] == 0).then_some(())
    });
    ring.wait_settled();
}

#[test]
fn a_prefill_servers_load_counts_the_step_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("table.json");
    let point = |ms: f64| json!([{"tokens": 1, "context": 0.0, "ms": ms}]);
    let steps = json!({
        "about": "a tenth of a second for a token of a prompt", "overlaps": false,
        "pool_tokens": 8192, "page_tokens": 16, "chunk_tokens": 512, "rows_max": 8,
        "prefill": point(100.0), "decode": point(1.0), "handoff": [{"tokens": 0, "ms": 0.0}],
    });
    std::fs::write(&table, steps.to_string()).unwrap();
    let device = format!("sim:{}", table.display());
    let ring = Plan::tiny("tiny-qwen3").servers("device", device).start();
    let prompt: Vec<u32> = (1..=20).collect();
    let ask = Ask::greedy(&prompt, 2);
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| ask.send(ring.url()).unwrap());
        // Its own word, and not what the gateway counted when it sent the prompt.
        let tokens = wait_for("a prompt that is computed in the loads", || {
            let prefill = &ring.get("/v1/loads").json()["loads"][0];
            let computes = prefill["num_running_reqs"] == 1 && prefill["num_tokens"] != 0;
            computes.then(|| prefill["num_tokens"].clone())
        });
        assert_eq!(tokens, 20);
        answer.join().unwrap().assert_done();
    });
    ring.wait_settled();
}
