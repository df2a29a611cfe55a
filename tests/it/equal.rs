//! The ring makes the tokens that one bare engine makes of the same request, whatever shares its
//! batches, its caches and its pages.

use crate::ask::{Ask, Outcome, engine, engine_with};
use crate::plan::{Plan, demo_model, golden_path, long};
use crate::random::{Random, Shape};
use crate::ring::Ring;
use model::equal::Agreement;
use model::sample::Drawn;
use model::{CpuEngine, WeightFormat};

const TINY: Shape = Shape { vocab: 512, page: 16, longest: 140, output: 24 };

fn rounds() -> usize {
    if long() { 400 } else { 100 }
}

/// Random requests with what the bare engine makes of them. A part of them stops at a token that
/// is known to come: the first one, as an end-of-text would, or a later one.
fn with_reference(engine: &mut CpuEngine, asks: Vec<Ask>) -> Vec<(Ask, Vec<Drawn>)> {
    let mut random = Random::new(7);
    let stopping = |mut ask: Ask| {
        let mut drawn = ask.reference(engine);
        let stop = match random.below(100) {
            0..15 => 0,
            15..30 => random.below(u32::try_from(drawn.len()).unwrap()) as usize,
            _ => return (ask, drawn),
        };
        let stop = drawn[stop].token.id;
        ask.stop_ids = vec![stop.get()];
        if random.percent(30) {
            // It would have come: until then the tokens are others.
            ask.min_tokens = 1 + random.below(ask.max_tokens);
            let drawn = ask.reference(engine);
            assert!(drawn.iter().take(ask.min_tokens as usize).all(|d| d.token.id != stop));
            return (ask, drawn);
        }
        let first = drawn.iter().position(|drawn| drawn.token.id == stop).unwrap();
        drawn.truncate(first + 1);
        (ask, drawn)
    };
    asks.into_iter().map(stopping).collect()
}

/// Asks all of them at once, and again one after the other, when every prompt is cached.
#[track_caller]
fn check(ring: &Ring, cases: &[(Ask, Vec<Drawn>)], width: usize) {
    let asks: Vec<_> = cases.iter().map(|(ask, _)| ask.clone()).collect();
    let outcomes = ring.generate_all(&asks, width);
    let parted = judge_all(cases, &outcomes);
    assert!(parted * 10 <= cases.len(), "{parted} of {} part at ties", cases.len());
    let some = asks.len().min(30);
    let again = ring.generate_all(&asks[..some], 1);
    judge_all(&cases[..some], &again);
    let cached: u64 = again.iter().map(|o| o.meta["cached_tokens"].as_u64().unwrap()).sum();
    assert!(cached > 0, "repeated prompts hit no cache");
    ring.wait_settled();
}

#[track_caller]
fn judge_all(cases: &[(Ask, Vec<Drawn>)], outcomes: &[Outcome]) -> usize {
    let agree = |((ask, drawn), outcome): (&(Ask, Vec<Drawn>), &Outcome)| {
        let reason = &outcome.meta["finish_reason"]["type"];
        let stops = drawn.last().is_some_and(|last| ask.stop_ids.contains(&last.token.id.get()));
        let agreement = outcome.assert_equal(drawn);
        let expected = if stops { "stop" } else { "length" };
        assert!(agreement != Agreement::Same || reason == expected, "{ask:?}: {outcome:?}");
        agreement
    };
    let agreements = cases.iter().zip(outcomes).map(agree);
    agreements.filter(|agreement| *agreement != Agreement::Same).count()
}

#[track_caller]
fn check_tiny(ring: &Ring, model: &str, seed: u64) {
    let asks = TINY.asks(&mut Random::new(seed), rounds());
    let cases = with_reference(&mut engine(&golden_path(model), 512), asks);
    check(ring, &cases, 16);
}

#[test]
fn three_processes_over_ucx() {
    let ring = Plan::tiny("tiny-qwen3").servers("transport", "ucx").start();
    check_tiny(&ring, "tiny-qwen3", 1);
    // UCX patches libc under the feet of running threads, unless told not to.
    for server in ring.servers() {
        assert_eq!(server.patched_libc_kib(), 0, "{}", server.name);
    }
}

#[test]
fn three_processes_over_tcp() {
    let ring = Plan::tiny("tiny-llama3").servers("transport", "tcp").start();
    check_tiny(&ring, "tiny-llama3", 2);
}

#[test]
fn one_process_over_loopback() {
    let ring = Plan::tiny("tiny-qwen2").start_in_one_process();
    check_tiny(&ring, "tiny-qwen2", 3);
}

#[test]
fn small_chunks_a_small_batch_and_little_memory() {
    let plan = Plan::tiny("tiny-qwen3")
        .servers("max_total_tokens", 640)
        .on_prefill("chunked_prefill_size", 32)
        .on_prefill("schedule_policy", "fcfs")
        .on_decode("max_running_requests", 5);
    check_tiny(&plan.start(), "tiny-qwen3", 4);
}

#[test]
fn several_servers_of_each_role() {
    let ring = Plan::tiny("tiny-qwen3").of(2, 2).start();
    check_tiny(&ring, "tiny-qwen3", 5);
    let busy = |member: &crate::process::Member| member.metric(shared::metrics::STEPS, &[]);
    for server in ring.servers() {
        assert!(busy(server).is_some_and(|steps| steps > 0.0), "{} was left idle", server.name);
    }
}

#[test]
fn the_demo_model() {
    check_demo(WeightFormat::Bf16, "bf16");
}

/// Its matrices stay quantised, and prefill, decode and the bare engine compute with the same.
#[test]
fn the_demo_model_as_stored() {
    check_demo(WeightFormat::Auto, "auto");
}

#[track_caller]
fn check_demo(weights: WeightFormat, name: &str) {
    let shape = Shape { vocab: 49_152, page: 16, longest: 100, output: 10 };
    let asks = shape.asks(&mut Random::new(6), if long() { 50 } else { 8 });
    let cases = with_reference(&mut engine_with(&demo_model(), 512, weights), asks);
    let plan = Plan::new(demo_model()).servers("weights", name).servers("threads", 2);
    check(&plan.start(), &cases, 8);
}
