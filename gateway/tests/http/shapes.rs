//! Answers, whole and streamed, from events as the fleet sends them.

use crate::support::model;
use axum::body::to_bytes;
use axum::response::Response;
use gateway::error::ApiError;
use gateway::metrics::Timing;
use gateway::model::Model;
use gateway::native::{GenerateRequest, GenerateShape, Lists, Telling};
use gateway::openai::Head;
use gateway::openai::chat::ChatShape;
use gateway::openai::completions::{CompletionShape, Report};
use gateway::openai::knobs::Delivery;
use gateway::ring::{Answer, Event, Failure, FailureKind, Limits, Line};
use gateway::stream::{Counts, Shape, Speaking, events, outputs, whole};
use gateway::transcript::Transcript;
use gateway::validate::{Ask, Content, Dialect, Knobs, Prompt};
use shared::ids::{Epoch, RequestId, TokenId};
use shared::request::{Finish, Read, Token};
use std::sync::Arc;
use std::time::Instant;

const LIMITS: Limits = Limits { context_length: 100, pool_tokens: 100, vocab: 512 };
const DIALECT: Dialect = Dialect {
    max_tokens: "max_tokens",
    min_tokens: "min_tokens",
    logprobs: "top_logprobs",
    sampling: "",
    default_tokens: None,
    model_defaults: true,
};

fn token(id: u32) -> Token {
    let top = vec![(TokenId::new(id), -0.5), (TokenId::new(5), f32::NEG_INFINITY)];
    Token { id: TokenId::new(id), logprob: -0.5, top }
}

pub fn tokens(model: &Model, text: &str) -> Vec<Token> {
    let ids = model.tokenizer.encode(text, false).unwrap();
    ids.into_iter().map(|id| token(id.get())).collect()
}

pub fn done(finish: Finish) -> Event {
    Event::Finished(finish)
}

/// An output that says `events`. Its line tells whether the answer was dropped.
pub fn speaking(
    model: &Arc<Model>,
    knobs: Knobs,
    index: usize,
    said: Vec<Event>,
) -> (Speaking, Arc<Line>) {
    let ask = Ask::new(knobs, DIALECT, model, LIMITS, || 1).unwrap();
    let request = ask.request([1, 2, 3].map(TokenId::new).to_vec()).unwrap();
    let transcript = Transcript::new((index, true), &ask, &request, model.tokenizer.pieces());
    let line = Arc::<Line>::default();
    line.leave(std::iter::once(Event::Cached(2)).chain(said));
    let answer = Answer::new(RequestId::new(Epoch::new(1), index as u64), line.clone());
    (Speaking { answer, transcript, timing: Timing::new(Instant::now(), 3, 9) }, line)
}

pub fn head(model: &Arc<Model>, id: &str) -> Head {
    Head { id: id.into(), created: 7, model: Arc::clone(model) }
}

/// One output of each prompt, which is answered.
pub const fn each(prompts: usize) -> Counts {
    Counts { prompts, made: 1, answered: 1 }
}

pub async fn text(response: Result<Response, ApiError>) -> String {
    let bytes = to_bytes(response.unwrap().into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub async fn streamed(said: Vec<Speaking>, shape: impl Shape) -> String {
    let count = said.len();
    text(events(outputs(said, ()), count, shape).await).await
}

#[tokio::test]
async fn chat_whole_and_streamed() {
    let model = model();
    let said = |model| {
        vec![
            Event::Tokens(tokens(model, "Hé")),
            Event::Tokens(tokens(model, " you")),
            Event::Tokens(vec![token(2)]),
            done(Finish::Stop),
        ]
    };
    let (one, _line) = speaking(&model, Knobs::default(), 0, said(&model));
    let mut shape = ChatShape::new(head(&model, "chatcmpl-1"), Delivery::default(), false);
    let body = text(whole(outputs(vec![one], ()), each(1), &mut shape).await).await;
    insta::assert_snapshot!(body);

    let (one, _line) = speaking(&model, Knobs::default(), 0, said(&model));
    let delivery = Delivery { stream: true, include_usage: true, continuous_usage: false };
    let shape = ChatShape::new(head(&model, "chatcmpl-1"), delivery, false);
    insta::assert_snapshot!(streamed(vec![one], shape).await);
}

#[tokio::test]
async fn chat_logprobs() {
    let model = model();
    let said = vec![Event::Tokens(tokens(&model, "é")), done(Finish::Length)];
    let knobs = Knobs { logprobs: Some(1), ..Knobs::default() };
    let (one, _line) = speaking(&model, knobs, 0, said);
    let mut shape = ChatShape::new(head(&model, "chatcmpl-1"), Delivery::default(), true);
    let body = text(whole(outputs(vec![one], ()), each(1), &mut shape).await).await;
    insta::assert_snapshot!(body);
}

#[tokio::test]
async fn completions_of_two_prompts_keep_their_indexes() {
    let model = model();
    let said = |text| vec![Event::Tokens(tokens(&model, text)), done(Finish::Length)];
    let make = || {
        let (a, hold_a) = speaking(&model, Knobs::default(), 0, said("ab"));
        let (b, hold_b) = speaking(&model, Knobs::default(), 1, said("c"));
        (vec![a, b], hold_a, hold_b)
    };
    let (both, ..) = make();
    let mut shape = CompletionShape::new(head(&model, "cmpl-1"), Delivery::default(), 2)
        .reporting(Report { logprobs: Some(2), tokens_as_ids: true, ..Report::default() });
    let body = text(whole(outputs(both, ()), each(2), &mut shape).await).await;
    insta::assert_snapshot!(body);

    let (both, ..) = make();
    let delivery = Delivery { stream: true, include_usage: true, continuous_usage: true };
    let shape = CompletionShape::new(head(&model, "cmpl-1"), delivery, 2);
    let body = streamed(both, shape).await;
    let mut lines: Vec<&str> = body.split_terminator("\n\n").collect();
    assert_eq!(lines.pop(), Some("data: [DONE]"));
    assert!(lines.pop().unwrap().contains("\"choices\":[],\"usage\":{\"prompt_tokens\":6"));
    assert_eq!(lines.iter().filter(|line| line.contains("\"index\":1")).count(), 2);
    assert!(lines.iter().all(|line| line.contains("\"usage\":{\"prompt_tokens\":3")));
}

#[tokio::test]
async fn of_outputs_made_the_most_probable_are_answered_and_all_are_counted() {
    let model = model();
    let said = |text, logprob| {
        let tokens = tokens(&model, text).into_iter().map(|token| Token { logprob, ..token });
        vec![Event::Tokens(tokens.collect()), done(Finish::Length)]
    };
    // The sums of the log-probabilities would have it otherwise.
    let said = [said("x", -1.4), said("aaaa", -0.5), said("b", -1.0), said("c", -2.0)];
    let made: Vec<_> = said.into_iter().cycle().take(8).enumerate().collect();
    let made = made.into_iter().map(|(at, said)| speaking(&model, Knobs::default(), at, said));
    let (made, _lines): (Vec<_>, Vec<_>) = made.unzip();
    let counts = Counts { prompts: 2, made: 4, answered: 2 };
    let mut shape = CompletionShape::new(head(&model, "cmpl-1"), Delivery::default(), 4);
    let body = text(whole(outputs(made, ()), counts, &mut shape).await).await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let choices = body["choices"].as_array().unwrap();
    let texts: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["aaaa", "b", "aaaa", "b"]);
    let indexes: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [0, 1, 2, 3]);
    assert_eq!(body["usage"]["completion_tokens"], 2 * (4 + 1 + 1 + 1));
}

/// Whole and streamed, in parts as the fleet sends them; nothing is said of the first token.
#[tokio::test]
async fn an_echo_opens_the_answer() {
    let model = model();
    let prompt = tokens(&model, "abc");
    let ids: Vec<_> = prompt.iter().map(|token| token.id).collect();
    let read = |token: &Token| Event::Read(Read::Tokens(vec![token.clone()]));
    let make = || {
        let said = prompt[1..].iter().map(read);
        let said = said.chain([Event::Tokens(tokens(&model, "d")), done(Finish::Length)]);
        let (one, hold) = speaking(&model, Knobs::default(), 0, said.collect());
        let delivery = Delivery::default();
        let report =
            Report { logprobs: Some(1), prompt_logprobs: Some(0), echo: true, ..Report::default() };
        let mut shape = CompletionShape::new(head(&model, "cmpl-1"), delivery, 1).reporting(report);
        shape.prompt(0, &ids);
        (vec![one], shape, hold)
    };
    let (one, mut shape, _hold) = make();
    let body = text(whole(outputs(one, ()), each(1), &mut shape).await).await;
    insta::assert_snapshot!(body);
    let (one, shape, _hold) = make();
    let body = streamed(one, shape).await;
    assert!(body.starts_with("data: {") && body.contains("\"text\":\"abcd\""), "{body}");
}

#[tokio::test]
async fn whoever_follows_the_usage_sees_tokens_that_complete_no_text() {
    let model = model();
    let halves = tokens(&model, "é");
    assert_eq!(halves.len(), 2);
    for (continuous_usage, chunks) in [(true, 3), (false, 2)] {
        let said = halves.iter().map(|half| Event::Tokens(vec![half.clone()]));
        let said = said.chain([done(Finish::Length)]).collect();
        let (one, _line) = speaking(&model, Knobs::default(), 0, said);
        let delivery = Delivery { stream: true, include_usage: false, continuous_usage };
        let shape = CompletionShape::new(head(&model, "cmpl-1"), delivery, 1);
        let body = streamed(vec![one], shape).await;
        assert_eq!(body.matches("\"index\":0").count(), chunks, "{body}");
    }
}

#[tokio::test]
async fn generate_is_cumulative_and_reports_ids() {
    let model = model();
    let said = vec![
        Event::Read(Read::Tokens(vec![token(3)])),
        Event::Tokens(tokens(&model, "a")),
        Event::Tokens(vec![tokens(&model, "b").remove(0), token(2)]),
        done(Finish::Stop),
    ];
    let knobs = Knobs { logprobs: Some(2), ..Knobs::default() };
    let (one, _line) = speaking(&model, knobs, 0, said);
    let pieces = Arc::clone(model.tokenizer.pieces());
    let content = Content::Ids(vec![]);
    let request = GenerateRequest {
        prompts: vec![Prompt { field: "input_ids".into(), content }],
        batch: false,
        knobs: vec![Knobs::default()],
        tellings: vec![Telling { logprobs: true, start: Some(1), named: 1 }],
        with_text: true,
        stream: true,
        rid: None,
        lists: Lists::default(),
    };
    let mut shape = GenerateShape::new(&request, ("rid", Instant::now()), pieces, 1);
    shape.prompt(0, &[1, 2, 3].map(TokenId::new));
    let body = streamed(vec![one], shape).await;
    let latency = body.split("\"e2e_latency\":").nth(1).unwrap();
    let latency = &latency[..latency.find('}').unwrap()];
    insta::assert_snapshot!(body.replace(latency, "LATENCY"));
}

#[tokio::test]
async fn a_stop_string_ends_the_output_and_drops_the_answer() {
    let model = model();
    let said = vec![
        Event::Tokens(tokens(&model, "one ST")),
        Event::Tokens([tokens(&model, "OP"), tokens(&model, " overrun")].concat()),
    ];
    let counted = tokens(&model, "one ST").len() + tokens(&model, "OP").len();
    let knobs = Knobs { stop: vec!["STOP".into()], ..Knobs::default() };
    let (one, line) = speaking(&model, knobs, 0, said);
    let mut shape = ChatShape::new(head(&model, "chatcmpl-1"), Delivery::default(), false);
    let body = text(whole(outputs(vec![one], ()), each(1), &mut shape).await).await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], "one ");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["choices"][0]["stop_reason"], "STOP");
    assert_eq!(body["usage"]["completion_tokens"], counted);
    assert!(line.is_dropped(), "the fleet sees that nobody listens");
}

#[tokio::test]
async fn min_tokens_keeps_stop_strings_from_matching() {
    let model = model();
    let said = vec![Event::Tokens(tokens(&model, "xxyx")), done(Finish::Length)];
    let knobs = Knobs { stop: vec!["x".into()], min_tokens: 2, ..Knobs::default() };
    assert_eq!(tokens(&model, "xxyx").len(), 4, "a token a letter");
    let (one, _line) = speaking(&model, knobs, 0, said);
    let mut shape = CompletionShape::new(head(&model, "cmpl-1"), Delivery::default(), 1);
    let body = text(whole(outputs(vec![one], ()), each(1), &mut shape).await).await;
    assert!(body.contains("\"text\":\"xxy\""), "{body}");
}

#[tokio::test]
async fn failures_are_a_status_before_the_first_token_and_an_event_after() {
    let model = model();
    let failure = || Failure { kind: FailureKind::PeerLost, message: "decode-0 is lost".into() };
    let shape = || ChatShape::new(head(&model, "chatcmpl-1"), Delivery::default(), false);
    let (one, _line) = speaking(&model, Knobs::default(), 0, vec![Event::Failed(failure())]);
    let error = events(outputs(vec![one], ()), 1, shape()).await.unwrap_err();
    assert_eq!(error.status().as_u16(), 502);

    let said = vec![Event::Tokens(tokens(&model, "a")), Event::Failed(failure())];
    let (one, _line) = speaking(&model, Knobs::default(), 0, said);
    let body = streamed(vec![one], shape()).await;
    let mut lines = body.trim_end().rsplit("\n\n");
    assert_eq!(lines.next(), Some("data: [DONE]"));
    let error = lines.next().unwrap();
    assert!(error.starts_with("data: {\"error\":{\"message\":\"decode-0 is lost\""), "{error}");
}

#[tokio::test]
async fn a_dropped_body_drops_every_answer() {
    let model = model();
    let said = || vec![Event::Tokens(tokens(&model, "a"))];
    let (a, hold_a) = speaking(&model, Knobs::default(), 0, said());
    let (b, hold_b) = speaking(&model, Knobs::default(), 1, said());
    let shape = CompletionShape::new(head(&model, "cmpl-1"), Delivery::default(), 2);
    let response = events(outputs(vec![a, b], ()), 2, shape).await.unwrap();
    assert!(!hold_a.is_dropped() && !hold_b.is_dropped());
    drop(response);
    assert!(hold_a.is_dropped() && hold_b.is_dropped());
}
