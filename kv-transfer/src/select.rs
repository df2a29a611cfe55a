//! From what the operator asked for to a server's transports and its pool's memory.
//!
//! `auto` is the best that works: for a pool in host memory UCX, where `libucp` loads and, at a
//! target, shared memory for the whole pool is there; for one in device memory `cuda_ipc`, and UCX
//! by name only; TCP always. What does not work is kept with its reason and shows up in every
//! [`crate::Report`]. Asked for by name, a transport that does not work is an error: nothing falls
//! back quietly.
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

/// Why UCX is not taken for a pool in device memory unless it is asked for.
const UCX_BY_NAME: &str = "where it reaches device memory, cuda_ipc does, sooner";

/// One end of each transport, or why not.
type Ends<T> = Vec<(Kind, Result<Box<T>, String>)>;

/// Makes one end of a transport.
type Made<'a, T> = &'a dyn Fn() -> Result<Box<T>, TransferError>;

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

    /// The transports of a server that receives into `pool`, in device memory, with pages of
    /// `geometry`. `ucx` as in [`Self::target_memory`].
    ///
    /// # Errors
    /// What was asked for by name does not work, or the data address cannot be used.
    pub fn device_targets(
        self,
        pool: &Arc<PagePool>,
        geometry: KvGeometry,
        (ucx, tcp): (Option<&Path>, TcpConfig),
    ) -> Result<Targets, TransferError> {
        let made: [(Kind, Made<dyn Target>); 3] = [
            (Kind::CudaIpc, &|| Ok(Box::new(CudaIpcTarget::new(pool, geometry)?))),
            (Kind::Ucx, &|| {
                let ucx = Ucx::open_on(pool.device(), ucx)?;
                let region = Region::on_device(&ucx, pool)?;
                Ok(Box::new(UcxTarget::new(&ucx, region, geometry, pool.pages())?))
            }),
            (Kind::Tcp, &|| Ok(Box::new(TcpTarget::in_device_memory(pool, geometry, tcp)?))),
        ];
        Ok(Targets::new(self.on_device(made)?))
    }

    /// The same for a server that sends.
    ///
    /// # Errors
    /// What was asked for by name does not work.
    pub fn device_sources(
        self,
        pool: &Arc<PagePool>,
        geometry: KvGeometry,
        ucx: Option<&Path>,
    ) -> Result<Sources, TransferError> {
        let made: [(Kind, Made<dyn Source>); 3] = [
            (Kind::CudaIpc, &|| Ok(Box::new(CudaIpcSource::new(pool, geometry)?))),
            (Kind::Ucx, &|| {
                let ucx = Ucx::open_on(pool.device(), ucx)?;
                let region = Region::on_device(&ucx, pool)?;
                Ok(Box::new(UcxSource::new(&ucx, region, geometry, pool.pages())?))
            }),
            (Kind::Tcp, &|| Ok(Box::new(TcpSource::in_device_memory(pool, geometry)))),
        ];
        Ok(Sources::new(self.on_device(made)?))
    }

    /// Each transport of a pool in device memory, or why not; an error if it was asked for by name,
    /// or is TCP, which always works.
    fn on_device<T: ?Sized>(
        self,
        made: [(Kind, Made<'_, T>); 3],
    ) -> Result<Ends<T>, TransferError> {
        let one = |(kind, make): (Kind, Made<'_, T>)| {
            let outcome = match self.named() {
                Some(named) if named != kind => Err(asked_for(named)),
                None if kind == Kind::Ucx => Err(UCX_BY_NAME.to_owned()),
                None if kind != Kind::Tcp => make().map_err(|e| e.to_string()),
                Some(_) | None => Ok(make()?),
            };
            Ok((kind, outcome))
        };
        made.into_iter().map(one).collect()
    }

    /// The one that was asked for by name.
    fn named(self) -> Option<Kind> {
        match self {
            Self::Auto => None,
            Self::Ucx => Some(Kind::Ucx),
            Self::CudaIpc => Some(Kind::CudaIpc),
            Self::Tcp => Some(Kind::Tcp),
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
