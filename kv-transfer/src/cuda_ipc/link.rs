//! The way to one pool in device memory, mapped or of this process: a queue, launches on their way.

use super::Copiers;
use crate::queue::{Limit, Next, Number, Piece, Queue};
use crate::{Event, Kind, Link, OpId, PutOp, TransferError};
use kernels::cuda::device::GPU_LOST;
use kernels::cuda::ship::{Copier, PAIRS, Shipper};
use kernels::cuda::stream::Mark;
use kernels::ops::OpError;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Bytes of a launch, or of the copies with one mark behind them, about: some milliseconds over the
/// slowest of buses, so that closing is soon done and, under MPS, no launch comes near the 10 ms
/// that a peer's death is survived within. Each launch has an end at which the link is not full.
const LAUNCH_BYTES: usize = 128 << 20;
/// Launches that may be on their way; enough that the stream never runs dry between two looks.
const FLYING: usize = 4;
/// A list names pages, so a piece lies in one.
const LIMIT: Limit = Limit { bytes: usize::MAX, across_pages: false };
/// Parts of a page of at least so many bytes are worth a copy engine's call.
const ENGINES_FROM: usize = 256 << 10;
/// Longest time without sleeping, enough for 16 MiB, and the sleep between two looks after it.
const SPIN: Duration = Duration::from_micros(100);
const NAP: Duration = Duration::from_micros(30);
/// Longest time that launches on their way may take once the link is closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// One launch to be: the same bytes of many pages.
#[derive(Default)]
struct Batch {
    pairs: Vec<(u32, u32)>,
    bytes: Range<usize>,
    /// What later parts of the same puts wait for, if there are any.
    later: Option<Arc<Mark>>,
    /// One entry a piece, as the queue counts.
    numbers: Vec<Number>,
}

/// One launch on its way, and what is done with it: its pieces, and flushes queued behind them.
struct Flying {
    mark: Mark,
    numbers: Vec<Number>,
}

/// The link. `live` says whether it may launch; held for reading while it does.
pub(crate) struct ShipLink {
    kind: Kind,
    queue: Queue,
    shipper: Shipper,
    copiers: Copiers,
    flying: VecDeque<Flying>,
    /// What the stream was told to wait for last.
    after: Option<Arc<Mark>>,
    live: Arc<RwLock<bool>>,
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: OpError) -> TransferError {
    TransferError::broken(&error)
}

impl Batch {
    /// Whether `piece`, of whose put later parts wait for `later`, can be in the same launch.
    fn takes(&self, page_bytes: usize, piece: &Piece, later: Option<&Arc<Mark>>) -> bool {
        let start = piece.source % page_bytes;
        let room = PAIRS.min((LAUNCH_BYTES / piece.len).max(1));
        let alike = self.later.as_ref().map(Arc::as_ptr) == later.map(Arc::as_ptr);
        self.pairs.is_empty()
            || (self.bytes == (start..start + piece.len) && alike && self.pairs.len() < room)
    }

    fn add(
        &mut self,
        page_bytes: usize,
        (number, piece): (Number, &Piece),
        later: Option<Arc<Mark>>,
    ) {
        self.later = later;
        let page = |at: usize| u32::try_from(at / page_bytes).expect("checked against the pool");
        let start = piece.source % page_bytes;
        self.bytes = start..start + piece.len;
        self.pairs.push((page(piece.source), page(piece.target)));
        self.numbers.push(number);
    }
}

impl ShipLink {
    pub(crate) fn new(
        kind: Kind,
        queue: Queue,
        (shipper, copiers): (Shipper, Copiers),
        live: Arc<RwLock<bool>>,
    ) -> Self {
        Self { kind, queue, shipper, copiers, flying: VecDeque::new(), after: None, live }
    }

    /// Launches what is queued, as far as there is room.
    fn launch(&mut self) -> Result<(), TransferError> {
        let page_bytes = self.queue.pools().geometry.page_bytes();
        let mut batch = Batch::default();
        while self.flying.len() < FLYING {
            match self.queue.next_ahead(LIMIT) {
                Some((Next::Piece(number, piece), ahead)) => {
                    let (after, later) = ahead.map_or((None, None), |a| (Some(a.after), a.last));
                    if !batch.takes(page_bytes, &piece, later.as_ref()) {
                        self.launch_batch(std::mem::take(&mut batch))?;
                    }
                    if let Some(mark) = after
                        && !self.after.as_ref().is_some_and(|last| Arc::ptr_eq(last, &mark))
                    {
                        self.launch_batch(std::mem::take(&mut batch))?;
                        self.shipper.stream().wait_for(&mark).map_err(broken)?;
                        self.after = Some(mark);
                    }
                    batch.add(page_bytes, (number, &piece), later);
                }
                Some((Next::Flush(number), _)) => {
                    self.launch_batch(std::mem::take(&mut batch))?;
                    match self.flying.back_mut() {
                        Some(last) => last.numbers.push(number),
                        None => self.queue.done(number),
                    }
                }
                None => break,
            }
        }
        self.launch_batch(batch)
    }

    fn launch_batch(&mut self, batch: Batch) -> Result<(), TransferError> {
        if batch.pairs.is_empty() {
            return Ok(());
        }
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        if !*live {
            return Err(TransferError::broken("the target revoked this session"));
        }
        let copier = self.copier(&batch)?;
        let mark = self.shipper.ship(&batch.pairs, batch.bytes, copier).map_err(broken)?;
        drop(live);
        self.flying.push_back(Flying { mark, numbers: batch.numbers });
        Ok(())
    }

    /// What copies `batch`: while the last of its puts is still computed nobody waits for it.
    fn copier(&self, batch: &Batch) -> Result<Copier, TransferError> {
        let large = batch.bytes.len() >= ENGINES_FROM;
        let beside = match &batch.later {
            Some(later) if large => !later.reached().map_err(broken)?,
            _ => false,
        };
        Ok(if beside { self.copiers.beside } else { self.copiers.alone })
    }

    /// Takes launches that are done; whether there was any.
    fn land(&mut self) -> Result<bool, TransferError> {
        let mut any = false;
        while let Some(first) = self.flying.front()
            && first.mark.reached().map_err(broken)?
        {
            any = true;
            let done = self.flying.pop_front().map(|launch| launch.numbers);
            done.into_iter().flatten().for_each(|number| self.queue.done(number));
        }
        Ok(any)
    }
}

impl Link for ShipLink {
    fn kind(&self) -> Kind {
        self.kind
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
        let start = Instant::now();
        loop {
            let landed = self.land()?;
            self.launch()?;
            self.queue.ended(events);
            let waited = start.elapsed();
            if landed || self.flying.is_empty() || waited >= wait {
                return Ok(());
            }
            if waited < SPIN {
                std::thread::yield_now();
            } else {
                std::thread::sleep(NAP);
            }
        }
    }

    fn outstanding(&self) -> usize {
        self.queue.len()
    }

    fn close(self: Box<Self>) -> Vec<Event> {
        let Self { mut queue, shipper, flying, .. } = *self;
        match shipper.stream().settle(CLOSE_LIMIT) {
            Ok(true) => {
                let done = flying.into_iter().flat_map(|launch| launch.numbers);
                done.for_each(|number| queue.done(number));
            }
            // What still runs may write: only the end of this process ends it for certain.
            Ok(false) => {
                tracing::error!(
                    "pages are still being copied {CLOSE_LIMIT:?} after their link's end"
                );
                std::process::exit(GPU_LOST);
            }
            // The context is lost, and with it all that ran there.
            Err(error) => tracing::warn!(%error, "a link's copies failed"),
        }
        // Before the operations end: this unmaps the target's pool.
        drop(shipper);
        queue.close()
    }
}
