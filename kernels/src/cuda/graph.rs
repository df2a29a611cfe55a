//! A step's launches, recorded once and replayed with one call.
#![expect(unsafe_code, reason = "the driver's API is C")]

use super::device::{Device, failed};
use crate::ops::OpError;
use cudarc::driver::{result, sys};

/// Recorded launches. What they read and write must stay where it was; what lies there may change.
pub struct Graph {
    graph: sys::CUgraphExec,
    device: Device,
}

// SAFETY: a graph may be launched from any thread that binds its context, as `launch` does.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `enqueue` enqueues; nothing of it runs.
    ///
    /// # Errors
    /// What `enqueue` returned, or [`OpError::Device`]: it did more than to enqueue.
    pub(super) fn record(
        device: &Device,
        enqueue: impl FnOnce() -> Result<(), OpError>,
    ) -> Result<Self, OpError> {
        device.bind()?;
        let doing = |e| failed("recording a graph", e);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive; the recording is ended below whatever happens.
        unsafe { result::stream::begin_capture(device.stream(), mode) }.map_err(doing)?;
        let enqueued = enqueue();
        // SAFETY: the recording was begun above.
        let recorded = unsafe { result::stream::end_capture(device.stream()) };
        if let Err(error) = enqueued {
            // SAFETY: it was just recorded, and nothing else has it. What it held is lost anyhow.
            let _ = recorded.and_then(|graph| unsafe { result::graph::destroy(graph) });
            return Err(error);
        }
        let recorded = recorded.map_err(doing)?;
        // SAFETY: the graph was just recorded, and is destroyed once the executable one exists.
        let graph = unsafe {
            let graph = result::graph::instantiate(recorded, sys::CUgraphInstantiate_flags(0));
            let destroyed = result::graph::destroy(recorded);
            let graph = graph.map_err(doing)?;
            destroyed
                .and_then(|()| result::graph::upload(graph, device.stream()))
                .map_err(doing)?;
            graph
        };
        Ok(Self { graph, device: device.clone() })
    }

    /// Enqueues all of it.
    ///
    /// # Safety
    /// All memory that the recorded launches touch is alive until the stream has passed them, and
    /// what lies there is fit for them.
    pub(super) unsafe fn launch(&self) -> Result<(), OpError> {
        self.device.bind()?;
        // SAFETY: the caller's promise; graph and stream are alive.
        unsafe { result::graph::launch(self.graph, self.device.stream()) }
            .map_err(|e| failed("launching a graph", e))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.synchronize().is_ok() {
            // SAFETY: it is destroyed only here, and runs no more.
            let _ = unsafe { result::graph::exec_destroy(self.graph) };
        }
    }
}
