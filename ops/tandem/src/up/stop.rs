//! `tandem up --stop`: ends what an earlier `up` started, and nothing else.

use std::process::ExitCode;
use std::time::Duration;

use rustix::process::Signal;

use super::run_folder::RunFolder;

/// A foreground `up` stops its servers itself, each within its own drain time.
const UP_MAX: Duration = Duration::from_secs(60);
const DRAIN_MAX: Duration = Duration::from_secs(10);
const KILL_MAX: Duration = Duration::from_secs(5);

/// Who is asked to end first: the foreground command, then the servers from the client's side in.
const ORDER: [&str; 5] = ["up", "gateway", "ring", "prefill", "decode"];

/// # Errors
/// Where the run folder cannot be read or a process cannot be ended.
pub fn run(folder: &RunFolder) -> anyhow::Result<ExitCode> {
    let mut remembered = folder.remembered()?;
    remembered.sort_by_key(|(name, _)| rank(name));
    let mut stopped = 0;
    for (name, identity) in remembered {
        if let Some(found) = identity.find() {
            let pid = identity.pid;
            println!("stopping {name} (process {pid})");
            found.signal(Signal::TERM)?;
            let patience = if name == "up" { UP_MAX } else { DRAIN_MAX };
            if !found.ended_within(patience) {
                println!("{name} did not end within {} s: killed", patience.as_secs());
                found.signal(Signal::KILL)?;
                anyhow::ensure!(found.ended_within(KILL_MAX), "{name} (process {pid}) stays");
            }
            stopped += 1;
        }
        folder.forget(&name);
    }
    if stopped == 0 {
        println!("nothing to stop: no ring runs from {}", folder.path().display());
    }
    Ok(ExitCode::SUCCESS)
}

fn rank(name: &str) -> usize {
    ORDER.iter().position(|role| name.starts_with(role)).unwrap_or(ORDER.len())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;
    use crate::up::identity::Identity;

    fn sleeper(folder: &RunFolder, name: &str) -> Child {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        folder.remember(name, &Identity::of(child.id().try_into().unwrap()).unwrap()).unwrap();
        child
    }

    #[test]
    fn what_was_started_is_stopped_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(place.path()).unwrap();
        let mut ours = sleeper(&folder, "decode-0");
        let mut other = sleeper(&folder, "prefill-0");
        // The same pid in the file, but of a process that started at another time.
        let path = place.path().join("prefill-0.pid");
        let text = std::fs::read_to_string(&path).unwrap();
        let changed = text.replace("started_ticks = ", "started_ticks = 1");
        std::fs::write(&path, changed).unwrap();
        run(&folder).unwrap();
        assert_eq!(ours.wait().unwrap().signal(), Some(Signal::TERM.as_raw()));
        assert!(other.try_wait().unwrap().is_none());
        assert!(folder.remembered().unwrap().is_empty());
        other.kill().unwrap();
        other.wait().unwrap();
        run(&folder).unwrap();
    }

    #[test]
    fn clients_lose_the_gateway_first() {
        let mut names = ["decode-1", "prefill-0", "up", "gateway", "decode-0"];
        names.sort_by_key(|name| rank(name));
        assert_eq!(names, ["up", "gateway", "prefill-0", "decode-1", "decode-0"]);
    }
}
