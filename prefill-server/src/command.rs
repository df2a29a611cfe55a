//! The command line of `tandem-prefill`.

use clap::Parser;
use role::settings::Settings;
use std::path::PathBuf;

/// A prefill server: computes prompts and writes their pages into decode servers.
#[derive(Debug, Parser)]
#[command(name = "tandem-prefill", version)]
pub struct Arguments {
    /// TOML file with any of the settings below; flags go over it.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}
