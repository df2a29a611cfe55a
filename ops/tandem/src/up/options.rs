//! What the user may say to `tandem up`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum, value_parser};
use serde::Serialize;

/// Start a ring on this machine: gateway, prefill and decode servers.
#[derive(Debug, Clone, Args)]
pub struct UpOptions {
    /// Port of the gateway's HTTP; 0 picks a free one.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,

    /// The model: `smollm2`, a hub id (`org/name[@revision]`), a folder or a .gguf file.
    #[arg(long, default_value = "smollm2")]
    pub model: String,

    /// The name by which clients ask for the model [the id, or the file's name].
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,

    /// Width of the keys and values in the pages, and of weights that a file has in f32.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    pub dtype: Dtype,

    /// How matrices are kept in memory: as the model's file has them where the device can (`auto`),
    /// in bf16, or with those in full rounded to 8 bits. On a GPU all are bf16.
    #[arg(long, value_enum, default_value_t = Weights::Auto)]
    pub weights: Weights,

    /// How pages travel from prefill to decode; `auto` picks the best that works and says why.
    #[arg(long, value_enum, default_value_t = Transport::Auto)]
    pub transport: Transport,

    /// How many prefill servers.
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = value_parser!(u16).range(1..=16))]
    pub prefill: u16,

    /// How many decode servers.
    #[arg(long, value_name = "M", default_value_t = 1)]
    #[arg(value_parser = value_parser!(u16).range(1..=16))]
    pub decode: u16,

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
    /// What clients call the model: as the user says, or the id or file that was asked for.
    pub fn served_model_name(&self) -> String {
        if let Some(name) = &self.served_model_name {
            return name.clone();
        }
        let path = Path::new(&self.model);
        if path.exists() {
            let name = path.file_stem().or_else(|| path.file_name());
            return name.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        }
        let id = self.model.strip_prefix("hf:").unwrap_or(&self.model);
        id.split('@').next().unwrap_or(id).to_owned()
    }

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
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        up: UpOptions,
    }

    fn parse(arguments: &[&str]) -> Result<UpOptions, clap::Error> {
        let arguments = std::iter::once("up").chain(arguments.iter().copied());
        Command::try_parse_from(arguments).map(|command| command.up)
    }

    #[test]
    fn what_the_user_says_is_kept() {
        let widths = ["--dtype", "f32", "--weights", "q8_0"];
        let rest = ["--port", "0", "--transport", "tcp", "--prefill", "2"];
        let up = parse(&[widths.as_slice(), &rest].concat()).unwrap();
        assert_eq!((up.port, up.prefill, up.decode), (0, 2, 1));
        let expected = (Dtype::F32, Weights::Q8, Transport::Tcp);
        assert_eq!((up.dtype, up.weights, up.transport), expected);
        assert_eq!(parse(&[]).unwrap().weights, Weights::Auto);
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
    fn a_model_is_called_what_it_was_asked_for_by() {
        let name = |arguments: &[&str]| parse(arguments).unwrap().served_model_name();
        assert_eq!(name(&[]), "smollm2");
        assert_eq!(name(&["--model", "hf:Qwen/Qwen3-0.6B@main"]), "Qwen/Qwen3-0.6B");
        let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        let stem = file.path().file_stem().unwrap().to_str().unwrap();
        assert_eq!(name(&["--model", file.path().to_str().unwrap()]), stem);
        assert_eq!(name(&["--model", "smollm2", "--served-model-name", "x"]), "x");
    }

    #[test]
    fn the_run_folder_is_the_named_one_or_the_users() {
        let named = parse(&["--run-folder", "here", "--home", "/h"]).unwrap();
        assert_eq!(named.run_folder().unwrap(), PathBuf::from("here"));
        let state = parse(&["--state-home", "/s", "--home", "/h"]).unwrap();
        assert_eq!(state.run_folder().unwrap(), PathBuf::from("/s/tandem/run"));
    }
}
