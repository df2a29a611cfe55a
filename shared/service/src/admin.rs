//! A server's own small HTTP face: `/health` (this process, nothing else) and `/metrics`.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use shared::metrics::compat::Compat;
use shared::metrics::{ALL, Kind, PROCESS_INFO, describe_all};
use shared::wire::handshake::Identity;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// How often histograms are folded.
const FOLD_EVERY: Duration = Duration::from_secs(5);

/// What `/metrics` says. Clones share it.
#[derive(Clone)]
pub struct Exposition {
    recorder: PrometheusHandle,
    /// Says it again by the names of SGLang and vLLM.
    compat: Option<Arc<Mutex<Compat>>>,
    started: Instant,
}

impl Exposition {
    /// What `recorder` has; with `compat`, the model's name to clients, by their names too.
    pub fn new(recorder: PrometheusHandle, compat: Option<&str>) -> Self {
        let compat = compat.map(|model| Arc::new(Mutex::new(Compat::new(model))));
        Self { recorder, compat, started: Instant::now() }
    }

    /// Prometheus' text, `more` of it included.
    pub fn render(&self, more: &str) -> String {
        let mut text = self.recorder.render();
        text.push_str(more);
        if let Some(compat) = &self.compat {
            let mut compat = compat.lock().unwrap_or_else(PoisonError::into_inner);
            text.push_str(&compat.render(&text, self.started.elapsed()));
        }
        text
    }

    /// Folds histograms: called every few seconds, so that an unread `/metrics` stays small.
    pub fn run_upkeep(&self) {
        self.recorder.run_upkeep();
    }
}

/// Installs the process's metrics recorder before anything is counted; `compat`: see
/// [`Exposition::new`]. Further calls give what the first has made.
///
/// # Errors
/// Another recorder is installed.
pub fn install(compat: Option<&str>) -> Result<Exposition, BuildError> {
    static INSTALLED: OnceLock<Exposition> = OnceLock::new();
    if let Some(exposition) = INSTALLED.get() {
        return Ok(exposition.clone());
    }
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            let name = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(name, buckets)?;
        }
    }
    let recorder = builder.install_recorder()?;
    describe_all();
    Ok(INSTALLED.get_or_init(|| Exposition::new(recorder, compat)).clone())
}

/// Installs the recorder and serves `/health` and `/metrics` on `address`, in a task of its own.
///
/// # Errors
/// If the address cannot be bound, or a recorder is installed already.
pub async fn serve(address: SocketAddr, compat: Option<&str>) -> io::Result<()> {
    let exposition = install(compat).map_err(io::Error::other)?;
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(fold(exposition.clone()));
    let metrics = move || {
        let exposition = exposition.clone();
        count_tasks();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4")], exposition.render("")) }
    };
    let app = Router::new().route("/health", get(|| async {})).route("/metrics", get(metrics));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(())
}

async fn fold(exposition: Exposition) {
    let mut fold = tokio::time::interval(FOLD_EVERY);
    loop {
        fold.tick().await;
        exposition.run_upkeep();
    }
}

/// Sets the gauge of this runtime's tasks; called when metrics are read.
pub fn count_tasks() {
    let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    metrics::gauge!(shared::metrics::TASKS).set(alive as f64);
}

/// Says who this process, or this part of it, is. `version` is the program's.
pub fn describe(identity: &Identity, version: &'static str) {
    let labels = [
        ("role", identity.role.to_string()),
        ("server", identity.id.to_string()),
        ("epoch", identity.epoch.to_string()),
        ("version", version.to_owned()),
    ];
    metrics::gauge!(PROCESS_INFO, &labels).set(1.0);
}
