//! `tandem up`: a whole ring on one machine, from a model's name to a streamed answer.
//!
//! Life cycle of a run:
//! 1. The run folder is locked and nothing that an earlier run started is alive in it.
//! 2. The ring is what the file says, flags over it; its model is on disk; ports, the shared key
//!    and one config file a process are written.
//! 3. Processes start, decode first, and each leaves its identity in the folder at once, so that
//!    `--stop` finds it even when this process is killed.
//! 4. The gateway says that it is ready; one chat answer is streamed.
//! 5. Foreground: wait for Ctrl-C or for the death of a server. `--detach`: leave them running.
//! 6. Stop, gateway first, so that no request meets a ring without servers.
//!
//! Invariant: a signal is sent only to a process whose pid, start time and executable are those
//! that were written down when this command started it.

mod ask;
mod file;
mod fleet;
mod identity;
mod options;
mod pairs;
mod process;
pub mod ready;
mod run_folder;
mod stop;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

pub use self::options::UpOptions;

use self::file::RingFile;
use self::fleet::Fleet;
use self::identity::Identity;
use self::process::Servers;
use self::run_folder::RunFolder;
use crate::interrupt::Interrupt;

/// How often the foreground looks at its servers; a death is reported within this time.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A server's sockets close a moment before its parent hears of its end.
const DEATH_SHOWS_MAX: Duration = Duration::from_secs(1);

/// Runs `tandem up`.
///
/// # Errors
/// Where the ring cannot be started; what was started is stopped again first.
pub fn run(options: &UpOptions) -> anyhow::Result<ExitCode> {
    let folder = RunFolder::open(&options.run_folder()?)?;
    if options.stop {
        return stop::run(&folder);
    }
    let _lock = folder.lock_for_start(&options.called_as)?;
    let file = options.config.as_deref().map(RingFile::read).transpose()?.unwrap_or_default();
    let ring = file.under(options)?;
    let model = crate::model::resolve(ring.model())?;
    let fleet = Fleet::plan(options, &ring, &model)?;
    folder.write_key()?;
    for server in &fleet.servers {
        folder.write_config(server)?;
    }
    // From here on a Ctrl-C must stop servers rather than end this process at once.
    let interrupt = Interrupt::listen()?;
    folder.remember("up", &Identity::of_this_process()?)?;
    let outcome = serve(options, &fleet, &folder, &interrupt);
    folder.forget("up");
    outcome
}

/// Steps 3 to 6; whatever goes wrong, the servers are stopped unless they are to stay.
fn serve(
    options: &UpOptions,
    fleet: &Fleet,
    folder: &RunFolder,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let mut servers = Servers::new(folder);
    let outcome = bring_up(options, fleet, &mut servers, interrupt);
    match outcome {
        Ok(Up::Answered) if options.detach => {
            servers.leave_running();
            print_ready(options, fleet, folder.path());
            return Ok(ExitCode::SUCCESS);
        }
        Ok(Up::Answered) if options.check => {
            servers.stop()?;
            println!("check passed: the ring answered and everything is stopped");
            return Ok(ExitCode::SUCCESS);
        }
        Ok(Up::Answered) => print_ready(options, fleet, folder.path()),
        Ok(Up::Interrupted) => {
            servers.stop()?;
            println!("interrupted; everything is stopped");
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => {
            servers.stop()?;
            return Err(error);
        }
    }
    let died = watch(&mut servers, interrupt);
    println!("stopping");
    servers.stop()?;
    match died {
        Some(report) => anyhow::bail!("{report}\nthe other servers were stopped"),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// How bringing the ring up ended, if not with an error.
enum Up {
    Answered,
    Interrupted,
}

fn bring_up(
    options: &UpOptions,
    fleet: &Fleet,
    servers: &mut Servers<'_>,
    interrupt: &Interrupt,
) -> anyhow::Result<Up> {
    for server in &fleet.servers {
        servers.start(server)?;
    }
    if !ready::wait(fleet, servers, interrupt)? {
        return Ok(Up::Interrupted);
    }
    for pair in fleet.pairs() {
        println!("{pair}");
    }
    let asked = ask::ask(fleet, &options.question);
    // A broken answer has a cause, and a dead server's log knows it better.
    asked.map_err(|error| match servers.death_within(DEATH_SHOWS_MAX) {
        Some(report) => error.context(report),
        None => error.context("ask the ring"),
    })?;
    Ok(Up::Answered)
}

/// Waits until the user wants to stop (None) or a server has died (a report of it).
fn watch(servers: &mut Servers<'_>, interrupt: &Interrupt) -> Option<String> {
    loop {
        if interrupt.within(LOOK_EVERY) {
            return None;
        }
        if let Some(report) = servers.report_of_a_death() {
            return Some(report);
        }
    }
}

fn print_ready(options: &UpOptions, fleet: &Fleet, folder: &Path) {
    let Fleet { url, model_name, client_key, .. } = fleet;
    let messages = r#"[{"role": "user", "content": "Hello"}]"#;
    println!("\nTandem is ready at {url}");
    println!("  ask   curl {url}/v1/chat/completions -H 'content-type: application/json' \\");
    if client_key.is_some() {
        println!("          -H 'authorization: Bearer KEY' \\");
    }
    println!("          -d '{{\"model\": \"{model_name}\", \"messages\": {messages}}}'");
    println!("  logs  {}", folder.join("*.log").display());
    let stop = format!("{} --stop", options.called_as);
    match options.detach {
        true => println!("  stop  {stop}"),
        false => println!("  stop  Ctrl-C here, or {stop} elsewhere"),
    }
}
