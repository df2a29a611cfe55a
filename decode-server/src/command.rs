//! The command line of `tandem-decode`.

use clap::Parser;
use role::settings::{ConfigFile, Settings};

/// A decode server: grants pages, takes requests over, makes tokens.
#[derive(Debug, Parser)]
#[command(name = "tandem-decode", version)]
pub struct Arguments {
    /// Where settings are read from.
    #[command(flatten)]
    pub file: ConfigFile,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}
