//! Rings whose course can be worked out by hand, and a random one that must add up.

use super::*;
use crate::table::tests::steps;
use crate::trace::Entry;
use shared::sched::prefill::PrefillPolicy;

fn ring(prefills: usize, decodes: usize, pool_tokens: u32) -> Ring {
    Ring {
        prefills,
        decodes,
        prefill: PrefillLimits {
            policy: PrefillPolicy::Lpm,
            chunk_tokens: 512,
            page_tokens: 16,
            pool_tokens: 64_000,
        },
        decode: DecodeLimits { rows_max: 64, growth_tokens: 32, page_tokens: 16, pool_tokens },
    }
}

fn table() -> Arc<StepTable> {
    Arc::new(StepTable::new(steps()).unwrap())
}

fn entry(ms: u64, input: usize, output: usize, blocks: &[u64]) -> Entry {
    Entry { at: Duration::from_millis(ms), input, output, blocks: blocks.to_vec() }
}

fn ms(duration: Option<Duration>) -> u128 {
    (duration.unwrap() + Duration::from_micros(500)).as_millis()
}

#[test]
fn a_lone_request_takes_its_steps_and_its_handoff() {
    let load = Load::of(&[entry(0, 500, 11, &[])], 1);
    let outcome = run(&ring(1, 1, 64_000), &table(), &load, None);
    let [course] = outcome.courses[..] else { panic!("one request") };
    assert_eq!(ms(course.ttft), 51, "50 ms of step, 1.5 of handoff");
    assert_eq!(course.tokens, 11);
    let gaps: u32 = outcome.gaps.iter().map(|gap| gap.1).sum();
    assert_eq!((gaps, ms(course.tpot())), (10, 2));
}

#[test]
fn prompts_wait_for_the_step_before_and_share_the_next() {
    let load =
        Load::of(&[entry(0, 500, 1, &[]), entry(10, 100, 1, &[]), entry(20, 100, 1, &[])], 1);
    let outcome = run(&ring(1, 1, 64_000), &table(), &load, None);
    let ttft: Vec<_> = outcome.courses.iter().map(|course| ms(course.ttft)).collect();
    // The second and third are one step of 20 ms after the first's 50.
    assert_eq!(ttft, [51, 61, 51]);
    let two = run(&ring(2, 1, 64_000), &table(), &load, None);
    let ttft: Vec<_> = two.courses.iter().map(|course| ms(course.ttft)).collect();
    assert_eq!(ttft, [51, 11, 11], "another server is idle");
    let prefill: Vec<_> = two.courses.iter().map(|course| course.prefill).collect();
    assert_eq!(prefill, [0, 1, 1]);
}

#[test]
fn a_prefix_is_computed_once_and_where_it_was() {
    let blocks = [1, 2];
    let load = Load::of(&[entry(0, 1100, 1, &blocks), entry(900, 1100, 1, &blocks)], 1);
    let outcome = run(&ring(2, 1, 64_000), &table(), &load, None);
    assert_eq!(outcome.cached, 1024.0 / 2200.0);
    assert!(outcome.courses[1].ttft < outcome.courses[0].ttft);
}

#[test]
fn whatever_the_pool_every_request_ends_with_all_its_tokens() {
    let entries: Vec<_> = (0..200_u64)
        .map(|n| {
            let (input, output) = (1 + (n * 37 % 700) as usize, 1 + (n * 53 % 90) as usize);
            entry(n * 3, input, output, &[n % 5, 100 + n % 11])
        })
        .collect();
    let load = Load::of(&entries, 1);
    for (prefills, decodes, pool) in [(1, 1, 1600), (2, 3, 1024), (3, 1, 64_000)] {
        let outcome = run(&ring(prefills, decodes, pool), &table(), &load, None);
        let tokens = |(course, ask): (&Course, &Ask)| (course.tokens, ask.output);
        let all = outcome.courses.iter().zip(&load.asks).map(tokens);
        assert!(all.clone().all(|(made, asked)| made == asked), "{:?}", all.collect::<Vec<_>>());
        assert!(outcome.pages_max <= pool / 16);
        let again = run(&ring(prefills, decodes, pool), &table(), &load, None);
        assert_eq!((again.took, again.gaps), (outcome.took, outcome.gaps));
    }
}

#[test]
fn what_no_pool_holds_is_refused_and_late_ones_end_it() {
    let entries: Vec<_> = (0..50).map(|n| entry(n, 400, 2, &[])).collect();
    let load = Load::of(&[entry(0, 5000, 2, &[])], 1);
    assert_eq!(run(&ring(1, 1, 1600), &table(), &load, None).refused, 1);
    let (ttft, itl) = (Duration::from_millis(60), Duration::from_millis(50));
    let targets = |bad_max| Some(Targets { ttft, itl, bad_max });
    let load = Load::of(&entries, 1);
    assert!(run(&ring(1, 1, 64_000), &table(), &load, targets(5)).given_up);
    assert!(!run(&ring(50, 1, 64_000), &table(), &load, targets(5)).given_up);
}
