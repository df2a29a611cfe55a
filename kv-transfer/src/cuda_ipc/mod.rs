//! CUDA IPC: the source's kernels and copy engines store straight into the target's pool in device
//! memory, on one GPU or between peers of one host.
//!
//! 1. A target exports its pool, which is an allocation of its own, as a handle. The offer has the
//!    handle, the GPU's UUID, the host's boot id, a probe slot in the pool's margin and a nonce.
//! 2. The source maps the pool ([`kernels::cuda::ipc`]), leaves nonce and answer in the slot, and
//!    says who it is; the target confirms by reading both there, and watches the process.
//! 3. Puts are launches of one kernel ([`kernels::cuda::ship`]) on a stream of the link's own, a
//!    list of pages each, of few blocks, so that a forward pass runs on beside them, or copies on
//!    that stream. They are done when the mark behind them is reached; a flush when all before it
//!    are. That is all a flush needs: the end of a kernel or of a copy makes its stores visible to
//!    the whole system, and kernels that the target starts after it heard of the flush see them.
//! 4. Closing waits for the stream and unmaps the pool, so that a dead peer's memory is free as
//!    soon as its link is lost. The target cannot take a mapping back, so revoking gives
//!    [`crate::Proof::ProcessEnd`], which for GPUs is more than the process' death.
//!
//! Parts of a put that a running forward pass still writes have a mark behind them: the stream
//! waits for it, and no host. Others hold what they are to hold when the put is queued. Between
//! GPUs large parts whose put's last is still computed go by copy engines: nobody waits for them
//! yet, and they leave all multiprocessors to the pass.
//!
//! No `unsafe` is here; all of it is in `kernels::cuda`.

mod link;
mod source;
mod target;

pub(crate) use link::ShipLink;
pub use source::CudaIpcSource;
pub use target::CudaIpcTarget;

use crate::{Kind, TransferError};
use kernels::cuda::PagePool;
use kernels::cuda::ship::Copier;
use shared::kv::KvGeometry;

/// Blocks of 512 threads that ship at a time.
pub const BLOCKS: u32 = 64;

/// What copies pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copiers {
    /// Whatever a request may be waiting for.
    pub alone: Copier,
    /// Large parts of pages whose later layers are still computed, beside which they go.
    pub beside: Copier,
}

impl Copiers {
    /// Within one GPU the driver's copies page by page are a fifth as fast.
    pub(crate) const SAME_GPU: Self = Self::all(Copier::Blocks(BLOCKS));

    /// To another GPU: copy engines leave the step alone, of which the kernel's blocks cost 7 %.
    const PEER: Self = Self { beside: Copier::Engines, ..Self::SAME_GPU };

    /// One for everything.
    pub const fn all(copier: Copier) -> Self {
        Self { alone: copier, beside: copier }
    }
}

/// A probe slot: the nonce of the offer and the answer of the writer.
const SLOT_BYTES: usize = 16;
/// Sessions that can be joining or joined at one target at a time.
const SLOTS: usize = PagePool::MARGIN / SLOT_BYTES;

const NAME: &str = Kind::CudaIpc.name();

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(reason: impl ToString) -> TransferError {
    TransferError::Unavailable { transport: NAME, reason: reason.to_string() }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(reason: impl ToString) -> TransferError {
    TransferError::Refused { transport: NAME, reason: reason.to_string() }
}

fn check_pages(pool: &PagePool, geometry: &KvGeometry) -> Result<(), TransferError> {
    let (found, want) = (pool.page_bytes(), geometry.page_bytes());
    if found == want {
        Ok(())
    } else {
        Err(unavailable(format!("the pool has pages of {found} bytes, its geometry of {want}")))
    }
}
