//! Where a pool's bytes are: in a store that lends them to system calls, or in device memory, from
//! and to which they go through pinned buffers.

use crate::TransferError;
use crate::queue::{Limit, Next, Number, Piece, Queue};
use kernels::cuda::PagePool;
use kernels::cuda::staging::{Slot, Staging};
use kernels::cuda::stream::Stream;
use kernels::ops::OpError;
use shared::kv::{KvGeometry, PageStore};
use std::collections::VecDeque;
use std::io::Read;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};

/// A frame's payload at most; no larger, so that all streams have a share of a large page.
const PAYLOAD_BYTES: usize = 1 << 20;
/// Within a page, since a store lends one at a time.
const OF_STORE: Limit = Limit { bytes: PAYLOAD_BYTES, across_pages: false };
/// Whole runs.
const OF_DEVICE: Limit = Limit { bytes: PAYLOAD_BYTES, across_pages: true };
/// Buffers of a link: one that each stream sends, and copies ahead of them.
const SOURCE_SLOTS: usize = 8;
/// Buffers of a connection at the target: one that the socket fills, and copies behind it.
const TARGET_SLOTS: usize = 4;

/// A pool, as either end has it.
#[derive(Clone)]
pub(super) enum Memory {
    Store(Arc<dyn PageStore>),
    Device(Arc<PagePool>, KvGeometry),
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: OpError) -> TransferError {
    TransferError::broken(&error)
}

impl Memory {
    pub(super) fn geometry(&self) -> &KvGeometry {
        match self {
            Self::Store(store) => store.geometry(),
            Self::Device(_, geometry) => geometry,
        }
    }

    pub(super) fn pages(&self) -> u32 {
        match self {
            Self::Store(store) => store.pages(),
            Self::Device(pool, _) => pool.pages(),
        }
    }
}

/// What a link sends from.
pub(super) enum Supply {
    Store(Arc<dyn PageStore>),
    Device(Loading),
}

/// Copies from device memory on their way, in the queue's order.
pub(super) struct Loading {
    staging: Staging,
    free: Vec<Slot>,
    loading: VecDeque<(Next, Option<Slot>)>,
}

impl Supply {
    pub(super) fn of(memory: &Memory) -> Result<Self, OpError> {
        let (pool, free) = match memory {
            Memory::Store(store) => return Ok(Self::Store(Arc::clone(store))),
            Memory::Device(pool, _) => (pool, 0..SOURCE_SLOTS),
        };
        let free = free.map(|_| Slot::new(pool.device(), PAYLOAD_BYTES));
        let free = free.collect::<Result<_, _>>()?;
        let staging = Staging::new(pool)?;
        Ok(Self::Device(Loading { staging, free, loading: VecDeque::new() }))
    }

    /// What a stream is to send next, and the buffer that a piece's bytes are in, if they are not
    /// the store's; `None` if there is nothing, or it is on its way.
    pub(super) fn next(
        &mut self,
        queue: &mut Queue,
    ) -> Result<Option<(Next, Option<Slot>)>, TransferError> {
        match self {
            Self::Store(_) => Ok(queue.next(OF_STORE).map(|next| (next, None))),
            Self::Device(loading) => loading.next(queue).map_err(broken),
        }
    }

    /// Whether something is on its way, of which no socket will tell.
    pub(super) fn is_loading(&self) -> bool {
        matches!(self, Self::Device(Loading { loading, .. }) if !loading.is_empty())
    }

    /// A piece was sent.
    pub(super) fn sent(&mut self, slot: Option<Slot>) {
        if let (Self::Device(loading), Some(slot)) = (self, slot) {
            loading.free.push(slot);
        }
    }
}

impl Loading {
    fn next(&mut self, queue: &mut Queue) -> Result<Option<(Next, Option<Slot>)>, OpError> {
        while let Some(mut slot) = self.free.pop() {
            match queue.next(OF_DEVICE) {
                Some(Next::Piece(number, piece)) => {
                    self.staging.load(&mut slot, piece.source, piece.len)?;
                    self.loading.push_back((Next::Piece(number, piece), Some(slot)));
                }
                other => {
                    self.free.push(slot);
                    let Some(flush) = other else { break };
                    self.loading.push_back((flush, None));
                }
            }
        }
        if let Some((_, Some(slot))) = self.loading.front_mut()
            && !slot.is_free()?
        {
            return Ok(None);
        }
        Ok(self.loading.pop_front())
    }
}

/// A piece on its way through a socket.
pub(super) struct Payload {
    pub(super) number: Number,
    pub(super) piece: Piece,
    pub(super) slot: Option<Slot>,
}

/// Streams of a session's copies into device memory, to wait for when it ends.
#[derive(Default)]
pub(super) struct Streams(Mutex<Vec<Arc<Stream>>>);

impl Streams {
    fn add(&self, stream: &Arc<Stream>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(stream));
    }

    /// Waits for all copies that were enqueued.
    pub(super) fn settle(&self) {
        for stream in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // An error means that the context is lost, and with it the copies.
            let _ = stream.synchronize();
        }
    }
}

/// A connection's buffers in front of device memory, used in turn.
pub(super) struct Landing {
    staging: Staging,
    slots: Vec<Slot>,
    turn: usize,
}

impl Landing {
    pub(super) fn new(pool: &Arc<PagePool>, streams: &Streams) -> Result<Self, TransferError> {
        let staging = Staging::new(pool).map_err(broken)?;
        let slots = (0..TARGET_SLOTS).map(|_| Slot::new(pool.device(), PAYLOAD_BYTES));
        let slots = slots.collect::<Result<_, _>>().map_err(broken)?;
        streams.add(staging.stream());
        Ok(Self { staging, slots, turn: 0 })
    }

    /// Reads `len` bytes, or as many as a buffer takes, and, if `live` lets it, enqueues their copy
    /// to byte `at` of the pool; how many there were.
    pub(super) fn take(
        &mut self,
        live: &Mutex<bool>,
        socket: &mut TcpStream,
        at: usize,
        len: usize,
    ) -> Result<usize, TransferError> {
        let len = len.min(PAYLOAD_BYTES);
        self.turn = (self.turn + 1) % self.slots.len();
        let slot = &mut self.slots[self.turn];
        slot.wait().map_err(broken)?;
        socket.read_exact(&mut slot.bytes()[..len]).map_err(|e| TransferError::broken(&e))?;
        let live = live.lock().unwrap_or_else(PoisonError::into_inner);
        if !*live {
            return Err(TransferError::Closed);
        }
        self.staging.store(slot, at, len).map_err(broken)?;
        Ok(len)
    }

    /// Waits until all that was taken is in the pool.
    pub(super) fn settle(&self) -> Result<(), TransferError> {
        self.staging.stream().synchronize().map_err(broken)
    }
}
