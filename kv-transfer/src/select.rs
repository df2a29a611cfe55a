//! From what the operator asked for to a server's transports and its pool's memory.
//!
//! `auto` is the best that works: UCX where `libucp` loads and, at a target, shared memory for the
//! whole pool is there; TCP always. What does not work is kept with its reason and shows up in
//! every [`crate::Report`]. Asked for by name, a transport that does not work is an error: nothing
//! falls back quietly.
//!
//! The pool's memory is made before the pool, because UCX wants to allocate a target's:
//! 1. [`Choice::target_memory`] or [`Choice::source_memory`] gives the memory and a prepared half;
//! 2. the caller builds its pool over the memory;
//! 3. [`PreparedTarget::over`] or [`PreparedSource::over`] makes the transports over the pool.

use crate::tcp::{TcpConfig, TcpSource, TcpTarget};
use crate::ucx::{Region, Ucx, UcxSource, UcxTarget, private_memory};
use crate::{Kind, Source, Sources, Target, Targets, TransferError};
use kernels::cpu::memory::HostMemory;
use shared::kv::PageStore;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// What the operator asked for: `auto`, `ucx` or `tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Choice {
    /// The best that works.
    #[default]
    Auto,
    /// UCX or an error.
    Ucx,
    /// TCP only.
    Tcp,
}

impl FromStr for Choice {
    type Err = TransferError;

    fn from_str(name: &str) -> Result<Self, TransferError> {
        match name {
            "auto" => Ok(Self::Auto),
            "ucx" => Ok(Self::Ucx),
            "tcp" => Ok(Self::Tcp),
            _ => Err(TransferError::malformed("transport", name, "auto, ucx or tcp")),
        }
    }
}

/// UCX and its hold on the pool, or the reason why not.
type Shared = Result<(Ucx, Region), String>;

/// A target's transports, waiting for the pool.
pub struct PreparedTarget {
    choice: Choice,
    ucx: Shared,
}

/// A source's transports, waiting for the pool.
pub struct PreparedSource {
    choice: Choice,
    ucx: Shared,
}

impl Choice {
    /// `bytes` of zeroed memory for the pool of a server that receives. `ucx` is the folder of
    /// `libucp.so.0`, if it is not on the system's path.
    ///
    /// # Errors
    /// What was asked for by name does not work, or there is no memory at all.
    pub fn target_memory(
        self,
        ucx: Option<&Path>,
        bytes: usize,
    ) -> Result<(PreparedTarget, HostMemory), TransferError> {
        let (ucx, memory) = self.memory(bytes, || {
            let ucx = Ucx::open(ucx)?;
            let (region, memory) = ucx.shared_memory(bytes)?;
            Ok((ucx, region, memory))
        })?;
        Ok((PreparedTarget { choice: self, ucx }, memory))
    }

    /// The same for a server that sends.
    ///
    /// # Errors
    /// As [`Self::target_memory`].
    pub fn source_memory(
        self,
        ucx: Option<&Path>,
        bytes: usize,
    ) -> Result<(PreparedSource, HostMemory), TransferError> {
        let (ucx, memory) = self.memory(bytes, || {
            let ucx = Ucx::open(ucx)?;
            let (region, memory) = private_memory(bytes)?;
            Ok((ucx, region, memory))
        })?;
        Ok((PreparedSource { choice: self, ucx }, memory))
    }

    /// For a server whose pool is in device memory: pages go through the host, by TCP.
    ///
    /// # Errors
    /// UCX was asked for.
    pub fn device_target(self) -> Result<PreparedTarget, TransferError> {
        Ok(PreparedTarget { choice: self, ucx: self.no_ucx_for_devices()? })
    }

    /// The same for a server that sends.
    ///
    /// # Errors
    /// As [`Self::device_target`].
    pub fn device_source(self) -> Result<PreparedSource, TransferError> {
        Ok(PreparedSource { choice: self, ucx: self.no_ucx_for_devices()? })
    }

    fn no_ucx_for_devices(self) -> Result<Shared, TransferError> {
        let reason = "the pool is in device memory, which UCX is not used for yet; want tcp";
        match self {
            Self::Ucx => Err(TransferError::Unavailable {
                transport: Kind::Ucx.name(),
                reason: reason.to_owned(),
            }),
            Self::Auto | Self::Tcp => Ok(Err(reason.to_owned())),
        }
    }

    fn memory(
        self,
        bytes: usize,
        with_ucx: impl FnOnce() -> Result<(Ucx, Region, HostMemory), TransferError>,
    ) -> Result<(Shared, HostMemory), TransferError> {
        let why_not = match self {
            Self::Tcp => "tcp was asked for".to_owned(),
            Self::Ucx | Self::Auto => match with_ucx() {
                Ok((ucx, region, memory)) => return Ok((Ok((ucx, region)), memory)),
                Err(error) if self == Self::Ucx => return Err(error),
                Err(error) => error.to_string(),
            },
        };
        let memory = HostMemory::zeroed(bytes).map_err(|e| TransferError::Unavailable {
            transport: Kind::Tcp.name(),
            reason: e.to_string(),
        })?;
        Ok((Err(why_not), memory))
    }
}

impl PreparedTarget {
    /// The transports over the pool that was built in the memory.
    ///
    /// # Errors
    /// The pool does not fit its memory, or the data address cannot be used.
    pub fn over(
        self,
        store: &Arc<dyn PageStore>,
        tcp: TcpConfig,
    ) -> Result<Targets, TransferError> {
        let ucx = match self.ucx {
            Ok((ucx, region)) => {
                let target = UcxTarget::new(&ucx, region, *store.geometry(), store.pages())?;
                Ok(Box::new(target) as Box<dyn Target>)
            }
            Err(reason) => Err(reason),
        };
        let tcp = match self.choice {
            Choice::Ucx => Err("ucx was asked for".to_owned()),
            Choice::Auto | Choice::Tcp => {
                Ok(Box::new(TcpTarget::new(Arc::clone(store), tcp)?) as Box<dyn Target>)
            }
        };
        Ok(Targets::new(vec![(Kind::Ucx, ucx), (Kind::Tcp, tcp)]))
    }
}

impl PreparedSource {
    /// The transports over the pool that was built in the memory.
    ///
    /// # Errors
    /// The pool does not fit its memory.
    pub fn over(self, store: &Arc<dyn PageStore>) -> Result<Sources, TransferError> {
        let ucx = match self.ucx {
            Ok((ucx, region)) => {
                let source = UcxSource::new(&ucx, region, *store.geometry(), store.pages())?;
                Ok(Box::new(source) as Box<dyn Source>)
            }
            Err(reason) => Err(reason),
        };
        let tcp = match self.choice {
            Choice::Ucx => Err("ucx was asked for".to_owned()),
            Choice::Auto | Choice::Tcp => {
                Ok(Box::new(TcpSource::new(Arc::clone(store))) as Box<dyn Source>)
            }
        };
        Ok(Sources::new(vec![(Kind::Ucx, ucx), (Kind::Tcp, tcp)]))
    }
}
