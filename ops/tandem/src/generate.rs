//! `tandem generate`: what a package holds beside the programs, made from the programs themselves:
//! man pages, shell completions, and a config of each role with every key in it.

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Write man pages, shell completions and default configs.
#[derive(Args)]
pub struct GenerateCommand {
    /// Folder for `man/`, `completions/` and `etc/`.
    folder: PathBuf,
}

/// A config's keys that are set, and why; all others follow as comments.
struct Defaults {
    role: &'static str,
    head: &'static str,
    /// What begins the help of keys that are another role's.
    not: &'static str,
}

const DEFAULTS: [Defaults; 3] = [
    Defaults { role: "gateway", head: include_str!("../../config/gateway.toml"), not: "\0" },
    Defaults { role: "prefill", head: include_str!("../../config/prefill.toml"), not: "Decode: " },
    Defaults { role: "decode", head: include_str!("../../config/decode.toml"), not: "Prefill: " },
];

/// Flags that are no keys.
const FLAGS: [&str; 5] = ["config", "instance", "help", "version", "stop_at"];

fn commands() -> [Command; 4] {
    [
        crate::Arguments::command(),
        gateway::command::Arguments::command(),
        prefill_server::command::Arguments::command(),
        decode_server::command::Arguments::command(),
    ]
}

impl GenerateCommand {
    /// Writes all of it.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn run(&self) -> anyhow::Result<()> {
        let man = self.folder.join("man");
        fs::create_dir_all(&man).with_context(|| man.display().to_string())?;
        for command in commands() {
            clap_mangen::generate_to(command.clone(), &man)?;
            completions(command, &self.folder.join("completions"))?;
        }
        for (defaults, command) in DEFAULTS.iter().zip(&commands()[1..]) {
            let path = self.folder.join("etc").join(format!("{}.toml", defaults.role));
            write(&path, config(defaults, command).as_bytes())?;
        }
        Ok(())
    }
}

fn completions(mut command: Command, folder: &Path) -> anyhow::Result<()> {
    use clap_complete::Shell;
    let name = command.get_name().to_owned();
    for (shell, file) in [
        (Shell::Bash, format!("bash/{name}")),
        (Shell::Zsh, format!("zsh/_{name}")),
        (Shell::Fish, format!("fish/{name}.fish")),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, &name, &mut text);
        write(&folder.join(file), &text)?;
    }
    Ok(())
}

/// What is set, then every other key with its help, commented out.
fn config(defaults: &Defaults, command: &Command) -> String {
    let mut text = defaults.head.trim_end().to_owned();
    let set: toml::Table = defaults.head.parse().unwrap_or_default();
    text += "\n\n# All other keys.\n";
    for argument in command.get_arguments() {
        let key = argument.get_id().as_str();
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        if FLAGS.contains(&key) || set.contains_key(key) || help.starts_with(defaults.not) {
            continue;
        }
        let _ = write!(text, "\n# {}\n#{key} = {}\n", help.replace('\n', "\n# "), example(&help));
    }
    text
}

/// The default that a help text ends with, as TOML, or nothing.
fn example(help: &str) -> String {
    let inner = help.rsplit_once('[').map_or("", |(_, end)| end.split(']').next().unwrap_or(""));
    let inner = inner.strip_prefix("default: ").unwrap_or(inner);
    let first = inner.split(';').next().unwrap_or_default().trim();
    let is_number = first.parse::<f64>().is_ok();
    if is_number || ["true", "false"].contains(&first) {
        first.to_owned()
    } else if first.contains(' ') || first.is_empty() {
        "\"\"".to_owned()
    } else {
        format!("{first:?}")
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, bytes))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(role: &str) -> Vec<&'static str> {
        let server = role::settings::Settings::KEYS.iter();
        let gateway = gateway::config::Settings::KEYS.iter();
        if role == "gateway" { gateway.copied().collect() } else { server.copied().collect() }
    }

    #[test]
    fn a_config_has_every_key_and_is_read_by_its_role() {
        for (defaults, command) in DEFAULTS.iter().zip(&commands()[1..]) {
            let text = config(defaults, command);
            let has = |key: &str| {
                text.lines()
                    .any(|line| line.trim_start_matches('#').starts_with(&format!("{key} =")))
            };
            let other = |key: &str| {
                let argument = command.get_arguments().find(|a| a.get_id() == key).unwrap();
                argument.get_help().unwrap().to_string().starts_with(defaults.not)
            };
            for key in keys(defaults.role) {
                let expected = !FLAGS.contains(&key) && !other(key);
                assert_eq!(has(key), expected, "{key} in {}.toml", defaults.role);
            }
            let numbered = text.replace("{instance}", "0");
            if defaults.role == "gateway" {
                gateway::config::Settings::from_toml_str(&numbered).unwrap();
            } else {
                toml::from_str::<role::settings::Settings>(&numbered).unwrap();
            }
        }
    }

    #[test]
    fn defaults_are_taken_from_the_help() {
        assert_eq!(example("Tokens of a page [default: 16]."), "16");
        assert_eq!(example("Most [default: 512; on a GPU 8192]."), "512");
        assert_eq!(example("Logs [info]."), "\"info\"");
        assert_eq!(example("Threads [default: all cores]."), "\"\"");
    }
}
