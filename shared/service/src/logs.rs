//! Logs to standard error, as text or as JSON, one object a line.
//!
//! What is written is said by `RUST_LOG`, else by the setting `log`, else it is `info`; a reload of
//! the config changes it while the process runs. Errors are written whatever it names, but where it
//! gives all or their target a level.

use std::fmt::Write;
use std::str::FromStr;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For collectors: an object with `timestamp`, `level`, `target` and `fields`.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{name:?} is not known; want text or json")),
        }
    }
}

/// Why logs cannot be as asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a filter.
    #[error("`log` is {filter:?}: {problem}; want a level, or `target=level` pairs")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        problem: String,
    },
    /// This process logs already.
    #[error("logs: {0}")]
    Started(#[from] TryInitError),
}

/// The logs of this process.
#[derive(Clone, Debug)]
pub struct Logs(reload::Handle<EnvFilter, Registry>);

/// Starts them. Colours only where a terminal reads.
///
/// # Errors
/// [`LogError`].
pub fn start(log: Option<&str>, format: Format) -> Result<Logs, LogError> {
    let (filter, handle) = reload::Layer::new(filter(log)?);
    let lines = match format {
        Format::Text if std::io::IsTerminal::is_terminal(&std::io::stderr()) => {
            fmt::layer().with_writer(std::io::stderr).boxed()
        }
        // The same words at a third of the cost: what has no colour is not painted.
        Format::Text => {
            let plain = debug_fn(|writer, field, value| match field.name() {
                "message" => write!(Printable(writer), "{value:?}"),
                // Of the `log` crate, and in the line already.
                name if name.starts_with("log.") => Ok(()),
                name => write!(writer, "{name}={value:?}"),
            });
            let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
            lines.fmt_fields(plain.delimited(" ")).boxed()
        }
        Format::Json => fmt::layer().json().with_writer(std::io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    if format == Format::Json {
        // The hook that is there writes text.
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current();
            tracing::error!(thread = thread.name(), %panic, "panicked");
        }));
    }
    Ok(Logs(handle))
}

/// Text on its way into a line: what would move a terminal's cursor is spelled out.
struct Printable<'a, 'w>(&'a mut Writer<'w>);

impl std::fmt::Write for Printable<'_, '_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if !text.bytes().any(|byte| byte.is_ascii_control() || byte == 0xC2) {
            return self.0.write_str(text);
        }
        text.chars().try_for_each(|c| match c {
            '\n' | '\t' => self.0.write_char(c),
            c if c.is_control() => write!(self.0, "{}", c.escape_default()),
            c => self.0.write_char(c),
        })
    }
}

impl Logs {
    /// Takes another value of the setting `log`.
    ///
    /// # Errors
    /// [`LogError::Filter`]; the one before stays.
    pub fn set(&self, log: Option<&str>) -> Result<(), LogError> {
        let filter = filter(log)?;
        // It fails only where the subscriber is gone, and with it the process.
        drop(self.0.reload(filter));
        Ok(())
    }
}

fn filter(log: Option<&str>) -> Result<EnvFilter, LogError> {
    let named = std::env::var_os(EnvFilter::DEFAULT_ENV).filter(|value| !value.is_empty());
    let named = named.map(|value| value.to_string_lossy().into_owned());
    parse(named.as_deref().or(log).unwrap_or("info"))
}

/// A process that ends says why: what comes later in a filter wins.
fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(format!("error,{filter}"))
        .map_err(|error| LogError::Filter { filter: filter.to_owned(), problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_named() {
        let error = filter(Some("link=loud")).unwrap_err().to_string();
        assert!(error.contains("link=loud") && error.contains("want a level"), "{error}");
        assert!(filter(Some("info,link=debug")).is_ok() && filter(None).is_ok());
        assert!("yaml".parse::<Format>().unwrap_err().contains("text or json"));
    }

    #[test]
    fn errors_pass_a_filter_that_does_not_name_them() {
        let passed = |filter: &str| {
            let logs = tracing_subscriber::registry().with(parse(filter).unwrap());
            tracing::subscriber::with_default(logs, || {
                (tracing::enabled!(tracing::Level::ERROR), tracing::enabled!(tracing::Level::INFO))
            })
        };
        assert_eq!(passed("link=debug"), (true, false));
        assert_eq!(passed("info"), (true, true));
        assert_eq!(passed("off"), (false, false));
        assert_eq!(passed("info,service=off"), (false, false));
    }

    #[test]
    fn a_message_moves_no_cursor() {
        let mut line = String::new();
        let said = "plain é\u{1b}[31mred\u{9b}2J\n";
        write!(Printable(&mut Writer::new(&mut line)), "{said}").unwrap();
        assert_eq!(line, "plain é\\u{1b}[31mred\\u{9b}2J\n");
    }

    #[test]
    #[ignore = "run by a_panic_is_a_line_of_json, as a process of its own"]
    fn it_panics() {
        start(None, Format::Json).unwrap();
        panic!("on purpose");
    }

    #[test]
    fn a_panic_is_a_line_of_json() {
        let own = std::env::current_exe().unwrap();
        let test = ["--exact", "logs::tests::it_panics", "--ignored", "--nocapture"];
        let mut command = std::process::Command::new(own);
        let ran = command.args(test).env_remove(EnvFilter::DEFAULT_ENV).output().unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        let line: serde_json::Value = serde_json::from_str(said.trim()).unwrap();
        let says = |key: &str| line["fields"][key].as_str().unwrap();
        assert!(says("panic").contains("on purpose"), "{said}");
        assert_eq!(says("thread"), "logs::tests::it_panics");
    }
}
