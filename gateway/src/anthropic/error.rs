//! Anthropic's error object.

use crate::error::ApiError;
use serde_json::{Value, json};

/// The error as a body, or as the event that ends a stream.
pub fn body(error: &ApiError, request_id: Option<&str>) -> Value {
    let kind = match error.status().as_u16() {
        401 => "authentication_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        408 | 504 => "timeout_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    };
    let mut body = json!({"type": "error", "error": {"type": kind, "message": error.message()}});
    if let Some(id) = request_id {
        body["request_id"] = json!(id);
    }
    body
}
