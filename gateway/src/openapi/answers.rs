//! Schemas of answers: what a client may count on.
#![expect(clippy::needless_pass_by_value, reason = "a schema is made of its parts, used up")]

use serde_json::{Map, Value, json};

/// By name.
pub(super) fn schemas() -> Map<String, Value> {
    let error = json!({
        "message": {"type": "string"}, "type": {"type": "string"},
        "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
    });
    let named = [
        ("Object", json!({"type": "object"})),
        ("Error", object(json!({"error": object(error)}))),
        ("AnthropicError", anthropic_error()),
        ("Chat", object(head(json!({"choices": list(choice("message")), "usage": usage()})))),
        ("Completion", object(head(json!({"choices": list(choice("text")), "usage": usage()})))),
        ("Response", response()),
        ("Message", message()),
        ("TokenCount", object(json!({"input_tokens": {"type": "integer"}}))),
        ("Embeddings", embeddings()),
        (
            "Scores",
            json!({"type": "object", "properties": {
                "scores": list(list(json!({"type": "number"}))), "data": list(scored()),
                "usage": usage(),
            }}),
        ),
        ("Generated", generated()),
        ("Tokens", tokens()),
        ("Text", object(json!({"prompt": {"type": "string"}}))),
        ("Aborted", object(json!({"aborted": {"type": "integer"}}))),
        ("Model", model()),
        ("Models", object(json!({"object": {"const": "list"}, "data": list(model())}))),
        ("ModelInfo", model_info()),
        ("Loads", loads()),
        ("Ring", ring()),
        ("Story", story()),
        ("Requests", object(json!({"running": list(told()), "ended": list(told())}))),
        ("Request", object(json!({"id": {"type": "string"}, "requests": list(told())}))),
    ];
    named.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

/// An object that has all these properties.
fn object(properties: Value) -> Value {
    let names: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
    json!({"type": "object", "required": names, "properties": properties})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn head(mut properties: Value) -> Value {
    properties["id"] = json!({"type": "string"});
    properties["object"] = json!({"type": "string"});
    properties["created"] = json!({"type": "integer"});
    properties["model"] = json!({"type": "string"});
    properties
}

fn choice(content: &str) -> Value {
    let finish = json!({"enum": ["stop", "length", "tool_calls"]});
    object(json!({"index": {"type": "integer"}, "finish_reason": finish, content: {}}))
}

fn usage() -> Value {
    object(json!({
        "prompt_tokens": {"type": "integer"}, "completion_tokens": {"type": "integer"},
        "total_tokens": {"type": "integer"},
    }))
}

fn response() -> Value {
    object(json!({
        "id": {"type": "string"}, "object": {"const": "response"},
        "created_at": {"type": "integer"}, "model": {"type": "string"},
        "status": {"enum": ["completed", "incomplete"]}, "output": list(json!({"type": "object"})),
        "usage": object(json!({
            "input_tokens": {"type": "integer"}, "output_tokens": {"type": "integer"},
            "total_tokens": {"type": "integer"},
        })),
    }))
}

fn message() -> Value {
    object(json!({
        "id": {"type": "string"}, "type": {"const": "message"}, "role": {"const": "assistant"},
        "model": {"type": "string"}, "content": list(json!({"type": "object"})),
        "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
        "stop_sequence": {"type": ["string", "null"]},
        "usage": object(json!({
            "input_tokens": {"type": "integer"}, "output_tokens": {"type": "integer"},
        })),
    }))
}

fn anthropic_error() -> Value {
    object(json!({
        "type": {"const": "error"},
        "error": object(json!({"type": {"type": "string"}, "message": {"type": "string"}})),
        "request_id": {"type": "string"},
    }))
}

fn embeddings() -> Value {
    let vector = json!({"anyOf": [list(json!({"type": "number"})), {"type": "string"}]});
    let one = object(json!({
        "object": {"const": "embedding"}, "index": {"type": "integer"}, "embedding": vector,
    }));
    object(json!({
        "object": {"const": "list"}, "model": {"type": "string"}, "data": list(one),
        "usage": usage(),
    }))
}

fn scored() -> Value {
    object(json!({
        "object": {"const": "score"}, "index": {"type": "integer"}, "score": {"type": "number"},
    }))
}

fn generated() -> Value {
    let one = object(json!({
        "text": {"type": "string"}, "output_ids": list(json!({"type": "integer"})),
        "meta_info": {"type": "object"},
    }));
    json!({"anyOf": [one, list(one.clone())]})
}

fn tokens() -> Value {
    object(json!({
        "count": {"type": "integer"}, "max_model_len": {"type": "integer"},
        "tokens": list(json!({"type": "integer"})),
    }))
}

fn model() -> Value {
    object(json!({
        "id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"},
        "owned_by": {"type": "string"}, "max_model_len": {"type": "integer"},
    }))
}

fn model_info() -> Value {
    object(json!({
        "model_path": {"type": "string"}, "tokenizer_path": {"type": "string"},
        "is_generation": {"type": "boolean"}, "model_type": {"type": "string"},
        "architectures": list(json!({"type": "string"})), "vocab_size": {"type": "integer"},
    }))
}

fn loads() -> Value {
    let server = object(json!({
        "role": {"enum": ["prefill", "decode"]}, "id": {"type": "string"},
        "num_running_reqs": {"type": "integer"}, "num_waiting_reqs": {"type": "integer"},
        "num_used_tokens": {"type": "integer"}, "max_total_num_tokens": {"type": "integer"},
        "token_usage": {"type": "number"}, "pages_used": {"type": "integer"},
        "pages_free": {"type": "integer"}, "page_size": {"type": "integer"},
    }));
    let aggregate = object(json!({
        "total_running_reqs": {"type": "integer"}, "total_waiting_reqs": {"type": "integer"},
        "total_reqs": {"type": "integer"}, "avg_token_usage": {"type": "number"},
    }));
    object(json!({"loads": list(server), "aggregate": aggregate, "version": {"type": "string"}}))
}

fn ring() -> Value {
    let count = || json!({"type": "integer"});
    let server = object(json!({
        "name": {"type": ["string", "null"]}, "address": {"type": "string"},
        "state": {"enum": ["joined", "joining", "draining", "lost"]},
        "why": {"type": ["string", "null"]}, "requests": count(), "tokens": count(),
    }));
    let link = object(json!({
        "prefill": count(), "decode": count(), "coming": count(), "handoffs": count(),
        "exposed_us": count(),
    }));
    let times = object(json!({
        "from_us": list(count()), "ttft": list(count()), "itl": list(count()),
    }));
    object(json!({
        "now_us": count(), "requests": count(), "queued": count(), "finished": count(),
        "failed": count(), "dropped": count(), "prefill": list(server.clone()),
        "decode": list(server), "links": list(link), "times": times,
        "version": {"type": "string"}, "model": {"type": "string"}, "draining": {"type": "boolean"},
    }))
}

fn told() -> Value {
    json!({"$ref": "#/components/schemas/Story"})
}

fn story() -> Value {
    let count = || json!({"type": "integer"});
    let phases =
        json!(["read", "queue", "ticket", "prefill_queue", "prefill", "handoff", "wire", "decode"]);
    let phase = object(json!({
        "phase": {"enum": phases}, "server": {"type": ["string", "null"]}, "start_us": count(),
        "us": count(),
    }));
    object(json!({
        "id": {"type": "string"}, "call": {"type": "string"},
        "state": {"enum": ["running", "finished", "failed", "dropped"]},
        "arrived_ms": count(), "us": count(), "ttft_us": {"type": ["integer", "null"]},
        "prompt_tokens": count(), "cached_tokens": count(), "output_tokens": count(),
        "attempts": count(), "phases": list(phase),
    }))
}
