//! A server's own small HTTP face: `/health` (this process, nothing else) and `/metrics`.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use std::io;
use tokio::net::TcpListener;

/// Serves `/health` and `/metrics` on `listener` until the task is dropped; `render` makes the
/// metrics text.
///
/// # Errors
/// If accepting fails for good.
pub async fn serve<F>(listener: TcpListener, render: F) -> io::Result<()>
where
    F: Fn() -> String + Clone + Send + Sync + 'static,
{
    let metrics = move || {
        let render = render.clone();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4")], render()) }
    };
    let app = Router::new().route("/health", get(|| async {})).route("/metrics", get(metrics));
    axum::serve(listener, app).await
}
