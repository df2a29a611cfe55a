use super::*;

const PLAIN: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

fn draw_with(logits: &[f32], sampling: Sampling, output_index: u32) -> Drawn {
    draw_adjusted(logits, sampling, &[], output_index)
}

fn draw_adjusted(logits: &[f32], sampling: Sampling, list: &[Adjusted], index: u32) -> Drawn {
    let adjusted = std::sync::Arc::new(list.to_vec());
    let sample = Sample { logprobs: Some(3), adjusted, ..Sample::new(sampling, index) };
    draw(Softmax::detect(), logits, &sample)
}

/// Draws many tokens and holds their counts against the exact distribution by χ².
fn check(what: &str, logits: &[f32], sampling: Sampling, exact: &[f64]) {
    check_adjusted(what, logits, (sampling, &[]), exact);
}

fn check_adjusted(
    what: &str,
    logits: &[f32],
    (sampling, list): (Sampling, &[Adjusted]),
    exact: &[f64],
) {
    const DRAWS: u32 = 20_000;
    let mut counts = vec![0_u32; logits.len()];
    for index in 0..DRAWS {
        counts[draw_adjusted(logits, sampling, list, index).token.id.get() as usize] += 1;
    }
    let total: f64 = exact.iter().sum();
    let (mut chi, mut classes) = (0.0, 0);
    for (id, (&count, &weight)) in counts.iter().zip(exact).enumerate() {
        let expected = weight / total * f64::from(DRAWS);
        if weight == 0.0 {
            assert_eq!(count, 0, "{what}: token {id} was filtered");
        } else {
            chi += (f64::from(count) - expected).powi(2) / expected;
            classes += 1;
        }
    }
    // Mean plus five standard deviations of χ² with `classes - 1` degrees of freedom.
    let freedom = f64::from(classes - 1);
    assert!(chi <= freedom + 5.0 * (2.0 * freedom).sqrt(), "{what}: χ² {chi} at {freedom}");
}

#[test]
fn draws_follow_the_filtered_distribution() {
    let weights = [0.30, 0.05, 0.20, 0.10, 0.15, 0.02, 0.08, 0.06, 0.04];
    let logits = weights.map(|w: f64| (w.ln() + 3.0) as f32);
    let keep = |f: &dyn Fn(f64) -> bool| weights.map(|w| if f(w) { w } else { 0.0 });
    check("plain", &logits, Sampling { seed: 1, ..PLAIN }, &weights);
    let squared = weights.map(|w| w * w);
    check("temperature", &logits, Sampling { temperature: 0.5, seed: 2, ..PLAIN }, &squared);
    check("top_k", &logits, Sampling { top_k: 4, seed: 3, ..PLAIN }, &keep(&|w| w >= 0.1));
    check("top_p", &logits, Sampling { top_p: 0.6, seed: 4, ..PLAIN }, &keep(&|w| w >= 0.15));
    check("min_p", &logits, Sampling { min_p: 0.25, seed: 5, ..PLAIN }, &keep(&|w| w >= 0.075));
    // Of the four best (0.75 in all) the first two have 0.5 / 0.75 < 0.7.
    let both = Sampling { top_k: 4, top_p: 0.7, seed: 6, ..PLAIN };
    check("top_k, then top_p", &logits, both, &keep(&|w| w >= 0.15));
    // min_p leaves the five best (0.83 with 0.08): 0.65 / 0.83 > 0.75 where 0.65 alone is not.
    let both = Sampling { min_p: 0.25, top_p: 0.75, seed: 7, ..PLAIN };
    check("min_p, then top_p", &logits, both, &keep(&|w| w >= 0.15));
    check("all of one", &logits, Sampling { min_p: 1.0, seed: 8, ..PLAIN }, &keep(&|w| w >= 0.3));
}

#[test]
fn draws_follow_the_penalised_distribution() {
    let weights = [0.30, 0.05, 0.20, 0.10, 0.15, 0.02, 0.08, 0.06, 0.04];
    // Logits of both signs: the repetition penalty treats them differently.
    let exact = weights.map(|w: f64| w.ln() + 2.0);
    let logits = exact.map(|x| x as f32);
    let seen = |token, seen| Adjusted { token, seen, bias: 0.0 };
    let biased = |token, bias| Adjusted { token, seen: 0, bias };
    let none = f32::NEG_INFINITY;
    let list = [seen(0, 3), seen(1, 2), seen(2, 1), biased(3, 1.5), biased(4, none), seen(6, 5)];
    let expected = |sampling: &Sampling, list: &[Adjusted]| {
        let (temperature, repetition) = (sampling.temperature, sampling.repetition_penalty);
        let (frequency, presence) = (sampling.frequency_penalty, sampling.presence_penalty);
        let mut x = exact;
        for a in list {
            let x = &mut x[a.token as usize];
            *x += f64::from(a.bias);
            if a.seen > 0 {
                let r = f64::from(repetition);
                *x = if *x > 0.0 { *x / r } else { *x * r };
                *x -= f64::from(frequency) * f64::from(a.seen - 1);
                *x -= if a.seen > 1 { f64::from(presence) } else { 0.0 };
            }
        }
        x.map(|x| (x / f64::from(temperature)).exp())
    };
    let cases = [
        ("bias and forbidden", PLAIN),
        ("presence", Sampling { presence_penalty: 0.8, ..PLAIN }),
        ("negative presence", Sampling { presence_penalty: -0.8, ..PLAIN }),
        ("frequency", Sampling { frequency_penalty: 0.4, ..PLAIN }),
        ("repetition", Sampling { repetition_penalty: 1.7, ..PLAIN }),
        ("repetition below 1", Sampling { repetition_penalty: 0.6, ..PLAIN }),
        (
            "all of them, hot",
            Sampling {
                temperature: 1.5,
                presence_penalty: 0.3,
                frequency_penalty: 0.2,
                repetition_penalty: 1.3,
                ..PLAIN
            },
        ),
    ];
    for (seed, (what, sampling)) in (10..).zip(cases) {
        let sampling = Sampling { seed, ..sampling };
        check_adjusted(what, &logits, (sampling, &list), &expected(&sampling, &list));
    }
    // Filters see what penalties left: of the unpenalised logits token 0 is the best.
    let sampling = Sampling { frequency_penalty: 2.0, top_k: 2, seed: 20, ..PLAIN };
    let mut kept = expected(&sampling, &list);
    let mut order: Vec<f64> = kept.to_vec();
    order.sort_by(|a, b| b.total_cmp(a));
    kept = kept.map(|w| if w >= order[1] { w } else { 0.0 });
    assert_eq!(kept[0], 0.0);
    check_adjusted("penalty, then top_k", &logits, (sampling, &list), &kept);
}

#[test]
fn adjustments_move_greedy_draws_and_leave_logprobs_alone() {
    let logits = [3.0, 2.0, 1.0];
    let forbidden = |token| Adjusted { token, seen: 0, bias: f32::NEG_INFINITY };
    let plain = draw_with(&logits, Sampling::GREEDY, 0).token;
    for sampling in [Sampling::GREEDY, Sampling { top_k: 1, ..PLAIN }] {
        let drawn = draw_adjusted(&logits, sampling, &[forbidden(0)], 0).token;
        assert_eq!(drawn.id.get(), 1);
        assert_eq!(drawn.top, plain.top);
        assert_eq!(drawn.logprob, plain.top[1].1);
        let list = [forbidden(0), forbidden(1), forbidden(2)];
        assert!(draw_adjusted(&logits, sampling, &list, 0).token.id.get() < 3);
    }
}

#[test]
fn greedy_takes_the_first_best_and_logprobs_are_unscaled() {
    let logits = [0.0, 2.0, 1.0, 2.0];
    let drawn = draw_with(&logits, Sampling::GREEDY, 0);
    let total = (1.0 + 2.0 * 2f64.exp() + 1f64.exp()).ln();
    let logprob = |logit: f64| (logit - total) as f32;
    assert_eq!(drawn.token.id.get(), 1);
    assert_eq!(drawn.margin, 0.0);
    assert!((drawn.token.logprob - logprob(2.0)).abs() < 1e-6);
    let ids: Vec<u32> = drawn.token.top.iter().map(|(id, _)| id.get()).collect();
    assert_eq!(ids, [1, 3, 2]);
    assert!((drawn.token.top[2].1 - logprob(1.0)).abs() < 1e-6);
    let cold = draw_with(&logits, Sampling { temperature: 0.1, seed: 9, ..PLAIN }, 0);
    assert!((cold.token.logprob - logprob(2.0)).abs() < 1e-6, "temperature leaves logprobs alone");
}

#[test]
fn a_draw_depends_on_seed_and_index_alone() {
    let logits: Vec<f32> = (0..1000).map(|i| (i % 7) as f32 * 0.1).collect();
    let ids = |seed| {
        let at = |i| draw_with(&logits, Sampling { seed, ..PLAIN }, i).token.id;
        (0..50).map(at).collect::<Vec<_>>()
    };
    assert_eq!(ids(1), ids(1));
    assert_ne!(ids(1), ids(2));
    assert_ne!(ids(1), ids(1 << 32), "both halves of the seed count");
}

#[test]
fn odd_logits_draw_something() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0];
    for sampling in
        [Sampling::GREEDY, PLAIN, Sampling { top_p: 0.5, top_k: 2, min_p: 0.1, ..PLAIN }]
    {
        for a in odd {
            for b in odd {
                let drawn = draw_with(&[a, b, f32::NAN], sampling, 0);
                assert!(drawn.token.id.get() < 3, "{a} {b}");
                if a == f32::INFINITY && b < 1.0 {
                    assert_eq!(drawn.token.id.get(), 0, "{a} {b}");
                }
            }
        }
    }
}

#[test]
fn the_margin_tells_a_close_draw() {
    assert!((draw_with(&[1.0, 1.25], Sampling::GREEDY, 0).margin - 0.25).abs() < 1e-6);
    // Two equal halves: the margin is the distance of the uniform number to 0, 1/2 or 1.
    for index in 0..100 {
        let uniform = philox::uniform(3, index);
        let nearest = [0.0, 0.5, 1.0].map(|edge: f64| (uniform - edge).abs());
        let expected = nearest.into_iter().fold(1.0, f64::min);
        let drawn = draw_with(&[0.0, 0.0], Sampling { seed: 3, ..PLAIN }, index);
        assert!((f64::from(drawn.margin) - expected).abs() < 1e-6);
        assert_eq!(drawn.token.id.get(), u32::from(uniform >= 0.5));
    }
}

fn masked(ids: &[u32], vocab: u32) -> Mask {
    let mut words = vec![0; vocab.div_ceil(32) as usize];
    ids.iter().for_each(|id| words[*id as usize / 32] |= 1 << (id % 32));
    let (mask, promise) = Mask::promised();
    promise.keep(words);
    mask
}

#[test]
fn only_what_the_mask_allows_is_drawn() {
    let logits: Vec<f32> = (0..100).map(|id| id as f32 * 0.01).collect();
    let mask = Some(masked(&[3, 31, 32, 70], 100));
    let mut seen = std::collections::BTreeSet::new();
    for index in 0..200 {
        let sample = Sample { mask: mask.clone(), ..Sample::new(PLAIN, index) };
        seen.insert(draw(Softmax::detect(), &logits, &sample).token.id.get());
    }
    assert_eq!(Vec::from_iter(seen), [3, 31, 32, 70]);
    let sample = Sample { mask, ..Sample::new(Sampling::GREEDY, 0) };
    let drawn = draw(Softmax::detect(), &logits, &sample);
    assert_eq!(drawn.token.id.get(), 70);
    let free = draw(Softmax::detect(), &logits, &Sample::new(Sampling::GREEDY, 0));
    assert!(drawn.token.logprob < free.token.logprob, "of the logits as they came");
    assert!((drawn.margin - (logits[70] - logits[32])).abs() < 1e-6);
}

#[test]
fn what_is_held_is_freed_where_the_mask_leaves_nothing_else() {
    let forbidden = |token| Adjusted { token, seen: 0, bias: f32::NEG_INFINITY };
    let adjusted = std::sync::Arc::new(vec![forbidden(2), forbidden(5)]);
    let check = |allowed: &[u32], expected: u32| {
        let mask = Some(masked(allowed, 40));
        let greedy = Sample::new(Sampling::GREEDY, 0);
        let sample = Sample { mask, adjusted: std::sync::Arc::clone(&adjusted), ..greedy };
        let logits: Vec<f32> = (0..40).map(|id| -(id as f32)).collect();
        assert_eq!(draw(Softmax::detect(), &logits, &sample).token.id.get(), expected);
    };
    check(&[2, 5, 9], 9);
    check(&[2, 5], 2);
    check(&[5], 5);
}

#[test]
fn a_promise_that_is_not_kept_is_a_failure() {
    let (mask, promise) = Mask::promised();
    assert_eq!(mask.failure(), None);
    drop(promise);
    assert!(mask.failure().is_some() && mask.wait().is_none());
    let (mask, promise) = Mask::promised();
    promise.fail("why".to_owned());
    assert_eq!(mask.failure(), Some("why"));
}
