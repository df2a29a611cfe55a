//! What the other process of a pair does: `tandem-bench peer JOB TRANSPORT SHAPE ADDRESS`.

use super::pool::{SHAPES, scattered};
use super::{Control, join_as_source, join_as_target, sources, targets};
use crate::rows::transfer;
use crate::transfer::send;
use anyhow::Context;
use clap::{Args, ValueEnum};
use kv_transfer::{Link, OpId, PutOp, TransferError};
use std::net::TcpStream;
use std::time::Duration;

/// Pages of a peer that is killed.
pub const KILL_PAGES: u32 = 128;

#[derive(Args)]
pub struct Peer {
    job: Job,
    transport: String,
    shape: usize,
    address: String,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Job {
    /// Sends pages every way in alternation and says how long each took.
    Speed,
    /// Writes until it is killed.
    Writer,
    /// Is written until it is killed.
    Target,
    /// Sends pages in device memory every way and says how long each took.
    Transfer,
}

impl Job {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Speed => "speed",
            Self::Writer => "writer",
            Self::Target => "target",
            Self::Transfer => "transfer",
        }
    }
}

impl Peer {
    pub fn run(self) -> anyhow::Result<()> {
        let control = Control::new(TcpStream::connect(&self.address)?)?;
        match self.job {
            Job::Speed => transfer::send(self.shape, control),
            Job::Writer => self.write_without_end(control),
            Job::Target => self.be_written(control),
            Job::Transfer => {
                let gpus = self.transport.parse().map_err(anyhow::Error::msg)?;
                send(gpus, self.shape, control)
            }
        }
    }

    /// Tells the parent when a first round has landed, then goes on.
    fn write_without_end(&self, mut control: Control) -> anyhow::Result<()> {
        let geometry = *SHAPES.get(self.shape).context("no such shape")?;
        let (_pool, sources) = sources(self.transport.parse()?, geometry, KILL_PAGES)?;
        let mut link = join_as_source(&sources, &mut control)?;
        let pages = scattered(KILL_PAGES, KILL_PAGES as usize / 2);
        for round in 0_u64.. {
            let (id, pages) = (OpId::new(2 * round), pages.clone());
            link.put(PutOp::new(id, pages, 0..geometry.page_bytes(), Box::new(())));
            link.flush(OpId::new(2 * round + 1));
            drive(link.as_mut())?;
            if round == 0 {
                control.send(b"written")?;
            }
        }
        Ok(())
    }

    fn be_written(&self, mut control: Control) -> anyhow::Result<()> {
        let geometry = *SHAPES.get(self.shape).context("no such shape")?;
        let (_pool, targets) = targets(self.transport.parse()?, geometry, KILL_PAGES)?;
        let session = join_as_target(&targets, &mut control)?;
        control.send(b"ready")?;
        control.await_end();
        drop(session);
        Ok(())
    }
}

fn drive(link: &mut dyn Link) -> Result<(), TransferError> {
    let mut events = Vec::new();
    while link.outstanding() > 0 {
        link.progress(Duration::from_millis(1), &mut events)?;
    }
    Ok(())
}
