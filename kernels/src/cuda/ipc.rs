//! Page pools across processes: one exports its pool's memory, another of the same host maps it.
//!
//! The driver counts: memory is freed when its owner has freed it, or died, *and* every mapping of
//! it is closed. A mapping of a dead process' pool stays writable and harms nobody, but holds its
//! memory.
#![expect(unsafe_code, reason = "the driver's API is C")]

use super::device::{Device, failed};
use super::pages::PagePool;
use crate::ops::OpError;
use cudarc::driver::sys;

/// Bytes of an exported pool's handle.
pub const HANDLE_BYTES: usize = 64;

/// The bytes from `start` of the allocation that holds it: where that begins, and its length.
fn allocation_of(start: u64) -> Result<(u64, usize), OpError> {
    let (mut base, mut bytes) = (0, 0);
    // SAFETY: both places are ours.
    unsafe { sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut bytes, start) }
        .result()
        .map_err(|e| failed("asking for an allocation's range", e))?;
    Ok((base, bytes))
}

impl PagePool {
    /// The handle by which another process of this host maps the pool and its margin.
    ///
    /// # Errors
    /// [`OpError::Device`] if the driver cannot export it.
    pub fn export(&self) -> Result<[u8; HANDLE_BYTES], OpError> {
        self.device().bind()?;
        // A handle names an allocation from its start; the pool is one of its own.
        let (base, _) = allocation_of(self.address())?;
        assert_eq!(base, self.address(), "a pool is an allocation of its own");
        let mut handle = sys::CUipcMemHandle { reserved: [0; HANDLE_BYTES] };
        // SAFETY: the allocation is alive, the place is ours.
        unsafe { sys::cuIpcGetMemHandle(&raw mut handle, base) }
            .result()
            .map_err(|e| failed("exporting the pool", e))?;
        Ok(handle.reserved.map(|byte| byte as u8))
    }
}

/// Another process' pool, mapped into this one. Dropping it unmaps.
pub struct MappedPool {
    start: sys::CUdeviceptr,
    bytes: usize,
    device: Device,
}

impl MappedPool {
    /// Maps the pool of `handle` for kernels of `device`, which lies on that device or on a peer.
    ///
    /// # Errors
    /// [`OpError::Device`] if the driver cannot map it: it is of this very process, its owner is
    /// gone, or its GPU is out of reach.
    pub fn open(device: &Device, handle: &[u8; HANDLE_BYTES]) -> Result<Self, OpError> {
        device.bind()?;
        let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| byte.cast_signed()) };
        let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut start = 0;
        // SAFETY: the place is ours; the driver checks the handle.
        unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut start, handle, flags) }
            .result()
            .map_err(|e| failed("mapping another process' pool", e))?;
        // From here on drop unmaps, whatever fails.
        let mut mapped = Self { start, bytes: 0, device: device.clone() };
        let (base, bytes) = allocation_of(start)?;
        if base != start {
            return Err(OpError::Device("a mapping that does not begin at its start".into()));
        }
        mapped.bytes = bytes;
        Ok(mapped)
    }

    pub(super) fn address(&self) -> u64 {
        self.start
    }

    /// Bytes that are mapped, at least those of the exporter's pool and margin.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for MappedPool {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: opened by `open`, closed only here, once the work that uses it is done (see
            // `ship`). An error means that the context is lost, and the mapping with it.
            let _ = unsafe { sys::cuIpcCloseMemHandle(self.start) };
        }
    }
}
