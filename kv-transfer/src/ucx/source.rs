//! The sending half: joins a target and stores into its pool.

use super::context::Ucx;
use super::endpoint::{Endpoint, Step};
use super::memory::{Region, slot_at};
use super::target::{NO_GPU, Terms};
use super::{refused, unavailable};
use crate::host::{ProcessName, same_host};
use crate::offer::{Writer, random};
use crate::queue::{Limit, Next, Number, Queue};
use crate::{Event, Joined, Kind, Link, OpId, PutOp, Source, TransferError};
use kernels::cuda::Device;
use kernels::cuda::device::GPU_LOST;
use kernels::cuda::peer::Reach;
use kernels::ops::OpError;
use shared::kv::KvGeometry;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest time that the probe of a join may take.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// Bytes stored before a link looks at its owner's commands again.
const TURN_BYTES: usize = 16 << 20;
/// Largest single store.
const LIMIT: Limit = Limit { bytes: 4 << 20, across_pages: true };
/// Whole runs of pages: a put costs the CPU some microseconds, whatever its size.
const ON_DEVICE: Limit = Limit { bytes: usize::MAX, across_pages: true };
/// Longest time that a copy on a GPU may take once its link is closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// Longest spin on an operation that UCX did not finish at once.
const SPIN: Duration = Duration::from_micros(100);

/// A pool whose pages can be stored into targets on this host.
pub struct UcxSource {
    ucx: Ucx,
    region: Region,
    geometry: KvGeometry,
    pages: u32,
    joining: Mutex<()>,
}

impl UcxSource {
    /// A source over the pool that lies in `region`, pages in order of their ids.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] if the region is smaller than the pool.
    pub fn new(
        ucx: &Ucx,
        region: Region,
        geometry: KvGeometry,
        pages: u32,
    ) -> Result<Self, TransferError> {
        check_fits(&region, &geometry, pages)?;
        Ok(Self { ucx: ucx.clone(), region, geometry, pages, joining: Mutex::new(()) })
    }
}

fn broken(error: &OpError) -> TransferError {
    TransferError::broken(error)
}

pub(super) fn check_fits(
    region: &Region,
    geometry: &KvGeometry,
    pages: u32,
) -> Result<(), TransferError> {
    let need = geometry.page_bytes().saturating_mul(pages as usize);
    if need <= region.len() {
        Ok(())
    } else {
        Err(unavailable(format!("the pool needs {need} bytes, its memory has {}", region.len())))
    }
}

impl Source for UcxSource {
    fn kind(&self) -> Kind {
        Kind::Ucx
    }

    fn connect(&self, offer: &[u8]) -> Result<Joined, TransferError> {
        let terms = Terms::read(offer)?;
        let pools = terms.head.pair_with(&self.geometry, self.pages)?;
        same_host(Kind::Ucx, &terms.boot_id)?;
        let device = self.region.device();
        if device.is_some() != (terms.uuid != NO_GPU) {
            return Err(refused("one pool is on a GPU, the other is not"));
        }
        if let Some(device) = device {
            let reach = device.reach(&terms.uuid).map_err(|e| broken(&e))?;
            if matches!(reach, Reach::Never | Reach::Unseen) {
                return Err(refused(reach.to_string()));
            }
        }
        let bytes = self.geometry.page_bytes().checked_mul(terms.head.pages as usize);
        let slot = bytes.and_then(|bytes| slot_at(terms.base, bytes, terms.slot as usize));
        let slot = slot.ok_or_else(|| {
            TransferError::malformed("offer.base", &terms.base, "an address with a pool behind it")
        })?;
        let answer = u64::from_le_bytes(random(Kind::Ucx)?);
        // One join at a time, for a margin has one slot for it.
        let joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        let words = [terms.nonce.to_le(), answer.to_le()];
        let probe = self.region.probe(&words)?;
        let mut endpoint = Endpoint::connect(&self.ucx, terms.address, terms.key)?;
        let direct = |at| device.is_some() || endpoint.stores_directly(at);
        if !(direct(terms.base) && direct(slot)) {
            return Err(refused("the target's pool is not mapped here, puts would be emulated"));
        }
        // SAFETY: `words` and the region were there before the endpoint, and go after it.
        let step = unsafe { endpoint.put(probe, slot) };
        let written = step.and_then(|step| {
            endpoint.wait(step, PROBE_LIMIT)?;
            let step = endpoint.flush()?;
            endpoint.wait(step, PROBE_LIMIT)
        });
        if let (Err(error), Some(_)) = (&written, device) {
            tracing::warn!(%error, "a join's probe did not arrive");
            // The next join writes where this copy reads.
            drain(&mut endpoint);
        }
        written?;
        drop(joining);
        let mut reply = Writer::default();
        ProcessName::own().map_err(|e| unavailable(e.to_string()))?.write(&mut reply);
        reply.raw(&device.map_or(Ok(NO_GPU), Device::uuid).map_err(|e| broken(&e))?);
        reply.u64(answer);
        let region = self.region.clone();
        let queue = Queue::new(pools);
        let link = UcxLink { endpoint, queue, pending: None, region, base: terms.base };
        Ok(Joined { link: Box::new(link), reply: reply.0 })
    }
}

/// The endpoint is the first field, so that it is dropped before the pages that it may be reading.
struct UcxLink {
    endpoint: Endpoint,
    queue: Queue,
    /// What UCX has not finished.
    pending: Option<Number>,
    region: Region,
    /// The target's pool, as the target names it.
    base: u64,
}

impl UcxLink {
    /// Waits a little for what UCX did not finish at once; whether nothing is pending then.
    fn settle(&mut self, wait: Duration) -> Result<bool, TransferError> {
        let start = Instant::now();
        while let Some(number) = self.pending {
            if self.endpoint.poll()? == Step::Done {
                self.pending = None;
                self.queue.done(number);
            } else if start.elapsed() >= wait.min(SPIN) {
                std::thread::yield_now();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Starts what is next; how many bytes it moves, or `None` if there is nothing.
    fn start_next(&mut self) -> Result<Option<usize>, TransferError> {
        let limit = if self.region.device().is_some() { ON_DEVICE } else { LIMIT };
        let (number, moves, step) = match self.queue.next(limit) {
            None => return Ok(None),
            Some(Next::Flush(number)) => (number, 0, self.endpoint.flush()?),
            Some(Next::Piece(number, piece)) => {
                let local = self.region.at(piece.source, piece.len);
                let remote = self.base + piece.target as u64;
                // SAFETY: the bytes are in the region, which this link holds, and belong to pages
                // that the put owns until the queue is told that the piece is done.
                let step = unsafe { self.endpoint.put(local, remote)? };
                (number, piece.len, step)
            }
        };
        match step {
            Step::Done => self.queue.done(number),
            Step::Pending => self.pending = Some(number),
        }
        Ok(Some(moves))
    }
}

/// Waits for a copy on a GPU; whether it succeeded. What still runs after that may write: only the
/// end of this process ends it for certain.
fn drain(endpoint: &mut Endpoint) -> bool {
    let start = Instant::now();
    loop {
        match endpoint.poll() {
            Ok(Step::Done) => return true,
            Ok(Step::Pending) if start.elapsed() < CLOSE_LIMIT => std::thread::yield_now(),
            Ok(Step::Pending) => {
                tracing::error!(
                    "a page is still being copied {CLOSE_LIMIT:?} after its link's end"
                );
                std::process::exit(GPU_LOST);
            }
            // The context is lost, and with it all that ran there.
            Err(error) => {
                tracing::warn!(%error, "a link's copy failed");
                return false;
            }
        }
    }
}

impl Link for UcxLink {
    fn kind(&self) -> Kind {
        Kind::Ucx
    }

    fn target_pages(&self) -> u32 {
        self.queue.pools().target_pages
    }

    fn put(&mut self, op: PutOp) {
        // Parts of pages are no runs: on a GPU one put of all, late, is sooner there than many.
        let whole = self.region.device().is_some();
        self.queue.put(if whole { op.in_one() } else { op });
    }

    fn flush(&mut self, id: OpId) {
        self.queue.flush(id);
    }

    fn progress(&mut self, wait: Duration, events: &mut Vec<Event>) -> Result<(), TransferError> {
        let mut moved = 0;
        while self.settle(wait)? && moved < TURN_BYTES {
            match self.start_next()? {
                Some(bytes) => moved += bytes,
                None => break,
            }
        }
        self.queue.ended(events);
        Ok(())
    }

    fn outstanding(&self) -> usize {
        self.queue.len()
    }

    fn close(self: Box<Self>) -> Vec<Event> {
        let Self { mut endpoint, mut queue, pending, region, .. } = *self;
        // The driver copies on a stream that dropping an endpoint does not wait for.
        if let (Some(number), Some(_)) = (pending, region.device())
            && drain(&mut endpoint)
        {
            queue.done(number);
        }
        // Before the operations end: after this nothing reads their pages.
        drop(endpoint);
        queue.close()
    }
}
