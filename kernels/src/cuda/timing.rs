//! How long the device takes for what is enqueued: events on the stream, read when all is done.
#![expect(unsafe_code, reason = "the driver's API is C")]

use super::backend::Cuda;
use super::device::Event;
use super::graph::Graph;
use crate::ops::OpError;

impl Cuda {
    /// Runs `enqueue` `rounds` times without a wait between them; µs of each by the device's clock.
    ///
    /// A round that the host enqueues slower than the device computes is as long as the host takes.
    ///
    /// # Errors
    /// [`OpError`] from `enqueue` or the device.
    pub fn time(
        &self,
        rounds: usize,
        mut enqueue: impl FnMut() -> Result<(), OpError>,
    ) -> Result<Vec<f64>, OpError> {
        let device = self.device();
        let ticks: Vec<_> = (0..=rounds).map(|_| Event::timed(device)).collect::<Result<_, _>>()?;
        ticks[0].record()?;
        for tick in &ticks[1..] {
            enqueue()?;
            tick.record()?;
        }
        device.synchronize()?;
        ticks.windows(2).map(|pair| pair[0].micros_to(&pair[1])).collect()
    }

    /// Records what `enqueue` enqueues, and replays it `rounds` times; µs of each replay.
    ///
    /// `enqueue` is run once before, so that nothing is left to be loaded, and once to record it.
    /// What it touches must stay where it is until this returns.
    ///
    /// # Errors
    /// [`OpError`] from `enqueue` or the device, also if `enqueue` allocates or waits.
    pub fn time_recorded(
        &self,
        rounds: usize,
        mut enqueue: impl FnMut() -> Result<(), OpError>,
    ) -> Result<Vec<f64>, OpError> {
        enqueue()?;
        self.device().synchronize()?;
        let graph = Graph::record(self.device(), &mut enqueue)?;
        // SAFETY: `enqueue` still borrows what the launches touch; `time` waits for them, or, if it
        // fails, the graph does when it is dropped, which is before `enqueue` is.
        self.time(rounds, || unsafe { graph.launch() })
    }
}
