//! SIGTERM: no new work, what runs is finished, the process ends well.

use crate::ask::{Ask, Outcome};
use crate::http::Answer;
use crate::plan::Plan;
use crate::process::{Member, wait_for};
use crate::ring::Ring;
use rustix::process::Signal;

fn streaming(ring: &Ring, count: u32) -> Vec<Answer> {
    let stream = |seed: u32| {
        let prompt: Vec<u32> = (0..40).map(|i| (i * 3 + seed * 41) % 512).collect();
        let ask = Ask::greedy(&prompt, 300).streamed();
        let mut answer = ring.post("/generate", &ask.body()).answer().unwrap();
        answer.event().unwrap().expect("a first token");
        answer
    };
    (0..count).map(stream).collect()
}

#[track_caller]
fn assert_whole(answers: Vec<Answer>) {
    for answer in answers {
        let outcome = Outcome::read(answer).unwrap();
        outcome.assert_done();
        assert_eq!(outcome.ids.len(), 300);
    }
}

#[track_caller]
fn ends_well(member: &mut Member) {
    let status = member.exited();
    assert!(status.success(), "{}: {status}", member.name);
}

#[test]
fn decode_finishes_its_streams() {
    let mut ring = Plan::tiny("tiny-qwen3").start();
    let answers = streaming(&ring, 3);
    ring.decode[0].signal(Signal::TERM);
    assert_whole(answers);
    ends_well(&mut ring.decode[0]);
    ring.prefill[0].wait_settled();
    ring.decode[0].start(&[]);
    ring.wait_ready();
    ring.generate(&Ask::greedy(&[1, 2, 3], 4)).assert_done();
}

#[test]
fn a_draining_decode_server_takes_nothing_new() {
    let mut ring = Plan::tiny("tiny-qwen3").of(1, 2).start();
    let answers = streaming(&ring, 4);
    ring.decode[0].signal(Signal::TERM);
    let asks: Vec<_> = (0..8).map(|seed| Ask::greedy(&[1, 2, 3, seed], 4)).collect();
    for ask in &asks {
        ring.generate(ask).assert_done();
    }
    assert_whole(answers);
    ends_well(&mut ring.decode[0]);
    ring.decode[1].wait_settled();
}

#[test]
fn prefill_hands_over_what_it_has() {
    let mut ring = Plan::tiny("tiny-qwen3").start();
    let answers = streaming(&ring, 3);
    ring.prefill[0].signal(Signal::TERM);
    ends_well(&mut ring.prefill[0]);
    assert_whole(answers);
    ring.decode[0].wait_settled();
    ring.prefill[0].start(&[]);
    ring.wait_ready();
    ring.generate(&Ask::greedy(&[1, 2, 3], 4)).assert_done();
}

#[test]
fn the_gateway_finishes_its_answers() {
    let mut ring = Plan::tiny("tiny-qwen3").start();
    let answers = streaming(&ring, 3);
    ring.gateway.signal(Signal::TERM);
    let url = ring.url();
    wait_for("a closed port", || crate::http::get(url, "/health").is_err().then_some(()));
    assert_whole(answers);
    ends_well(&mut ring.gateway);
    ring.servers().for_each(Member::wait_settled);
}

#[test]
fn the_ring_in_one_process_drains_front_to_back() {
    let mut ring = Plan::tiny("tiny-qwen3").start_in_one_process();
    let answers = streaming(&ring, 3);
    ring.gateway.signal(Signal::TERM);
    assert_whole(answers);
    ends_well(&mut ring.gateway);
}
