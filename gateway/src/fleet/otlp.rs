//! Stories that have ended, as spans for an OpenTelemetry collector: OTLP over HTTP, in JSON.
//!
//! 1. [`Exporter::offer`] takes a story and never waits: where [`QUEUED_MAX`] wait already, it is
//!    dropped and counted.
//! 2. A task posts up to [`BATCH_MAX`] of them at once. What a collector does not take is dropped
//!    and counted: serving never depends on who watches.
//! 3. [`Exporter::finish`] takes no more and waits until what waits is posted, up to a deadline.
//!
//! Source: the OpenTelemetry protocol, version 1; names of attributes are those of its conventions
//! for generative AI, and beside them vLLM's. Written by hand, since the crates of OpenTelemetry
//! bring gRPC, protobuf and a second HTTP client for one message.

use super::lock;
use super::story::{Phase, Story};
use crate::metrics;
use crate::random::random;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// Stories that wait to be posted.
const QUEUED_MAX: usize = 2048;
/// Stories of one post.
const BATCH_MAX: usize = 256;
/// For a collector to take a post.
const PATIENCE: Duration = Duration::from_secs(5);

/// `SpanKind` and `StatusCode` of the protocol.
const INTERNAL: u32 = 1;
const SERVER: u32 = 2;
const ERROR: u32 = 2;

/// Where spans go, and whose they are.
#[derive(Debug, Clone)]
pub struct Collector {
    /// `http://host:port` and maybe a path; `/v1/traces` is added.
    pub endpoint: Uri,
    /// Name of this gateway.
    pub gateway: String,
    /// As clients ask for it.
    pub model: String,
}

/// The way to the collector.
#[derive(Debug)]
pub(super) struct Exporter {
    stories: mpsc::Sender<Arc<Story>>,
    /// Until it is told to finish: dropping the first of these tells the task.
    task: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl Exporter {
    /// Starts its task. Must be called within a tokio runtime.
    pub(super) fn start(collector: Collector) -> Self {
        let (sender, stories) = mpsc::channel(QUEUED_MAX);
        let (more, no_more) = oneshot::channel();
        let task = tokio::spawn(export(collector, stories, no_more));
        Self { stories: sender, task: Mutex::new(Some((more, task))) }
    }

    /// Takes a story that has ended, if it is sampled.
    pub(super) fn offer(&self, story: &Arc<Story>) {
        if story.trace().sampled && self.stories.try_send(Arc::clone(story)).is_err() {
            metrics::traces_dropped(1);
        }
    }

    /// Posts what waits, and ends. Whether that was in time.
    pub(super) async fn finish(&self, deadline: Instant) -> bool {
        let Some((more, task)) = lock(&self.task).take() else { return true };
        drop(more);
        timeout_at(deadline, task).await.is_ok()
    }
}

/// Until the gateway ends: what waited by then is still posted.
async fn export(
    collector: Collector,
    mut stories: mpsc::Receiver<Arc<Story>>,
    mut no_more: oneshot::Receiver<()>,
) {
    let mut batch = Vec::new();
    let mut works = true;
    loop {
        let count = tokio::select! {
            biased;
            _ = &mut no_more, if !stories.is_closed() => {
                stories.close();
                continue;
            }
            count = stories.recv_many(&mut batch, BATCH_MAX) => count,
        };
        if count == 0 {
            return;
        }
        let body = collector.body(batch.drain(..)).to_string();
        let result = match timeout(PATIENCE, collector.post(body)).await {
            Ok(result) => result.map_err(|err| err.to_string()),
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        };
        if let Err(why) = &result {
            metrics::traces_dropped(count as u64);
            if works {
                let endpoint = &collector.endpoint;
                tracing::warn!(%endpoint, why, "the collector takes no traces; they are dropped");
            }
        }
        works = result.is_ok();
    }
}

impl Collector {
    async fn post(&self, body: String) -> Result<(), Box<dyn Error + Send + Sync>> {
        let authority = self.endpoint.authority().ok_or("the endpoint has no host")?;
        let port = authority.port_u16().unwrap_or(80);
        let stream = TcpStream::connect((authority.host(), port)).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        let path = format!("{}/v1/traces", self.endpoint.path().trim_end_matches('/'));
        let request = Request::post(path)
            .header(HOST, authority.as_str())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))?;
        let answer = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let said = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, said))
        };
        let (answer, _) = tokio::join!(answer, connection);
        let (status, said) = answer?;
        if status.is_success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said[..said.len().min(200)]).into_owned();
        Err(format!("it answers {status}: {said}").into())
    }

    /// An `ExportTraceServiceRequest`.
    fn body(&self, stories: impl Iterator<Item = Arc<Story>>) -> Value {
        let spans: Vec<_> = stories.flat_map(|story| self.spans(&story)).collect();
        let resource = [
            ("service.name", json!("tandem")),
            ("service.version", json!(env!("CARGO_PKG_VERSION"))),
            ("service.instance.id", json!(self.gateway)),
        ];
        json!({"resourceSpans": [{
            "resource": {"attributes": attributes(resource)},
            "scopeSpans": [{"scope": {"name": "tandem.gateway"}, "spans": spans}],
        }]})
    }

    /// The request's span, and below it one a phase.
    fn spans(&self, story: &Story) -> Vec<Value> {
        let (trace, told, arrived_us) = (story.trace(), story.told(), story.arrived_us());
        let seconds = |us: u64| us as f64 / 1e6;
        let span = |id: u64, parent: Option<u64>, (start_us, us): (u64, u64)| {
            let at = |us: u64| ((arrived_us + us) * 1000).to_string();
            let mut span = json!({
                "traceId": told.trace,
                "spanId": format!("{id:016x}"),
                "startTimeUnixNano": at(start_us),
                "endTimeUnixNano": at(start_us + us),
            });
            if let Some(parent) = parent {
                span["parentSpanId"] = json!(format!("{parent:016x}"));
            }
            span
        };
        let mut request = span(trace.span, trace.parent, (0, told.us));
        request["name"] = json!("llm_request");
        request["kind"] = json!(SERVER);
        request["status"] = if told.state == "failed" { json!({"code": ERROR}) } else { json!({}) };
        request["attributes"] = json!(attributes([
            ("gen_ai.request.model", json!(self.model)),
            ("gen_ai.response.model", json!(self.model)),
            ("gen_ai.request.id", json!(told.call)),
            ("gen_ai.usage.input_tokens", json!(told.prompt_tokens)),
            ("gen_ai.usage.output_tokens", json!(told.output_tokens)),
            ("gen_ai.usage.prompt_tokens", json!(told.prompt_tokens)),
            ("gen_ai.usage.completion_tokens", json!(told.output_tokens)),
            ("gen_ai.usage.cache_read.input_tokens", json!(told.cached_tokens)),
            ("gen_ai.latency.time_to_first_token", json!(told.ttft_us.map(seconds))),
            ("gen_ai.latency.e2e", json!(seconds(told.us))),
            ("tandem.request", json!(told.id)),
            ("tandem.state", json!(told.state)),
            ("tandem.attempts", json!(told.attempts)),
        ]));
        let phase = |phase: &Phase| {
            let mut span = span(random() | 1, Some(trace.span), (phase.start_us, phase.us));
            span["name"] = json!(phase.name);
            span["kind"] = json!(INTERNAL);
            span["attributes"] = json!(attributes([("tandem.server", json!(phase.server))]));
            span
        };
        std::iter::once(request).chain(told.phases.iter().map(phase)).collect()
    }
}

/// Key and value pairs as OTLP has them; those without a value are left out.
fn attributes<const N: usize>(pairs: [(&str, Value); N]) -> Vec<Value> {
    let typed = |value: Value| match value {
        Value::Null => None,
        Value::String(text) => Some(json!({"stringValue": text})),
        // 64-bit integers are strings in the JSON of protobuf.
        Value::Number(number) if number.is_u64() => Some(json!({"intValue": number.to_string()})),
        Value::Number(number) => Some(json!({"doubleValue": number})),
        other => Some(json!({"stringValue": other.to_string()})),
    };
    let pair = |(key, value)| typed(value).map(|value| json!({"key": key, "value": value}));
    pairs.into_iter().filter_map(pair).collect()
}
