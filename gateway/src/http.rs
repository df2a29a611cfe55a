//! Walk 1/12. Before: the client. After: `validate.rs`.
//!
//! The routes and what every request passes: an id (`x-request-id`, echoed or made), the API key,
//! a count by route and status. Bodies are read here, within a size and a time.

use crate::anthropic;
use crate::auth::Guard;
use crate::calls;
use crate::config::HttpLimits;
use crate::control;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::fleet::Ring;
use crate::in_flight::InFlight;
use crate::metrics;
use crate::model::Model;
use crate::page;
use crate::random::random;
use crate::readings;
use crate::ring::Origin;
use crate::trace::Trace;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use service::admin::Exposition;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longest `x-request-id` that is taken over.
const NAME_MAX: usize = 128;

/// What the handlers share.
pub struct App {
    /// The fleet.
    pub ring: Ring,
    /// The model's text half.
    pub model: Arc<Model>,
    /// Bounds.
    pub limits: HttpLimits,
    /// Calls being answered.
    pub in_flight: InFlight,
    /// Renders `/metrics`.
    pub metrics: Exposition,
    /// Who may pass.
    pub guard: Arc<Guard>,
    draining: AtomicBool,
}

impl App {
    /// What the handlers need, before any request.
    pub fn new(
        ring: Ring,
        model: Model,
        limits: HttpLimits,
        metrics: Exposition,
        guard: Arc<Guard>,
    ) -> Self {
        Self {
            ring,
            model: Arc::new(model),
            limits,
            in_flight: InFlight::default(),
            metrics,
            guard,
            draining: AtomicBool::new(false),
        }
    }

    /// From now on `/ready` says no.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the gateway is on its way out.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// When a request arrived and what it is called.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// When its headers were complete.
    pub at: Instant,
    /// `x-request-id`, or 32 random hex digits.
    pub name: Arc<str>,
    /// What `traceparent` says, or a new one.
    pub trace: Trace,
}

impl Arrival {
    /// What its requests are part of.
    pub fn origin(&self) -> Origin {
        Origin { name: self.name.clone(), arrived: self.at, trace: self.trace }
    }
}

/// Every path with its methods. `/openapi.json` describes them, and a test holds it to this.
fn routes() -> Vec<(&'static str, MethodRouter<Arc<App>>)> {
    vec![
        ("/v1/chat/completions", post(calls::chat)),
        ("/v1/completions", post(calls::completions)),
        ("/v1/responses", post(calls::responses)),
        ("/v1/messages", post(calls::messages)),
        ("/v1/messages/count_tokens", post(control::count_tokens)),
        ("/v1/embeddings", post(readings::embeddings)),
        ("/v1/score", post(readings::score)),
        ("/generate", post(calls::generate)),
        ("/v1/models", get(control::models)),
        ("/v1/models/{*model}", get(control::one_model)),
        ("/tokenize", post(control::tokenize)),
        ("/detokenize", post(control::detokenize)),
        ("/health", get(control::health)),
        ("/health_generate", get(control::health_generate)),
        ("/ready", get(control::ready)),
        ("/metrics", get(control::metrics)),
        ("/flush_cache", get(control::flush_cache).post(control::flush_cache)),
        ("/abort_request", post(control::abort_request)),
        ("/v1/loads", get(control::loads)),
        ("/server_info", get(control::server_info)),
        ("/get_server_info", get(control::server_info)),
        ("/model_info", get(control::model_info)),
        ("/get_model_info", get(control::model_info)),
        ("/openapi.json", get(control::openapi)),
        ("/", get(page::index)),
        ("/page/{file}", get(page::file)),
        ("/ring", get(page::ring)),
        ("/ring/requests", get(page::requests)),
        ("/ring/requests/{id}", get(page::request)),
    ]
}

/// Every path that is served.
pub fn paths() -> Vec<&'static str> {
    routes().into_iter().map(|(path, _)| path).collect()
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let add = |router: Router<Arc<App>>, (path, methods)| router.route(path, methods);
    let routes = routes().into_iter().fold(Router::new(), add);
    let routes = routes.method_not_allowed_fallback(method_not_allowed).fallback(not_found);
    routes.layer(from_fn_with_state(Arc::clone(&app), pass)).with_state(app)
}

async fn not_found(request: Request) -> ApiError {
    ApiError::route_not_found(request.uri().path())
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::method_not_allowed(request.method().as_str(), request.uri().path())
}

/// What every request passes.
async fn pass(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unknown", MatchedPath::as_str);
    let name = name(request.headers().get(&REQUEST_ID));
    let given = request.headers().get(&TRACEPARENT).and_then(|value| value.to_str().ok());
    let trace = Trace::within(given);
    let admitted = app.guard.admits(request.uri().path(), request.headers());
    let is_anthropic = anthropic::serves(request.uri().path());
    let mut response = if admitted {
        let arrival = Arrival { at: Instant::now(), name: name.clone(), trace };
        request.extensions_mut().insert(arrival);
        next.run(request).await
    } else {
        ApiError::unauthorized().into_response()
    };
    if is_anthropic && let Some(error) = response.extensions_mut().remove::<ApiError>() {
        *response.body_mut() = anthropic::error::body(&error, Some(&name)).to_string().into();
    }
    metrics::answered(route, response.status().as_u16());
    tracing::debug!(request = &*name, route, status = response.status().as_u16(), "answered");
    let values = [HeaderValue::from_str(&name), HeaderValue::try_from(trace.to_string())];
    for (header, value) in [REQUEST_ID, TRACEPARENT].into_iter().zip(values) {
        if let Ok(value) = value {
            response.headers_mut().insert(header, value);
        }
    }
    response
}

fn name(given: Option<&HeaderValue>) -> Arc<str> {
    let fits = |name: &&str| {
        (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match given.and_then(|value| value.to_str().ok()).filter(fits) {
        Some(name) => name.into(),
        None => format!("{:016x}{:016x}", random(), random()).into(),
    }
}

/// A body's JSON object.
///
/// # Errors
/// Too large, too slow, cut off, or not a JSON object.
pub async fn fields(app: &App, body: Body) -> Result<Fields, ApiError> {
    let limit = app.limits.max_body_bytes;
    let read = Limited::new(body, limit).collect();
    let bytes: Bytes = match tokio::time::timeout(app.limits.body_max, read).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(err)) if err.is::<LengthLimitError>() => {
            return Err(ApiError::body_too_large(limit));
        }
        Ok(Err(err)) => {
            let message = format!("The body could not be read: {err}");
            return Err(crate::error::Invalid::body(message).into());
        }
        Err(_) => return Err(ApiError::body_too_slow()),
    };
    Ok(Fields::parse(&bytes)?)
}

/// A JSON body that is text already.
pub fn json(body: String) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], body).into_response()
}
