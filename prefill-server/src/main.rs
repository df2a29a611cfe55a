//! `tandem-prefill`: settings → server → drain.
#![forbid(unsafe_code)]

use clap::Parser;
use prefill_server::command::Arguments;
use role::process::{self, Start};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Arguments { file, settings } = Arguments::parse();
    let start = Start { file, flags: settings };
    process::serve(start, |config, listening, shutdown| {
        prefill_server::run(config, None, listening, shutdown)
    })
}
