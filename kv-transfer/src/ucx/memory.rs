//! Memory for pools: allocated by UCX for a target, ordinary for a source, or on a GPU for either.
//!
//! Who holds it: the [`HostMemory`] given to the pool and the [`Region`] kept by the transport
//! share one allocation, which goes when both are gone. Within this process the pool's guards say
//! who may touch what; the region only reads pages that a put owns, and the probe slots, which are
//! behind the pool's bytes and not part of the host memory.

use super::context::{Context, Ucx};
use super::device::DevicePool;
use super::endpoint::Local;
use super::{leftovers, unavailable};
use crate::TransferError;
use kernels::cpu::memory::HostMemory;
use kernels::cuda::{Device, PagePool};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use ucx_sys::types::*;

/// Where UCX makes segments.
const SHARED_MEMORY: &str = "/dev/shm";

/// Sessions that can be joining or joined at one target at a time.
pub(super) const SLOTS: usize = 256;
/// A probe slot: the nonce of the offer and the answer of the writer.
pub(super) const SLOT_BYTES: usize = 16;
const PROBE_BYTES: usize = SLOTS * SLOT_BYTES;
/// Alignment that pools ask for, bytes.
const ALIGN: usize = 64;

/// The address of a probe slot behind a pool of `bytes` at `base`, as the target names it; none if
/// there is no such address.
pub(super) fn slot_at(base: u64, bytes: usize, slot: usize) -> Option<u64> {
    let behind = bytes.checked_next_multiple_of(ALIGN)?.checked_add(slot * SLOT_BYTES)?;
    base.checked_add(u64::try_from(behind).ok()?)
}

/// The transport's hold on a pool's memory.
#[derive(Clone)]
pub struct Region(Arc<Allocation>);

struct Allocation {
    start: NonNull<u8>,
    /// Bytes of the pool; probe slots follow them, unless it is ordinary memory.
    len: usize,
    backing: Backing,
}

enum Backing {
    /// Allocated by UCX in shared memory.
    Shared { context: Arc<Context>, handle: ucp_mem_h },
    /// Ordinary memory, kept by this.
    Private(#[expect(dead_code, reason = "held for its drop")] HostMemory),
    /// A pool on a GPU, the start of which is no address of this process; its margin is the probe
    /// slots.
    Device(DevicePool),
}

// SAFETY: plain memory and a handle that UCX locks (see `Context`); it is freed once, by drop.
unsafe impl Send for Allocation {}
// SAFETY: `&Allocation` reads addresses, whose memory is shared under the rules in the module's
// head, and hands out UCX's handle and a stream, which UCX and the driver lock.
unsafe impl Sync for Allocation {}

/// Ordinary zeroed memory for a source's pool.
///
/// # Errors
/// [`TransferError::Unavailable`] if the system has not that much.
pub fn private_memory(bytes: usize) -> Result<(Region, HostMemory), TransferError> {
    let memory = HostMemory::zeroed(bytes).map_err(|e| unavailable(e.to_string()))?;
    let start = NonNull::new(memory.as_ptr()).ok_or_else(|| unavailable("memory at null"))?;
    let allocation = Allocation { start, len: bytes, backing: Backing::Private(memory) };
    Ok(Region::share(allocation))
}

impl Ucx {
    /// Zeroed memory for a target's pool, which peers on this host can be let into.
    ///
    /// # Errors
    /// [`TransferError::NoSharedMemory`] before anything is allocated if `/dev/shm` is too small,
    /// [`TransferError::Unavailable`] if UCX cannot allocate it.
    pub fn shared_memory(&self, bytes: usize) -> Result<(Region, HostMemory), TransferError> {
        let padded = bytes.checked_next_multiple_of(ALIGN).filter(|n| *n < isize::MAX as usize / 2);
        let len = padded.ok_or_else(|| unavailable(format!("a pool of {bytes} bytes")))?;
        let (segments, bytes) = leftovers::sweep(Path::new(SHARED_MEMORY));
        if segments > 0 {
            tracing::info!(segments, bytes, "took away shared memory that killed processes left");
        }
        check_space(len + PROBE_BYTES)?;
        let allocation = Allocation::shared(self, len)?;
        Ok(Region::share(allocation))
    }
}

/// Refuses what the shared-memory file system cannot hold; UCX would find out page by page.
fn check_space(need: usize) -> Result<(), TransferError> {
    let path = SHARED_MEMORY;
    let stat = rustix::fs::statvfs(path)
        .map_err(|e| unavailable(format!("no shared memory at {path}: {e}")))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let need = need as u64;
    if need <= free {
        Ok(())
    } else {
        Err(TransferError::NoSharedMemory { path: path.to_owned(), need, free })
    }
}

impl Allocation {
    fn shared(ucx: &Ucx, len: usize) -> Result<Self, TransferError> {
        let context = Arc::clone(ucx.context());
        let total = len + PROBE_BYTES;
        let params = ucp_mem_map_params_t {
            field_mask: UCP_MEM_MAP_PARAM_FIELD_ADDRESS
                | UCP_MEM_MAP_PARAM_FIELD_LENGTH
                | UCP_MEM_MAP_PARAM_FIELD_FLAGS
                | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
            length: total,
            flags: UCP_MEM_MAP_ALLOCATE,
            memory_type: UCS_MEMORY_TYPE_HOST,
            ..Default::default()
        };
        let mut handle = ptr::null_mut();
        // SAFETY: the context is alive, the parameters outlive the call, the place is ours.
        let status = unsafe {
            (context.api.ucp_mem_map)(context.handle, &raw const params, &raw mut handle)
        };
        context.check(status, &format!("allocating {total} bytes of shared memory"))?;
        // From here on drop unmaps, whatever fails.
        let backing = Backing::Shared { context: Arc::clone(&context), handle };
        let mut allocation = Self { start: NonNull::dangling(), len, backing };
        let mut attributes = ucp_mem_attr_t {
            field_mask: UCP_MEM_ATTR_FIELD_ADDRESS | UCP_MEM_ATTR_FIELD_LENGTH,
            ..Default::default()
        };
        // SAFETY: the handle is alive and the place is ours.
        let status = unsafe { (context.api.ucp_mem_query)(handle, &raw mut attributes) };
        context.check(status, "asking for the memory's address")?;
        let start = NonNull::new(attributes.address.cast::<u8>());
        let start = start.filter(|start| start.addr().get().is_multiple_of(ALIGN));
        let start = start.filter(|_| attributes.length >= total);
        allocation.start =
            start.ok_or_else(|| unavailable("UCX gave misaligned or short memory"))?;
        // SAFETY: UCX allocated at least `total` bytes there for this process, and nobody else
        // knows of them yet.
        unsafe { ptr::write_bytes(allocation.start.as_ptr(), 0, total) };
        Ok(allocation)
    }
}

impl Region {
    /// A pool in device memory, of the GPU that `ucx` was opened on.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] if UCX does not take it.
    pub fn on_device(ucx: &Ucx, pool: &Arc<PagePool>) -> Result<Self, TransferError> {
        let mapped = DevicePool::map(ucx, pool)?;
        let start = NonNull::new(ptr::without_provenance_mut(pool.address() as usize));
        let start = start.ok_or_else(|| unavailable("memory at null"))?;
        let len = pool.page_bytes() * pool.pages() as usize;
        Ok(Self(Arc::new(Allocation { start, len, backing: Backing::Device(mapped) })))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Backing::Shared { context, handle } = &self.backing {
            // SAFETY: made by `ucp_mem_map` of this context, freed once; both holders are gone.
            let status = unsafe { (context.api.ucp_mem_unmap)(context.handle, *handle) };
            if status != UCS_OK {
                tracing::warn!(reason = context.describe(status), "shared memory was not freed");
            }
        }
    }
}

impl Region {
    fn share(allocation: Allocation) -> (Self, HostMemory) {
        let allocation = Arc::new(allocation);
        let owner = Box::new(Arc::clone(&allocation));
        // SAFETY: `len` initialised bytes from `start`, aligned to at least 16, stay valid until
        // the owner, a share of the allocation, is dropped. It is handed out once; this module's
        // own use of the memory keeps to the rules in its head.
        let memory = unsafe { HostMemory::from_raw(allocation.start, allocation.len, owner) };
        (Self(allocation), memory)
    }

    /// Bytes of the pool.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// `len` bytes from byte `offset` of the pool, which has them.
    pub(super) fn at(&self, offset: usize, len: usize) -> Local {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.0.len), "{offset} + {len} of {}", self.0.len);
        self.local(offset, len)
    }

    fn local(&self, offset: usize, len: usize) -> Local {
        let (memory, handle) = match &self.0.backing {
            Backing::Shared { .. } | Backing::Private(_) => (UCS_MEMORY_TYPE_HOST, ptr::null_mut()),
            Backing::Device(mapped) => (UCS_MEMORY_TYPE_CUDA, mapped.handle),
        };
        Local { from: self.0.start.as_ptr().wrapping_add(offset), len, memory, handle }
    }

    /// What a join puts into the target's slot: words of this process' own, or, for a pool on a
    /// GPU, of its margin's first slot, since UCX stores there from such memory alone.
    pub(super) fn probe(&self, words: &[u64; 2]) -> Result<Local, TransferError> {
        if let Backing::Device(mapped) = &self.0.backing {
            mapped.write_slot(0, *words)?;
            return Ok(self.local(self.0.len, SLOT_BYTES));
        }
        let from = words.as_ptr().cast();
        let (memory, handle) = (UCS_MEMORY_TYPE_HOST, ptr::null_mut());
        Ok(Local { from, len: SLOT_BYTES, memory, handle })
    }

    /// The GPU that the pool is on, if it is on one.
    pub(super) fn device(&self) -> Option<&Device> {
        match &self.0.backing {
            Backing::Device(mapped) => Some(mapped.pool().device()),
            Backing::Shared { .. } | Backing::Private(_) => None,
        }
    }

    /// The pool's address in this process, which its peers name bytes by.
    pub(super) fn base(&self) -> u64 {
        self.0.start.addr().get() as u64
    }

    fn slot(&self, slot: usize) -> [&AtomicU64; 2] {
        assert!(slot < SLOTS && matches!(self.0.backing, Backing::Shared { .. }), "slot {slot}");
        [0, 8].map(|word| {
            let offset = self.0.len + slot * SLOT_BYTES + word;
            // SAFETY: within the allocation, which is `PROBE_BYTES` longer than `len`.
            let word = unsafe { self.0.start.as_ptr().add(offset) };
            // SAFETY: aligned to 8 (the start to 64, `len` to 64), alive as long as `self`, and
            // only used atomically in this process.
            unsafe { AtomicU64::from_ptr(word.cast()) }
        })
    }

    pub(super) fn clear_slot(&self, slot: usize) -> Result<(), TransferError> {
        if let Backing::Device(mapped) = &self.0.backing {
            return mapped.write_slot(slot, [0, 0]);
        }
        for word in self.slot(slot) {
            word.store(0, Ordering::Release);
        }
        Ok(())
    }

    pub(super) fn read_slot(&self, slot: usize) -> Result<[u64; 2], TransferError> {
        if let Backing::Device(mapped) = &self.0.backing {
            return mapped.read_slot(slot);
        }
        Ok(self.slot(slot).map(|word| word.load(Ordering::Acquire)))
    }

    /// The packed key that lets a peer in; `None` for ordinary memory.
    pub(super) fn remote_key(&self) -> Result<Option<Vec<u8>>, TransferError> {
        let (context, handle) = match &self.0.backing {
            Backing::Shared { context, handle } => (context, handle),
            Backing::Device(mapped) => (&mapped.context, &mapped.handle),
            Backing::Private(_) => return Ok(None),
        };
        let (mut buffer, mut size) = (ptr::null_mut(), 0);
        // SAFETY: context and memory are alive, the places are ours.
        let status = unsafe {
            (context.api.ucp_rkey_pack)(context.handle, *handle, &raw mut buffer, &raw mut size)
        };
        context.check(status, "packing the pool's key")?;
        // SAFETY: UCX gave `size` bytes there.
        let key = unsafe { slice::from_raw_parts(buffer.cast::<u8>(), size) }.to_vec();
        // SAFETY: from `ucp_rkey_pack`, freed once.
        unsafe { (context.api.ucp_rkey_buffer_release)(buffer) };
        Ok(Some(key))
    }
}
