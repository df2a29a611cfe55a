//! `priority` over HTTP: who is admitted first at a prefill server that is busy.

use crate::ask::Ask;
use crate::http::Call;
use crate::plan::Plan;
use crate::process::wait_for;
use crate::ring::Ring;
use rustix::process::Signal;
use serde_json::{Value, json};
use shared::metrics as names;

/// A route and a body.
type Waiting = (&'static str, Value);

/// A prompt of 20 pages, 18 of which it has in common with the others.
fn prompt(own: u32) -> Vec<u32> {
    (0..288).map(|i| (i * 13 + 5) % 512).chain((0..32).map(|i| i + own)).collect()
}

fn cached(answer: &Value) -> u64 {
    let usage = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    usage.as_u64().or(answer["meta_info"]["cached_tokens"].as_u64()).unwrap()
}

/// A request has the prefill server's pages until decode, which is frozen, answers it. Two more
/// wait there meanwhile, `first` and then `second`, with a prefix in common: what either finds
/// cached of it, the other was admitted before it and has computed. How much each finds.
#[track_caller]
fn found_cached(policy: &str, first: &Waiting, second: &Waiting) -> (u64, u64) {
    let plan = Plan::tiny("tiny-qwen3")
        .on_prefill("schedule_policy", policy)
        .on_prefill("max_total_tokens", 512)
        .on_prefill("chunked_prefill_size", 64);
    let mut ring = Ring::new(&plan);
    ring.decode[0].start(&[]);
    ring.prefill[0].start(&["--stop-at", "prefill-opening"]);
    ring.gateway.start(&[]);
    ring.wait_ready();
    let post = |(path, body): &Waiting, others: u64| -> Call {
        let call = ring.post(path, body);
        wait_for("its ticket", || {
            let info = ring.get("/server_info").json();
            (info["requests"] == others + 1 && info["queued"] == 0).then_some(())
        });
        call
    };
    let busy = Ask::greedy(&(0..400).map(|i| (i * 7 + 3) % 512).collect::<Vec<_>>(), 4);
    let busy = ring.post("/generate", &busy.body());
    ring.prefill[0].wait_stopped();
    let waiting = [post(first, 1), post(second, 2)];
    ring.decode[0].signal(Signal::STOP);
    ring.decode[0].wait_stopped();
    ring.prefill[0].signal(Signal::CONT);
    let count = |name| ring.prefill[0].metric(name, &[]);
    wait_for("one admitted and two that wait", || {
        let both = (count(names::RUNNING), count(names::WAITING));
        (both == (Some(1.0), Some(2.0))).then_some(())
    });
    ring.decode[0].signal(Signal::CONT);
    assert_eq!(busy.whole().unwrap().status, 200);
    let [first, second] = waiting.map(|call| {
        let reply = call.whole().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
        cached(&reply.json())
    });
    ring.wait_settled();
    (first, second)
}

#[test]
fn the_later_request_goes_first_where_its_priority_is_higher() {
    let completions = |own, priority: i32| {
        let body = json!({"prompt": prompt(own), "max_tokens": 2, "priority": priority});
        ("/v1/completions", body)
    };
    let generate = |own, priority: i32| {
        let mut body = Ask::greedy(&prompt(own), 2).body();
        body["priority"] = json!(priority);
        ("/generate", body)
    };
    let first = found_cached("priority", &completions(100, 1), &generate(200, 5));
    assert_eq!(first, (288, 0), "the second is computed first");
    let equal = found_cached("priority", &completions(100, 5), &generate(200, 5));
    assert_eq!(equal, (0, 288), "among equals the first");
    let other = found_cached("fcfs", &completions(100, 1), &generate(200, 5));
    assert_eq!(other, (0, 288), "the policy does not look at it");
}
