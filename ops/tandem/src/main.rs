//! `tandem`: the command of people who run a ring.
#![forbid(unsafe_code)]

mod bench;
mod doctor;
mod generate;
mod interrupt;
mod model;
mod one_process;
mod plan;
mod top;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// LLM serving with prefill and decode on separate servers.
#[derive(Parser)]
#[command(name = "tandem", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(up::UpOptions),
    Ring(one_process::RingCommand),
    Top(top::TopCommand),
    Plan(plan::PlanCommand),
    Doctor(doctor::DoctorCommand),
    Bench(bench::BenchCommand),
    #[command(hide = true)]
    Generate(generate::GenerateCommand),
    /// Fetch, install or convert a model, or say what one is.
    #[command(subcommand)]
    Model(model::ModelCommand),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Up(options) => up::run(&options),
        Command::Ring(command) => command.run(),
        Command::Doctor(command) => Ok(command.run()),
        Command::Bench(command) => command.run().map(|()| ExitCode::SUCCESS),
        Command::Generate(command) => command.run().map(|()| ExitCode::SUCCESS),
        Command::Top(command) => command.run().map(|()| ExitCode::SUCCESS),
        Command::Plan(command) => command.run().map(|()| ExitCode::SUCCESS),
        Command::Model(command) => command.run().map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
