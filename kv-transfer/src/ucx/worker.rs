//! A worker: one peer's progress engine. Used by one thread at a time.

use super::context::{Context, Ucx};
use crate::TransferError;
use std::ptr;
use std::slice;
use std::sync::Arc;
use ucx_sys::types::*;

pub(super) struct Worker {
    pub(super) context: Arc<Context>,
    pub(super) handle: ucp_worker_h,
}

// SAFETY: made with UCS_THREAD_MODE_SERIALIZED: any thread may use it, one at a time, which
// `&mut` and the lack of `Sync` see to.
unsafe impl Send for Worker {}

impl Worker {
    pub(super) fn new(ucx: &Ucx) -> Result<Self, TransferError> {
        let context = Arc::clone(ucx.context());
        context.enter()?;
        let params = ucp_worker_params_t {
            field_mask: UCP_WORKER_PARAM_FIELD_THREAD_MODE,
            thread_mode: UCS_THREAD_MODE_SERIALIZED,
            ..Default::default()
        };
        let mut handle = ptr::null_mut();
        // SAFETY: the context is alive, the parameters outlive the call, the place is ours.
        let status = unsafe {
            (context.api.ucp_worker_create)(context.handle, &raw const params, &raw mut handle)
        };
        context.check(status, "making a UCX worker (each peer takes 5 MB of /dev/shm)")?;
        Ok(Self { context, handle })
    }

    /// The bytes that a peer connects to.
    pub(super) fn address(&mut self) -> Result<Vec<u8>, TransferError> {
        let api = self.context.api;
        let (mut address, mut length) = (ptr::null_mut(), 0);
        // SAFETY: the worker is alive and used by this thread alone; the places are ours.
        let status =
            unsafe { (api.ucp_worker_get_address)(self.handle, &raw mut address, &raw mut length) };
        self.context.check(status, "asking for the worker's address")?;
        // SAFETY: UCX gave `length` bytes there.
        let bytes = unsafe { slice::from_raw_parts(address.cast::<u8>(), length) }.to_vec();
        // SAFETY: from `ucp_worker_get_address` of this worker, freed once.
        unsafe { (api.ucp_worker_release_address)(self.handle, address) };
        Ok(bytes)
    }

    /// Moves outstanding work on.
    pub(super) fn progress(&mut self) {
        // SAFETY: the worker is alive and used by this thread alone.
        unsafe { (self.context.api.ucp_worker_progress)(self.handle) };
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Without the GPU, UCX ends what it can.
        let _ = self.context.enter();
        // SAFETY: alive until here. Its endpoints go with it, and requests that are outstanding
        // end without a call back, which is how a dead peer's are ended.
        unsafe { (self.context.api.ucp_worker_destroy)(self.handle) };
    }
}
