//! The load generator's client: `/v1/completions`, streamed, every token's time noted.
//!
//! 1. [`Ask::new`] makes the body before any clock runs.
//! 2. [`Client::ask`] takes a connection that an earlier request left open, or opens one, sends,
//!    and reads to the end.
//! 3. Whatever happens is one [`Sample`]: nothing is dropped, and nothing is tried again.
//!
//! A token's time is when its chunk was read. The usage in each chunk says how many tokens came so
//! far (`continuous_usage_stats`, which vLLM has too), so one that completes no text counts.

use anyhow::{Context, bail, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Ends a request that hangs; no figure comes near it.
const PATIENCE: Duration = Duration::from_secs(300);

/// A request, ready to be sent.
pub struct Ask {
    /// Its `x-request-id`.
    name: String,
    body: Bytes,
    /// Tokens of output that must come.
    pub output: usize,
}

impl Ask {
    /// For a prompt of token ids or of text; greedy, to the full length whatever the model says;
    /// `model` as the server calls it.
    pub fn new(name: String, prompt: &Value, output: usize, model: Option<&str>) -> Self {
        let mut body = json!({
            "prompt": prompt,
            "max_tokens": output,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true, "continuous_usage_stats": true},
        });
        if let Some(model) = model {
            body["model"] = json!(model);
        }
        Self { name, body: body.to_string().into(), output }
    }
}

/// A chunk that brought tokens.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    pub at: Instant,
    pub tokens: usize,
}

/// What came of a request.
pub struct Sample {
    pub name: String,
    /// When it should have been sent; absent where it was sent as soon as there was a place.
    pub due: Option<Instant>,
    pub sent: Instant,
    /// The same moment by the clock that logs use.
    pub sent_clock: SystemTime,
    /// Chunks that brought tokens, in order.
    pub chunks: Vec<Chunk>,
    pub end: Instant,
    /// Tokens of the prompt, as the server counts; 0 if it did not say.
    pub prompt_tokens: usize,
    /// Of those, how many it did not compute.
    pub cached_tokens: usize,
    /// Why it is no good, if it is not: refused, broken off, or fewer tokens than were asked for.
    pub failure: Option<String>,
}

impl Sample {
    pub fn tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens).sum()
    }

    /// Time to the first token.
    pub fn ttft(&self) -> Option<Duration> {
        self.chunks.first().map(|chunk| chunk.at - self.sent)
    }

    /// Time per output token after the first chunk's; none of an answer of one chunk.
    pub fn tpot(&self) -> Option<Duration> {
        let [first, .., last] = &self.chunks[..] else { return None };
        let tokens = self.tokens() - first.tokens;
        Some((last.at - first.at) / tokens.try_into().ok()?)
    }
}

pub struct Client {
    authority: String,
    model: Option<String>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    started: AtomicUsize,
}

/// What a chunk says, as far as it is read here.
#[derive(Deserialize)]
struct Said {
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: usize,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
    completion_tokens: usize,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<usize>,
}

impl Client {
    /// For a server at `http://HOST:PORT` that calls its model `model`; Tandem needs no name.
    ///
    /// # Errors
    /// `url` is no such address.
    pub fn new(url: &str, model: Option<String>) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("--url {url:?}"))?;
        ensure!(uri.scheme_str() == Some("http"), "--url {url:?}: want http://HOST:PORT");
        let authority = uri.authority().context("the URL has no host")?.to_string();
        Ok(Self { authority, model, idle: Mutex::default(), started: AtomicUsize::new(0) })
    }

    /// The model's name, if requests must carry one.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Requests whose first token has come, since this client was made.
    pub fn started(&self) -> usize {
        self.started.load(Ordering::Acquire)
    }

    /// Sends a request and reads its answer to the end.
    pub async fn ask(&self, ask: &Ask) -> Sample {
        let now = Instant::now();
        let mut sample = Sample {
            name: ask.name.clone(),
            due: None,
            sent: now,
            sent_clock: SystemTime::now(),
            chunks: Vec::with_capacity(ask.output),
            end: now,
            prompt_tokens: 0,
            cached_tokens: 0,
            failure: None,
        };
        let outcome = match timeout(PATIENCE, self.run(ask, &mut sample)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("no end within {PATIENCE:?}")),
        };
        sample.end = Instant::now();
        sample.failure = match outcome {
            Err(error) => Some(format!("{error:#}")),
            Ok(()) if sample.tokens() != ask.output => {
                Some(format!("{} tokens came of {}", sample.tokens(), ask.output))
            }
            Ok(()) => None,
        };
        sample
    }

    async fn run(&self, ask: &Ask, sample: &mut Sample) -> anyhow::Result<()> {
        let mut connection = self.connection().await?;
        let request = Request::post("/v1/completions")
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json")
            .header("x-request-id", &ask.name)
            .body(Full::new(ask.body.clone()))?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        if status != StatusCode::OK {
            let said = body.collect().await?.to_bytes();
            bail!("{status}: {}", String::from_utf8_lossy(&said));
        }
        let mut events = Events::default();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let at = Instant::now();
            events.push(&data);
            while let Some(event) = events.next() {
                if event == "[DONE]" {
                    // What follows is the end of the body; then the connection can be used again.
                    while body.frame().await.transpose()?.is_some() {}
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                    return Ok(());
                }
                self.note(&event, at, sample)?;
            }
        }
        bail!("the stream broke off")
    }

    /// Takes in one event.
    fn note(&self, event: &str, at: Instant, sample: &mut Sample) -> anyhow::Result<()> {
        let said: Said = serde_json::from_str(event).with_context(|| event.to_owned())?;
        if let Some(error) = said.error {
            bail!("in mid-stream: {error}");
        }
        let Some(usage) = said.usage else { return Ok(()) };
        sample.prompt_tokens = usage.prompt_tokens;
        let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
        sample.cached_tokens = cached.unwrap_or(sample.cached_tokens);
        let tokens = usage.completion_tokens.saturating_sub(sample.tokens());
        if tokens == 0 {
            return Ok(());
        }
        if sample.chunks.is_empty() {
            self.started.fetch_add(1, Ordering::Release);
        }
        sample.chunks.push(Chunk { at, tokens });
        Ok(())
    }

    /// A connection that is open already, or a new one.
    async fn connection(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        while let Some(mut idle) = self.take_idle() {
            if idle.ready().await.is_ok() {
                return Ok(idle);
            } // the server has closed it
        }
        let stream = TcpStream::connect(&self.authority).await.context("connect")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its error is told to whoever waits for the answer, too.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// Server-sent events out of the pieces that a body comes in.
#[derive(Default)]
struct Events {
    bytes: Vec<u8>,
    /// Bytes of events that were handed out.
    used: usize,
}

impl Events {
    fn push(&mut self, piece: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.used));
        self.bytes.extend_from_slice(piece);
    }

    /// The data of the next whole event.
    fn next(&mut self) -> Option<String> {
        loop {
            let rest = &self.bytes[self.used..];
            let end = rest.windows(2).position(|pair| pair == b"\n\n")?;
            let event = String::from_utf8_lossy(&rest[..end]).into_owned();
            self.used += end + 2;
            if let Some(data) = event.strip_prefix("data: ") {
                return Some(data.to_owned());
            } // a comment
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_the_body_is_cut() {
        let text = b"data: {\"a\":1}\n\n: still here\n\ndata: [DONE]\n\n";
        for cut in 0..text.len() {
            let (mut events, mut got) = (Events::default(), vec![]);
            for piece in [&text[..cut], &text[cut..]] {
                events.push(piece);
                got.extend(std::iter::from_fn(|| events.next()));
            }
            assert_eq!(got, ["{\"a\":1}", "[DONE]"], "cut at {cut}");
        }
    }

    #[test]
    fn tokens_are_counted_by_the_usage_and_errors_end_the_request() {
        let client = Client::new("http://127.0.0.1:1", None).unwrap();
        let now = Instant::now();
        let mut sample = Sample {
            name: String::new(),
            due: None,
            sent: now,
            sent_clock: SystemTime::now(),
            chunks: vec![],
            end: now,
            prompt_tokens: 0,
            cached_tokens: 0,
            failure: None,
        };
        for made in [1, 3, 3] {
            let event =
                json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": made}});
            client.note(&event.to_string(), now, &mut sample).unwrap();
        }
        assert_eq!((sample.tokens(), sample.chunks.len(), client.started()), (3, 2, 1));
        assert!(client.note(r#"{"error": {"code": "peer_lost"}}"#, now, &mut sample).is_err());
        assert!(Client::new("https://a:1", None).is_err());
    }
}
