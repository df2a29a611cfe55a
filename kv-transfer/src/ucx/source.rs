//! The sending half: joins a target and stores into its pool.

use super::context::Ucx;
use super::endpoint::{Endpoint, Step};
use super::memory::Region;
use super::target::Terms;
use super::{boot_id, refused, unavailable};
use crate::offer::{Writer, random};
use crate::queue::{Next, Queue};
use crate::{Event, Joined, Kind, Link, OpId, PutOp, Source, TransferError};
use shared::kv::KvGeometry;
use std::time::{Duration, Instant};

/// Longest time that the probe of a join may take.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// Bytes stored before a link looks at its owner's commands again.
const TURN_BYTES: usize = 16 << 20;
/// Largest single store.
const PIECE: usize = 4 << 20;
/// Longest spin on an operation that UCX did not finish at once.
const SPIN: Duration = Duration::from_micros(100);

/// A pool whose pages can be stored into targets on this host.
pub struct UcxSource {
    ucx: Ucx,
    region: Region,
    geometry: KvGeometry,
    pages: u32,
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
        Ok(Self { ucx: ucx.clone(), region, geometry, pages })
    }
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
        let here = boot_id()?;
        if terms.boot_id != here {
            let show = |id: &[u8]| String::from_utf8_lossy(id).into_owned();
            let (there, here) = (show(&terms.boot_id), show(&here));
            return Err(refused(format!("not one host: boot id {there} there, {here} here")));
        }
        let mut endpoint = Endpoint::connect(&self.ucx, terms.address, terms.key)?;
        if !(endpoint.stores_directly(terms.base) && endpoint.stores_directly(terms.slot)) {
            return Err(refused("the target's pool is not mapped here, puts would be emulated"));
        }
        let answer = random::<8>(Kind::Ucx)?;
        let mut probe = terms.nonce.to_le_bytes().to_vec();
        probe.extend(answer);
        // SAFETY: `probe` outlives the wait, and on failure the endpoint is dropped before it.
        let step = unsafe { endpoint.put(probe.as_ptr(), probe.len(), terms.slot) };
        endpoint.wait(step?, PROBE_LIMIT)?;
        let step = endpoint.flush()?;
        endpoint.wait(step, PROBE_LIMIT)?;
        let mut reply = Writer::default();
        reply.u32(std::process::id()).raw(&answer);
        let region = self.region.clone();
        let queue = Queue::new(pools);
        let link =
            UcxLink { endpoint, queue, flushing: None, pending: false, region, base: terms.base };
        Ok(Joined { link: Box::new(link), reply: reply.0 })
    }
}

/// Field order matters: the endpoint goes first, so that nothing reads pages or region after.
struct UcxLink {
    endpoint: Endpoint,
    queue: Queue,
    /// The flush that UCX has not finished.
    flushing: Option<OpId>,
    /// Whether UCX has not finished something.
    pending: bool,
    region: Region,
    /// The target's pool, as the target names it.
    base: u64,
}

impl UcxLink {
    /// Waits a little for what UCX did not finish at once; whether it is done.
    fn settle(&mut self, wait: Duration, events: &mut Vec<Event>) -> Result<bool, TransferError> {
        let start = Instant::now();
        while self.pending {
            if self.endpoint.poll()? == Step::Done {
                self.pending = false;
            } else if start.elapsed() >= wait.min(SPIN) {
                std::thread::yield_now();
                return Ok(false);
            }
        }
        let flushed = self.flushing.take().map(|id| Event::Flush { id, result: Ok(()) });
        events.extend(flushed);
        Ok(true)
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
        self.queue.put(op);
    }

    fn flush(&mut self, id: OpId) {
        self.queue.flush(id);
    }

    fn progress(&mut self, wait: Duration, events: &mut Vec<Event>) -> Result<(), TransferError> {
        let mut moved = 0;
        while self.settle(wait, events)? && moved < TURN_BYTES {
            let step = match self.queue.next(PIECE, events) {
                None => return Ok(()),
                Some(Next::Flush(id)) => {
                    self.flushing = Some(id);
                    self.endpoint.flush()?
                }
                Some(Next::Piece(piece)) => {
                    let from = self.region.at(piece.source, piece.len);
                    let remote = self.base + piece.target as u64;
                    moved += piece.len;
                    // SAFETY: the bytes are in the region, which this link holds, and belong to
                    // pages that the put at the queue's front owns until `settle` says done.
                    unsafe { self.endpoint.put(from, piece.len, remote)? }
                }
            };
            self.pending = step == Step::Pending;
        }
        if !self.pending {
            self.queue.finish_done(events);
        }
        Ok(())
    }

    fn outstanding(&self) -> usize {
        self.queue.len() + usize::from(self.flushing.is_some())
    }

    fn close(self: Box<Self>) -> Vec<Event> {
        let Self { endpoint, queue, flushing, .. } = *self;
        drop(endpoint);
        let result = Err(TransferError::Closed);
        let mut events: Vec<_> =
            flushing.map(|id| Event::Flush { id, result }).into_iter().collect();
        events.extend(queue.close());
        events
    }
}
