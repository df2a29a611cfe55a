//! A pool on a GPU, made known to UCX.
//!
//! UCX stores into it by its own `cuda_ipc`: the writer maps the pool and has the driver copy to
//! it. Nobody else works for a put, so an emulated one, which wants the target's worker, never
//! ends, and a join's probe finds out.

use super::context::{Context, Ucx};
use super::memory::SLOT_BYTES;
use super::unavailable;
use crate::TransferError;
use kernels::cuda::PagePool;
use kernels::cuda::stream::Stream;
use kernels::ops::OpError;
use std::ptr;
use std::sync::Arc;
use ucx_sys::types::*;

pub(super) struct DevicePool {
    pool: Arc<PagePool>,
    /// For probes, beside the forward pass.
    probes: Stream,
    pub(super) context: Arc<Context>,
    pub(super) handle: ucp_mem_h,
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: OpError) -> TransferError {
    unavailable(error.to_string())
}

impl DevicePool {
    /// Tells UCX of `pool`, which is on the GPU that it was opened on.
    pub(super) fn map(ucx: &Ucx, pool: &Arc<PagePool>) -> Result<Self, TransferError> {
        let context = Arc::clone(ucx.context());
        context.enter()?;
        let probes = Stream::new(pool.device()).map_err(failed)?;
        let params = ucp_mem_map_params_t {
            field_mask: UCP_MEM_MAP_PARAM_FIELD_ADDRESS
                | UCP_MEM_MAP_PARAM_FIELD_LENGTH
                | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
            address: ptr::without_provenance_mut(pool.address() as usize),
            length: pool.page_bytes() * pool.pages() as usize + PagePool::MARGIN,
            memory_type: UCS_MEMORY_TYPE_CUDA,
            ..Default::default()
        };
        let mut handle = ptr::null_mut();
        // SAFETY: the context is alive, the parameters outlive the call, the place is ours; the
        // pool has so many bytes there and is held until they are unmapped.
        let status = unsafe {
            (context.api.ucp_mem_map)(context.handle, &raw const params, &raw mut handle)
        };
        context.check(status, "registering the pool, on a GPU; want UCX with CUDA")?;
        Ok(Self { pool: Arc::clone(pool), probes, context, handle })
    }

    pub(super) fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Sets what a slot of the margin holds.
    pub(super) fn write_slot(&self, slot: usize, words: [u64; 2]) -> Result<(), TransferError> {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&words[0].to_le_bytes());
        bytes[8..].copy_from_slice(&words[1].to_le_bytes());
        self.pool.write_margin(&self.probes, slot * SLOT_BYTES, &bytes).map_err(failed)
    }

    pub(super) fn read_slot(&self, slot: usize) -> Result<[u64; 2], TransferError> {
        let mut bytes = [0; SLOT_BYTES];
        self.pool.read_margin(&self.probes, slot * SLOT_BYTES, &mut bytes).map_err(failed)?;
        let word = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        Ok([word(0), word(8)])
    }
}

impl Drop for DevicePool {
    fn drop(&mut self) {
        // Without the GPU, UCX forgets what it can.
        let _ = self.context.enter();
        // SAFETY: made by `ucp_mem_map` of this context, freed once, before the pool is.
        let status = unsafe { (self.context.api.ucp_mem_unmap)(self.context.handle, self.handle) };
        if status != UCS_OK {
            let reason = self.context.describe(status);
            tracing::warn!(reason, "a pool's registration was not taken back");
        }
    }
}
