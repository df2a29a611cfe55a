//! The page at `/`: the ring as it works, and a chat; and the routes that it asks for numbers.
//!
//! Its files are plain HTML, CSS and ES modules, part of this program. They know nothing of the
//! ring and need no key; the numbers do. The page asks this origin alone, and its policy forbids
//! anything else.

use crate::error::ApiError;
use crate::http::App;
use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};

/// Stories of ended requests that are told unless the client says how many.
const STORIES: usize = 32;

/// What the page may do: use this origin's files and routes.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

const HTML: &str = "text/html";
const CSS: &str = "text/css";
const SCRIPT: &str = "text/javascript";
const SVG: &str = "image/svg+xml";

/// Types of the files beside the page itself.
pub const TYPES: &[&str] = &[CSS, SCRIPT, SVG];

struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

const INDEX: File = File { name: "", kind: HTML, text: include_str!("../page/index.html") };

macro_rules! files {
    ($($name:literal $kind:ident,)*) => {
        const FILES: &[File] = &[$(
            File { name: $name, kind: $kind, text: include_str!(concat!("../page/", $name)) },
        )*];
    };
}
files! {
    "page.css" CSS,
    "page.js" SCRIPT,
    "api.js" SCRIPT,
    "ring.js" SCRIPT,
    "charts.js" SCRIPT,
    "story.js" SCRIPT,
    "chat.js" SCRIPT,
    "dom.js" SCRIPT,
    "icon.svg" SVG,
}

/// Entity tags of the index and of [`FILES`], in order.
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let tag = |file: &File| format!("\"{}\"", &blake3::hash(file.text.as_bytes()).to_hex()[..16]);
    [INDEX].iter().chain(FILES).map(tag).collect()
});

/// Names of the files beside the page itself.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|file| file.name)
}

/// Whether the path is the page's or one of its files'.
pub fn is_file(path: &str) -> bool {
    path == "/" || path.strip_prefix("/page/").is_some_and(|name| names().any(|own| own == name))
}

/// `GET /`
pub async fn index(headers: HeaderMap) -> Response {
    send(&INDEX, &TAGS[0], &headers)
}

/// `GET /page/{file}`
///
/// # Errors
/// 404 for another file.
pub async fn file(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, ApiError> {
    let mut tagged = FILES.iter().zip(&TAGS[1..]);
    let (file, tag) = tagged
        .find(|(file, _)| file.name == name)
        .ok_or_else(|| ApiError::route_not_found(&format!("/page/{name}")))?;
    Ok(send(file, tag, &headers))
}

/// The file, or word that the client's copy is the same.
fn send(file: &File, tag: &str, headers: &HeaderMap) -> Response {
    let known = headers.get_all(header::IF_NONE_MATCH).iter();
    let known = known.filter_map(|value| value.to_str().ok()).any(|tags| tags.contains(tag));
    let kind = format!("{}; charset=utf-8", file.kind);
    let kind = HeaderValue::from_str(&kind).unwrap_or(HeaderValue::from_static(HTML));
    let fixed = |value| HeaderValue::from_static(value);
    let headers: [(HeaderName, HeaderValue); 6] = [
        (header::CONTENT_TYPE, kind),
        (header::ETAG, HeaderValue::from_str(tag).unwrap_or(fixed("\"\""))),
        (header::CACHE_CONTROL, fixed("no-cache")), // asked again, and then mostly a 304
        (header::CONTENT_SECURITY_POLICY, fixed(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::REFERRER_POLICY, fixed("no-referrer")),
    ];
    match known {
        true => (StatusCode::NOT_MODIFIED, headers).into_response(),
        false => (headers, file.text).into_response(),
    }
}

/// `GET /ring`: the ring at this moment.
pub async fn ring(State(app): State<Arc<App>>) -> Json<Value> {
    let mut ring = app.ring.snapshot();
    ring["version"] = json!(env!("CARGO_PKG_VERSION"));
    ring["model"] = json!(app.model.served_name);
    ring["calls"] = json!(app.in_flight.count());
    ring["draining"] = json!(app.is_draining());
    Json(ring)
}

/// `GET /ring/requests`: stories of requests under way and of the last `limit` that ended.
///
/// # Errors
/// `limit` is no number.
pub async fn requests(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let query = query.unwrap_or_default();
    let limit = query.split('&').find_map(|pair| pair.strip_prefix("limit="));
    let wrong = |_| crate::error::Invalid::field("limit", "must be a whole number from 0");
    let limit = limit.map(str::parse).transpose().map_err(wrong)?;
    Ok(Json(app.ring.stories(limit.unwrap_or(STORIES))))
}

/// `GET /ring/requests/{id}`: stories of the requests of one call.
///
/// # Errors
/// 404 if none is remembered.
pub async fn request(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let requests = app.ring.stories_of(&id);
    match requests.is_empty() {
        true => Err(ApiError::request_not_found(&id)),
        false => Ok(Json(json!({"id": id, "requests": requests}))),
    }
}
