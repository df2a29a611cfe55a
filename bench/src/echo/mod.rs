//! An engine that computes nothing: what a request costs in front of it is the gateway's alone.
//!
//! A process of its own. [`ring`] is a prefill and a decode server as a gateway sees them, over
//! real links; [`http`] is an HTTP server that answers at the same pace, for routers that speak
//! HTTP to their engines, and for what the client and its sockets take by themselves. Both give
//! the prompt's tokens back: the first at once, then one a step.

pub mod http;
mod ring;

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `tandem-bench echo`
#[derive(Args)]
pub struct Echo {
    /// A file with an [`EchoConfig`].
    #[arg(long)]
    config: PathBuf,
}

/// What the process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EchoConfig {
    /// Where gateways find its decode server.
    pub decode: SocketAddr,
    /// Where they find its prefill server.
    pub prefill: SocketAddr,
    /// Where it speaks HTTP.
    pub http: SocketAddr,
    /// The ring's key, 64 hex digits.
    pub key_file: PathBuf,
    /// Between two tokens of a request, ms.
    pub step_ms: u64,
    /// Ids are below this.
    pub vocab: u32,
}

impl Echo {
    /// Serves until the process is killed.
    ///
    /// # Errors
    /// The file does not say what is needed, or an address cannot be had.
    pub fn run(&self) -> anyhow::Result<()> {
        let shown = self.config.display();
        let text = fs::read_to_string(&self.config).with_context(|| shown.to_string())?;
        let config: EchoConfig = toml::from_str(&text).with_context(|| shown.to_string())?;
        let step = Duration::from_millis(config.step_ms);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::try_join!(ring::serve(&config), http::serve(config.http, step))?;
            Ok(())
        })
    }
}
