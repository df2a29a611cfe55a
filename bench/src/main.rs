//! `tandem-bench`: every bar that Tandem is held to is a row here: a command, a figure, an exit
//! code.
//!
//! ```text
//! cargo run --release -p tandem-bench -- rows                     lists the rows and their bars
//! cargo run --release -p tandem-bench -- row decode-ring          one; exits 1 below its bar
//! cargo run --release -p tandem-bench -- all --out bench/runs/D   all; writes the record
//! cargo run --release -p tandem-bench -- kernels                  every op of the engine on a GPU
//! cargo run --release -p tandem-bench -- roofline                 where a step on a GPU goes
//! ```
//!
//! In reading order: [`row`] is what a row and a group of rows measured together are; [`place`]
//! finds or makes what they need (binaries, the demo model); [`fleet`] runs a ring of processes and
//! talks to it; [`echo`] is an engine that computes nothing; [`pair`] runs two processes that share
//! a transport only; [`rows`] has one file a group; [`record`] and [`bars`] write what was
//! measured; [`rehearse`] asks what a gateway is compiled by; [`serve`] measures what a client
//! sees, on a GPU too, [`transfer`] how pages move there, and [`steps`] how long an engine's steps
//! take; [`gpu`] times kernels, which hold no bar.
//!
//! A figure that depends on the machine has its floor or peer beside it, taken in alternation in
//! the same run; figures are medians unless the row says "longest".
#![forbid(unsafe_code)]

mod row;
mod numbers;
mod chi_square;
mod place;
mod fleet;
mod echo;
mod pair;
mod rows;
mod transfer;
mod steps;
mod machine;
mod record;
mod bars;
mod rehearse;
mod serve;
mod gpu;

use anyhow::Context;
use clap::{Parser, Subcommand};
use place::{Place, PlaceOptions};
use row::{Group, Verdict};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures Tandem against its bars.
#[derive(Parser)]
#[command(name = "tandem-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List all rows with their bars.
    Rows,
    /// Measure one row; exit 1 if it is below its bar.
    Row {
        /// Its name, as `rows` lists it.
        name: String,
        #[command(flatten)]
        place: PlaceOptions,
    },
    /// Measure all rows and write the record; exit 1 if any is below its bar.
    All {
        /// Folder of the record, by date and machine.
        #[arg(long)]
        out: PathBuf,
        /// Only the groups of these rows; the record keeps what it has of the others.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Also those that take many minutes: a clean build.
        #[arg(long)]
        slow: bool,
        #[command(flatten)]
        place: PlaceOptions,
    },
    /// Load a ring as clients do and print what they see; starts it unless there is `--url`.
    Serve(Box<serve::Serve>),
    /// Run the seed report's experiments 1 to 3 and print its tables beside ours.
    Experiments(serve::Experiments),
    /// Start a ring and print what each process did until it was ready.
    Startup(serve::Start),
    /// Follow requests through a ring; also as a trace for Perfetto.
    Story(serve::Story),
    /// Measure an engine's step times: the table of `tandem plan` and of `sim` engines.
    Steps(steps::MeasureSteps),
    /// Start a ring and print what its servers hold of the GPU.
    Memory(serve::Start),
    /// Time every op of the engine on a GPU, beside its floor.
    Kernels(gpu::PerOp),
    /// Say where the time of a step on a GPU goes, part by part.
    Roofline(gpu::Share),
    /// Ask a gateway every kind of question, for a compiler that looks where its time goes.
    Rehearse(rehearse::Rehearse),
    /// Measure how fast pages move between two processes, on one GPU or from one to another.
    Transfer(transfer::Transfer),
    /// The other process of a pair.
    #[command(hide = true)]
    Peer(pair::peer::Peer),
    /// An engine that computes nothing, for what a gateway costs.
    #[command(hide = true)]
    Echo(echo::Echo),
}

fn main() -> anyhow::Result<ExitCode> {
    kv_transfer::ucx::leave_libc_alone().context("before there are threads")?;
    match Arguments::parse().command {
        Command::Rows => {
            rows::GROUPS.iter().flat_map(|group| group.rows).for_each(|row| println!("{row}"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Row { name, place } => one(&name, &Place::open(place)?),
        Command::All { out, only, slow, place } => {
            let wanted = |group: &&'static Group| match only.is_empty() {
                true => slow || !group.slow,
                false => group.rows.iter().any(|row| only.iter().any(|name| name == row.name)),
            };
            all(&out, rows::GROUPS.iter().filter(wanted), &Place::open(place)?)
        }
        Command::Serve(serve) => serve.run().map(|()| ExitCode::SUCCESS),
        Command::Experiments(all) => all.run().map(|()| ExitCode::SUCCESS),
        Command::Startup(start) => start.startup().map(|()| ExitCode::SUCCESS),
        Command::Story(story) => story.run().map(|()| ExitCode::SUCCESS),
        Command::Memory(start) => start.memory().map(|()| ExitCode::SUCCESS),
        Command::Steps(steps) => steps.run().map(|()| ExitCode::SUCCESS),
        Command::Kernels(kernels) => kernels.run(),
        Command::Roofline(roofline) => roofline.run(),
        Command::Rehearse(rehearse) => rehearse.run().map(|()| ExitCode::SUCCESS),
        Command::Transfer(transfer) => transfer.run().map(|()| ExitCode::SUCCESS),
        Command::Peer(peer) => peer.run().map(|()| ExitCode::SUCCESS),
        Command::Echo(echo) => echo.run().map(|()| ExitCode::SUCCESS),
    }
}

fn one(name: &str, place: &Place) -> anyhow::Result<ExitCode> {
    let (group, row) = rows::find(name)
        .with_context(|| format!("there is no row {name}; `tandem-bench rows` lists them"))?;
    let found = (group.measure)(place)?;
    found.notes.iter().for_each(|note| println!("  {note}"));
    let verdict = Verdict::new(row, found.value(row.name));
    println!("{verdict}");
    Ok(if verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn all(
    out: &std::path::Path,
    groups: impl Iterator<Item = &'static Group>,
    place: &Place,
) -> anyhow::Result<ExitCode> {
    let mut record = record::Record::open(out, place.share())?;
    let mut code = ExitCode::SUCCESS;
    for group in groups {
        eprintln!("{}", group.title);
        let outcome = (group.measure)(place);
        if let Err(error) = &outcome {
            eprintln!("  not measured: {error:#}");
        }
        for verdict in record.file(group, outcome)? {
            println!("{verdict}");
            if !verdict.holds() {
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
