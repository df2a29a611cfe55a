//! The ring's client: `/generate` by token ids, whole or streamed, and the gateway's own routes.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::fmt;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Ends a request that hangs; no figure comes near it.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    url: String,
}

/// How a request ended, if not well.
#[derive(Debug)]
pub enum Ended {
    /// As it should: a status or an event with OpenAI's error object.
    Typed { status: u16, code: String },
    /// In any other way: a broken connection, a body that is no error object, silence.
    Untyped(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Typed { status, code } => write!(f, "{status} {code}"),
            Self::Untyped(what) => write!(f, "untyped: {what}"),
        }
    }
}

impl std::error::Error for Ended {}

/// A streamed answer.
#[derive(Debug)]
pub struct Streamed {
    /// From sending to the first event.
    pub first: Duration,
    /// From the first event to the last.
    pub rest: Duration,
    /// Tokens that had come with the first event.
    pub tokens_first: u64,
    /// The last event: the whole answer.
    pub answer: Value,
}

impl Client {
    pub fn new(url: String) -> Self {
        Self::patient(url, PATIENCE)
    }

    /// One that goes away after `patience`, whatever the state of its request.
    pub fn patient(url: String, patience: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(patience))
            .max_idle_connections(0)
            .build();
        Self { agent: config.into(), url }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// A whole answer of `/generate`.
    ///
    /// # Errors
    /// [`Ended`], typed or not.
    pub fn generate(&self, body: &Value) -> Result<Value, Ended> {
        let mut response = self.post("/generate", body)?;
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(64 << 20).read_to_string();
        let text = text.map_err(|error| Ended::Untyped(error.to_string()))?;
        answer(status, &text)
    }

    /// A streamed answer; `look` sees every event and may leave.
    ///
    /// # Errors
    /// [`Ended`], typed or not.
    pub fn stream_until(
        &self,
        body: &Value,
        mut look: impl FnMut(&Value) -> ControlFlow<()>,
    ) -> Result<Option<Streamed>, Ended> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let start = Instant::now();
        let mut response = self.post("/generate", &body)?;
        let status = response.status().as_u16();
        if status != 200 {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            return Err(answer(status, &text).err().unwrap_or_else(|| untyped(status, &text)));
        }
        let mut times = Vec::new();
        let (mut tokens_first, mut last) = (0, Value::Null);
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.map_err(|error| Ended::Untyped(error.to_string()))?;
            let Some(data) = line.strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                let [Some(first), Some(end)] = [times.first(), times.last()] else { break };
                let rest = *end - *first;
                return Ok(Some(Streamed { first: *first, rest, tokens_first, answer: last }));
            }
            times.push(start.elapsed());
            last = answer(status, data)?;
            if times.len() == 1 {
                tokens_first = last["meta_info"]["completion_tokens"].as_u64().unwrap_or(0);
            }
            if look(&last).is_break() {
                return Ok(None);
            }
        }
        Err(Ended::Untyped("the stream broke off".to_owned()))
    }

    /// A streamed answer, read to its end.
    ///
    /// # Errors
    /// [`Ended`], typed or not.
    pub fn stream(&self, body: &Value) -> Result<Streamed, Ended> {
        let streamed = self.stream_until(body, |_| ControlFlow::Continue(()))?;
        streamed.ok_or_else(|| Ended::Untyped("nobody left this stream".to_owned()))
    }

    /// A `POST` that must succeed; a stream must come to its end, and tell of no error.
    pub fn ask(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        let mut response = self.post(path, body)?;
        let text = response.body_mut().read_to_string()?;
        let ends = [
            "data: [DONE]",
            "event: message_stop",
            "event: response.completed",
            "event: response.incomplete",
        ];
        let ended = ends.iter().any(|end| text.contains(end)) && !text.contains("data: {\"error\"");
        let is_whole = response.status().is_success() && (body["stream"] != true || ended);
        ensure!(is_whole, "{path}: {} {text}", response.status());
        Ok(())
    }

    /// The body of a `GET` that must succeed, of any server of the ring.
    pub fn get(&self, url: &str) -> anyhow::Result<String> {
        let mut response = self.agent.get(url).call().with_context(|| url.to_owned())?;
        let text = response.body_mut().read_to_string()?;
        ensure!(response.status().is_success(), "{url}: {} {text}", response.status());
        Ok(text)
    }

    /// The gateway's `/server_info`.
    pub fn server_info(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.get(&format!("{}/server_info", self.url))?)?)
    }

    fn post(&self, path: &str, body: &Value) -> Result<ureq::http::Response<ureq::Body>, Ended> {
        let request = self.agent.post(format!("{}{path}", self.url));
        let sent = request.content_type("application/json").send(body.to_string());
        sent.map_err(|error| Ended::Untyped(error.to_string()))
    }
}

/// Token ids of an answer.
pub fn output_ids(answer: &Value) -> Vec<u32> {
    let ids = answer["output_ids"].as_array().into_iter().flatten();
    ids.filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

fn answer(status: u16, text: &str) -> Result<Value, Ended> {
    let body: Value = serde_json::from_str(text).map_err(|_| untyped(status, text))?;
    let error = &body["error"];
    match (error["code"].as_str(), error["message"].as_str()) {
        (Some(code), Some(_)) => Err(Ended::Typed { status, code: code.to_owned() }),
        _ if status == 200 => Ok(body),
        _ => Err(untyped(status, text)),
    }
}

fn untyped(status: u16, text: &str) -> Ended {
    Ended::Untyped(format!("{status} {}", text.chars().take(200).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_errors_and_rubbish_are_told_apart() {
        let ids = output_ids(&answer(200, r#"{"output_ids": [5, 6]}"#).unwrap());
        assert_eq!(ids, [5, 6]);
        let typed = r#"{"error": {"message": "m", "code": "peer_lost", "type": "t"}}"#;
        for status in [200, 502] {
            let ended = answer(status, typed).unwrap_err();
            assert!(matches!(&ended, Ended::Typed { code, .. } if code == "peer_lost"), "{ended}");
        }
        for (status, text) in [(502, "{}"), (500, "oops"), (200, "not json")] {
            assert!(matches!(answer(status, text), Err(Ended::Untyped(_))), "{status} {text}");
        }
    }
}
