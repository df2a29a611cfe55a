//! A client that goes away in any phase, or has its request aborted, leaves nothing behind.

use crate::ask::{Ask, Outcome};
use crate::plan::Plan;
use crate::process::{Member, wait_for};
use crate::ring::Ring;
use rustix::process::Signal;
use serde_json::json;
use shared::metrics as names;

fn long_ask(seed: u32) -> Ask {
    let prompt: Vec<u32> = (0..60).map(|i| (i * 3 + seed * 41) % 512).collect();
    Ask::greedy(&prompt, 1900).streamed()
}

fn count(member: &Member, name: &str) -> f64 {
    member.metric(name, &[]).unwrap_or(0.0)
}

#[test]
fn in_mid_stream() {
    let ring = Plan::tiny("tiny-qwen3").start();
    let mut answers = Vec::new();
    for seed in 0..4 {
        let call = ring.post("/generate", &long_ask(seed).body());
        let mut answer = call.answer().unwrap();
        assert_eq!(answer.status, 200);
        answer.event().unwrap().expect("a first token");
        answers.push(answer);
    }
    wait_for("running requests", || (count(&ring.decode[0], names::RUNNING) > 0.0).then_some(()));
    drop(answers);
    ring.wait_settled();
}

#[test]
fn before_the_first_byte() {
    let ring = Plan::tiny("tiny-qwen3").start();
    let whole = Ask { stream: false, ..long_ask(1) };
    let call = ring.post("/generate", &whole.body());
    wait_for("a running request", || (count(&ring.decode[0], names::RUNNING) > 0.0).then_some(()));
    drop(call);
    ring.wait_settled();
}

/// The first request has all pages; the others wait in the gateway for a ticket.
#[test]
fn while_queued_for_a_ticket() {
    let ring = Plan::tiny("tiny-qwen3")
        .on_decode("max_total_tokens", 512)
        .on_decode("num_reserved_decode_tokens", 2048)
        .start();
    let first = Ask { max_tokens: 440, ..long_ask(1) };
    let mut running = ring.post("/generate", &first.body()).answer().unwrap();
    running.event().unwrap().expect("a first token");
    let waiting: Vec<_> = (2..6)
        .map(|seed| ring.post("/generate", &Ask { max_tokens: 400, ..long_ask(seed) }.body()))
        .collect();
    wait_for("a queue", || (ring.get("/server_info").json()["queued"] == 4).then_some(()));
    drop(waiting);
    wait_for("an empty queue", || (ring.get("/server_info").json()["queued"] == 0).then_some(()));
    drop(running);
    ring.wait_settled();
}

/// Prefill stands at a stop point with the requests' chunks half computed, or their pages half
/// written, while the clients leave; then it goes on.
#[test]
fn in_prefill() {
    for point in ["prefill-queued", "prefill-computed:2", "prefill-writing:2", "prefill-written"] {
        let mut ring = Ring::new(&Plan::tiny("tiny-qwen3").on_prefill("chunked_prefill_size", 16));
        ring.decode[0].start(&[]);
        ring.prefill[0].start(&["--stop-at", point]);
        ring.gateway.start(&[]);
        ring.wait_ready();
        let calls: Vec<_> =
            (0..3).map(|seed| ring.post("/generate", &long_ask(seed).body())).collect();
        ring.prefill[0].wait_stopped();
        drop(calls);
        wait_for("no call", || (ring.get("/server_info").json()["calls"] == 0).then_some(()));
        ring.prefill[0].signal(Signal::CONT);
        ring.wait_settled();
        let outcome = ring.generate(&Ask::greedy(&[1, 2, 3], 4));
        outcome.assert_done();
    }
}

/// The client of a request that brings a common prefix leaves while others wait behind it to ask
/// for their pages, and decode is frozen.
#[test]
fn in_front_of_others_that_want_its_pages() {
    let mut ring = Ring::new(&Plan::tiny("tiny-qwen3").on_prefill("chunked_prefill_size", 16));
    ring.decode[0].start(&[]);
    ring.prefill[0].start(&["--stop-at", "prefill-opening"]);
    ring.gateway.start(&[]);
    ring.wait_ready();
    let first = ring.post("/generate", &long_ask(0).body());
    ring.prefill[0].wait_stopped();
    let ask = |tail: u32| {
        let mut ask = Ask { max_tokens: 4, ..long_ask(0) };
        ask.prompt.push(tail);
        ring.post("/generate", &ask.body())
    };
    let others: Vec<_> = (1..5).map(ask).collect();
    let info = || ring.get("/server_info").json();
    let granted = |info: serde_json::Value| info["requests"] == 5 && info["queued"] == 0;
    wait_for("tickets", || granted(info()).then_some(()));
    ring.decode[0].signal(Signal::STOP);
    ring.decode[0].wait_stopped();
    ring.prefill[0].signal(Signal::CONT);
    let admitted = || (count(&ring.prefill[0], names::RUNNING) == 5.0).then_some(());
    wait_for("all of them admitted at prefill", admitted);
    drop(first);
    wait_for("four of them", || (info()["requests"] == 4).then_some(()));
    ring.decode[0].signal(Signal::CONT);
    for other in others {
        Outcome::read(other.answer().unwrap()).unwrap().assert_done();
    }
    ring.wait_settled();
}

#[test]
fn by_abort_request() {
    let ring = Plan::tiny("tiny-qwen3").start();
    let ask = |rid: &str, seed: u32, stream: bool| {
        let mut body = Ask { stream, ..long_ask(seed) }.body();
        body["rid"] = json!(rid);
        ring.post("/generate", &body)
    };
    let (whole, streamed) = (ask("one", 1, false), ask("two", 2, true));
    let mut streamed = streamed.answer().unwrap();
    streamed.event().unwrap().expect("a first token");
    wait_for("two requests", || (ring.get("/server_info").json()["requests"] == 2).then_some(()));
    let aborted = ring.post("/abort_request", &json!({"rid": "one"})).whole().unwrap();
    assert_eq!(aborted.json()["aborted"], 1);
    let reply = whole.whole().unwrap();
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (499, &json!("aborted")));

    assert_eq!(ring.abort_all(), 1);
    let mut last = None;
    while let Some(event) = streamed.event().unwrap() {
        last = if event == "[DONE]" { last } else { Some(event) };
    }
    assert!(last.is_some_and(|event| event.contains("aborted")));
    ring.wait_settled();
}

/// The servers notice that the gateway is gone, and its requests with it.
#[test]
fn by_the_death_of_the_gateway() {
    let mut ring = Plan::tiny("tiny-qwen3").start();
    let mut answers: Vec<_> = (0..4)
        .map(|seed| ring.post("/generate", &long_ask(seed).body()).answer().unwrap())
        .collect();
    for answer in &mut answers {
        answer.event().unwrap().expect("a first token");
    }
    ring.gateway.kill();
    ring.servers().for_each(Member::wait_settled);
    ring.servers_mut().for_each(Member::assert_alive);
    ring.gateway.start(&[]);
    ring.wait_ready();
    ring.generate(&Ask::greedy(&[1, 2, 3], 4)).assert_done();
    ring.wait_settled();
}
