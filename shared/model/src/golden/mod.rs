//! The tiny models against golden data made with transformers (bf16 weights, f32 arithmetic): one
//! of each family, with the features that the demo model has not.
//!
//! The demo model itself is in `demo.rs`.

mod cuda;
mod demo;
mod reads;
mod support;
mod transformers;

use crate::WeightFormat;
use crate::engine::{Batch, Engine, Input, Row, Sample};
use crate::equal::{Agreement, judge};
use crate::reference::{Ask, Observed, generate};
use serde::Deserialize;
use shared::ids::{PageId, TokenId};
use shared::kv::KvDtype;
use shared::request::Sampling;
use support::{assert_close, engine, engine_with, golden_path, tokens};

const MODELS: [&str; 3] = ["tiny-qwen3", "tiny-llama3", "tiny-qwen2"];

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    margin: Vec<f32>,
    last_logits: Vec<f32>,
    all_logits: Option<Vec<Vec<f32>>>,
}

fn golden(name: &str) -> Golden {
    let text = std::fs::read_to_string(golden_path(name).join("golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Launches one row and returns the logits after its last token.
fn logits_after(engine: &mut impl Observed, prompt: &[u32], start: usize) -> Vec<f32> {
    let pages = (0..prompt.len().div_ceil(16) as u32).map(PageId::new).collect();
    let sample = Some(Sample::new(Sampling::GREEDY, 0));
    let input = Input::Tokens(tokens(&prompt[start..]));
    let row = Row { input, start: start as u32, pages, sample, reads: None };
    engine.launch(&Batch { rows: vec![row] }).unwrap();
    engine.collect_drawn().unwrap();
    engine.logits().to_vec()
}

#[test]
fn logits_of_tiny_models() {
    for name in MODELS {
        let mut engine = engine(&golden_path(name), KvDtype::F32, 64);
        for case in golden(name).cases {
            let prompt = &case.prompt_ids;
            let found = logits_after(&mut engine, prompt, 0);
            assert_close(name, &found, &case.last_logits, 1e-3);
            for (index, expected) in case.all_logits.unwrap_or_default().iter().enumerate() {
                let found = logits_after(&mut engine, &prompt[..=index], index);
                assert_close(&format!("{name} token {index}"), &found, expected, 1e-3);
            }
        }
    }
}

#[test]
fn greedy_tokens_of_tiny_models_however_the_prompt_is_cut() {
    for name in MODELS {
        let mut engine = engine(&golden_path(name), KvDtype::F32, 64);
        for case in golden(name).cases {
            let prompt = tokens(&case.prompt_ids);
            let expected: Vec<_> = tokens(&case.output_ids).into_iter().zip(case.margin).collect();
            for chunk in [0, 1, 3, 16, 17, 99] {
                let ask = Ask { chunk, ..Ask::greedy(&prompt, expected.len() as u32) };
                let drawn = generate(&mut engine, &ask).unwrap();
                let found: Vec<_> = drawn.iter().map(|drawn| drawn.token.id).collect();
                let what = format!("{name} prompt {} chunk {chunk}", prompt.len());
                let verdict = crate::equal::judge_margins(&expected, &found, 1e-3);
                assert_eq!(verdict, Ok(Agreement::Same), "{what}");
            }
        }
    }
}

/// All prompts of a model in one engine: chunks of different lengths and decode rows in every step,
/// pages interleaved.
#[test]
fn a_mixed_batch_changes_no_token() {
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        for name in MODELS {
            let mut engine = engine(&golden_path(name), dtype, 96);
            for sampling in
                [Sampling::GREEDY, Sampling { temperature: 1.0, seed: 11, ..Sampling::GREEDY }]
            {
                let cases = golden(name).cases;
                let prompts: Vec<_> = cases.iter().map(|case| tokens(&case.prompt_ids)).collect();
                let alone: Vec<_> = (prompts.iter())
                    .map(|p| {
                        generate(&mut engine, &Ask { sampling, ..Ask::greedy(p, 20) }).unwrap()
                    })
                    .collect();
                let together = generate_together(&mut engine, &prompts, sampling, 20);
                for (alone, together) in alone.iter().zip(&together) {
                    let verdict = judge(alone, together, dtype);
                    assert!(verdict.is_ok(), "{name} {dtype:?} {sampling:?}: {verdict:?}");
                    let same = verdict == Ok(Agreement::Same);
                    assert!(same || dtype == KvDtype::Bf16, "{name}: a tie in f32 is unlikely");
                }
            }
        }
    }
}

fn generate_together(
    engine: &mut crate::CpuEngine,
    prompts: &[Vec<TokenId>],
    sampling: Sampling,
    count: usize,
) -> Vec<Vec<TokenId>> {
    let mut texts: Vec<Vec<TokenId>> = prompts.to_vec();
    let mut done = vec![0; prompts.len()];
    let stride = prompts.len() as u32;
    while (0..prompts.len()).any(|i| texts[i].len() < prompts[i].len() + count) {
        let mut batch = Batch::default();
        let mut members = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let made = text.len() - prompts[i].len();
            if made == count {
                continue;
            }
            let end = text.len().min(done[i] + 13 + 7 * i);
            let pages = (0..end.div_ceil(16) as u32).map(|n| PageId::new(n * stride + i as u32));
            let output_index = made as u32;
            let sample = Sample::new(sampling, output_index);
            batch.rows.push(Row {
                input: Input::Tokens(text[done[i]..end].to_vec()),
                start: done[i] as u32,
                pages: pages.collect(),
                sample: (end == text.len()).then_some(sample),
                reads: None,
            });
            done[i] = end;
            members.push(i);
        }
        engine.launch(&batch).unwrap();
        for (i, token) in members.into_iter().zip(engine.collect().unwrap()) {
            texts[i].extend(token.map(|token| token.id));
        }
    }
    texts.iter().zip(prompts).map(|(text, prompt)| text[prompt.len()..].to_vec()).collect()
}

/// Each step launched before the one before it is collected, with the token that that one draws.
fn generate_ahead(
    engine: &mut impl Engine,
    prompt: &[TokenId],
    sampling: Sampling,
    count: u32,
) -> Vec<TokenId> {
    let mut made = Vec::new();
    for index in 0..=count {
        if index < count {
            let start = if index == 0 { 0 } else { prompt.len() as u32 + index - 1 };
            let input = match index {
                0 => Input::Tokens(prompt.to_vec()),
                _ => Input::Drawn(0),
            };
            let pages = (0..(start + input.len() as u32).div_ceil(16)).map(PageId::new).collect();
            let sample = Some(Sample::new(sampling, index));
            engine
                .launch(&Batch { rows: vec![Row { input, start, pages, sample, reads: None }] })
                .unwrap();
        }
        if index > 0 {
            made.extend(engine.collect().unwrap().into_iter().flatten().map(|token| token.id));
        }
    }
    made
}

const SAMPLED: [Sampling; 3] = [
    Sampling::GREEDY,
    Sampling { temperature: 0.9, top_p: 0.9, seed: 7, ..Sampling::GREEDY },
    Sampling { temperature: 1.3, top_k: 20, min_p: 0.05, seed: 1 << 40, ..Sampling::GREEDY },
];

#[test]
fn steps_launched_ahead_draw_the_same_tokens() {
    let mut engine = engine(&golden_path("tiny-qwen3"), KvDtype::F32, 8);
    for sampling in SAMPLED {
        let prompt = tokens(&golden("tiny-qwen3").cases[0].prompt_ids);
        let ask = Ask { sampling, ..Ask::greedy(&prompt, 20) };
        let alone = generate(&mut engine, &ask).unwrap();
        let alone: Vec<_> = alone.into_iter().map(|drawn| drawn.token.id).collect();
        assert_eq!(generate_ahead(&mut engine, &prompt, sampling, 20), alone, "{sampling:?}");
    }
}

#[test]
fn bad_batches_are_refused_by_name() {
    let input = |ids: &[u32]| Input::Tokens(tokens(ids));
    let mut engine = engine(&golden_path("tiny-qwen2"), KvDtype::F32, 4);
    let good = Row {
        input: input(&[1, 2, 3]),
        start: 0,
        pages: vec![PageId::new(3)],
        sample: None,
        reads: None,
    };
    let bad = [
        (Row { input: input(&[]), ..good.clone() }, "no tokens"),
        (Row { input: input(&[1, 512]), ..good.clone() }, "token 512"),
        (Row { pages: vec![PageId::new(4)], ..good.clone() }, "page p4"),
        (Row { start: 14, ..good.clone() }, "1 pages where 17 tokens take 2"),
        (Row { start: 63, ..good.clone() }, "66 tokens, beyond"),
        (Row { start: u32::MAX, ..good.clone() }, "beyond"),
        (
            Row { input: Input::Drawn(0), ..good.clone() },
            "row 0 of the step before, which drew none",
        ),
    ];
    for (row, expected) in bad {
        let error = engine.launch(&Batch { rows: vec![good.clone(), row] }).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains("row 1"), "{error}");
    }
    assert!(engine.collect().is_err(), "nothing was launched");
    engine.launch(&Batch { rows: vec![good] }).unwrap();
    engine.launch(&Batch::default()).unwrap();
    assert_eq!(engine.collect().unwrap(), [None]);
    assert_eq!(engine.collect().unwrap(), []);
}

#[test]
fn fingerprints_name_weights_and_nothing_else() {
    let of = |name, dtype, pages| engine(&golden_path(name), dtype, pages).fingerprint();
    let one = of("tiny-qwen3", KvDtype::F32, 4);
    assert_eq!(one, of("tiny-qwen3", KvDtype::Bf16, 9));
    assert_ne!(one, of("tiny-qwen2", KvDtype::F32, 4));
    let kept = |weights| engine_with(&golden_path("tiny-qwen3"), KvDtype::F32, weights, 4);
    assert_eq!(one, kept(WeightFormat::Auto).fingerprint(), "nothing in it is quantised");
    assert_ne!(one, kept(WeightFormat::Q8_0).fingerprint());
}
