//! The calls that make output: read, check, tokenise, submit, answer.

use crate::anthropic::{self, MessageShape};
use crate::error::{ApiError, Invalid};
use crate::fields::Fields;
use crate::http::{App, Arrival, fields};
use crate::metrics::Timing;
use crate::model::Model;
use crate::native::{self, GenerateRequest, GenerateShape, Lists};
use crate::openai::Head;
use crate::openai::chat::{self, ChatShape};
use crate::openai::completions::{self, CompletionShape};
use crate::openai::knobs::Delivery;
use crate::random::random;
use crate::reply::Reply;
use crate::responses::{self, ResponseShape};
use crate::ring::Limits;
use crate::stream::{self, Counts, Shape, Speaking};
use crate::structured;
use crate::tokenize::{chat_prompt, tokenize};
use crate::transcript::Transcript;
use crate::validate::{Ask, Dialect, Prompt};
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::Response;
use shared::request::Request;
use std::sync::Arc;

type Answered = Result<Response, ApiError>;

/// `POST /v1/chat/completions`
///
/// # Errors
/// As [`ApiError`] maps them.
pub async fn chat(
    State(app): State<Arc<App>>,
    Extension(arrival): Extension<Arrival>,
    body: Body,
) -> Answered {
    let (mut fields, limits) = open(&app, body).await?;
    let talk = Talk::new(&mut fields, &app.model, limits, None)?;
    let head = head(&app, &arrival, "chatcmpl-");
    let shape = ChatShape::new(head, talk.delivery, talk.ask.logprobs().is_some())
        .with_prompt_logprobs(talk.ask.prompt_logprobs());
    talk.answer(&app, &arrival, |reply| shape.reading(reply)).await
}

/// `POST /v1/messages`: Anthropic's.
///
/// # Errors
/// As [`ApiError`] maps them.
pub async fn messages(
    State(app): State<Arc<App>>,
    Extension(arrival): Extension<Arrival>,
    body: Body,
) -> Answered {
    let (fields, limits) = open(&app, body).await?;
    let mut chat = anthropic::request::create(fields)?;
    let talk = Talk::new(&mut chat, &app.model, limits, None);
    let talk = talk.map_err(|invalid| invalid.renamed(anthropic::NAMES))?;
    let head = head(&app, &arrival, "msg_");
    talk.answer(&app, &arrival, |reply| MessageShape::new(head, reply)).await
}

/// `POST /v1/responses`
///
/// # Errors
/// As [`ApiError`] maps them.
pub async fn responses(
    State(app): State<Arc<App>>,
    Extension(arrival): Extension<Arrival>,
    body: Body,
) -> Answered {
    let (fields, limits) = open(&app, body).await?;
    let (mut chat, repeated) = responses::request::chat(fields)?;
    let talk = Talk::new(&mut chat, &app.model, limits, Some(responses::DIALECT));
    let mut talk = talk.map_err(|invalid| invalid.renamed(responses::NAMES))?;
    talk.prompt.field = "input".to_owned();
    let head = head(&app, &arrival, "resp_");
    talk.answer(&app, &arrival, |reply| ResponseShape::new(head, repeated, reply)).await
}

/// `POST /v1/completions`
///
/// # Errors
/// As [`ApiError`] maps them.
pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(arrival): Extension<Arrival>,
    body: Body,
) -> Answered {
    let (mut fields, limits) = open(&app, body).await?;
    let request = completions::read(&mut fields, limits)?;
    let ask = Ask::new(request.knobs, completions::DIALECT, &app.model, limits, random)?;
    let head = head(&app, &arrival, "cmpl-");
    let count = request.prompts.len() * ask.outputs() as usize;
    let shape = CompletionShape::new(head, request.delivery, count).reporting(request.report);
    let stream = request.delivery.stream;
    Call::new(&app, &arrival, ask, stream).answer(request.prompts, shape).await
}

/// `POST /generate`
///
/// # Errors
/// As [`ApiError`] maps them.
pub async fn generate(
    State(app): State<Arc<App>>,
    Extension(mut arrival): Extension<Arrival>,
    body: Body,
) -> Answered {
    let (mut fields, limits) = open(&app, body).await?;
    let mut request = native::read(&mut fields, limits)?;
    let ask = |(prompt, knobs)| {
        let ask = Ask::new(knobs, native::DIALECT, &app.model, limits, random);
        ask.map_err(|invalid| request.lists.at(prompt, invalid))
    };
    let knobs = std::mem::take(&mut request.knobs);
    let asks: Vec<_> = knobs.into_iter().enumerate().map(ask).collect::<Result<_, _>>()?;
    if let Some(rid) = request.rid.take() {
        arrival.name = rid.into();
    }
    let pieces = Arc::clone(app.model.tokenizer.pieces());
    let call = (&arrival.name[..], arrival.at);
    let shape = GenerateShape::new(&request, call, pieces, asks[0].outputs() as usize);
    let GenerateRequest { prompts, lists, stream, .. } = request;
    Call { app: &app, arrival: &arrival, asks, lists, stream }.answer(prompts, shape).await
}

/// The body's fields, once the model is the one served, and what fits.
///
/// # Errors
/// As [`fields`] and [`check_model`].
pub async fn open(app: &App, body: Body) -> Result<(Fields, Limits), ApiError> {
    let mut fields = fields(app, body).await?;
    check_model(&mut fields, app)?;
    Ok((fields, limits(app)))
}

/// Refuses another model than the one served.
///
/// # Errors
/// 404, or the field is no string.
pub fn check_model(fields: &mut Fields, app: &App) -> Result<(), ApiError> {
    let asked: Option<String> = fields.take("model")?;
    let served = &app.model.served_name;
    match asked {
        Some(asked) if !asked.is_empty() && asked != *served => {
            Err(ApiError::model_not_found(&asked, served))
        }
        _ => Ok(()),
    }
}

/// What fits the fleet and the configuration. Without a fleet the model's own limits stand in: what
/// is wrong with a request is told all the same, and the fleet refuses the rest as not ready.
pub fn limits(app: &App) -> Limits {
    let own = app.model.context_length;
    match app.ring.limits() {
        Some(limits) => Limits { context_length: limits.context_length.min(own), ..limits },
        None => Limits {
            context_length: own,
            pool_tokens: u32::MAX,
            vocab: app.model.tokenizer.pieces().count(),
        },
    }
}

fn head(app: &App, arrival: &Arrival, prefix: &str) -> Head {
    Head::new(&app.model, &arrival.name, prefix)
}

/// A conversation that goes on, in whatever API it came.
struct Talk {
    ask: Ask,
    prompt: Prompt,
    delivery: Delivery,
    /// What reads the output.
    reply: Reply,
}

impl Talk {
    /// Reads a chat request, or one that was translated into one from another API's `dialect`.
    fn new(
        fields: &mut Fields,
        model: &Model,
        limits: Limits,
        dialect: Option<Dialect>,
    ) -> Result<Self, Invalid> {
        let request = chat::read(fields, model)?;
        let dialect = dialect.unwrap_or(request.dialect);
        let ask = Ask::new(request.knobs.clone(), dialect, model, limits, random)?;
        let text = model.render(&request.conversation, "messages")?;
        let reply = request.reply(model, &text);
        Ok(Self { ask, prompt: chat_prompt(text), delivery: request.delivery, reply })
    }

    async fn answer<S: Shape>(
        self,
        app: &App,
        arrival: &Arrival,
        shape: impl FnOnce(Reply) -> S,
    ) -> Answered {
        let Self { ask, prompt, delivery, reply } = self;
        let call = Call::new(app, arrival, ask, delivery.stream);
        call.answer(vec![prompt], shape(reply)).await
    }
}

/// A checked call.
struct Call<'a> {
    app: &'a App,
    arrival: &'a Arrival,
    /// Of all prompts, or of each.
    asks: Vec<Ask>,
    lists: Lists,
    stream: bool,
}

impl<'a> Call<'a> {
    /// One whose prompts are all asked the same.
    fn new(app: &'a App, arrival: &'a Arrival, ask: Ask, stream: bool) -> Self {
        Self { app, arrival, asks: vec![ask], lists: Lists::default(), stream }
    }

    fn ask(&self, prompt: usize) -> &Ask {
        &self.asks[prompt.min(self.asks.len() - 1)]
    }

    /// Compiles each grammar that differs from the one before.
    async fn check(&self, prompts: usize) -> Result<(), Invalid> {
        self.asks[0].check_outputs(prompts)?;
        let mut before = None;
        for (prompt, wanted) in self.asks.iter().map(Ask::wanted).enumerate() {
            if wanted != before {
                let checked = structured::check(&self.app.model.grammars, wanted).await;
                checked.map_err(|invalid| self.lists.at(prompt, invalid))?;
                before = wanted;
            }
        }
        Ok(())
    }

    /// The requests for the prompts, one an output.
    async fn requests(&self, prompts: Vec<Prompt>) -> Result<Vec<Request>, Invalid> {
        let mut requests = Vec::with_capacity(prompts.len() * self.asks[0].candidates() as usize);
        for (at, prompt) in prompts.into_iter().enumerate() {
            let ask = self.ask(at);
            let ids = tokenize(&self.app.model, prompt, ask.prompt_max()).await?;
            let made = ask.requests(&ids).map_err(|invalid| self.lists.at(at, invalid))?;
            requests.extend(made);
        }
        Ok(requests)
    }

    /// Sends every prompt to the fleet and answers in `shape`.
    async fn answer(self, prompts: Vec<Prompt>, mut shape: impl Shape) -> Answered {
        let app = self.app;
        self.check(prompts.len()).await?;
        let (made, answered) =
            (self.asks[0].candidates() as usize, self.asks[0].outputs() as usize);
        let counts = Counts { prompts: prompts.len(), made, answered };
        let requests = self.requests(prompts).await?;
        let mut answers = Vec::with_capacity(requests.len());
        let origin = self.arrival.origin();
        for (index, request) in requests.into_iter().enumerate() {
            let pieces = app.model.tokenizer.pieces();
            let (prompt, number) = (index / made, index % made);
            if number < answered {
                shape.prompt(prompt * answered + number, &request.tokens);
            }
            let first = number == 0;
            let transcript = Transcript::new((index, first), self.ask(prompt), &request, pieces);
            let timing = Timing::new(self.arrival.at, request.prompt_len, request.max_tokens);
            let origin = origin.of(index, self.lists.name(prompt));
            let answer = app.ring.submit(request, origin)?;
            answers.push(Speaking { answer, transcript, timing });
        }
        let ids: Vec<_> = answers.iter().map(|speaking| speaking.answer.id()).collect();
        let arrived_us = self.arrival.at.elapsed().as_micros();
        for (index, request) in ids.iter().enumerate() {
            let name = self.lists.name(index / made).unwrap_or(&self.arrival.name);
            tracing::debug!(target: "story", %request, name, arrived_us, "submitted");
        }
        let own = self.lists.names().iter().map(|name| Arc::from(name.as_str()));
        let names = [self.arrival.name.clone()].into_iter().chain(own).collect();
        let held = app.in_flight.hold(names, ids);
        let count = answers.len();
        let deltas = stream::outputs(answers, held);
        match self.stream {
            true => stream::events(deltas, count, shape).await,
            false => stream::whole(deltas, counts, &mut shape).await,
        }
    }
}
