//! Decode runs out of pages in mid-generation: the youngest give theirs back and go round again,
//! and no client sees more of it than a pause.

use crate::ask::{Ask, engine};
use crate::plan::{Plan, golden_path, long};
use crate::random::Random;
use shared::metrics as names;

/// Requests of up to 260 tokens over 40 pages, none of them with growth reserved, and more of them
/// than there are pages for: those that are retracted go before those that wait.
#[test]
fn retracted_requests_end_as_if_nothing_had_happened() {
    let ring = Plan::tiny("tiny-qwen3")
        .on_decode("max_total_tokens", 640)
        .on_decode("num_reserved_decode_tokens", 0)
        .start();
    let mut random = Random::new(11);
    let asks: Vec<_> = (0..if long() { 96 } else { 24 })
        .map(|index| {
            let prompt: Vec<u32> = (0..20 + random.below(40)).map(|_| random.below(512)).collect();
            let mut ask = Ask { stream: index % 2 == 0, ..Ask::greedy(&prompt, 200) };
            if index % 3 == 0 {
                ask.sampling.temperature = 0.8;
                ask.sampling.seed = index;
            }
            ask
        })
        .collect();
    let mut engine = engine(&golden_path("tiny-qwen3"), 512);
    let outcomes = ring.generate_all(&asks, 24);
    for (ask, outcome) in asks.iter().zip(&outcomes) {
        outcome.assert_equal(&ask.reference(&mut engine));
        assert_eq!(outcome.meta["completion_tokens"], 200);
        assert_eq!(outcome.meta["prompt_tokens"], ask.prompt.len());
    }
    let retracted = ring.decode[0].metric(names::RETRACTED, &[]);
    assert!(retracted.is_some_and(|count| count > 0.0), "nothing was retracted: {retracted:?}");
    ring.wait_settled();
}
