//! The routes beside the calls: state, models, tokens, cache.

use crate::anthropic;
use crate::calls::{check_model, limits};
use crate::error::{ApiError, Invalid};
use crate::fleet::AbortTarget;
use crate::http::{App, fields, json};
use crate::native;
use crate::openai::completions::ids;
use crate::openai::{chat, models};
use crate::openapi;
use crate::random::random;
use crate::ring::{Answer, Event, Failure, FailureKind, Limits, Origin};
use crate::trace::Trace;
use crate::validate::{Ask, Content, Knobs, Prompt};
use crate::{detokenize as detok, metrics as counts, tokenize as tok};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use shared::ids::TokenId;
use std::sync::Arc;
use std::time::Instant;

type Answered = Result<Response, ApiError>;

/// `GET /health`: this process is alive; the state of others is `/ready`'s.
pub async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /health_generate`: the whole ring works, as a token of each of a pair of servers within
/// `health_ms` shows. It computes, so it needs the key that a call needs.
///
/// # Errors
/// The ring refuses or fails the request as it would a client's, or they come too late: 503.
pub async fn health_generate(State(app): State<Arc<App>>) -> Answered {
    let greedy = Some(0.0);
    // Prefill makes the first token and decode the second.
    let two =
        Knobs { temperature: greedy, max_tokens: Some(2), ignore_eos: true, ..Knobs::default() };
    let ask = Ask::new(two, native::DIALECT, &app.model, limits(&app), random)?;
    let trace = Trace { sampled: false, ..Trace::begin() };
    let origin = Origin { name: "health".into(), arrived: Instant::now(), trace };
    let answer = app.ring.submit(ask.request(vec![TokenId::new(0)])?, origin)?;
    let within = app.limits.health_max;
    match tokio::time::timeout(within, finished(answer)).await {
        Ok(ended) => Ok(ended.map(|()| Json(json!({"status": "ok"})))?.into_response()),
        Err(_) => {
            let message =
                format!("the ring made no two tokens within {} ms (health_ms)", within.as_millis());
            Err(Failure { kind: FailureKind::NotReady, message }.into())
        }
    }
}

/// Waits for the end of an answer.
async fn finished(mut answer: Answer) -> Result<(), Failure> {
    while let Some(event) = answer.next().await {
        match event {
            Event::Finished(_) => return Ok(()),
            Event::Failed(failure) => return Err(failure),
            Event::Cached(_) | Event::Read(_) | Event::Tokens(_) => {}
        }
    }
    let message = "The request ended without a result".to_owned();
    Err(Failure { kind: FailureKind::Internal, message })
}

/// `GET /ready`: whether a request would be served now, and if not, why.
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    let draining = app.is_draining().then(|| "the gateway is shutting down".to_owned());
    let reasons: Vec<String> = draining.into_iter().chain(app.ring.ready().err()).collect();
    if reasons.is_empty() {
        return Json(json!({"ready": true})).into_response();
    }
    let error = json!({"message": reasons.join("; "), "type": "service_unavailable",
        "param": null, "code": "not_ready"});
    let body = Json(json!({"ready": false, "reasons": reasons, "error": error}));
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], body).into_response()
}

/// `GET /metrics`, in Prometheus' text format.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    let ready = app.ring.ready().is_ok() && !app.is_draining();
    counts::depths(app.in_flight.count(), app.ring.depth().1, ready);
    service::admin::count_tasks();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, app.metrics.render(&app.ring.peer_metrics())).into_response()
}

/// `GET /v1/models`
pub async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(models::list(&app.model, context_length(&app)))
}

/// `GET /v1/models/{model}`
///
/// # Errors
/// 404 for another model.
pub async fn one_model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Answered {
    if name != app.model.served_name {
        return Err(ApiError::model_not_found(&name, &app.model.served_name));
    }
    Ok(Json(models::one(&app.model, context_length(&app))).into_response())
}

/// `GET /model_info`, `/get_model_info`: SGLang's shape.
pub async fn model_info(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({
        "model_path": app.model.path,
        "tokenizer_path": app.model.path,
        "served_model_name": app.model.served_name,
        "is_generation": true,
        "preferred_sampling_params": null,
        "weight_version": "default",
        "has_image_understanding": false,
        "has_audio_understanding": false,
        "model_type": app.model.family.model_type(),
        "architectures": [app.model.family.class()],
        "context_length": context_length(&app),
        "vocab_size": vocabulary(&app),
        "eos_token_ids": app.model.eos.iter().map(|id| id.get()).collect::<Vec<_>>(),
    }))
}

/// `GET /v1/loads`: requests and pages of every server that is up.
pub async fn loads(State(app): State<Arc<App>>) -> Json<Value> {
    let mut loads = app.ring.loads();
    loads["version"] = json!(env!("CARGO_PKG_VERSION"));
    Json(loads)
}

/// `GET /server_info`, `/get_server_info`: this gateway and every server.
pub async fn server_info(State(app): State<Arc<App>>) -> Json<Value> {
    let mut info = app.ring.server_info();
    info["version"] = json!(env!("CARGO_PKG_VERSION"));
    info["served_model_name"] = json!(app.model.served_name);
    info["model_path"] = json!(app.model.path);
    info["calls"] = json!(app.in_flight.count());
    info["ready"] = json!(app.ring.ready().is_ok() && !app.is_draining());
    info["internal_states"] = json!([{}]); // SGLang's benchmark reads its first element
    Json(info)
}

/// `GET` or `POST /flush_cache`
///
/// # Errors
/// A server does not acknowledge in time.
pub async fn flush_cache(State(app): State<Arc<App>>) -> Answered {
    app.ring.flush_cache().await?;
    Ok("Cache flushed.\n".into_response())
}

/// `POST /abort_request`: `{"rid": …}` or `{"abort_all": true}`.
///
/// # Errors
/// By field.
pub async fn abort_request(State(app): State<Arc<App>>, body: Body) -> Answered {
    let mut fields = fields(&app, body).await?;
    let all = fields.take_or("abort_all", false)?;
    let rid: Option<String> = fields.take("rid")?;
    let aborted = match rid {
        _ if all => app.ring.abort(AbortTarget::All),
        Some(rid) => {
            let ids = app.in_flight.requests(&rid);
            ids.into_iter().map(|id| app.ring.abort(AbortTarget::Id(id))).sum()
        }
        None => return Err(fields.wrong("rid", "is required unless `abort_all` is true").into()),
    };
    Ok(Json(json!({"aborted": aborted})).into_response())
}

/// `GET /openapi.json`: what there is to ask, and how.
pub async fn openapi(State(app): State<Arc<App>>) -> Json<Value> {
    Json(openapi::document(&app.model, limits(&app)))
}

/// `POST /tokenize`: `prompt` or `messages`, vLLM's shape.
///
/// # Errors
/// By field.
pub async fn tokenize(State(app): State<Arc<App>>, body: Body) -> Answered {
    let mut fields = fields(&app, body).await?;
    check_model(&mut fields, &app)?;
    let with_strings = fields.take_or("return_token_strs", false)?;
    if fields.get("prompt").is_some() && fields.get("messages").is_some() {
        return Err(fields.wrong("messages", "give either `prompt` or `messages`").into());
    }
    let prompt = match fields.take("prompt")? {
        Some(text) => {
            let add_special = fields.take_or("add_special_tokens", true)?;
            Prompt { field: "prompt".into(), content: Content::Text { text, add_special } }
        }
        None if fields.get("messages").is_some() => {
            let (conversation, _) = chat::conversation(&mut fields)?;
            tok::chat_prompt(app.model.render(&conversation, "messages")?)
        }
        None => return Err(fields.wrong("prompt", "give `prompt` or `messages`").into()),
    };
    let tokens = match &prompt.content {
        Content::Text { text, .. } if text.is_empty() => Vec::new(),
        _ => tok::tokenize(&app.model, prompt, u32::MAX).await?,
    };
    let names = |id: &TokenId| app.model.tokenizer.token(*id).unwrap_or_default();
    let strings = with_strings.then(|| tokens.iter().map(names).collect::<Vec<_>>());
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": context_length(&app),
        "tokens": tokens.iter().map(|id| id.get()).collect::<Vec<_>>(),
        "token_strs": strings,
    }))
    .into_response())
}

/// `POST /v1/messages/count_tokens`: Anthropic's.
///
/// # Errors
/// By field.
pub async fn count_tokens(State(app): State<Arc<App>>, body: Body) -> Answered {
    let mut fields = fields(&app, body).await?;
    check_model(&mut fields, &app)?;
    let mut chat = anthropic::request::conversation(fields)?;
    let read = chat::conversation(&mut chat);
    let (conversation, _) = read.map_err(|invalid| invalid.renamed(anthropic::NAMES))?;
    let prompt = tok::chat_prompt(app.model.render(&conversation, "messages")?);
    let tokens = tok::tokenize(&app.model, prompt, u32::MAX).await?;
    Ok(Json(json!({"input_tokens": tokens.len()})).into_response())
}

/// `POST /detokenize`: `tokens`, vLLM's shape.
///
/// # Errors
/// By field.
pub async fn detokenize(State(app): State<Arc<App>>, body: Body) -> Answered {
    let mut fields = fields(&app, body).await?;
    check_model(&mut fields, &app)?;
    let skip_special = fields.take_or("skip_special_tokens", false)?;
    let Some(list) = fields.take::<Vec<Value>>("tokens")? else {
        return Err(Invalid::field("tokens", "is required").into());
    };
    let vocab = vocabulary(&app);
    let limits = Limits { context_length: 0, pool_tokens: 0, vocab };
    let tokens = ids("tokens", &list, limits)?;
    let text = detok::decode_all(app.model.tokenizer.pieces(), &tokens, skip_special);
    Ok(json(json!({"prompt": text}).to_string()))
}

/// The servers' context length if they are there, else the model's own.
fn context_length(app: &App) -> u32 {
    let fleet = app.ring.limits().map_or(u32::MAX, |limits| limits.context_length);
    fleet.min(app.model.context_length)
}

/// The servers' vocabulary if they are there, else the tokenizer's.
fn vocabulary(app: &App) -> u32 {
    app.ring.limits().map_or_else(|| app.model.tokenizer.pieces().count(), |limits| limits.vocab)
}
