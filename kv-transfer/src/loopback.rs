//! The reference transport: both pools in one process, no kernel in between.
//!
//! Where both pools are in the memory of one GPU, pages do not pass through the host: the link is
//! that of `cuda_ipc` with the target's pool itself in place of a mapping.
//!
//! A [`Hub`] joins the ends; there is nothing global, so tests and rings in one process do not see
//! each other. [`crate::fault`]s make a link fail, stall, lose or corrupt on command; with none set
//! it serves the one-process ring.
//!
//! Revoking takes the session's write lock while a copy holds its read lock, and waits for copies
//! that are on the GPU, so that after [`Target::revoke`] returns no copy of that session runs or
//! will.

use crate::cuda_ipc::{Copiers, ShipLink};
use crate::fault::{Fault, Faults};
use crate::offer::{Head, Reader, Writer, random, same_secret};
use crate::plan::Pools;
use crate::queue::{Limit, Next, Piece, Queue, by_page};
use crate::{
    Event, Joined, Kind, Link, Offer, OpId, Proof, PutOp, SessionId, Source, Target, TransferError,
};
use kernels::cuda::PagePool;
use kernels::cuda::ship::{self, Kernel, Shipper};
use kernels::cuda::stream::Stream;
use kernels::ops::OpError;
use shared::kv::PageStore;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// What is copied at a time.
const LIMIT: Limit = Limit { bytes: 64 << 10, across_pages: true };
/// Pieces copied before a link looks at its owner's commands again: 16 MiB.
const PIECES_A_TURN: usize = 256;

/// Joins the targets and sources of one process.
#[derive(Default)]
pub struct Hub {
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Sessions {
    last: u64,
    open: HashMap<SessionId, Arc<Session>>,
}

struct Session {
    secret: [u8; 16],
    store: Arc<dyn PageStore>,
    /// The pool behind the store, if it is in device memory.
    pool: Option<Arc<PagePool>>,
    /// Whether writes are allowed; held for reading by every copy, or its launch.
    live: Arc<RwLock<bool>>,
    /// Where copies on the GPU run.
    stream: Mutex<Option<Arc<Stream>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// A hub with nothing on it.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
}

/// A pool that peers on the hub may write.
pub struct LoopbackTarget {
    hub: Arc<Hub>,
    store: Arc<dyn PageStore>,
    pool: Option<Arc<PagePool>>,
}

impl LoopbackTarget {
    /// A target over `store`.
    pub fn new(hub: &Arc<Hub>, store: Arc<dyn PageStore>) -> Self {
        Self { hub: Arc::clone(hub), store, pool: None }
    }

    /// The same, of a store whose pages are in device memory, in `pool`.
    #[must_use]
    pub fn in_device_memory(self, pool: &Arc<PagePool>) -> Self {
        Self { pool: Some(Arc::clone(pool)), ..self }
    }
}

impl Target for LoopbackTarget {
    fn kind(&self) -> Kind {
        Kind::Loopback
    }

    fn accept(&self) -> Result<Offer, TransferError> {
        let secret = random(Kind::Loopback)?;
        let entry = Arc::new(Session {
            secret,
            store: Arc::clone(&self.store),
            pool: self.pool.clone(),
            live: Arc::new(RwLock::new(true)),
            stream: Mutex::new(None),
        });
        let mut sessions = lock(&self.hub.sessions);
        sessions.last += 1;
        let session = SessionId::new(sessions.last);
        sessions.open.insert(session, entry);
        let (geometry, pages) = (*self.store.geometry(), self.store.pages());
        let mut writer = Writer::default();
        Head { kind: Kind::Loopback, session, geometry, pages }.write(&mut writer);
        writer.raw(&secret);
        Ok(Offer { session, bytes: writer.0 })
    }

    fn confirm(&self, session: SessionId, reply: &[u8]) -> Result<(), TransferError> {
        Reader(reply).end()?;
        if lock(&self.hub.sessions).open.contains_key(&session) {
            Ok(())
        } else {
            Err(TransferError::malformed("session", &session, "an open session"))
        }
    }

    fn revoke(&self, session: SessionId) -> Proof {
        let ended = lock(&self.hub.sessions).open.remove(&session);
        if let Some(ended) = ended {
            *ended.live.write().unwrap_or_else(PoisonError::into_inner) = false;
            // An error means that the context is lost, and with it all that ran there.
            let _ = lock(&ended.stream).take().map(|stream| stream.synchronize());
        }
        Proof::Immediate
    }
}

/// A pool whose pages can be put to targets on the hub.
pub struct LoopbackSource {
    hub: Arc<Hub>,
    store: Arc<dyn PageStore>,
    device: Option<(Arc<PagePool>, Kernel)>,
    faults: Arc<Faults>,
}

impl LoopbackSource {
    /// A source over `store` whose links never fail.
    pub fn new(hub: &Arc<Hub>, store: Arc<dyn PageStore>) -> Self {
        Self::with_faults(hub, store, Arc::default())
    }

    /// A source whose links obey `faults`.
    pub fn with_faults(hub: &Arc<Hub>, store: Arc<dyn PageStore>, faults: Arc<Faults>) -> Self {
        Self { hub: Arc::clone(hub), store, device: None, faults }
    }

    /// The same, of a store whose pages are in device memory, in `pool`. To targets there, links
    /// obey no faults.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] if the kernel that copies cannot be compiled or loaded.
    pub fn in_device_memory(self, pool: &Arc<PagePool>) -> Result<Self, TransferError> {
        let kernel = Kernel::load(pool.device()).map_err(unavailable)?;
        Ok(Self { device: Some((Arc::clone(pool), kernel)), ..self })
    }

    /// A link that copies on the GPU, if both pools are there.
    fn connect_on_device(
        &self,
        pools: Pools,
        session: &Session,
    ) -> Result<Option<Box<dyn Link>>, TransferError> {
        let (Some((source, kernel)), Some(target)) = (&self.device, &session.pool) else {
            return Ok(None);
        };
        let uuid = |pool: &PagePool| pool.device().uuid().map_err(unavailable);
        if uuid(source)? != uuid(target)? {
            return Ok(None);
        }
        let target = ship::Target::Own(Arc::clone(target));
        let shipper = Shipper::new(*kernel, Arc::clone(source), target).map_err(unavailable)?;
        *lock(&session.stream) = Some(Arc::clone(shipper.stream()));
        let live = Arc::clone(&session.live);
        let by = (shipper, Copiers::SAME_GPU);
        Ok(Some(Box::new(ShipLink::new(Kind::Loopback, Queue::new(pools), by, live))))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(error: OpError) -> TransferError {
    TransferError::Unavailable { transport: Kind::Loopback.name(), reason: error.to_string() }
}

impl Source for LoopbackSource {
    fn kind(&self) -> Kind {
        Kind::Loopback
    }

    fn connect(&self, offer: &[u8]) -> Result<Joined, TransferError> {
        let mut reader = Reader(offer);
        let head = Head::read(&mut reader, Kind::Loopback)?;
        let secret = reader.array("offer.secret")?;
        reader.end()?;
        let pools = head.pair_with(self.store.geometry(), self.store.pages())?;
        let session = lock(&self.hub.sessions).open.get(&head.session).cloned();
        let session = session.filter(|session| same_secret(&session.secret, &secret));
        let session = session.ok_or_else(|| TransferError::Refused {
            transport: Kind::Loopback.name(),
            reason: format!("session {} is not open on this hub", head.session),
        })?;
        if let Some(link) = self.connect_on_device(pools, &session)? {
            return Ok(Joined { link, reply: Vec::new() });
        }
        let link = LoopbackLink {
            queue: Queue::new(pools),
            store: Arc::clone(&self.store),
            session,
            faults: Arc::clone(&self.faults),
            buffer: vec![0; LIMIT.bytes],
            queued: 0,
            begun: 0,
            lost: Vec::new(),
        };
        Ok(Joined { link: Box::new(link), reply: Vec::new() })
    }
}

struct LoopbackLink {
    queue: Queue,
    store: Arc<dyn PageStore>,
    session: Arc<Session>,
    faults: Arc<Faults>,
    buffer: Vec<u8>,
    /// Puts queued and puts begun so far.
    queued: u64,
    begun: u64,
    /// Puts that a fault swallowed.
    lost: Vec<Event>,
}

impl LoopbackLink {
    /// Copies one piece, unless the session was revoked or a fault says otherwise.
    fn copy(&mut self, piece: Piece) -> Result<(), TransferError> {
        let fault = if piece.first {
            self.begun += 1;
            self.faults.take(self.begun - 1)
        } else {
            None
        };
        if fault == Some(Fault::Break) {
            return Err(TransferError::broken("a fault was set on this put"));
        }
        let buffer = &mut self.buffer[..piece.len];
        let page_bytes = self.store.geometry().page_bytes();
        for (page, bytes, whole) in by_page(page_bytes, piece.source, piece.len) {
            self.store.read(page, bytes, &mut buffer[whole]);
        }
        if fault == Some(Fault::Corrupt) {
            buffer[0] ^= 1;
        }
        let live = self.session.live.read().unwrap_or_else(PoisonError::into_inner);
        if !*live {
            return Err(TransferError::broken("the target revoked this session"));
        }
        for (page, bytes, whole) in by_page(page_bytes, piece.target, piece.len) {
            self.session.store.write(page, bytes, &buffer[whole]);
        }
        Ok(())
    }
}

impl Link for LoopbackLink {
    fn kind(&self) -> Kind {
        Kind::Loopback
    }

    fn target_pages(&self) -> u32 {
        self.queue.pools().target_pages
    }

    fn put(&mut self, op: PutOp) {
        let number = self.queued;
        self.queued += 1;
        if self.faults.loses(number) {
            self.begun += 1;
            let result = Err(TransferError::Closed);
            self.lost.push(Event::Put { id: op.id, owner: op.owner, result });
        } else {
            self.queue.put(op);
        }
    }

    fn flush(&mut self, id: OpId) {
        self.queue.flush(id);
    }

    fn progress(&mut self, wait: Duration, events: &mut Vec<Event>) -> Result<(), TransferError> {
        for _ in 0..PIECES_A_TURN {
            if !self.faults.pass_piece(wait) {
                break;
            }
            match self.queue.next(LIMIT) {
                Some(Next::Piece(number, piece)) => {
                    self.copy(piece)?;
                    self.queue.done(number);
                }
                Some(Next::Flush(number)) => self.queue.done(number),
                None => break,
            }
        }
        self.queue.ended(events);
        Ok(())
    }

    fn outstanding(&self) -> usize {
        self.queue.len() + self.lost.len()
    }

    fn close(self: Box<Self>) -> Vec<Event> {
        let mut events = self.lost;
        events.extend(self.queue.close());
        events
    }
}
