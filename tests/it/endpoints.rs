//! Endpoints that ask the whole ring: its health, its loads.

use crate::ask::Ask;
use crate::plan::Plan;
use crate::process::wait_for;
use rustix::process::Signal;

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
