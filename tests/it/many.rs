//! Several servers of each role: one dies, the others serve on; a request that a dead server had is
//! sent round again where the gateway may.

use crate::ask::{Ask, Outcome, engine};
use crate::plan::{Plan, golden_path};
use crate::process::{Member, wait_for};
use crate::ring::Ring;
use shared::metrics as names;

fn asks(count: u32) -> Vec<Ask> {
    let ask = |seed: u32| {
        let prompt: Vec<u32> = (0..50).map(|i| (i * 11 + seed * 29) % 512).collect();
        let mut ask = Ask::greedy(&prompt, 300).streamed();
        if seed.is_multiple_of(2) {
            ask.sampling.temperature = 0.9;
            ask.sampling.seed = u64::from(seed);
        }
        ask
    };
    (0..count).map(ask).collect()
}

/// Asks, and kills `victim` once it computes for them.
fn kill_in_the_middle(
    ring: &mut Ring,
    asks: &[Ask],
    victim: impl FnOnce(&mut Ring) -> &mut Member,
) -> Vec<Outcome> {
    std::thread::scope(|scope| {
        let url = ring.url();
        let pending: Vec<_> =
            asks.iter().map(|ask| scope.spawn(move || ask.send(url).unwrap())).collect();
        let victim = victim(ring);
        wait_for("a busy server", || {
            (victim.metric(names::COMPUTED_TOKENS, &[])? >= 50.0).then_some(())
        });
        victim.kill();
        pending.into_iter().map(|ask| ask.join().unwrap()).collect()
    })
}

#[test]
fn a_dead_decode_server_takes_only_its_own_requests_along() {
    let mut ring = Plan::tiny("tiny-qwen3").of(2, 2).start();
    let outcomes = kill_in_the_middle(&mut ring, &asks(8), |ring| &mut ring.decode[0]);
    let (done, failed): (Vec<_>, Vec<_>) = outcomes.iter().partition(|o| o.error.is_none());
    done.iter().for_each(|outcome| outcome.assert_done());
    failed.iter().for_each(|outcome| outcome.assert_typed_error());
    assert!(!done.is_empty() && !failed.is_empty(), "{} done, {} failed", done.len(), failed.len());
    let after = ring.generate_all(&asks(8), 8);
    after.iter().for_each(Outcome::assert_done);
    ring.decode[0].start(&[]);
    ring.wait_ready();
    ring.wait_settled();
}

#[test]
fn with_retries_nobody_notices_a_dead_decode_server() {
    let mut ring = Plan::tiny("tiny-qwen3").of(2, 2).on_gateway("retries", 2).start();
    check_replayed(&mut ring, |ring| &mut ring.decode[0]);
}

#[test]
fn with_retries_nobody_notices_a_dead_prefill_server() {
    let mut ring = Plan::tiny("tiny-qwen3").of(2, 2).on_gateway("retries", 2).start();
    check_replayed(&mut ring, |ring| &mut ring.prefill[0]);
}

/// Every request ends as if nothing had happened.
#[track_caller]
fn check_replayed(ring: &mut Ring, victim: impl FnOnce(&mut Ring) -> &mut Member) {
    let asks = asks(8);
    let outcomes = kill_in_the_middle(ring, &asks, victim);
    let mut engine = engine(&golden_path("tiny-qwen3"), 512);
    for (ask, outcome) in asks.iter().zip(&outcomes) {
        outcome.assert_equal(&ask.reference(&mut engine));
        assert_eq!(outcome.meta["completion_tokens"], 300);
    }
    ring.wait_idle();
}
