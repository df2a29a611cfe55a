//! From a config to a gateway that serves, until it is told to drain.

use crate::auth::Guard;
use crate::config::{Config, ConfigError, Settings};
use crate::fleet::otlp::Collector;
use crate::fleet::{FleetConfig, Ring};
use crate::http::App;
use crate::metrics;
use crate::model::Model;
use crate::serve;
use service::shutdown::Shutdown;
use service::{admin, notify};
use shared::wire::handshake::{RingKey, Role};
use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// After the last connection: for servers to acknowledge what was cancelled, and for a collector to
/// take the last traces.
const FINISH_MAX: Duration = Duration::from_secs(5);

/// Settings from a TOML file.
///
/// # Errors
/// The file cannot be read, or a key or value in it does not fit.
pub fn settings(path: &Path) -> Result<Settings, Box<dyn Error + Send + Sync>> {
    let named = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let text = std::fs::read_to_string(path).map_err(|err| named(&err))?;
    Ok(Settings::from_toml_str(&text).map_err(|err: ConfigError| named(&err))?)
}

/// Runs a gateway until `shutdown`, then drains. `guard` says who may pass; `listening` learns the
/// bound address once clients can connect. Installs the process's metrics recorder. Must be
/// called within a tokio runtime.
///
/// # Errors
/// It cannot start: the port, the model's files, the ring's key.
pub async fn run(
    config: Config,
    guard: Arc<Guard>,
    listening: oneshot::Sender<SocketAddr>,
    mut shutdown: Shutdown,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let listener = TcpListener::bind(config.listen).await?;
    let model = Model::load(&config)?;
    let exposition = admin::install(config.compat_metrics.then_some(&*model.served_name))?;
    let fleet = fleet(&config, &model.served_name)?;
    admin::describe(&fleet.identity, env!("CARGO_PKG_VERSION"));
    metrics::begin(config.max_queued);
    let ring = Ring::start(fleet);
    let address = listener.local_addr()?;
    tracing::info!(listen = %address, model = model.served_name, "listening");
    let app = Arc::new(App::new(ring, model, config.http, exposition, guard));
    let _ = listening.send(address); // nobody may be waiting
    let alive = tokio::spawn(notify::sign_of_life(None));
    let cut = serve::serve(listener, Arc::clone(&app), shutdown.wait()).await;
    if cut > 0 {
        tracing::warn!(connections = cut, "the drain ran out of time; they were cut");
    }
    if !app.ring.finish(FINISH_MAX).await {
        tracing::warn!(within = ?FINISH_MAX, "not every last cancel or trace has arrived");
    }
    alive.abort();
    Ok(())
}

fn fleet(config: &Config, model: &str) -> Result<FleetConfig, Box<dyn Error + Send + Sync>> {
    let path = config.key_file.as_deref().ok_or("`key_file` is not set; every ring has a key")?;
    let named = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let hex = std::fs::read_to_string(path).map_err(|err| named(&err))?;
    Ok(FleetConfig {
        identity: link::identity::draw(Role::Gateway, config.id.clone())?,
        key: RingKey::from_hex(&hex).map_err(|err| named(&err))?,
        prefill: config.prefill.clone(),
        decode: config.decode.clone(),
        max_queued: config.max_queued,
        retries: config.retries,
        timing: config.timing,
        deadlines: config.deadlines,
        collector: config.otlp_endpoint.clone().map(|endpoint| Collector {
            endpoint,
            gateway: config.id.to_string(),
            model: model.to_owned(),
        }),
    })
}
