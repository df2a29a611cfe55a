//! The command line of `tandem-gateway`.

use crate::config::Settings;
use clap::Parser;
use std::path::PathBuf;

/// The gateway of a Tandem ring: HTTP in front of prefill and decode servers.
#[derive(Debug, Parser)]
#[command(name = "tandem-gateway", version)]
pub struct Arguments {
    /// Config file; flags win over it.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}
