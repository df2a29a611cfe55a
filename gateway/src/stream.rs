//! Walk 12/12. Before: `decode-server/src/emit.rs`, whose frames the fleet turns into events.
//! After: the client, who has the answer.
//!
//! 1. [`outputs`] joins the answers of a call into one stream of deltas. An output that has ended
//!    drops its [`Answer`] at once: after a stop string that cancels it on both servers.
//! 2. The first delta is awaited before the status line: what fails until then is an HTTP error.
//! 3. [`events`] sends deltas as server-sent events, then what the API ends a stream with. A
//!    failure in mid-stream is the API's error object as an event. [`whole`] collects instead.
//!
//! A client that goes away drops the body or the handler, and with it every answer.

use crate::error::ApiError;
use crate::metrics::Timing;
use crate::ring::{Answer, Event, Failure, FailureKind};
use crate::sse::Events;
use crate::transcript::{Delta, Output, Transcript, Usage};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{BoxStream, SelectAll, Stream, StreamExt};
use shared::ids::TokenId;
use shared::request::Read;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Deltas of all outputs of a call, merged as they come.
pub type Deltas = BoxStream<'static, Result<Delta, Failure>>;

/// An API's JSON for deltas and whole answers.
pub trait Shape: Send + 'static {
    /// Events for a delta; none if there is nothing to show.
    fn chunks(&mut self, delta: Delta, events: &mut Events);
    /// OpenAI's event after the last delta, if usage was asked for.
    fn last(&mut self, _usage: Usage, _events: &mut Events) {}
    /// Events after the last delta, or after the failure that cut the answer: OpenAI's.
    fn end(&mut self, ended: Result<Usage, ApiError>, events: &mut Events) {
        match ended {
            Ok(usage) => self.last(usage, events),
            Err(error) => events.add_json(None, &error.body()),
        }
        events.add(None, |data| data.text("[DONE]"));
    }
    /// The prompt of an output, said before any delta of it.
    fn prompt(&mut self, _index: usize, _ids: &[TokenId]) {}
    /// The body of a whole answer; `usage` counts outputs too that were made and are not answered.
    fn whole(&mut self, outputs: Vec<Output>, usage: Usage) -> String;
}

/// An answer with what follows its text and its time.
#[derive(Debug)]
pub struct Speaking {
    /// Events of the request.
    pub answer: Answer,
    /// Its text.
    pub transcript: Transcript,
    /// Its latencies.
    pub timing: Timing,
}

/// One stream of the deltas of all answers. `held` lives as long as the stream does.
pub fn outputs<T: Send + Sync + 'static>(answers: Vec<Speaking>, held: T) -> Deltas {
    let held = Arc::new(held);
    let mut outputs = answers
        .into_iter()
        .map(|speaking| Spoken { speaking: Some(speaking), held: Some(Arc::clone(&held)) });
    match (outputs.next(), outputs.len()) {
        (Some(only), 0) => only.boxed(),
        (first, _) => first.into_iter().chain(outputs).collect::<SelectAll<_>>().boxed(),
    }
}

/// An output's deltas; after one with an ending, or an error, nothing of it is held.
struct Spoken<T> {
    speaking: Option<Speaking>,
    held: Option<Arc<T>>,
}

impl<T> Stream for Spoken<T> {
    type Item = Result<Delta, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(speaking) = &mut self.speaking else { return Poll::Ready(None) };
        let delta = ready!(speaking.poll_next(context));
        if delta.as_ref().map_or(true, |delta| delta.ending.is_some()) {
            (self.speaking, self.held) = (None, None);
        }
        Poll::Ready(Some(delta))
    }
}

impl Speaking {
    /// The next delta; after one with an ending, or an error, none may be asked for.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Delta, Failure>> {
        let delta = loop {
            match ready!(self.answer.poll_next(context)) {
                Some(Event::Cached(tokens)) => self.transcript.cached(tokens),
                Some(Event::Read(Read::Tokens(tokens))) => self.transcript.read(tokens),
                Some(Event::Tokens(tokens)) => {
                    self.timing.tokens(tokens.len());
                    break self.transcript.take(tokens);
                }
                Some(Event::Finished(finish)) => break self.transcript.finish(finish),
                Some(Event::Failed(failure)) => return Poll::Ready(Err(failure)),
                Some(Event::Read(_)) | None => {
                    let message = "The request ended without a result".to_owned();
                    let kind = FailureKind::Internal;
                    return Poll::Ready(Err(Failure { kind, message }));
                }
            }
        };
        if let Some(ending) = &delta.ending {
            self.timing.finished(ending.finish, delta.usage);
        }
        Poll::Ready(Ok(delta))
    }
}

/// How many outputs a call has, and how many of them are answered.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Prompts of the call.
    pub prompts: usize,
    /// Outputs made of each.
    pub made: usize,
    /// Outputs answered of each: the most probable ones, if they are fewer.
    pub answered: usize,
}

/// Collects all deltas into one JSON body.
///
/// # Errors
/// The first failure of any output.
pub async fn whole(
    mut deltas: Deltas,
    counts: Counts,
    shape: &mut impl Shape,
) -> Result<Response, ApiError> {
    let mut outputs = vec![Output::default(); counts.prompts * counts.made];
    while let Some(delta) = deltas.next().await {
        let delta = delta?;
        outputs[delta.index].add(delta);
    }
    let usage = total(&outputs.iter().map(|output| output.usage).collect::<Vec<_>>());
    if counts.answered < counts.made {
        outputs = best(outputs, counts);
    }
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], shape.whole(outputs, usage)).into_response())
}

/// Of each prompt's outputs the most probable ones, best first; the earlier ones among equals.
fn best(outputs: Vec<Output>, counts: Counts) -> Vec<Output> {
    let mut left = outputs.into_iter();
    let mut best = Vec::with_capacity(counts.prompts * counts.answered);
    for _ in 0..counts.prompts {
        let mut made: Vec<_> = left.by_ref().take(counts.made).collect();
        made.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
        best.extend(made.into_iter().take(counts.answered));
    }
    best
}

/// Sends deltas as they come, as server-sent events.
///
/// # Errors
/// A failure before the first delta; later ones are events.
pub async fn events(
    mut deltas: Deltas,
    count: usize,
    shape: impl Shape,
) -> Result<Response, ApiError> {
    let first = match deltas.next().await {
        Some(first) => first?,
        None => return Err(ApiError::internal("The call has no outputs".to_owned())),
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    let (first, usages) = (Some(first), vec![Usage::default(); count]);
    let events = Events::default();
    let body = Told { first, deltas, shape, events, usages, ended: false };
    Ok((headers, Body::from_stream(body)).into_response())
}

/// The body of an event stream: one item a delta that shows something, so that each leaves in one
/// write.
struct Told<S> {
    first: Option<Delta>,
    deltas: Deltas,
    shape: S,
    events: Events,
    usages: Vec<Usage>,
    ended: bool,
}

/// Nothing in it is pinned but the deltas, and those are boxed.
impl<S> Unpin for Told<S> {}

impl<S: Shape> Stream for Told<S> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            let next = match this.first.take() {
                Some(first) => Some(Ok(first)),
                None => ready!(this.deltas.poll_next_unpin(context)),
            };
            match next {
                Some(Ok(delta)) => {
                    this.usages[delta.index] = delta.usage;
                    this.shape.chunks(delta, &mut this.events);
                }
                Some(Err(failure)) => {
                    this.ended = true;
                    this.shape.end(Err(failure.into()), &mut this.events);
                }
                None => {
                    this.ended = true;
                    this.shape.end(Ok(total(&this.usages)), &mut this.events);
                }
            }
            if this.ended || !this.events.is_empty() {
                return Poll::Ready(Some(Ok(this.events.take())));
            }
        }
    }
}

/// Usage of a call: the sum over its outputs.
pub fn total(usages: &[Usage]) -> Usage {
    usages.iter().fold(Usage::default(), |sum, usage| Usage {
        prompt: sum.prompt + usage.prompt,
        completion: sum.completion + usage.completion,
        cached: sum.cached + usage.cached,
    })
}
