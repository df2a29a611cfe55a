//! The receiving half: a listener thread, and a thread a data connection.

use super::memory::{Landing, Memory, Streams};
use super::wire::{Frame, HEAD_BYTES, HELLO_BYTES, Hello, WELCOME};
use super::{SLICES, STREAMS};
use crate::offer::{Head, Reader, Writer, random, same_secret};
use crate::{Kind, Offer, Proof, SessionId, Target, TransferError};
use kernels::cuda::PagePool;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use shared::ids::PageId;
use shared::kv::{KvGeometry, PageStore};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Where a target listens for data connections.
#[derive(Clone, Copy, Debug)]
pub struct TcpConfig {
    /// Address to bind; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address that sources connect to, if it is not the bound one.
    pub advertise: Option<IpAddr>,
    /// Sessions that may be open at a time.
    pub sessions: usize,
    /// Longest time from a connection to its whole hello.
    pub hello_limit: Duration,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            sessions: 256,
            hello_limit: Duration::from_secs(2),
        }
    }
}

/// Connections that may be saying their hello at a time, on top of those of sessions.
const STRANGERS: usize = 16;
/// Between two tries to accept, after one that failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

/// A pool that sources may send to.
pub struct TcpTarget {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Arc<OwnedFd>,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    memory: Memory,
    config: TcpConfig,
    connections: AtomicUsize,
    sessions: Mutex<Sessions>,
}

struct Sessions {
    last: u64,
    open: HashMap<SessionId, Arc<Session>>,
}

struct Session {
    secret: [u8; 32],
    /// Whether writes are allowed; held around every read into the pool, which also keeps two
    /// streams from writing neighbouring bytes of one page at once, a conflict to the store.
    live: Mutex<bool>,
    /// A second handle of each stream that has joined, to shut it down by.
    sockets: Mutex<[Option<TcpStream>; STREAMS as usize]>,
    copies: Streams,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unavailable(doing: &str, error: &dyn std::fmt::Display) -> TransferError {
    let reason = format!("{doing}: {error}");
    TransferError::Unavailable { transport: Kind::Tcp.name(), reason }
}

impl TcpTarget {
    /// Listens for sources of `store`.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] if the address cannot be bound or a thread not be started;
    /// [`TransferError::Malformed`] if sources could not be told where to connect.
    pub fn new(store: Arc<dyn PageStore>, config: TcpConfig) -> Result<Self, TransferError> {
        Self::over(Memory::Store(store), config)
    }

    /// Listens for sources of `pool`, in device memory, whose pages are of `geometry`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn in_device_memory(
        pool: &Arc<PagePool>,
        geometry: KvGeometry,
        config: TcpConfig,
    ) -> Result<Self, TransferError> {
        Self::over(Memory::Device(Arc::clone(pool), geometry), config)
    }

    fn over(memory: Memory, config: TcpConfig) -> Result<Self, TransferError> {
        let doing = format!("listening on {}", config.listen);
        let listener = TcpListener::bind(config.listen).map_err(|e| unavailable(&doing, &e))?;
        let mut address = listener.local_addr().map_err(|e| unavailable(&doing, &e))?;
        if let Some(ip) = config.advertise {
            address.set_ip(ip);
        } else if address.ip().is_unspecified() {
            let want = "an address that sources can connect to; set advertise";
            return Err(TransferError::malformed("data.listen", &config.listen, want));
        }
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| unavailable(&doing, &e))?;
        let stop = Arc::new(stop);
        let sessions = Mutex::new(Sessions { last: 0, open: HashMap::new() });
        let connections = AtomicUsize::new(0);
        let shared = Arc::new(Shared { memory, config, connections, sessions });
        let thread = {
            let (shared, stop) = (Arc::clone(&shared), Arc::clone(&stop));
            Builder::new()
                .name("kv-listen".into())
                .spawn(move || listen(&shared, &listener, &stop))
                .map_err(|e| unavailable("starting a thread", &e))?
        };
        Ok(Self { shared, address, stop, listener: Some(thread) })
    }

    /// Where sources connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Target for TcpTarget {
    fn kind(&self) -> Kind {
        Kind::Tcp
    }

    fn accept(&self) -> Result<Offer, TransferError> {
        let secret = random(Kind::Tcp)?;
        let mut sessions = lock(&self.shared.sessions);
        let most = self.shared.config.sessions;
        if sessions.open.len() >= most {
            return Err(unavailable("accepting", &format!("{most} sessions are open, the most")));
        }
        sessions.last += 1;
        let session = SessionId::new(sessions.last);
        let sockets = Mutex::new([const { None }; STREAMS as usize]);
        let copies = Streams::default();
        let entry = Session { secret, live: Mutex::new(true), sockets, copies };
        sessions.open.insert(session, Arc::new(entry));
        let (geometry, pages) = (*self.shared.memory.geometry(), self.shared.memory.pages());
        let mut writer = Writer::default();
        Head { kind: Kind::Tcp, session, geometry, pages }.write(&mut writer);
        writer.raw(&secret).blob(self.address.to_string().as_bytes());
        Ok(Offer { session, bytes: writer.0 })
    }

    fn confirm(&self, session: SessionId, reply: &[u8]) -> Result<(), TransferError> {
        let entry = lock(&self.shared.sessions).open.get(&session).cloned();
        let entry = entry
            .ok_or_else(|| TransferError::malformed("session", &session, "an open session"))?;
        let joined = Reader(reply).end().and_then(|()| {
            if lock(&entry.sockets).iter().all(Option::is_some) {
                Ok(())
            } else {
                let reason = "the source's data connections are not here".to_owned();
                Err(TransferError::Refused { transport: Kind::Tcp.name(), reason })
            }
        });
        if joined.is_err() {
            self.shared.end(session);
        }
        joined
    }

    fn revoke(&self, session: SessionId) -> Proof {
        self.shared.end(session);
        Proof::Immediate
    }
}

impl Drop for TcpTarget {
    fn drop(&mut self) {
        // An eventfd takes 8 bytes; the listener then ends, and with it the port is free.
        if rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()).is_ok()
            && let Some(listener) = self.listener.take()
        {
            let _ = listener.join();
        }
        let open: Vec<_> = lock(&self.shared.sessions).open.keys().copied().collect();
        for session in open {
            self.shared.end(session);
        }
    }
}

impl Shared {
    fn end(&self, session: SessionId) {
        let Some(ended) = lock(&self.sessions).open.remove(&session) else { return };
        *lock(&ended.live) = false;
        for socket in lock(&ended.sockets).iter().flatten() {
            // An error means that the connection is gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        ended.copies.settle();
    }

    fn pool_bytes(&self) -> u64 {
        self.memory.geometry().page_bytes() as u64 * u64::from(self.memory.pages())
    }
}

/// Counts a connection while it lives.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> Option<Self> {
        let most = shared.config.sessions * usize::from(STREAMS) + STRANGERS;
        let counted = Self(Arc::clone(shared));
        (shared.connections.fetch_add(1, Ordering::Relaxed) < most).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn listen(shared: &Arc<Shared>, listener: &TcpListener, stop: &OwnedFd) {
    if let Err(error) = listener.set_nonblocking(true) {
        tracing::error!(%error, "data listener ends");
        return;
    }
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        if let Err(error) = poll(&mut fds, None)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "data listener ends");
            return;
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        let (socket, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                // It ends only that connection; without descriptors the next try fails as well.
                tracing::warn!(%error, "data connection not accepted");
                std::thread::sleep(ACCEPT_AGAIN);
                continue;
            }
        };
        let Some(counted) = Counted::new(shared) else {
            tracing::warn!(%peer, "data connection refused: too many");
            continue;
        };
        let started = Builder::new().name("kv-land".into()).spawn(move || {
            if let Err(error) = serve(&counted.0, socket) {
                tracing::debug!(%peer, %error, "data connection ended");
            }
        });
        if let Err(error) = started {
            tracing::warn!(%peer, %error, "data connection refused: no thread");
        }
    }
}

/// One data connection from hello to end.
fn serve(shared: &Arc<Shared>, mut socket: TcpStream) -> Result<(), TransferError> {
    let broken = |error: std::io::Error| TransferError::broken(&error);
    socket.set_nonblocking(false).map_err(broken)?;
    socket.set_nodelay(true).map_err(broken)?;
    let hello = read_hello(&mut socket, shared.config.hello_limit)?;
    let session = join(shared, &hello, &socket)?;
    socket.write_all(&[WELCOME]).map_err(broken)?;
    socket.set_read_timeout(None).map_err(broken)?;
    let landed = land(shared, &session, &mut socket);
    if landed.is_err() {
        // One stream gone means that the session's order can no longer be kept.
        shared.end(hello.session);
    }
    landed
}

/// A peer that says its hello a byte at a time is cut off all the same.
fn read_hello(socket: &mut TcpStream, limit: Duration) -> Result<Hello, TransferError> {
    let start = std::time::Instant::now();
    let mut bytes = [0; HELLO_BYTES];
    let mut have = 0;
    while have < bytes.len() {
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(TransferError::broken("no hello in time"));
        }
        socket.set_read_timeout(Some(left)).map_err(|e| TransferError::broken(&e))?;
        match socket.read(&mut bytes[have..]) {
            Ok(0) => return Err(TransferError::broken("closed before its hello")),
            Ok(count) => have += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(TransferError::broken(&error)),
        }
    }
    Hello::read(&bytes)
}

/// Finds the session that a hello may join, and takes the stream's place in it.
fn join(shared: &Shared, hello: &Hello, socket: &TcpStream) -> Result<Arc<Session>, TransferError> {
    let refused = |reason: &str| TransferError::Refused {
        transport: Kind::Tcp.name(),
        reason: reason.to_owned(),
    };
    let session = lock(&shared.sessions).open.get(&hello.session).cloned();
    let session = session.filter(|session| same_secret(&session.secret, &hello.secret));
    let session = session.ok_or_else(|| refused("unknown session or wrong secret"))?;
    let mut sockets = lock(&session.sockets);
    let place = sockets.get_mut(usize::from(hello.stream));
    let place = place.filter(|place| place.is_none());
    let place = place.ok_or_else(|| refused("no such stream, or it has joined"))?;
    *place = Some(socket.try_clone().map_err(|e| TransferError::broken(&e))?);
    drop(sockets);
    Ok(session)
}

/// Where one connection's bytes go.
enum Place<'a> {
    Store(&'a dyn PageStore),
    Device(Landing),
}

/// Writes what comes until the connection or the session ends.
fn land(shared: &Shared, session: &Session, socket: &mut TcpStream) -> Result<(), TransferError> {
    let broken = |error: std::io::Error| TransferError::broken(&error);
    let mut place = match &shared.memory {
        Memory::Store(store) => Place::Store(&**store),
        Memory::Device(pool, _) => Place::Device(Landing::new(pool, &session.copies)?),
    };
    let mut head = [0; HEAD_BYTES];
    loop {
        socket.read_exact(&mut head).map_err(broken)?;
        match Frame::read(&head, shared.pool_bytes())? {
            Frame::Flush { number } => {
                if let Place::Device(landing) = &place {
                    landing.settle()?;
                }
                socket.write_all(&number.to_le_bytes()).map_err(broken)?;
            }
            Frame::Piece { at, len } => {
                let at = usize::try_from(at);
                let at = at.map_err(|_| TransferError::broken("offset beyond memory"))?;
                let end = at + len as usize;
                let mut at = at;
                while at < end {
                    at += match &mut place {
                        Place::Store(store) => fill(*store, session, socket, at..end)?,
                        Place::Device(landing) => {
                            landing.take(&session.live, socket, at, end - at)?
                        }
                    };
                }
            }
        }
    }
}

/// Reads what the socket has of bytes `wanted` of the pool straight into their first page, holding
/// the session only while the system copies; how many there were.
fn fill(
    store: &dyn PageStore,
    session: &Session,
    socket: &mut TcpStream,
    wanted: Range<usize>,
) -> Result<usize, TransferError> {
    await_bytes(socket)?;
    let live = lock(&session.live);
    if !*live {
        return Err(TransferError::Closed);
    }
    let page_bytes = store.geometry().page_bytes();
    let page = u32::try_from(wanted.start / page_bytes).expect("checked against the pool");
    let start = wanted.start % page_bytes;
    let range = start..page_bytes.min(start + wanted.len());
    let mut got = Ok(0);
    // The store panics if the page is in use: a writer that was not granted it must not take this
    // process down, so that ends its session only.
    catch_unwind(AssertUnwindSafe(|| {
        store.lend_mut(PageId::new(page), range, &mut |slices| {
            let most = slices.len().min(SLICES);
            got = socket.read_vectored(&mut slices[..most]);
        });
    }))
    .map_err(|_| TransferError::broken("the source wrote a page that is in use"))?;
    match got {
        Ok(0) => Err(TransferError::broken("the source closed the connection")),
        Ok(count) => Ok(count),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
        Err(error) => Err(TransferError::broken(&error)),
    }
}

/// Blocks until the socket can be read; the next read then takes what there is, or the end.
fn await_bytes(socket: &TcpStream) -> Result<(), TransferError> {
    loop {
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(TransferError::broken(&error)),
        }
    }
}
