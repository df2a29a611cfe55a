//! The command line of `tandem-prefill`.

use clap::Parser;
use role::settings::{ConfigFile, Settings};

/// A prefill server: computes prompts and writes their pages into decode servers.
#[derive(Debug, Parser)]
#[command(name = "tandem-prefill", version)]
pub struct Arguments {
    /// Where settings are read from.
    #[command(flatten)]
    pub file: ConfigFile,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}
