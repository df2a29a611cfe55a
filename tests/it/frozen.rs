//! SIGSTOP of a server: its requests end with a typed error, what it could still write stays
//! quarantined until it resumes or is dead, and then the ring is whole again.

use crate::ask::{Ask, Outcome};
use crate::plan::Plan;
use crate::process::{Member, wait_for};
use crate::ring::Ring;
use rustix::process::Signal;

fn asks() -> Vec<Ask> {
    let ask = |seed: u32| {
        let prompt: Vec<u32> = (0..120).map(|i| (i * 5 + seed * 37) % 512).collect();
        Ask { stream: seed.is_multiple_of(2), ..Ask::greedy(&prompt, 40) }
    };
    (0..4).map(ask).collect()
}

/// A ring in which silence is noticed soon, and a server that stops itself at `point`.
#[track_caller]
fn ring(transport: &str, point: &str) -> Ring {
    ring_in(Plan::tiny("tiny-qwen3").servers("transport", transport), point)
}

#[track_caller]
fn ring_in(plan: Plan, point: &str) -> Ring {
    let plan = plan
        .everyone("heartbeat_ms", 100)
        .everyone("silence_ms", 1500)
        .servers("transfer_deadline_ms", 1500)
        .on_prefill("chunked_prefill_size", 32);
    let mut ring = Ring::new(&plan);
    let role = point.split('-').next().unwrap();
    for member in ring.servers_mut() {
        let flags: &[&str] = &["--stop-at", point];
        member.start(if member.name.starts_with(role) { flags } else { &[] });
    }
    ring.gateway.start(&[]);
    ring.wait_ready();
    ring
}

/// Sends requests, waits until `victim` stands still, reads the errors, and waits until all of the
/// ring has noticed.
#[track_caller]
fn fail_all(ring: &Ring, victim: &Member) {
    let asks = asks();
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let url = ring.url();
        let pending: Vec<_> =
            asks.iter().map(|ask| scope.spawn(move || ask.send(url).unwrap())).collect();
        victim.wait_stopped();
        pending.into_iter().map(|ask| ask.join().unwrap()).collect()
    });
    // One that had left `victim` before may be whole.
    outcomes.iter().for_each(|outcome| outcome.assert_whole_or_typed_error(40));
    assert!(outcomes.iter().any(|outcome| outcome.error.is_some()), "nobody noticed");
    wait_for("a ring that is not ready", || (ring.get("/ready").status == 503).then_some(()));
}

#[track_caller]
fn assert_serves(ring: &mut Ring) {
    ring.wait_ready();
    // A server that resumes takes its old links for good until it hears otherwise.
    let serves = || ring.generate(&asks()[0]).error.is_none().then_some(());
    wait_for("a request that is served", serves);
    let outcomes = ring.generate_all(&asks(), 4);
    outcomes.iter().for_each(Outcome::assert_done);
    ring.wait_settled();
}

#[track_caller]
fn wait_quarantined(decode: &Member) {
    wait_for("quarantined pages", || {
        decode.pages("quarantined").filter(|&pages| pages > 0.0).map(drop)
    });
}

#[test]
fn pages_of_a_frozen_writer_wait_until_it_resumes() {
    let mut ring = ring("ucx", "prefill-writing:2");
    fail_all(&ring, &ring.prefill[0]);
    wait_quarantined(&ring.decode[0]);
    // Decode has noticed the silence and failed the requests; by time alone nothing is freed.
    ring.wait_idle();
    let held = ring.decode[0].pages("quarantined");
    assert!(held.is_some_and(|pages| pages > 0.0), "{held:?}");
    ring.prefill[0].signal(Signal::CONT);
    ring.decode[0].wait_settled();
    assert_serves(&mut ring);
}

#[test]
fn pages_of_a_frozen_writer_wait_until_it_is_dead() {
    quarantine_until_dead(Plan::tiny("tiny-qwen3").servers("transport", "ucx"));
}

#[track_caller]
pub fn quarantine_until_dead(plan: Plan) {
    let mut ring = ring_in(plan, "prefill-writing:2");
    fail_all(&ring, &ring.prefill[0]);
    wait_quarantined(&ring.decode[0]);
    ring.prefill[0].kill();
    ring.decode[0].wait_settled();
    ring.prefill[0].start(&[]);
    assert_serves(&mut ring);
}

/// The receiver writes: closing its socket is the end of the writer.
#[test]
fn over_tcp_a_frozen_writer_quarantines_nothing_for_long() {
    let mut ring = ring("tcp", "prefill-writing:2");
    fail_all(&ring, &ring.prefill[0]);
    ring.decode[0].wait_settled();
    ring.prefill[0].signal(Signal::CONT);
    assert_serves(&mut ring);
}

#[test]
fn a_frozen_decode_server_comes_back() {
    for (transport, point) in [("ucx", "decode-stepped:3"), ("tcp", "decode-opened:2")] {
        let mut ring = ring(transport, point);
        fail_all(&ring, &ring.decode[0]);
        ring.prefill[0].wait_settled();
        ring.decode[0].signal(Signal::CONT);
        assert_serves(&mut ring);
    }
}

/// Its servers take it for dead and free what it had; its clients hear of it when it goes on.
#[test]
fn a_frozen_gateway_holds_no_pages_and_comes_back() {
    let plan = Plan::tiny("tiny-qwen3").everyone("heartbeat_ms", 100).everyone("silence_ms", 1500);
    let mut ring = plan.start();
    let streams: Vec<_> = (0..4)
        .map(|seed| {
            let ask = Ask { max_tokens: 1900, ..asks()[seed].clone() }.streamed();
            let mut answer = ring.post("/generate", &ask.body()).answer().unwrap();
            answer.event().unwrap().expect("a first token");
            answer
        })
        .collect();
    ring.gateway.signal(Signal::STOP);
    ring.servers().for_each(Member::wait_settled);
    ring.gateway.signal(Signal::CONT);
    for answer in streams {
        Outcome::read(answer).unwrap().assert_typed_error();
    }
    assert_serves(&mut ring);
}
