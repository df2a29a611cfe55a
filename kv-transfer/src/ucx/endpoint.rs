//! The way to one peer's pool: worker, endpoint and unpacked key, destroyed in the right order.

use super::context::Ucx;
use super::worker::Worker;
use super::{refused, unavailable};
use crate::TransferError;
use std::ffi::{c_uint, c_void};
use std::ptr;
use ucx_sys::types::*;
use ucx_sys::{Posted, ptr_status, status_of};

pub(super) struct Endpoint {
    worker: Worker,
    handle: ucp_ep_h,
    key: ucp_rkey_h,
    /// The one operation that UCX did not finish at once, if any.
    request: *mut c_void,
}

// SAFETY: all handles belong to the worker inside, which may be used by any one thread at a time.
unsafe impl Send for Endpoint {}

/// Bytes of this process to be put.
#[derive(Clone, Copy)]
pub(super) struct Local {
    pub(super) from: *const u8,
    pub(super) len: usize,
    pub(super) memory: c_uint,
    /// UCX's name of the memory, or null.
    pub(super) handle: ucp_mem_h,
}

/// Whether an operation is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Done,
    Pending,
}

impl Endpoint {
    /// Connects a fresh worker and maps the peer's memory.
    pub(super) fn connect(ucx: &Ucx, address: &[u8], key: &[u8]) -> Result<Self, TransferError> {
        let worker = Worker::new(ucx)?;
        let context = &worker.context;
        // UCX parses both without knowing their length; the peer is authenticated, and an empty
        // one is the only length that can be told to be wrong.
        if address.is_empty() || key.is_empty() {
            return Err(TransferError::malformed("offer.address or key", "", "some bytes"));
        }
        let params = ucp_ep_params_t {
            field_mask: UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE,
            address: address.as_ptr().cast(),
            err_mode: UCP_ERR_HANDLING_MODE_NONE,
            ..Default::default()
        };
        let mut handle = ptr::null_mut();
        // SAFETY: the worker is alive and ours, the parameters outlive the call, the place is ours.
        let status = unsafe {
            (context.api.ucp_ep_create)(worker.handle, &raw const params, &raw mut handle)
        };
        status_of(status).map_err(|status| {
            refused(format!("no way to the target: {}", context.describe(status)))
        })?;
        let mut rkey = ptr::null_mut();
        // SAFETY: the endpoint is alive, the key's bytes outlive the call, the place is ours.
        let status =
            unsafe { (context.api.ucp_ep_rkey_unpack)(handle, key.as_ptr().cast(), &raw mut rkey) };
        status_of(status).map_err(|status| {
            refused(format!("the target's pool cannot be mapped: {}", context.describe(status)))
        })?;
        Ok(Self { worker, handle, key: rkey, request: ptr::null_mut() })
    }

    /// Whether a put to `remote` is a store by this process; UCX would emulate it otherwise.
    pub(super) fn stores_directly(&self, remote: u64) -> bool {
        let mut local = ptr::null_mut();
        // SAFETY: the key is alive, the place is ours; the pointer is not used.
        let status =
            unsafe { (self.worker.context.api.ucp_rkey_ptr)(self.key, remote, &raw mut local) };
        status == UCS_OK && !local.is_null()
    }

    /// Writes `local` to the peer's `remote`. Nothing may be pending.
    ///
    /// # Safety
    /// The bytes must be readable and unchanged, and be what and where `local` says, until this, or
    /// a later [`Self::poll`], says [`Step::Done`], or the endpoint is dropped.
    pub(super) unsafe fn put(&mut self, local: Local, remote: u64) -> Result<Step, TransferError> {
        assert!(self.request.is_null(), "one operation at a time");
        let Local { from, len, memory, handle } = local;
        let known = if handle.is_null() { 0 } else { UCP_OP_ATTR_FIELD_MEMH };
        let param = ucp_request_param_t {
            op_attr_mask: UCP_OP_ATTR_FIELD_MEMORY_TYPE | known,
            memory_type: memory,
            memh: handle,
            ..Default::default()
        };
        self.worker.context.enter()?;
        // SAFETY: endpoint and key are alive; the caller vouches for the bytes; UCX checks the
        // remote range against nothing, which is why callers check it against the peer's pool.
        let posted = unsafe {
            (self.worker.context.api.ucp_put_nbx)(
                self.handle,
                from.cast(),
                len,
                remote,
                self.key,
                &raw const param,
            )
        };
        self.posted(posted)
    }

    /// Starts a flush: done when every put before it is visible at the peer.
    pub(super) fn flush(&mut self) -> Result<Step, TransferError> {
        assert!(self.request.is_null(), "one operation at a time");
        let param = ucp_request_param_t::default();
        self.worker.context.enter()?;
        // SAFETY: the endpoint is alive, the parameters outlive the call.
        let posted =
            unsafe { (self.worker.context.api.ucp_ep_flush_nbx)(self.handle, &raw const param) };
        self.posted(posted)
    }

    fn posted(&mut self, posted: ucs_status_ptr_t) -> Result<Step, TransferError> {
        match ptr_status(posted) {
            Posted::Now(status) => self.ended(status),
            Posted::Request(request) => {
                self.request = request;
                Ok(Step::Pending)
            }
        }
    }

    /// Moves the pending operation on, if there is one.
    pub(super) fn poll(&mut self) -> Result<Step, TransferError> {
        if self.request.is_null() {
            return Ok(Step::Done);
        }
        self.worker.context.enter()?;
        self.worker.progress();
        let api = self.worker.context.api;
        // SAFETY: the request is alive until it is freed below.
        let status = unsafe { (api.ucp_request_check_status)(self.request) };
        if status == UCS_INPROGRESS {
            return Ok(Step::Pending);
        }
        // SAFETY: it has ended, and is freed once.
        unsafe { (api.ucp_request_free)(self.request) };
        self.request = ptr::null_mut();
        self.ended(status)
    }

    fn ended(&self, status: ucs_status_t) -> Result<Step, TransferError> {
        status_of(status)
            .map(|()| Step::Done)
            .map_err(|status| TransferError::broken(&self.worker.context.describe(status)))
    }

    /// Polls until done or `limit` passes, for the join.
    pub(super) fn wait(
        &mut self,
        mut step: Step,
        limit: std::time::Duration,
    ) -> Result<(), TransferError> {
        let start = std::time::Instant::now();
        while step == Step::Pending {
            if start.elapsed() > limit {
                return Err(unavailable(format!("the join's probe took over {limit:?}")));
            }
            step = self.poll()?;
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // Without the GPU, UCX unmaps what it can.
        let _ = self.worker.context.enter();
        // SAFETY: unpacked once, destroyed once, before the worker that drops after this body;
        // this unmaps the peer's pool. A pending request, if any, dies with the worker.
        unsafe { (self.worker.context.api.ucp_rkey_destroy)(self.key) };
    }
}
