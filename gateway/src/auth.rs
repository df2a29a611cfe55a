//! `--api-key`: a bearer token, or Anthropic's `x-api-key`, on every route but health, readiness
//! and metrics.

use axum::http::{HeaderMap, header};

/// Routes that monitors ask without a key.
const OPEN: [&str; 3] = ["/health", "/ready", "/metrics"];

/// Where Anthropic's clients put the key.
const X_API_KEY: &str = "x-api-key";

/// The key, kept as a digest.
#[derive(Debug, Clone)]
pub struct ApiKey(blake3::Hash);

impl ApiKey {
    /// A key that clients must send.
    pub fn new(key: &str) -> Self {
        Self(blake3::hash(key.as_bytes()))
    }

    /// Whether a request to `path` may pass. Digests are compared in constant time, so the time
    /// tells nothing of the key.
    pub fn admits(&self, path: &str, headers: &HeaderMap) -> bool {
        if OPEN.contains(&path) {
            return true;
        }
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let token = given.and_then(|value| {
            let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
        });
        let token = token.or_else(|| headers.get(X_API_KEY).map(|value| value.as_bytes()));
        token.is_some_and(|token| blake3::hash(token) == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_the_key_opens_and_health_is_open() {
        let key = ApiKey::new("sesame");
        let check = |path: &str, value: Option<&'static str>, expect: bool| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            }
            assert_eq!(key.admits(path, &headers), expect, "{path} {value:?}");
        };
        check("/v1/models", Some("Bearer sesame"), true);
        check("/v1/models", Some("bearer sesame"), true);
        check("/v1/models", Some("Bearer sesam"), false);
        check("/v1/models", Some("Bearer "), false);
        check("/v1/models", Some("sesame"), false);
        check("/v1/models", None, false);
        let mut headers = HeaderMap::new();
        headers.insert(X_API_KEY, HeaderValue::from_static("sesame"));
        assert!(key.admits("/v1/messages", &headers));
        headers.insert(X_API_KEY, HeaderValue::from_static("sesam"));
        assert!(!key.admits("/v1/messages", &headers));
        check("/health", None, true);
        check("/metrics", None, true);
        check("/flush_cache", None, false);
    }
}
