//! NVIDIA's Multi-Process Service, for as long as a ring runs under it: processes that share a GPU
//! run at once then, where they otherwise take turns. No setting of the GPU is touched.

use anyhow::{Context, ensure};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

const CONTROL: &str = "nvidia-cuda-mps-control";

/// A daemon of our own, in a folder of its own; dropping it ends it.
pub struct Mps {
    folder: TempDir,
}

impl Mps {
    /// # Errors
    /// The driver's tool is not there, or does not start its daemon.
    pub fn start() -> anyhow::Result<Self> {
        let mps = Self { folder: tempfile::tempdir()? };
        let status = mps.control().arg("-d").status().with_context(|| format!("run {CONTROL}"))?;
        ensure!(status.success(), "{CONTROL} -d: {status}");
        Ok(mps)
    }

    /// What a process has in its environment to run under it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let folder = self.path().to_string_lossy().into_owned();
        ["CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"]
            .map(|name| (name.to_owned(), folder.clone()))
            .into()
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn control(&self) -> Command {
        let mut command = Command::new(CONTROL);
        command.envs(self.environment()).stdout(Stdio::null());
        command
    }
}

impl Drop for Mps {
    fn drop(&mut self) {
        let Ok(mut control) = self.control().stdin(Stdio::piped()).spawn() else { return };
        // Fails only if the daemon is gone already.
        let _ = control.stdin.take().map(|mut stdin| stdin.write_all(b"quit\n"));
        let _ = control.wait();
    }
}
