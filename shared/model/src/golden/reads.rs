//! Hidden states and log-probabilities of prompts against golden data made with transformers.

use super::support::{assert_close, engine, golden_path, tokens};
use super::{MODELS, golden};
use crate::engine::{Batch, Engine, Input, Row, RowReads};
use crate::reference::{Ask, Observed, generate};
use serde::Deserialize;
use shared::ids::PageId;
use shared::kv::KvDtype;
use shared::request::{Read, Token};

#[derive(Deserialize)]
pub struct Hidden {
    pub cases: Vec<HiddenCase>,
}

#[derive(Deserialize)]
pub struct HiddenCase {
    pub prompt_ids: Vec<u32>,
    /// The last token's hidden state, behind the last norm.
    pub last: Vec<f32>,
    /// The mean of all.
    pub mean: Vec<f32>,
    /// Of every token but the first.
    pub token_logprobs: Vec<f32>,
}

pub fn hidden(name: &str) -> Vec<HiddenCase> {
    let text = std::fs::read_to_string(golden_path(name).join("hidden.json")).unwrap();
    serde_json::from_str::<Hidden>(&text).unwrap().cases
}

/// Reads a prompt in chunks, as `reads` asks for each of them; parts are joined or added up.
pub fn read(
    engine: &mut impl Engine,
    prompt: &[u32],
    chunk: usize,
    reads: impl Fn(std::ops::Range<usize>) -> RowReads,
) -> Read {
    let mut whole: Option<Read> = None;
    for start in (0..prompt.len()).step_by(chunk) {
        let end = prompt.len().min(start + chunk);
        let pages = (0..end.div_ceil(16) as u32).map(PageId::new).collect();
        let input = Input::Tokens(tokens(&prompt[start..end]));
        let reads = Some(reads(start..end));
        // A row that asks for nothing stands beside it.
        let other = vec![PageId::new(40)];
        let other =
            Row { input: Input::Tokens(tokens(&[3, 4])), start: 0, pages: other, ..silent() };
        let row = Row { input, start: start as u32, pages, sample: None, reads };
        engine.launch(&Batch { rows: vec![other, row] }).unwrap();
        engine.collect().unwrap();
        let mut read = engine.read();
        assert_eq!((read.len(), read[0].is_none()), (2, true));
        assert!(engine.read().is_empty(), "once");
        match (&mut whole, read.pop().flatten().unwrap()) {
            (Some(Read::Tokens(told)), Read::Tokens(more)) => told.extend(more),
            (Some(Read::Hidden(sum)), Read::Hidden(more)) => {
                sum.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
            }
            (whole, read) => *whole = Some(read),
        }
    }
    whole.unwrap()
}

fn silent() -> Row {
    Row { input: Input::Drawn(0), start: 0, pages: vec![], sample: None, reads: None }
}

/// What a chunk of a prompt tells of the tokens after each of its own.
pub fn successors(prompt: &[u32], chunk: std::ops::Range<usize>) -> RowReads {
    let end = prompt.len().min(chunk.end + 1);
    let tokens = tokens(&prompt[chunk.start + 1..end]);
    RowReads::Tokens { first: 0, tokens, top: 3, ids: vec![] }
}

#[test]
fn hidden_states_of_tiny_models_however_the_prompt_is_cut() {
    for name in MODELS {
        let mut engine = engine(&golden_path(name), KvDtype::F32, 64);
        for case in hidden(name) {
            let prompt = &case.prompt_ids;
            for chunk in [16, 48, 512] {
                let sum = read(&mut engine, prompt, chunk, |_| RowReads::Sum);
                let Read::Hidden(sum) = sum else { panic!("{sum:?}") };
                let mean: Vec<f32> = sum.iter().map(|x| x / prompt.len() as f32).collect();
                assert_close(&format!("{name} mean {chunk}"), &mean, &case.mean, 1e-3);
            }
            let Read::Hidden(last) = read(&mut engine, prompt, 512, |_| RowReads::Last) else {
                panic!("no state")
            };
            assert_close(&format!("{name} last"), &last, &case.last, 1e-3);
        }
    }
}

#[test]
fn logprobs_of_the_prompts_of_tiny_models() {
    for name in MODELS {
        let mut engine = engine(&golden_path(name), KvDtype::F32, 64);
        for case in hidden(name).into_iter().filter(|case| case.prompt_ids.len() > 1) {
            let prompt = &case.prompt_ids;
            // The longest has more rows than are gathered at once.
            for chunk in [16, 37, 512] {
                let told = read(&mut engine, prompt, chunk, |c| successors(prompt, c));
                let Read::Tokens(told) = told else { panic!("{told:?}") };
                let found: Vec<f32> = told.iter().map(|token| token.logprob).collect();
                assert_close(&format!("{name} {chunk}"), &found, &case.token_logprobs, 1e-3);
                let ids: Vec<u32> = told.iter().map(|token| token.id.get()).collect();
                assert_eq!(ids, prompt[1..]);
                assert!(told.iter().all(|token| token.top.len() == 3));
                assert!(told.iter().all(|token| token.top.is_sorted_by(|a, b| a.1 >= b.1)));
            }
        }
    }
}

#[test]
fn logprobs_of_next_tokens() {
    let name = MODELS[0];
    let mut engine = engine(&golden_path(name), KvDtype::F32, 64);
    for case in golden(name).cases {
        let total = case.last_logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        let ids = [5, 0, 511];
        let expected = ids.map(|id: u32| (f64::from(case.last_logits[id as usize]) - total) as f32);
        let ask = |_| RowReads::Next(tokens(&ids));
        let Read::Next(found) = read(&mut engine, &case.prompt_ids, 512, ask) else {
            panic!("no log-probabilities")
        };
        assert_close(name, &found, &expected, 1e-3);
    }
}

/// Beside draws and beside the prompt's own tokens, each after the best ones.
#[test]
fn logprobs_of_tokens_that_are_named() {
    let mut engine = engine(&golden_path(MODELS[0]), KvDtype::F32, 64);
    let ids = [5, 0, 511, 5];
    for case in golden(MODELS[0]).cases.into_iter().filter(|case| case.prompt_ids.len() > 1) {
        check_named(&mut engine, &case.prompt_ids, &ids, 1e-4);
    }
}

/// Log-probabilities of `ids` after all but the last tokens of `prompt`, read and drawn, are those
/// that [`RowReads::Next`] tells.
pub fn check_named(engine: &mut impl Observed, prompt: &[u32], ids: &[u32], bar: f32) {
    let before = &prompt[..prompt.len() - 1];
    let Read::Next(expected) = read(engine, before, 512, |_| RowReads::Next(tokens(ids))) else {
        panic!("no log-probabilities")
    };
    let named = |token: &Token| {
        let (best, named) = token.top.split_at(2);
        assert!(best[0].1 >= best[1].1);
        assert!(named.iter().map(|(id, _)| id.get()).eq(ids.iter().copied()));
        named.iter().map(|&(_, logprob)| logprob).collect::<Vec<_>>()
    };
    let last = RowReads::Tokens {
        first: before.len() - 1,
        tokens: tokens(&prompt[before.len()..]),
        top: 2,
        ids: tokens(ids),
    };
    let Read::Tokens(told) = read(engine, before, 512, |_| last.clone()) else {
        panic!("no tokens")
    };
    assert_close("read", &named(&told[0]), &expected, bar);
    let ask = Ask { logprobs: Some(2), ..Ask::greedy(&[], 2) };
    let (before, ids) = (tokens(before), tokens(ids));
    let ask = Ask { prompt: &before, logprob_ids: &ids, ..ask };
    let drawn = generate(engine, &ask).unwrap();
    assert_close("drawn", &named(&drawn[0].token), &expected, bar);
    assert_eq!(named(&drawn[1].token).len(), ids.len());
}

#[test]
fn reads_that_do_not_fit_are_refused_by_name() {
    let mut engine = engine(&golden_path(MODELS[0]), KvDtype::F32, 4);
    let row = |reads| Row {
        input: Input::Tokens(tokens(&[1, 2, 3])),
        pages: vec![PageId::new(0)],
        reads: Some(reads),
        ..silent()
    };
    let ids = |ids: &[u32]| RowReads::Tokens { first: 2, tokens: tokens(ids), top: 0, ids: vec![] };
    let named = RowReads::Tokens { first: 0, tokens: tokens(&[2]), top: 0, ids: tokens(&[512]) };
    let bad = [
        (named, "token 512 is read"),
        (ids(&[4, 5]), "4 tokens are read where 3 are new"),
        (ids(&[512]), "token 512 is read"),
        (RowReads::Next(tokens(&[512])), "token 512 is read"),
    ];
    for (reads, expected) in bad {
        let error = engine.launch(&Batch { rows: vec![row(reads)] }).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
