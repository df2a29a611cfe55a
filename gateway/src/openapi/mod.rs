//! `/openapi.json`: a document of every route, made of the same limits as the checks.
//!
//! A test holds it to the code: every route is in it and takes the methods that it says, and every
//! field of a body that it names is read, as a value of another type is refused by that name.

mod answers;
mod bodies;

use crate::model::Model;
use crate::page;
use crate::ring::Limits;
use serde_json::{Map, Value, json};

/// What the document says of a route's method.
struct Operation {
    path: &'static str,
    method: &'static str,
    summary: &'static str,
    /// Name of the schema of the request's body.
    body: Option<&'static str>,
    /// Name of the schema of the answer, which is text where there is none.
    answer: Option<&'static str>,
    /// Types of an answer that is text.
    texts: &'static [&'static str],
    /// Whether the answer can be a stream of events.
    streams: bool,
}

const fn get(path: &'static str, summary: &'static str) -> Operation {
    let texts = &["text/plain"];
    Operation { path, method: "get", summary, body: None, answer: None, texts, streams: false }
}

const fn post(path: &'static str, body: &'static str, summary: &'static str) -> Operation {
    Operation { body: Some(body), method: "post", ..get(path, summary) }
}

impl Operation {
    const fn answers(self, answer: &'static str) -> Self {
        Self { answer: Some(answer), ..self }
    }
    const fn in_types(self, texts: &'static [&'static str]) -> Self {
        Self { texts, ..self }
    }
    const fn streams(self) -> Self {
        Self { streams: true, ..self }
    }
}

const OPERATIONS: &[Operation] = &[
    post("/v1/chat/completions", "Chat", "OpenAI's chat completions").answers("Chat").streams(),
    post("/v1/completions", "Completions", "OpenAI's completions").answers("Completion").streams(),
    post("/v1/responses", "Responses", "OpenAI's responses").answers("Response").streams(),
    post("/v1/messages", "Messages", "Anthropic's messages").answers("Message").streams(),
    post("/v1/messages/count_tokens", "CountTokens", "Tokens of a prompt of Anthropic's messages")
        .answers("TokenCount"),
    post("/v1/embeddings", "Embeddings", "A vector of each text").answers("Embeddings"),
    post("/v1/score", "Score", "Tokens after a text, or pairs of texts, by number")
        .answers("Scores"),
    post("/generate", "Generate", "SGLang's generate").answers("Generated").streams(),
    post("/tokenize", "Tokenize", "Token ids of a prompt or a conversation").answers("Tokens"),
    post("/detokenize", "Detokenize", "Text of token ids").answers("Text"),
    post("/abort_request", "Abort", "Ends a call by its name, or all calls").answers("Aborted"),
    get("/v1/models", "The models served: one").answers("Models"),
    get("/v1/models/{model}", "One model").answers("Model"),
    get("/health", "Whether this process is alive").answers("Object"),
    get("/health_generate", "Whether the whole ring makes tokens").answers("Object"),
    get("/ready", "Whether a request would be served now").answers("Object"),
    get("/metrics", "Metrics in Prometheus' text format"),
    get("/v1/loads", "Requests and pages of every server").answers("Loads"),
    get("/server_info", "The gateway and its servers").answers("Object"),
    get("/get_server_info", "The gateway and its servers").answers("Object"),
    get("/model_info", "The model").answers("ModelInfo"),
    get("/get_model_info", "The model").answers("ModelInfo"),
    get("/flush_cache", "Drops cached pages on every server"),
    Operation { method: "post", ..get("/flush_cache", "Drops cached pages on every server") },
    get("/openapi.json", "This document").answers("Object"),
    get("/", "A page to look at: the ring as it works, and a chat").in_types(&["text/html"]),
    get("/page/{file}", "The page's files").in_types(page::TYPES),
    get("/ring", "Every server and link with its numbers, and counts that only grow")
        .answers("Ring"),
    get("/ring/requests", "Stories of requests under way and of the last that ended")
        .answers("Requests"),
    get("/ring/requests/{id}", "Stories of a call's requests, or of one request")
        .answers("Request"),
];

/// The document of a gateway that serves `model` within `limits`.
pub fn document(model: &Model, limits: Limits) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for operation in OPERATIONS {
        paths.entry(operation.path).or_insert_with(|| json!({}))[operation.method] =
            described(operation);
    }
    let mut schemas = bodies::schemas(model, limits);
    schemas.extend(answers::schemas());
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Tandem", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"x-api-key": []}],
    })
}

fn described(operation: &Operation) -> Value {
    let schema = |name: &str| json!({"schema": {"$ref": format!("#/components/schemas/{name}")}});
    let mut content = match operation.answer {
        Some(answer) => json!({"application/json": schema(answer)}),
        None => {
            let text = |kind: &&str| ((*kind).to_owned(), json!({"schema": {"type": "string"}}));
            operation.texts.iter().map(text).collect()
        }
    };
    if operation.streams {
        content["text/event-stream"] = json!({}); // OpenAPI 3.1 has no words for events
    }
    let error = match crate::anthropic::serves(operation.path) {
        true => "AnthropicError",
        false => "Error",
    };
    let mut described = json!({
        "summary": operation.summary,
        "responses": {
            "200": {"description": "The answer", "content": content},
            "default": {
                "description": "An error",
                "content": {"application/json": schema(error)},
            },
        },
    });
    if let Some(body) = operation.body {
        let content = json!({"application/json": schema(&format!("{body}Request"))});
        described["requestBody"] = json!({"required": true, "content": content});
    }
    let parameters: Vec<Value> = parameters(operation.path).collect();
    if !parameters.is_empty() {
        described["parameters"] = json!(parameters);
    }
    described
}

/// What a path takes in itself and behind its question mark.
fn parameters(path: &str) -> impl Iterator<Item = Value> {
    let in_path = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path.map(|name| {
        let schema = match name {
            "file" => json!({"enum": page::names().collect::<Vec<_>>()}),
            _ => json!({"type": "string"}),
        };
        json!({"name": name, "in": "path", "required": true, "schema": schema})
    });
    let limit = (path == "/ring/requests").then(|| {
        let schema = json!({"type": "integer", "minimum": 0});
        json!({"name": "limit", "in": "query", "schema": schema})
    });
    in_path.chain(limit)
}
