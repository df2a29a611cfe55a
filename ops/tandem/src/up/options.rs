//! What the user may say to `tandem up`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum, value_parser};
use serde::Serialize;

/// Start a ring on this machine: gateway, prefill and decode servers.
#[derive(Debug, Clone, Args)]
pub struct UpOptions {
    /// TOML file of the whole ring: `model`; [gateway] and [server] with any setting of the
    /// gateway and of all servers; a [[prefill]] and a [[decode]] for each server, with any setting
    /// of its own. Flags go over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Port of the gateway's HTTP; 0 picks a free one [8000].
    #[arg(long)]
    pub port: Option<u16>,

    /// The model: `smollm2`, a hub id (`org/name[@revision]`), a folder or a .gguf file [smollm2].
    #[arg(long)]
    pub model: Option<String>,

    /// The name by which clients ask for the model [the id, or the file's name].
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,

    /// Width of the keys and values in the pages, and of weights that a file has in f32 [bf16].
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,

    /// How matrices are kept in memory: as the model's file has them where the device can (`auto`),
    /// in bf16, or with those in full rounded to 8 bits. On a GPU all are bf16 [auto].
    #[arg(long, value_enum)]
    pub weights: Option<Weights>,

    /// How pages travel from prefill to decode; `auto` picks the best that works and says why
    /// [auto].
    #[arg(long, value_enum)]
    pub transport: Option<Transport>,

    /// How many prefill servers [1, or as many as the file has].
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=16))]
    pub prefill: Option<u16>,

    /// How many decode servers [1, or as many as the file has].
    #[arg(long, value_name = "M", value_parser = value_parser!(u16).range(1..=16))]
    pub decode: Option<u16>,

    /// The whole ring in one process, pages handed over in memory.
    #[arg(long, conflicts_with_all = ["prefill", "decode", "transport"])]
    pub one_process: bool,

    /// Start, ask one question, stop everything; exit 0 if it was answered.
    #[arg(long, conflicts_with_all = ["detach", "stop"])]
    pub check: bool,

    /// Leave the servers running and return.
    #[arg(long, conflicts_with = "stop")]
    pub detach: bool,

    /// Stop what an earlier `up` started, and nothing else.
    #[arg(long)]
    pub stop: bool,

    /// The question that the new ring is asked.
    #[arg(long, default_value = "What is the capital of France?")]
    pub question: String,

    /// Where configs, logs and process ids of the run are kept.
    #[arg(long, value_name = "DIR")]
    run_folder: Option<PathBuf>,

    #[arg(long, env = "XDG_STATE_HOME", hide = true, hide_env = true)]
    state_home: Option<PathBuf>,

    #[arg(long, env = "HOME", hide = true, hide_env = true)]
    home: Option<PathBuf>,

    /// The command that the user typed, for the advice that is printed.
    #[arg(long, hide = true, default_value = "tandem up")]
    pub called_as: String,
}

impl UpOptions {
    /// The folder of the run: named by the user, or one a user.
    ///
    /// # Errors
    /// Where neither the option nor the environment names a place.
    pub fn run_folder(&self) -> anyhow::Result<PathBuf> {
        let state = || self.state_home.clone().filter(|path| path.is_absolute());
        let home = || self.home.as_ref().map(|home| home.join(".local/state"));
        let named = self.run_folder.clone();
        named
            .or_else(|| state().or_else(home).map(|state| state.join("tandem/run")))
            .context("no place for the run's files: give --run-folder DIR, or set HOME")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
pub enum Weights {
    #[value(name = "auto")]
    #[serde(rename = "auto")]
    Auto,
    #[value(name = "bf16")]
    #[serde(rename = "bf16")]
    Bf16,
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Auto,
    Ucx,
    Tcp,
}

#[cfg(test)]
pub mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        up: UpOptions,
    }

    /// What `tandem up` makes of these.
    pub fn parse(arguments: &[&str]) -> Result<UpOptions, clap::Error> {
        let arguments = std::iter::once("up").chain(arguments.iter().copied());
        Command::try_parse_from(arguments).map(|command| command.up)
    }

    #[test]
    fn what_the_user_says_is_kept() {
        let widths = ["--dtype", "f32", "--weights", "q8_0"];
        let rest = ["--port", "0", "--transport", "tcp", "--prefill", "2"];
        let up = parse(&[widths.as_slice(), &rest].concat()).unwrap();
        assert_eq!((up.port, up.prefill, up.decode), (Some(0), Some(2), None));
        let expected = (Some(Dtype::F32), Some(Weights::Q8), Some(Transport::Tcp));
        assert_eq!((up.dtype, up.weights, up.transport), expected);
        assert_eq!(parse(&[]).unwrap().weights, None);
    }

    #[test]
    fn contradictions_are_refused() {
        for arguments in [
            &["--check", "--detach"][..],
            &["--stop", "--check"],
            &["--one-process", "--decode", "2"],
            &["--prefill", "0"],
            &["--transport", "pigeon"],
            &["--weights", "q3"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn the_run_folder_is_the_named_one_or_the_users() {
        let named = parse(&["--run-folder", "here", "--home", "/h"]).unwrap();
        assert_eq!(named.run_folder().unwrap(), PathBuf::from("here"));
        let state = parse(&["--state-home", "/s", "--home", "/h"]).unwrap();
        assert_eq!(state.run_folder().unwrap(), PathBuf::from("/s/tandem/run"));
    }
}
