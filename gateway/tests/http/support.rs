//! A gateway in this process on a free port, and a client that writes HTTP/1.1 by hand.

use gateway::auth::Guard;
use gateway::config::{Config, HttpLimits, Settings};
use gateway::fleet::{FleetConfig, Ring};
use gateway::http::App;
use gateway::model::Model;
use gateway::reasoning::ReasoningParser;
use gateway::serve::serve;
use gateway::tools::ToolCallParser;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use service::admin::Exposition;
use shared::ids::ServerId;
use shared::wire::handshake::{RingKey, Role};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A folder under `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// The config of a gateway for a tiny model.
pub fn config(change: impl FnOnce(&mut Settings)) -> Config {
    let mut settings = Settings {
        model: Some(golden("tiny-qwen3")),
        served_model_name: Some("tiny".into()),
        ..Settings::default()
    };
    change(&mut settings);
    Config::new(settings).unwrap()
}

/// Thoughts, text and a call, as [`talking_model`]'s formats have them.
pub const SAID: &str = "<think>\nHé asks\n</think>\n\nSure.\n<tool_call>\n{\"name\": \"sum\", \
                        \"arguments\": {\"of\": [1, 2]}}\n</tool_call>";

/// One whose output has calls and thoughts.
pub fn talking_model() -> Arc<Model> {
    let config = config(|settings| {
        settings.tool_call_parser = Some(ToolCallParser::Hermes);
        settings.reasoning_parser = Some(ReasoningParser::Qwen3);
    });
    Arc::new(Model::load(&config).unwrap())
}

/// The tiny model.
pub fn model() -> Arc<Model> {
    Arc::new(Model::load(&config(|_| {})).unwrap())
}

/// A gateway that is listening.
pub struct Gateway {
    pub address: SocketAddr,
    pub app: Arc<App>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<usize>,
}

/// An answer, read to the end of the connection.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|err| panic!("{err}: {}", self.body))
    }
    pub fn error(&self) -> Value {
        self.json()["error"].clone()
    }
}

impl Gateway {
    /// Starts with no servers behind it.
    pub async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let config = config(change);
        let ring = Ring::start(FleetConfig {
            identity: link::identity::draw(Role::Gateway, ServerId::new("gateway").unwrap())
                .unwrap(),
            key: RingKey::new([7; 32]),
            prefill: Vec::new(),
            decode: Vec::new(),
            max_queued: config.max_queued,
            retries: 0,
            timing: config.timing,
            deadlines: config.deadlines,
            collector: None,
        });
        let model = Model::load(&config).unwrap();
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = Exposition::new(recorder.handle(), None);
        let limits: HttpLimits = config.http;
        let guard = Arc::new(Guard::new(config.api_key.as_deref()));
        let app = Arc::new(App::new(ring, model, limits, metrics, guard));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let served = tokio::spawn(serve(listener, Arc::clone(&app), shutdown));
        Self { address, app, stop, served }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", "").await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.request("POST", path, "content-type: application/json\r\n", body).await
    }

    /// `headers` are whole lines, each with its `\r\n`.
    pub async fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = self.connect().await;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\
             content-length: {length}\r\n\r\n"
        );
        // A refusal may come before the body is read, so a failed write is no failure.
        let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await;
        read_to_end(&mut stream).await
    }

    /// Stops as SIGTERM does; the number of connections that had to be cut.
    pub async fn stop(self) -> usize {
        let _ = self.stop.send(());
        self.served.await.unwrap()
    }
}

/// Reads an answer up to the end of the connection.
pub async fn read_to_end(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await; // a reset after the answer is an end too
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}
