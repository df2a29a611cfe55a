//! The key of clients: a bearer token, or Anthropic's `x-api-key`, on every route but those that
//! monitors ask and the page's files, which know nothing of this ring.

use crate::page;
use axum::http::{HeaderMap, header};
use std::sync::{PoisonError, RwLock};

/// Routes that monitors ask without a key.
const OPEN: [&str; 3] = ["/health", "/ready", "/metrics"];

/// Where Anthropic's clients put the key.
const X_API_KEY: &str = "x-api-key";

/// Who may pass: whoever sends the key, or everyone where there is none. It is kept as a digest and
/// can change while requests come.
#[derive(Debug, Default)]
pub struct Guard(RwLock<Option<blake3::Hash>>);

impl Guard {
    /// One that wants this key.
    pub fn new(key: Option<&str>) -> Self {
        let guard = Self::default();
        guard.set(key);
        guard
    }

    /// From now on it wants this key.
    pub fn set(&self, key: Option<&str>) {
        let digest = key.map(|key| blake3::hash(key.as_bytes()));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = digest;
    }

    /// Whether a request to `path` may pass. Digests are compared in constant time, so the time
    /// tells nothing of the key.
    pub fn admits(&self, path: &str, headers: &HeaderMap) -> bool {
        let wanted = *self.0.read().unwrap_or_else(PoisonError::into_inner);
        let is_open = OPEN.contains(&path) || page::is_file(path);
        let Some(wanted) = wanted.filter(|_| !is_open) else { return true };
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let token = given.and_then(|value| {
            let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
        });
        let token = token.or_else(|| headers.get(X_API_KEY).map(|value| value.as_bytes()));
        token.is_some_and(|token| blake3::hash(token) == wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_the_key_opens_and_health_is_open() {
        let key = Guard::new(Some("sesame"));
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
        check("/", None, true);
        check("/page/page.css", None, true);
        check("/ring", None, false);
        check("/ring/requests", None, false);
        check("/flush_cache", None, false);
        key.set(Some("open"));
        check("/v1/models", Some("Bearer sesame"), false);
        check("/v1/models", Some("Bearer open"), true);
        key.set(None);
        check("/v1/models", None, true);
    }
}
