//! From what the operator asked for to a server's transports and its pool's memory.
//!
//! `auto` is the best that works: for a pool in host memory UCX, where `libucp` loads and, at a
//! target, shared memory for the whole pool is there; for one in device memory `cuda_ipc`; TCP
//! always. What does not work is kept with its reason and shows up in every [`crate::Report`].
//! Asked for by name, a transport that does not work is an error: nothing falls back quietly.
//!
//! A pool in device memory is made first, and [`Choice::device_targets`] or
//! [`Choice::device_sources`] makes its transports. A pool's host memory is made before the pool,
//! because UCX wants to allocate a target's:
//! 1. [`Choice::target_memory`] or [`Choice::source_memory`] gives the memory and a prepared half;
//! 2. the caller builds its pool over the memory;
//! 3. [`PreparedTarget::over`] or [`PreparedSource::over`] makes the transports over the pool.

use crate::cuda_ipc::{CudaIpcSource, CudaIpcTarget};
use crate::tcp::{TcpConfig, TcpSource, TcpTarget};
use crate::ucx::{Region, Ucx, UcxSource, UcxTarget, private_memory};
use crate::{Kind, Source, Sources, Target, Targets, TransferError};
use kernels::cpu::memory::HostMemory;
use kernels::cuda::PagePool;
use shared::kv::{KvGeometry, PageStore};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// What the operator asked for: `auto`, `ucx`, `cuda_ipc` or `tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Choice {
    /// The best that works.
    #[default]
    Auto,
    /// UCX or an error.
    Ucx,
    /// CUDA IPC or an error.
    CudaIpc,
    /// TCP only.
    Tcp,
}

impl FromStr for Choice {
    type Err = TransferError;

    fn from_str(name: &str) -> Result<Self, TransferError> {
        match name {
            "auto" => Ok(Self::Auto),
            "ucx" => Ok(Self::Ucx),
            "cuda_ipc" => Ok(Self::CudaIpc),
            "tcp" => Ok(Self::Tcp),
            _ => Err(TransferError::malformed("transport", name, "auto, ucx, cuda_ipc or tcp")),
        }
    }
}

/// Why UCX does not serve pools in device memory.
const NO_UCX: &str = "the pool is in device memory, for which there are cuda_ipc and tcp";

fn asked_for(kind: Kind) -> String {
    format!("{kind} was asked for")
}

fn unavailable(kind: Kind, reason: &(impl ToString + ?Sized)) -> TransferError {
    TransferError::Unavailable { transport: kind.name(), reason: reason.to_string() }
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

    /// Refuses what cannot serve a pool in device memory, before one is made.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] for UCX by name.
    pub fn check_device(self) -> Result<(), TransferError> {
        match self {
            Self::Ucx => Err(unavailable(Kind::Ucx, NO_UCX)),
            Self::Auto | Self::CudaIpc | Self::Tcp => Ok(()),
        }
    }

    /// The transports of a server that receives into `pool`, in device memory, with pages of
    /// `geometry`.
    ///
    /// # Errors
    /// What was asked for by name does not work, or the data address cannot be used.
    pub fn device_targets(
        self,
        pool: &Arc<PagePool>,
        geometry: KvGeometry,
        tcp: TcpConfig,
    ) -> Result<Targets, TransferError> {
        self.check_device()?;
        let ipc = self.ipc(|| {
            let target = CudaIpcTarget::new(pool, geometry)?;
            Ok(Box::new(target) as Box<dyn Target>)
        })?;
        let tcp = match self {
            Self::Ucx | Self::CudaIpc => Err(asked_for(Kind::CudaIpc)),
            Self::Auto | Self::Tcp => {
                let target = TcpTarget::in_device_memory(pool, geometry, tcp)?;
                Ok(Box::new(target) as Box<dyn Target>)
            }
        };
        let ucx = Err(NO_UCX.to_owned());
        Ok(Targets::new(vec![(Kind::CudaIpc, ipc), (Kind::Ucx, ucx), (Kind::Tcp, tcp)]))
    }

    /// The same for a server that sends.
    ///
    /// # Errors
    /// What was asked for by name does not work.
    pub fn device_sources(
        self,
        pool: &Arc<PagePool>,
        geometry: KvGeometry,
    ) -> Result<Sources, TransferError> {
        self.check_device()?;
        let ipc = self.ipc(|| {
            let source = CudaIpcSource::new(pool, geometry)?;
            Ok(Box::new(source) as Box<dyn Source>)
        })?;
        let tcp = match self {
            Self::Ucx | Self::CudaIpc => Err(asked_for(Kind::CudaIpc)),
            Self::Auto | Self::Tcp => {
                let source = TcpSource::in_device_memory(pool, geometry);
                Ok(Box::new(source) as Box<dyn Source>)
            }
        };
        let ucx = Err(NO_UCX.to_owned());
        Ok(Sources::new(vec![(Kind::CudaIpc, ipc), (Kind::Ucx, ucx), (Kind::Tcp, tcp)]))
    }

    /// One end of `cuda_ipc`, or why not, unless it was asked for by name.
    fn ipc<T>(
        self,
        make: impl FnOnce() -> Result<T, TransferError>,
    ) -> Result<Result<T, String>, TransferError> {
        match self {
            Self::Tcp | Self::Ucx => Ok(Err(asked_for(Kind::Tcp))),
            Self::CudaIpc => make().map(Ok),
            Self::Auto => Ok(make().map_err(|e| e.to_string())),
        }
    }

    fn memory(
        self,
        bytes: usize,
        with_ucx: impl FnOnce() -> Result<(Ucx, Region, HostMemory), TransferError>,
    ) -> Result<(Shared, HostMemory), TransferError> {
        let why_not = match self {
            Self::CudaIpc => {
                let reason = "the pool is in host memory: want device = \"cuda\", or another \
                              transport";
                return Err(unavailable(Kind::CudaIpc, reason));
            }
            Self::Tcp => asked_for(Kind::Tcp),
            Self::Ucx | Self::Auto => match with_ucx() {
                Ok((ucx, region, memory)) => return Ok((Ok((ucx, region)), memory)),
                Err(error) if self == Self::Ucx => return Err(error),
                Err(error) => error.to_string(),
            },
        };
        let memory = HostMemory::zeroed(bytes).map_err(|e| unavailable(Kind::Tcp, &e))?;
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
            Choice::Ucx | Choice::CudaIpc => Err(asked_for(Kind::Ucx)),
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
            Choice::Ucx | Choice::CudaIpc => Err(asked_for(Kind::Ucx)),
            Choice::Auto | Choice::Tcp => {
                Ok(Box::new(TcpSource::new(Arc::clone(store))) as Box<dyn Source>)
            }
        };
        Ok(Sources::new(vec![(Kind::Ucx, ucx), (Kind::Tcp, tcp)]))
    }
}
