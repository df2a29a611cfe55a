//! A server's own small HTTP face: `/health` (this process, nothing else) and `/metrics`.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use shared::metrics::{ALL, Kind, SECONDS_BUCKETS, describe_all};
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Installs the process's metrics recorder; call it once a process, before anything is counted.
///
/// # Errors
/// A recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL.iter().filter(|metric| metric.kind == Kind::Histogram) {
        let name = Matcher::Full(metric.name.to_owned());
        builder = builder.set_buckets_for_metric(name, SECONDS_BUCKETS)?;
    }
    let handle = builder.install_recorder()?;
    describe_all();
    Ok(handle)
}

/// Installs the recorder and serves `/health` and `/metrics` on `address`, in a task of its own.
///
/// # Errors
/// If the address cannot be bound, or a recorder is installed already.
pub async fn serve(address: SocketAddr) -> io::Result<()> {
    let recorder = install().map_err(io::Error::other)?;
    let listener = TcpListener::bind(address).await?;
    let metrics = move || {
        let recorder = recorder.clone();
        count_tasks();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4")], recorder.render()) }
    };
    let app = Router::new().route("/health", get(|| async {})).route("/metrics", get(metrics));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(())
}

/// Sets the gauge of this runtime's tasks; called when metrics are read.
pub fn count_tasks() {
    let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    metrics::gauge!(shared::metrics::TASKS).set(alive as f64);
}
