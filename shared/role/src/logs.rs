//! Logs to standard error, as text; `RUST_LOG` filters (`info` by default).

use tracing_subscriber::EnvFilter;

/// Starts logging for this process. A second call changes nothing.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    drop(logs.try_init());
}
