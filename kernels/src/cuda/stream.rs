//! A stream of work beside the one that a forward pass goes to.
#![expect(unsafe_code, reason = "the driver's API is C")]

use super::device::{Device, DeviceMemory, Event, Pinned, done, failed};
use crate::ops::OpError;
use cudarc::driver::result;
use cudarc::driver::sys;
use std::time::{Duration, Instant};

/// Longest and shortest pause between two looks at a stream that is waited for.
const PAUSES: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];

/// A stream of the lowest priority: where both wait for a multiprocessor, blocks of streams above
/// it start first. Work on it is ordered with nothing but itself and what it was told to wait for.
pub struct Stream {
    stream: sys::CUstream,
    device: Device,
}

// SAFETY: a stream's handle may be used from any thread that binds its context, as all methods do,
// and the driver locks it.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// A place in a stream's work.
pub struct Mark(Event);

impl Stream {
    /// An idle stream.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn new(device: &Device) -> Result<Self, OpError> {
        device.bind()?;
        let making = |e| failed("making a stream", e);
        let (least, _) = result::stream::get_priority_range().map_err(making)?;
        let kind = result::stream::StreamKind::NonBlocking;
        let stream = result::stream::create_with_priority(kind, least).map_err(making)?;
        Ok(Self { stream, device: device.clone() })
    }

    /// The device that it is of.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn handle(&self) -> sys::CUstream {
        self.stream
    }

    /// Marks the work enqueued so far.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn mark(&self) -> Result<Mark, OpError> {
        Mark::behind(&self.device, self.stream)
    }

    /// Has all later work wait until `mark`, of any stream of this process, is reached. The mark
    /// may be dropped at once.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn wait_for(&self, mark: &Mark) -> Result<(), OpError> {
        self.device.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event are alive.
        unsafe { result::stream::wait_event(self.stream, mark.0.handle(), flags) }
            .map_err(|e| failed("ordering streams", e))
    }

    /// Whether all work enqueued so far is done. Does not wait.
    ///
    /// # Errors
    /// [`OpError::Device`] with the error of whichever work failed.
    pub fn is_idle(&self) -> Result<bool, OpError> {
        self.device.bind()?;
        // SAFETY: the stream is alive.
        done(unsafe { sys::cuStreamQuery(self.stream) }.result())
    }

    /// Waits until all work enqueued so far is done.
    ///
    /// # Errors
    /// As [`Self::is_idle`].
    pub fn synchronize(&self) -> Result<(), OpError> {
        self.device.bind()?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.stream) }
            .map_err(|e| failed("waiting for a stream", e))
    }

    /// Enqueues a copy of the first `len` bytes of `host`, which nobody touches until it is done,
    /// to byte `at` of `memory`.
    pub(super) fn fill(
        &self,
        memory: &DeviceMemory,
        at: usize,
        host: &mut Pinned,
        len: usize,
    ) -> Result<(), OpError> {
        assert!(at + len <= memory.len() && len <= host.len(), "{len} bytes to {at}+");
        self.device.bind()?;
        let to = memory.address() + at as u64;
        // SAFETY: both ranges were checked; `staging`, whose alone this is, lends `host` out again
        // only once the mark behind this is reached, and frees it no sooner.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, host.start().cast(), len, self.stream) }
            .result()
            .map_err(|e| failed("copying to the GPU", e))
    }

    /// Enqueues a copy of `len` bytes from byte `at` of `memory` to the start of `host`, which
    /// nobody touches until it is done.
    pub(super) fn fetch(
        &self,
        memory: &DeviceMemory,
        at: usize,
        host: &mut Pinned,
        len: usize,
    ) -> Result<(), OpError> {
        assert!(at + len <= memory.len() && len <= host.len(), "{len} bytes from {at}+");
        self.device.bind()?;
        let from = memory.address() + at as u64;
        // SAFETY: as above.
        unsafe { sys::cuMemcpyDtoHAsync_v2(host.start().cast(), from, len, self.stream) }
            .result()
            .map_err(|e| failed("copying from the GPU", e))
    }

    /// Copies `host` to byte `at` of `memory`; returns when it is there.
    pub(super) fn write(
        &self,
        memory: &DeviceMemory,
        at: usize,
        host: &[u8],
    ) -> Result<(), OpError> {
        assert!(at + host.len() <= memory.len(), "a write of {at}+ into {} bytes", memory.len());
        self.device.bind()?;
        // SAFETY: the range was checked; `host` is waited for below, before its borrow ends.
        unsafe { result::memcpy_htod_async(memory.address() + at as u64, host, self.stream) }
            .map_err(|e| failed("copying to the GPU", e))?;
        self.synchronize()
    }

    /// Copies from byte `at` of `memory` to `host`; returns when it is there.
    pub(super) fn read(
        &self,
        memory: &DeviceMemory,
        at: usize,
        host: &mut [u8],
    ) -> Result<(), OpError> {
        assert!(at + host.len() <= memory.len(), "a read of {at}+ from {} bytes", memory.len());
        self.device.bind()?;
        // SAFETY: the range was checked; `host` is waited for below, before its borrow ends.
        unsafe { result::memcpy_dtoh_async(host, memory.address() + at as u64, self.stream) }
            .map_err(|e| failed("copying from the GPU", e))?;
        self.synchronize()
    }

    /// Waits until all work enqueued so far is done; whether it is, after `limit` at the latest.
    ///
    /// # Errors
    /// As [`Self::is_idle`].
    pub fn settle(&self, limit: Duration) -> Result<bool, OpError> {
        let start = Instant::now();
        let mut pause = PAUSES[0];
        while !self.is_idle()? {
            if start.elapsed() >= limit {
                return Ok(false);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSES[1]);
        }
        Ok(true)
    }
}

impl Drop for Stream {
    /// Waits for its work, however long that takes: what it uses may be freed next.
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: the stream is alive. An error means that the context is lost, and that
            // nothing of it runs any more.
            let _ = unsafe { result::stream::synchronize(self.stream) };
            // SAFETY: made by `new`, destroyed only here.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

impl Mark {
    /// Behind the work that was enqueued so far on the device's own stream: a forward pass.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn of(device: &Device) -> Result<Self, OpError> {
        Self::behind(device, device.stream())
    }

    fn behind(device: &Device, stream: sys::CUstream) -> Result<Self, OpError> {
        let event = Event::new(device)?;
        event.record_on(stream)?;
        Ok(Self(event))
    }

    /// Whether the work before it is done. Does not wait. Once it is, the host and whoever the host
    /// tells see what the work wrote, kernels that other processes start from then on included: a
    /// kernel's end makes its writes visible to the whole system.
    ///
    /// # Errors
    /// [`OpError::Device`] with the error of whichever work failed.
    pub fn reached(&self) -> Result<bool, OpError> {
        self.0.is_passed()
    }

    /// Waits until the work before it is done.
    ///
    /// # Errors
    /// As [`Self::reached`].
    pub fn wait(&self) -> Result<(), OpError> {
        self.0.wait()
    }
}
