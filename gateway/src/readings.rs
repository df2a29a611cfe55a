//! The calls that read prompts and make no output: embeddings and scores.
//!
//! 1. Every prompt becomes a request of its own, all are submitted at once.
//! 2. The answer waits for all of them; the first failure is the call's.

use crate::calls::{limits, open};
use crate::error::{ApiError, Invalid};
use crate::fields::Fields;
use crate::http::{App, Arrival, json};
use crate::metrics::Timing;
use crate::openai::{Head, embeddings, score};
use crate::ring::{Answer, Event, Failure, FailureKind};
use crate::stream::total;
use crate::tokenize::tokenize;
use crate::transcript::Usage;
use crate::validate::Prompt;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::Response;
use score::ScoreRequest;
use shared::request::{Finish, MAX_SALT, Read, Reads, Request, RequestParts};
use std::sync::Arc;

type Answered = Result<Response, ApiError>;

/// `POST /v1/embeddings`
///
/// # Errors
/// As [`ApiError`] maps them.
pub async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(arrival): Extension<Arrival>,
    body: Body,
) -> Answered {
    let (mut fields, limits) = open(&app, body).await?;
    let request = embeddings::read(&mut fields, &app.model, limits)?;
    let reading = Reading::new(&app, &arrival, &mut fields)?;
    let (vectors, usage) =
        reading.vectors(request.prompts, &Reads::Hidden(request.pooling)).await?;
    let head = Head::new(&app.model, &arrival.name, "embd-");
    Ok(json(embeddings::answer(&head, &vectors, request.base64, usage)))
}

/// `POST /v1/score`: SGLang's form or vLLM's.
///
/// # Errors
/// As [`ApiError`] maps them.
pub async fn score(
    State(app): State<Arc<App>>,
    Extension(arrival): Extension<Arrival>,
    body: Body,
) -> Answered {
    let (mut fields, limits) = open(&app, body).await?;
    let request = score::read(&mut fields, limits)?;
    let reading = Reading::new(&app, &arrival, &mut fields)?;
    let head = Head::new(&app.model, &arrival.name, "score-");
    let answer = match request {
        ScoreRequest::Labels { prompts, labels, softmax } => {
            let (logprobs, usage) = reading.vectors(prompts, &Reads::Next(labels)).await?;
            score::label_answer(&head, &logprobs, softmax, usage)
        }
        ScoreRequest::Pairs { prompts, left, pooling } => {
            let (vectors, usage) = reading.vectors(prompts, &Reads::Hidden(pooling)).await?;
            score::pair_answer(&head, &vectors, left, usage)
        }
    };
    Ok(json(answer.to_string()))
}

/// What the requests of a call have in common.
struct Reading<'a> {
    app: &'a App,
    arrival: &'a Arrival,
    salt: String,
    priority: i32,
}

impl<'a> Reading<'a> {
    fn new(app: &'a App, arrival: &'a Arrival, fields: &mut Fields) -> Result<Self, Invalid> {
        let salt: String = fields.take_or("cache_salt", String::new())?;
        if salt.len() > MAX_SALT {
            let what = format!("has {} bytes; at most {MAX_SALT} fit", salt.len());
            return Err(fields.wrong("cache_salt", &what));
        }
        Ok(Self { app, arrival, salt, priority: fields.take_or("priority", 0)? })
    }

    /// Reads every prompt; the vectors in order, and what the call used.
    async fn vectors(
        self,
        prompts: Vec<Prompt>,
        reads: &Reads,
    ) -> Result<(Vec<Vec<f32>>, Usage), ApiError> {
        let (app, fit) = (self.app, limits(self.app));
        let longest = fit.context_length.min(fit.pool_tokens);
        let mut requests = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let field = prompt.field.clone();
            let ids = tokenize(&app.model, prompt, longest).await?;
            let (salt, priority) = (self.salt.clone(), self.priority);
            let parts =
                RequestParts { salt, priority, ..RequestParts::reading(ids, reads.clone()) };
            let request = Request::try_from(parts);
            requests.push(request.map_err(|bad| Invalid::field(field, &bad.to_string()))?);
        }
        let origin = self.arrival.origin();
        let mut answers = Vec::with_capacity(requests.len());
        for (index, request) in requests.into_iter().enumerate() {
            let timing = Timing::new(self.arrival.at, request.prompt_len, request.max_tokens);
            let prompt = request.prompt_len;
            answers.push((prompt, timing, app.ring.submit(request, origin.of(index, None))?));
        }
        let ids = answers.iter().map(|(_, _, answer)| answer.id()).collect();
        let _held = app.in_flight.hold(vec![self.arrival.name.clone()], ids);
        let (mut vectors, mut usages) = (vec![], vec![]);
        for (prompt, timing, answer) in answers {
            let (vector, cached) = vector(answer).await?;
            let usage = Usage { prompt, cached, ..Usage::default() };
            timing.finished(Finish::Length, usage);
            vectors.push(vector);
            usages.push(usage);
        }
        Ok((vectors, total(&usages)))
    }
}

/// The vector that a request ends with, and how many tokens of its prompt were cached.
async fn vector(mut answer: Answer) -> Result<(Vec<f32>, u32), Failure> {
    let (mut vector, mut cached) = (None, 0);
    while let Some(event) = answer.next().await {
        match event {
            Event::Read(Read::Hidden(read) | Read::Next(read)) => vector = Some(read),
            Event::Cached(tokens) => cached = tokens,
            Event::Finished(_) => break,
            Event::Failed(failure) => return Err(failure),
            Event::Read(Read::Tokens(_)) | Event::Tokens(_) => {}
        }
    }
    let message = "The request ended without a result".to_owned();
    let none = Failure { kind: FailureKind::Internal, message };
    vector.map(|vector| (vector, cached)).ok_or(none)
}
