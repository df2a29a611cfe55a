//! A GPU: its context, the stream that all work goes to, and memory that frees itself.
#![expect(unsafe_code, reason = "the driver's API is C")]

use crate::cuda::compile::Arch;
use crate::ops::OpError;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use cudarc::driver::{CudaContext, CudaStream};
use half::bf16;
use std::sync::Arc;

/// Exit status of a process whose GPU failed: its peers see a death, its supervisor a reason.
pub const GPU_LOST: i32 = 71;

/// One GPU of this machine, opened.
#[derive(Clone)]
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    arch: Arch,
}

pub(crate) fn failed(doing: &str, error: DriverError) -> OpError {
    OpError::Device(format!("{doing}: {error:?}"))
}

/// Whether this machine has an NVIDIA driver.
pub fn is_present() -> bool {
    // SAFETY: it loads a library by its name, whose initialisers are the driver's.
    unsafe { sys::is_culib_present() }
}

/// Which of NVIDIA's libraries beside the driver's the loader does not find.
pub fn missing_libraries() -> Vec<&'static str> {
    // SAFETY: both load libraries by their names, whose initialisers are NVIDIA's.
    let found = unsafe {
        [
            ("NVRTC (libnvrtc.so.13)", cudarc::nvrtc::sys::is_culib_present()),
            ("cuBLASLt (libcublasLt.so.13)", cudarc::cublaslt::sys::is_culib_present()),
        ]
    };
    found.into_iter().filter(|&(_, found)| !found).map(|(name, _)| name).collect()
}

/// Whose blocks a multiprocessor takes first when one comes free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Prefill.
    Normal,
    /// Decode, whose steps are short and waited for.
    High,
}

impl Device {
    /// Opens GPU `ordinal`, as the driver counts.
    ///
    /// # Errors
    /// [`OpError::Device`] if there is no driver, no such GPU, or one too old.
    pub fn open(ordinal: usize) -> Result<Self, OpError> {
        Self::open_for(ordinal, Priority::Normal)
    }

    /// Opens GPU `ordinal`, as the driver counts, for work of some priority.
    ///
    /// # Errors
    /// [`OpError::Device`] if there is no driver, no such GPU, or one too old.
    pub fn open_for(ordinal: usize, priority: Priority) -> Result<Self, OpError> {
        if !is_present() {
            let text = "libcuda.so.1 is not found: install the NVIDIA driver, or use the CPU";
            return Err(OpError::Device(text.to_owned()));
        }
        let opening = format!("opening GPU {ordinal}");
        let context = CudaContext::new(ordinal).map_err(|e| failed(&opening, e))?;
        // SAFETY: all work of a context goes to streams that this crate orders itself.
        unsafe { context.disable_event_tracking() };
        let stream = match priority {
            Priority::Normal => context.new_stream(),
            Priority::High => result::stream::get_priority_range()
                .and_then(|(_, highest)| context.new_stream_with_priority(highest)),
        };
        let stream = stream.map_err(|e| failed(&opening, e))?;
        let version = context.compute_capability().map_err(|e| failed(&opening, e))?;
        let arch = Arch::of(version).ok_or_else(|| {
            let (major, minor) = version;
            let text =
                format!("{opening}: compute capability {major}.{minor}; want 8.x, 9.0 or 10.0");
            OpError::Device(text)
        })?;
        Ok(Self { context, stream, arch })
    }

    /// What kernels are compiled for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Bytes of device memory: free, and in all.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn memory(&self) -> Result<(usize, usize), OpError> {
        self.bind()?;
        result::mem_get_info().map_err(|e| failed("asking for free memory", e))
    }

    /// Multiprocessors.
    pub(crate) fn multiprocessors(&self) -> Result<u32, OpError> {
        let asked = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let count = self.context.attribute(asked);
        count.map(|count| count as u32).map_err(|e| failed("asking for multiprocessors", e))
    }

    /// Most shared memory of a block, bytes.
    pub(crate) fn shared_max(&self) -> Result<usize, OpError> {
        let asked = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let bytes = self.context.attribute(asked);
        bytes.map(|bytes| bytes as usize).map_err(|e| failed("asking for shared memory", e))
    }

    /// The GPU's name.
    pub fn name(&self) -> String {
        self.context.name().unwrap_or_else(|_| "unnamed GPU".to_owned())
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Makes the context this thread's.
    pub fn bind(&self) -> Result<(), OpError> {
        self.context.bind_to_thread().map_err(|e| failed("binding a context", e))
    }

    pub(crate) fn stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    /// Waits until all work on the stream is done.
    ///
    /// # Errors
    /// [`OpError::Device`] with the error of whichever work failed.
    pub fn synchronize(&self) -> Result<(), OpError> {
        self.stream.synchronize().map_err(|e| failed("waiting for the GPU", e))
    }

    /// Allocates `len` bytes, undefined. Plain memory, which other processes can be given.
    ///
    /// # Errors
    /// [`OpError::Memory`] if the GPU has not that much.
    pub fn allocate(&self, len: usize) -> Result<DeviceMemory, OpError> {
        self.bind()?;
        // SAFETY: the context is bound; the result is owned by the value returned, alone.
        let start = unsafe { result::malloc_sync(len.max(1)) };
        let start = start.map_err(|_| OpError::Memory { bytes: len })?;
        Ok(DeviceMemory { start, len, device: self.clone() })
    }

    /// Allocates and fills from `host`; returns when the bytes are there.
    ///
    /// # Errors
    /// As [`Self::allocate`]; [`OpError::Device`] if the copy failed.
    pub fn upload<T: Plain>(&self, host: &[T]) -> Result<DeviceMemory, OpError> {
        let memory = self.allocate(size_of_val(host))?;
        memory.write(0, host)?;
        Ok(memory)
    }
}

/// Device memory, freed when dropped, once the work queued so far is done.
pub struct DeviceMemory {
    start: sys::CUdeviceptr,
    len: usize,
    device: Device,
}

/// Numbers: any bits are a value, and all bytes are of the value.
///
/// # Safety
/// As said.
pub unsafe trait Plain: Copy {}
// SAFETY: integers and floats are so.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above; it is a `u16` in shape.
unsafe impl Plain for half::bf16 {}

impl DeviceMemory {
    /// Address on the device.
    pub fn address(&self) -> u64 {
        self.start
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device that it is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Copies `host` to byte `at`, after the work queued so far; returns when `host` was read.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// If it does not fit.
    pub fn write<T: Plain>(&self, at: usize, host: &[T]) -> Result<(), OpError> {
        assert!(at + size_of_val(host) <= self.len, "a write of {at}+ into {} bytes", self.len);
        self.device.bind()?;
        let (start, stream) = (self.start + at as u64, self.device.stream());
        // SAFETY: the range was checked; `host` is waited for below, before its borrow ends.
        unsafe { result::memcpy_htod_async(start, host, stream) }
            .map_err(|e| failed("copying to the GPU", e))?;
        self.device.synchronize()
    }

    /// Copies from byte `at` to `host`, after the work queued so far.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// If it lies beyond the end.
    pub fn read<T: Plain>(&self, at: usize, host: &mut [T]) -> Result<(), OpError> {
        assert!(at + size_of_val(host) <= self.len, "a read of {at}+ from {} bytes", self.len);
        self.device.bind()?;
        let (start, stream) = (self.start + at as u64, self.device.stream());
        // SAFETY: the range was checked; `host` is waited for below, before its borrow ends.
        unsafe { result::memcpy_dtoh_async(host, start, stream) }
            .map_err(|e| failed("copying from the GPU", e))?;
        self.device.synchronize()
    }
}

impl DeviceMemory {
    /// [`Self::fill_at`] the start.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn fill(&self, host: &Pinned, len: usize) -> Result<(), OpError> {
        // SAFETY: the caller's promise.
        unsafe { self.fill_at(0, host, len) }
    }

    /// Enqueues a copy of the first `len` bytes of `host` to byte `at`.
    ///
    /// # Panics
    /// If either is shorter.
    ///
    /// # Safety
    /// `host` stays as it is until the stream has passed this.
    pub(crate) unsafe fn fill_at(
        &self,
        at: usize,
        host: &Pinned,
        len: usize,
    ) -> Result<(), OpError> {
        let fits = at + len <= self.len && len <= host.len;
        assert!(fits, "{len} bytes of {} to {at}+ of {}", host.len, self.len);
        self.device.bind()?;
        let (to, stream) = (self.start + at as u64, self.device.stream());
        // SAFETY: the range was checked; the rest is the caller's promise.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, host.start.cast(), len, stream) };
        code.result().map_err(|e| failed("copying to the GPU", e))
    }

    /// Enqueues a copy of the first `len` bytes to the start of `host`.
    ///
    /// # Panics
    /// If either is shorter.
    ///
    /// # Safety
    /// `host` is neither read nor written until the stream has passed this.
    pub(crate) unsafe fn fetch(&self, host: &Pinned, len: usize) -> Result<(), OpError> {
        assert!(len <= self.len && len <= host.len, "{len} bytes of {} to {}", self.len, host.len);
        self.device.bind()?;
        // SAFETY: as above.
        let code = unsafe {
            sys::cuMemcpyDtoHAsync_v2(host.start.cast(), self.start, len, self.device.stream())
        };
        code.result().map_err(|e| failed("copying from the GPU", e))
    }
}

/// Host memory that the GPU copies from and to without a detour. Aligned to a page.
pub(crate) struct Pinned {
    start: *mut u8,
    len: usize,
    device: Device,
}

// SAFETY: it is plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `len` bytes, zero.
    pub fn new(device: &Device, len: usize) -> Result<Self, OpError> {
        device.bind()?;
        // SAFETY: the context is bound; the result is owned by the value returned, alone.
        let start = unsafe { result::malloc_host(len.max(1), 0) };
        let start: *mut u8 = start.map_err(|_| OpError::Memory { bytes: len })?.cast();
        // SAFETY: it was just allocated with this length.
        unsafe { start.write_bytes(0, len.max(1)) };
        Ok(Self { start, len, device: device.clone() })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// As bytes. No copy from or to it may be under way.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: initialised, and borrowed with the owner.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Where it begins.
    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }

    /// As bf16. No copy from or to it may be under way.
    pub fn elements(&mut self) -> &mut [bf16] {
        // SAFETY: aligned, initialised, and borrowed with the owner.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.len / 2) }
    }

    /// As words. No copy from or to it may be under way.
    pub fn words(&mut self) -> &mut [u32] {
        // SAFETY: aligned, initialised, and borrowed with the owner.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.len / 4) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: it came from `malloc_host` and is freed only here; freeing waits for the GPU.
            let _ = unsafe { result::free_host(self.start.cast()) };
        }
    }
}

/// Whether what was asked about is done: `NOT_READY` is an answer and no failure.
pub(super) fn done(answer: Result<(), DriverError>) -> Result<bool, OpError> {
    match answer {
        Ok(()) => Ok(true),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
        Err(error) => Err(failed("asking whether the GPU is done", error)),
    }
}

/// A point on a stream that can be waited for.
pub(crate) struct Event {
    event: sys::CUevent,
    device: Device,
}

// SAFETY: an event may be used from any thread that binds its context, as the methods do.
unsafe impl Send for Event {}
// SAFETY: as above, and the driver locks it.
unsafe impl Sync for Event {}

impl Event {
    pub fn new(device: &Device) -> Result<Self, OpError> {
        Self::with(device, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// One whose time can be read.
    pub fn timed(device: &Device) -> Result<Self, OpError> {
        Self::with(device, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(device: &Device, flags: sys::CUevent_flags) -> Result<Self, OpError> {
        device.bind()?;
        let event = result::event::create(flags).map_err(|e| failed("making an event", e))?;
        Ok(Self { event, device: device.clone() })
    }

    /// For a stream that is to wait.
    pub(super) fn handle(&self) -> sys::CUevent {
        self.event
    }

    /// Marks the end of all work queued so far on the device's own stream.
    pub fn record(&self) -> Result<(), OpError> {
        self.record_on(self.device.stream())
    }

    /// Marks the end of all work queued so far on `stream`, which is alive.
    pub(super) fn record_on(&self, stream: sys::CUstream) -> Result<(), OpError> {
        self.device.bind()?;
        // SAFETY: event and stream are alive.
        unsafe { result::event::record(self.event, stream) }
            .map_err(|e| failed("recording an event", e))
    }

    /// Whether what was marked last is done; true if nothing ever was.
    pub fn is_passed(&self) -> Result<bool, OpError> {
        self.device.bind()?;
        // SAFETY: the event is alive.
        done(unsafe { result::event::query(self.event) })
    }

    /// Waits for what was marked last; at once if nothing ever was.
    pub fn wait(&self) -> Result<(), OpError> {
        self.device.bind()?;
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.event) }
            .map_err(|e| failed("waiting for the GPU", e))
    }

    /// Time to another one, µs; both are timed and passed.
    pub(super) fn micros_to(&self, later: &Self) -> Result<f64, OpError> {
        // SAFETY: both events are alive.
        let millis = unsafe { result::event::elapsed(self.event, later.event) };
        millis.map(|millis| f64::from(millis) * 1e3).map_err(|e| failed("reading an event", e))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: it is destroyed only here; the driver keeps what waits.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: it came from `allocate` and is freed only here; freeing waits for the GPU.
            // An error means that the context is lost, and the memory with it.
            let _ = unsafe { result::free_sync(self.start) };
        }
    }
}
