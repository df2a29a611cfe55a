//! Tokens come of pages alone, in whatever steps they are made, and steps take their time.

use super::*;
use crate::engine::Sample;
use checkpoint::Checkpoint;
use plan::table::{Handoff, Point, Steps};
use shared::ids::PageId;
use shared::request::Sampling;
use std::path::Path;

const STEP: Duration = Duration::from_millis(4);

fn engine(overlaps: bool) -> SimEngine {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checkpoint = Checkpoint::open(root.join("../../tests/golden/tiny-qwen3")).unwrap();
    let point = Point { tokens: 1, context: 0.0, ms: STEP.as_secs_f64() * 1e3 };
    let table = StepTable::new(Steps {
        about: "made up".to_owned(),
        overlaps,
        pool_tokens: 64,
        page_tokens: 4,
        chunk_tokens: 64,
        rows_max: 8,
        prefill: vec![point, Point { tokens: 100, ..point }],
        decode: vec![point, Point { tokens: 8, ..point }],
        handoff: vec![Handoff { tokens: 0, ms: 0.0 }],
    });
    let (table, dtype) = (table.unwrap(), KvDtype::Bf16);
    let config = SimConfig { table, dtype, pages: 16, page_tokens: 4, memory: None };
    SimEngine::new(&checkpoint, config).unwrap()
}

fn row(input: Input, start: u32, pages: &[u32]) -> Row {
    let sample = Some(Sample::new(Sampling::GREEDY, 0));
    let pages = pages.iter().map(|&page| PageId::new(page)).collect();
    Row { input, start, pages, sample, reads: None }
}

fn ids(ids: &[u32]) -> Input {
    Input::Tokens(ids.iter().map(|&id| TokenId::new(id)).collect())
}

fn step(engine: &mut SimEngine, rows: Vec<Row>) -> Vec<u32> {
    engine.launch(&Batch { rows }).unwrap();
    let tokens = engine.collect().unwrap();
    tokens.into_iter().flatten().map(|token| token.id.get()).collect()
}

#[test]
fn a_token_depends_on_its_sequence_and_not_on_steps_pages_or_neighbours() {
    let mut engine = engine(false);
    let prompt = [5, 6, 7, 8, 9, 10];
    let whole = step(&mut engine, vec![row(ids(&prompt), 0, &[0, 1])]);
    let other = row(ids(&[3, 3]), 0, &[9]);
    step(&mut engine, vec![row(ids(&prompt[..4]), 0, &[3]), other]);
    let cut = step(&mut engine, vec![row(ids(&prompt[4..]), 4, &[3, 5])]);
    assert_eq!(whole, cut);
    // Pages copied to another place, as a transport does it.
    let mut page = vec![0; engine.kv.geometry().page_bytes()];
    for (from, to) in [(3, 12), (5, 13)] {
        engine.kv.read(PageId::new(from), 0..page.len(), &mut page);
        engine.kv.write(PageId::new(to), 0..page.len(), &page);
    }
    let next = step(&mut engine, vec![row(ids(&whole), 6, &[0, 1])]);
    let moved = step(&mut engine, vec![row(ids(&whole), 6, &[12, 13])]);
    assert_eq!(next, moved);
    let wrong = step(&mut engine, vec![row(ids(&whole), 6, &[12, 9])]);
    assert_ne!(next, wrong, "a wrong page is noticed");
}

#[test]
fn a_step_takes_its_time_and_the_next_begins_at_its_end() {
    let mut engine = engine(true);
    let begun = Instant::now();
    engine.launch(&Batch { rows: vec![row(ids(&[4]), 0, &[0])] }).unwrap();
    engine.launch(&Batch { rows: vec![row(Input::Drawn(0), 1, &[0])] }).unwrap();
    assert!(begun.elapsed() < STEP || engine.is_ready().unwrap());
    let full = engine.launch(&Batch::default());
    assert!(full.is_err(), "two are in flight");
    let first = engine.collect().unwrap();
    assert!(begun.elapsed() >= STEP);
    let second = engine.collect().unwrap();
    assert!(begun.elapsed() >= STEP * 2);
    assert!(engine.collect().is_err());
    let first = first[0].as_ref().unwrap().id.get();
    let again = step(&mut engine, vec![row(ids(&[4, first]), 0, &[1])]);
    assert_eq!(again[0], second[0].as_ref().unwrap().id.get());
}
