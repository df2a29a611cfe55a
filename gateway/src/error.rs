//! The one map from what went wrong to an HTTP status and OpenAI's error object.

use crate::ring::{Failure, FailureKind};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Seconds that a client is asked to wait before it tries again.
const RETRY_AFTER_S: u32 = 1;

/// A request that is refused for what it says: 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The field, down to the element (`prompt[2]`); `None` where the body as a whole is wrong.
    pub param: Option<String>,
    /// What is wrong, the value, and what would do.
    pub message: String,
    /// OpenAI's code where clients look at it.
    pub code: Option<&'static str>,
}

impl Invalid {
    /// The body as a whole is wrong.
    pub fn body(message: String) -> Self {
        Self { param: None, message, code: None }
    }
    /// `field` is wrong; `what` goes on after its name.
    pub fn field(field: impl Into<String>, what: &str) -> Self {
        let field = field.into();
        Self { message: format!("{field}: {what}"), param: Some(field), code: None }
    }
    /// A field that is known, would change the result, and is not implemented.
    pub fn unsupported(field: impl Into<String>, value: &str) -> Self {
        let what = format!("{value} is not supported yet; leave the field out");
        Self { code: Some("unsupported_parameter"), ..Self::field(field, &what) }
    }
    /// The same in the words of another API: `names` are pairs of its parts of a field's name, of
    /// ours and theirs.
    #[must_use]
    pub fn renamed(self, names: &[(&str, &str)]) -> Self {
        let Some(ours) = self.param else { return self };
        let theirs = names.iter().fold(ours.clone(), |name, (our, their)| name.replace(our, their));
        let message = match self.message.strip_prefix(&ours) {
            Some(rest) => format!("{theirs}{rest}"),
            None => self.message,
        };
        Self { param: Some(theirs), message, code: self.code }
    }
    /// Prompt and output do not fit.
    pub fn too_long(field: &str, message: String) -> Self {
        Self { param: Some(field.into()), message, code: Some("context_length_exceeded") }
    }
}

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: String) -> Self {
        Self { status, kind, message, param: None, code: Some(code) }
    }
    /// The body is larger than `limit` bytes: 413.
    pub fn body_too_large(limit: usize) -> Self {
        let message = format!("The body is larger than {limit} bytes, the limit of this server");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        Self::new(status, "invalid_request_error", "body_too_large", message)
    }
    /// The body did not arrive in time: 408.
    pub fn body_too_slow() -> Self {
        let message = "The body did not arrive in time".to_owned();
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "body_timeout", message)
    }
    /// Another model than the one served: 404.
    pub fn model_not_found(asked: &str, served: &str) -> Self {
        let message = format!("The model `{asked}` does not exist; this server serves `{served}`");
        let status = StatusCode::NOT_FOUND;
        let kind = "invalid_request_error";
        Self { param: Some("model".into()), ..Self::new(status, kind, "model_not_found", message) }
    }
    /// No such route: 404.
    pub fn route_not_found(path: &str) -> Self {
        let message = format!("There is no route {path}");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", "not_found", message)
    }
    /// No request of that name that is remembered: 404.
    pub fn request_not_found(name: &str) -> Self {
        let message = format!(
            "No request `{name}` is under way or among the last that ended; give a call's \
             x-request-id or the id of its answer"
        );
        let status = StatusCode::NOT_FOUND;
        let kind = "invalid_request_error";
        Self { param: Some("id".into()), ..Self::new(status, kind, "request_not_found", message) }
    }
    /// The route exists, the method does not fit: 405.
    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self::new(status, "invalid_request_error", "method_not_allowed", message)
    }
    /// The key is missing or wrong: 401.
    pub fn unauthorized() -> Self {
        let message = "The API key is missing or wrong; send it as `Authorization: Bearer …` \
                       or `x-api-key: …`";
        let status = StatusCode::UNAUTHORIZED;
        Self::new(status, "invalid_request_error", "invalid_api_key", message.to_owned())
    }
    /// A fault of ours: 500.
    pub fn internal(message: String) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal_error", message)
    }
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }
    /// What happened, for the client.
    pub fn message(&self) -> &str {
        &self.message
    }
    /// OpenAI's error object, as a body or as a chunk in mid-stream.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "invalid_request_error",
            message: invalid.message,
            param: invalid.param,
            code: invalid.code,
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        /// What nginx logs for a request that its client took back.
        const TAKEN_BACK: u16 = 499;
        let taken_back = StatusCode::from_u16(TAKEN_BACK).expect("in 100..1000");
        let (status, kind, code) = match failure.kind {
            FailureKind::TooLarge => {
                (StatusCode::BAD_REQUEST, "invalid_request_error", "context_length_exceeded")
            }
            FailureKind::QueueFull => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "queue_full")
            }
            FailureKind::NotReady => {
                (StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", "not_ready")
            }
            FailureKind::PeerLost => (StatusCode::BAD_GATEWAY, "server_error", "peer_lost"),
            FailureKind::Aborted => (taken_back, "request_aborted", "aborted"),
            FailureKind::Deadline => (StatusCode::GATEWAY_TIMEOUT, "timeout_error", "deadline"),
            FailureKind::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal_error")
            }
        };
        let too_large = failure.kind == FailureKind::TooLarge;
        let param = too_large.then(|| "max_tokens".to_owned());
        Self { param, ..Self::new(status, kind, code, failure.message) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        // For an API that has another shape for it.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_status() {
        let cases = [
            (FailureKind::TooLarge, 400, "context_length_exceeded"),
            (FailureKind::QueueFull, 429, "queue_full"),
            (FailureKind::NotReady, 503, "not_ready"),
            (FailureKind::PeerLost, 502, "peer_lost"),
            (FailureKind::Aborted, 499, "aborted"),
            (FailureKind::Deadline, 504, "deadline"),
            (FailureKind::Internal, 500, "internal_error"),
        ];
        for (kind, status, code) in cases {
            let error = ApiError::from(Failure { kind, message: "why".into() });
            assert_eq!(error.status().as_u16(), status);
            assert_eq!(error.body()["error"]["code"], code);
            assert_eq!(error.body()["error"]["message"], "why");
            let waits = error.into_response().headers().contains_key(header::RETRY_AFTER);
            assert_eq!(waits, [429, 503].contains(&status));
        }
    }

    #[test]
    fn an_invalid_field_has_openais_shape() {
        let error = ApiError::from(Invalid::unsupported("n", "2"));
        insta::assert_snapshot!(error.body(), @r#"{"error":{"message":"n: 2 is not supported yet; leave the field out","type":"invalid_request_error","param":"n","code":"unsupported_parameter"}}"#);
    }
}
