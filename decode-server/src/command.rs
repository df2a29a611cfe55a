//! The command line of `tandem-decode`.

use clap::Parser;
use role::settings::Settings;
use std::path::PathBuf;

/// A decode server: grants pages, takes requests over, makes tokens.
#[derive(Debug, Parser)]
#[command(name = "tandem-decode", version)]
pub struct Arguments {
    /// TOML file with any of the settings below; flags go over it.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}
