//! `tandem doctor`: what on this machine would keep a ring from running well, a line each, with the
//! cure.
//!
//! 1. [`config`] reads the three files as their roles would.
//! 2. [`machine`] looks at what they stand on: processor, memory, limits, clock; [`port`] at their
//!    ports.
//! 3. [`devices`] looks at GPUs and at UCX.
//!
//! Every check is a function from what was found to a [`Finding`]; this file runs and prints them.

mod config;
mod devices;
mod machine;
mod port;
#[cfg(test)]
mod tests;

use clap::Args;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

/// Say what on this machine would keep a ring from running well, and the cure. Ask as root: others
/// cannot read the ring's key, nor see whose a port is.
#[derive(Args)]
pub struct DoctorCommand {
    /// Folder of gateway.toml, prefill.toml and decode.toml.
    #[arg(long, value_name = "DIR", default_value = "/etc/tandem")]
    config: PathBuf,
    /// What `{instance}` stands for in the servers' files.
    #[arg(long, default_value_t = 0)]
    instance: u16,
}

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// It runs, and could run better or may stop to.
    Warning,
    /// It does not run.
    Broken,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    verdict: Verdict,
    /// What was looked at.
    what: &'static str,
    /// What was found.
    found: String,
    /// What to do, unless all is well.
    cure: String,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, what, found: found.into(), cure: String::new() }
    }
    fn warning(what: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, what, found: found.into(), cure: cure.into() }
    }
    fn broken(what: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { verdict: Verdict::Broken, what, found: found.into(), cure: cure.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Broken => "broken",
        };
        // What TOML says of a file takes several lines.
        let found = self.found.trim_end().replace('\n', &format!("\n{:24}", ""));
        write!(f, "{verdict:<8} {:<14} {found}", self.what)?;
        if self.cure.is_empty() { Ok(()) } else { write!(f, "\n{:24}-> {}", "", self.cure) }
    }
}

impl DoctorCommand {
    /// Prints a line each; exit 1 if something is broken.
    pub fn run(&self) -> ExitCode {
        let findings = self.findings();
        for finding in &findings {
            println!("{finding}");
        }
        let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
        let (warnings, broken) = (count(Verdict::Warning), count(Verdict::Broken));
        println!("{} checks: {warnings} warnings, {broken} broken", findings.len());
        if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn findings(&self) -> Vec<Finding> {
        let (files, mut findings) = config::check(&self.config, self.instance);
        findings.extend(machine::check(&files));
        findings.extend(port::check(&files));
        findings.extend(devices::check(&files));
        findings
    }
}
