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
use crate::transcript::{Delta, Output, Transcript, Usage};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, BoxStream, SelectAll, Stream, StreamExt};
use shared::ids::TokenId;
use shared::request::Read;
use std::sync::Arc;

/// Deltas of all outputs of a call, merged as they come.
pub type Deltas = BoxStream<'static, Result<Delta, Failure>>;

/// An API's JSON for deltas and whole answers.
pub trait Shape: Send + 'static {
    /// Events for a delta; none if there is nothing to show.
    fn chunks(&mut self, delta: Delta) -> Vec<Sent>;
    /// OpenAI's event after the last delta, if usage was asked for.
    fn last(&mut self, _usage: Usage) -> Option<String> {
        None
    }
    /// Events after the last delta, or after the failure that cut the answer: OpenAI's.
    fn end(&mut self, ended: Result<Usage, ApiError>) -> Vec<Sent> {
        let last = match ended {
            Ok(usage) => self.last(usage),
            Err(error) => Some(error.body().to_string()),
        };
        last.into_iter().chain([DONE.to_owned()]).map(Sent::from).collect()
    }
    /// The prompt of an output, said before any delta of it.
    fn prompt(&mut self, _index: usize, _ids: &[TokenId]) {}
    /// The body of a whole answer, one output a prompt.
    fn whole(&mut self, outputs: Vec<Output>) -> String;
}

/// A server-sent event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// `event:`, where the API names its events.
    pub name: Option<&'static str>,
    /// `data:`, one line.
    pub data: String,
}

impl From<String> for Sent {
    fn from(data: String) -> Self {
        Self { name: None, data }
    }
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
    let streams = answers.into_iter().map(|speaking| {
        let state = Some((speaking, Arc::clone(&held)));
        stream::unfold(state, |state| async {
            let (mut speaking, held) = state?;
            let delta = speaking.next().await;
            let ended = delta.as_ref().map_or(true, |delta| delta.ending.is_some());
            Some((delta, (!ended).then_some((speaking, held))))
        })
        .boxed()
    });
    streams.collect::<SelectAll<_>>().boxed()
}

impl Speaking {
    /// The next delta; after one with an ending, or an error, none may be asked for. Not cancel
    /// safe: what was read of the prompt so far goes with it.
    async fn next(&mut self) -> Result<Delta, Failure> {
        let mut prompt = Vec::new();
        let event = loop {
            match self.answer.next().await {
                Some(Event::Cached(tokens)) => self.transcript.cached(tokens),
                Some(Event::Read(Read::Tokens(tokens))) => prompt.extend(tokens),
                other => break other,
            }
        };
        let mut delta = match event {
            Some(Event::Tokens(tokens)) => {
                self.timing.tokens(tokens.len());
                self.transcript.take(tokens)
            }
            Some(Event::Finished(finish)) => self.transcript.finish(finish),
            Some(Event::Failed(failure)) => return Err(failure),
            Some(Event::Cached(_) | Event::Read(_)) | None => {
                let message = "The request ended without a result".to_owned();
                return Err(Failure { kind: FailureKind::Internal, message });
            }
        };
        delta.prompt = prompt;
        if delta.ending.is_some() {
            self.timing.finished(delta.usage);
        }
        Ok(delta)
    }
}

/// Collects all deltas into one JSON body.
///
/// # Errors
/// The first failure of any output.
pub async fn whole(
    mut deltas: Deltas,
    count: usize,
    shape: &mut impl Shape,
) -> Result<Response, ApiError> {
    let mut outputs = vec![Output::default(); count];
    while let Some(delta) = deltas.next().await {
        let delta = delta?;
        outputs[delta.index].add(delta);
    }
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], shape.whole(outputs)).into_response())
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
        Some(first) => Ok(first?),
        None => Err(ApiError::internal("The call has no outputs".to_owned())),
    }?;
    let deltas = stream::once(async { Ok(first) }).chain(deltas).boxed();
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    let bytes = event_bytes(deltas, count, shape).map(Ok::<_, std::convert::Infallible>);
    Ok((headers, Body::from_stream(bytes)).into_response())
}

/// One item a delta that shows something, so that each leaves in one write.
fn event_bytes(
    deltas: Deltas,
    count: usize,
    shape: impl Shape,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let usages = vec![Usage::default(); count];
    stream::unfold(Some((deltas, shape, usages)), |state| async {
        let (mut deltas, mut shape, mut usages) = state?;
        loop {
            match deltas.next().await {
                Some(Ok(delta)) => {
                    usages[delta.index] = delta.usage;
                    let chunks = shape.chunks(delta);
                    if !chunks.is_empty() {
                        return Some((framed(&chunks), Some((deltas, shape, usages))));
                    }
                }
                Some(Err(failure)) => {
                    return Some((framed(&shape.end(Err(failure.into()))), None));
                }
                None => return Some((framed(&shape.end(Ok(total(&usages)))), None)),
            }
        }
    })
}

/// What ends a stream of OpenAI's.
const DONE: &str = "[DONE]";

fn framed(events: &[Sent]) -> Bytes {
    let name_len = |event: &Sent| event.name.map_or(0, |name| name.len() + 8);
    let len = |event: &Sent| event.data.len() + 8 + name_len(event);
    let mut frame = String::with_capacity(events.iter().map(len).sum());
    for event in events {
        if let Some(name) = event.name {
            frame.push_str("event: ");
            frame.push_str(name);
            frame.push('\n');
        }
        frame.push_str("data: ");
        frame.push_str(&event.data);
        frame.push_str("\n\n");
    }
    Bytes::from(frame)
}

/// Usage of a call: the sum over its outputs.
pub fn total(usages: &[Usage]) -> Usage {
    usages.iter().fold(Usage::default(), |sum, usage| Usage {
        prompt: sum.prompt + usage.prompt,
        completion: sum.completion + usage.completion,
        cached: sum.cached + usage.cached,
    })
}
