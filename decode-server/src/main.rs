//! `tandem-decode`: settings → server → drain.
#![forbid(unsafe_code)]

use clap::Parser;
use decode_server::command::Arguments;
use role::process::{self, Start};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Arguments { file, settings } = Arguments::parse();
    let start = Start { file, flags: settings };
    process::serve(start, |config, listening, shutdown| {
        decode_server::run(config, None, listening, shutdown)
    })
}
