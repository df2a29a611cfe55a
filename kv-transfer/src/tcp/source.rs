//! The sending half: one thread, non-blocking sockets, payloads straight from the store or from
//! buffers that the GPU fills ahead.

use super::memory::{Memory, Payload, Supply};
use super::wire::{Frame, HEAD_BYTES, Hello, WELCOME};
use super::{SLICES, STREAMS};
use crate::offer::{Head, Reader};
use crate::queue::{Next, Number, Queue};
use crate::{Event, Joined, Kind, Link, OpId, PutOp, Source, TransferError};
use kernels::cuda::PagePool;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use shared::ids::PageId;
use shared::kv::{KvGeometry, PageStore};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Longest time that each step of a join may take.
const JOIN_LIMIT: Duration = Duration::from_secs(2);
/// Bytes begun before a link looks at its owner's commands again.
const TURN_BYTES: usize = 16 << 20;
/// Between two looks at a copy from the GPU, of which no socket tells; one takes 20 µs.
const LOOK_EVERY: Duration = Duration::from_micros(20);

/// A pool whose pages can be sent to targets.
pub struct TcpSource {
    memory: Memory,
}

impl TcpSource {
    /// A source over `store`.
    pub fn new(store: Arc<dyn PageStore>) -> Self {
        Self { memory: Memory::Store(store) }
    }

    /// A source over `pool`, in device memory, whose pages are of `geometry`.
    pub fn in_device_memory(pool: &Arc<PagePool>, geometry: KvGeometry) -> Self {
        Self { memory: Memory::Device(Arc::clone(pool), geometry) }
    }
}

/// What an offer says.
pub(super) struct Terms {
    pub(super) head: Head,
    pub(super) address: SocketAddr,
    pub(super) secret: [u8; 32],
}

impl Terms {
    fn read(offer: &[u8]) -> Result<Self, TransferError> {
        let mut reader = Reader(offer);
        let head = Head::read(&mut reader, Kind::Tcp)?;
        let secret = reader.array("offer.secret")?;
        let text = String::from_utf8_lossy(reader.blob("offer.address")?);
        reader.end()?;
        let address = text.parse();
        let address = address
            .map_err(|_| TransferError::malformed("offer.address", &text, "an IP and a port"))?;
        Ok(Self { head, address, secret })
    }
}

impl Source for TcpSource {
    fn kind(&self) -> Kind {
        Kind::Tcp
    }

    fn connect(&self, offer: &[u8]) -> Result<Joined, TransferError> {
        let terms = Terms::read(offer)?;
        let pools = terms.head.pair_with(self.memory.geometry(), self.memory.pages())?;
        let supply = Supply::of(&self.memory).map_err(|error| TransferError::Unavailable {
            transport: Kind::Tcp.name(),
            reason: format!("buffers for pages in device memory: {error}"),
        })?;
        let streams = (0..STREAMS)
            .map(|stream| {
                let session = terms.head.session;
                let hello = Hello { stream, session, secret: terms.secret };
                Stream::join(terms.address, &hello).map_err(|error| TransferError::Unavailable {
                    transport: Kind::Tcp.name(),
                    reason: format!("data connection to {}: {error}", terms.address),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let link = TcpLink { queue: Queue::new(pools), supply, streams, flushes: VecDeque::new() };
        Ok(Joined { link: Box::new(link), reply: Vec::new() })
    }
}

/// One data connection.
struct Stream {
    socket: TcpStream,
    /// The frame on its way.
    frame: Option<Sending>,
    /// Flushes taken from the queue whose marks this stream has not begun to send.
    marks: VecDeque<Number>,
    /// Flushes that this stream's receiver has not acknowledged, oldest first.
    unacked: VecDeque<Number>,
    /// The next acknowledgement so far.
    ack: [u8; 8],
    ack_len: usize,
}

/// A frame of which `sent` bytes are sent, head and payload.
struct Sending {
    head: [u8; HEAD_BYTES],
    /// `None` for a mark.
    payload: Option<Payload>,
    sent: usize,
}

impl Sending {
    fn len(&self) -> usize {
        HEAD_BYTES + self.payload.as_ref().map_or(0, |payload| payload.piece.len)
    }

    /// One system call: the rest of the frame, its payload straight from where it is.
    fn write(&mut self, mut socket: &TcpStream, supply: &Supply) -> std::io::Result<usize> {
        let head = &self.head[self.sent.min(HEAD_BYTES)..];
        let Some(Payload { piece, slot, .. }) = &mut self.payload else {
            return socket.write(head);
        };
        let done = self.sent.saturating_sub(HEAD_BYTES);
        let store = match (supply, slot) {
            (_, Some(slot)) => {
                let rest = &slot.bytes()[done..piece.len];
                return socket.write_vectored(&[IoSlice::new(head), IoSlice::new(rest)]);
            }
            (Supply::Store(store), None) => store,
            (Supply::Device(_), None) => unreachable!("pages in device memory have a buffer"),
        };
        let page_bytes = store.geometry().page_bytes();
        let start = piece.source % page_bytes;
        let page = u32::try_from(piece.source / page_bytes).expect("checked against the pool");
        let mut written = Ok(0);
        store.lend(PageId::new(page), start + done..start + piece.len, &mut |slices| {
            let head = std::iter::once(head).filter(|head| !head.is_empty());
            let slices: Vec<_> =
                head.chain(slices.iter().copied()).take(SLICES).map(IoSlice::new).collect();
            written = socket.write_vectored(&slices);
        });
        written
    }
}

impl Stream {
    fn join(address: SocketAddr, hello: &Hello) -> std::io::Result<Self> {
        let mut socket = TcpStream::connect_timeout(&address, JOIN_LIMIT)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(JOIN_LIMIT))?;
        socket.set_write_timeout(Some(JOIN_LIMIT))?;
        socket.write_all(&hello.write())?;
        let mut answer = [0];
        socket.read_exact(&mut answer)?;
        if answer != [WELCOME] {
            let text = "the answer is no welcome: not a page transfer";
            return Err(std::io::Error::new(ErrorKind::InvalidData, text));
        }
        socket.set_nonblocking(true)?;
        let (marks, unacked) = (VecDeque::new(), VecDeque::new());
        Ok(Self { socket, frame: None, marks, unacked, ack: [0; 8], ack_len: 0 })
    }

    fn has_to_send(&self) -> bool {
        self.frame.is_some() || !self.marks.is_empty()
    }

    /// Sends what the socket takes of the frame; whether there is none left.
    fn send(&mut self, supply: &mut Supply, queue: &mut Queue) -> Result<bool, TransferError> {
        while let Some(frame) = &mut self.frame {
            match frame.write(&self.socket, supply) {
                Ok(0) => return Err(TransferError::broken("the socket takes nothing")),
                Ok(count) => frame.sent += count,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(false),
                    ErrorKind::Interrupted => {}
                    _ => return Err(TransferError::broken(&format!("sending: {error}"))),
                },
            }
            if frame.sent == frame.len() {
                if let Some(Payload { number, slot, .. }) = frame.payload.take() {
                    supply.sent(slot);
                    queue.done(number);
                }
                self.frame = None;
            }
        }
        Ok(true)
    }

    /// Takes acknowledgements that have arrived; whether there was any.
    fn receive(&mut self) -> Result<bool, TransferError> {
        let mut any = false;
        while !self.unacked.is_empty() {
            match self.socket.read(&mut self.ack[self.ack_len..]) {
                Ok(0) => return Err(TransferError::broken("the target closed the connection")),
                Ok(count) => self.ack_len += count,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(any),
                    ErrorKind::Interrupted => {}
                    _ => return Err(TransferError::broken(&format!("receiving: {error}"))),
                },
            }
            if self.ack_len == self.ack.len() {
                self.ack_len = 0;
                if self.unacked.pop_front() != Some(u64::from_le_bytes(self.ack)) {
                    return Err(TransferError::broken("the target acknowledged no flush of ours"));
                }
                any = true;
            }
        }
        Ok(any)
    }
}

struct TcpLink {
    queue: Queue,
    supply: Supply,
    streams: Vec<Stream>,
    /// Flushes taken and not acknowledged by every stream, oldest first.
    flushes: VecDeque<Number>,
}

impl TcpLink {
    /// Gives stream `at` its next frame; its payload's length, or `None` if there is none now.
    fn fill(&mut self, at: usize) -> Result<Option<usize>, TransferError> {
        if self.streams[at].marks.is_empty() {
            match self.supply.next(&mut self.queue)? {
                None => return Ok(None),
                Some((Next::Piece(number, piece), slot)) => {
                    let len = u32::try_from(piece.len).expect("at most 1 MiB");
                    let head = Frame::Piece { at: piece.target as u64, len }.write();
                    let payload = Some(Payload { number, piece, slot });
                    self.streams[at].frame = Some(Sending { head, payload, sent: 0 });
                    return Ok(Some(len as usize));
                }
                Some((Next::Flush(number), _)) => {
                    self.flushes.push_back(number);
                    for stream in &mut self.streams {
                        stream.marks.push_back(number);
                    }
                }
            }
        }
        let stream = &mut self.streams[at];
        let Some(number) = stream.marks.pop_front() else { return Ok(None) };
        let head = Frame::Flush { number }.write();
        stream.frame = Some(Sending { head, payload: None, sent: 0 });
        stream.unacked.push_back(number);
        Ok(Some(0))
    }

    /// One round over the streams; the payload bytes begun, or `None` if nothing moved.
    fn turn(&mut self) -> Result<Option<usize>, TransferError> {
        let mut moved = None;
        for at in 0..self.streams.len() {
            if self.streams[at].receive()? {
                moved.get_or_insert(0);
            }
            if self.streams[at].send(&mut self.supply, &mut self.queue)?
                && let Some(bytes) = self.fill(at)?
            {
                self.streams[at].send(&mut self.supply, &mut self.queue)?;
                *moved.get_or_insert(0) += bytes;
            }
        }
        // A stream that has not begun a mark has not acknowledged it either.
        let open = |stream: &Stream, number| {
            stream.unacked.front().or(stream.marks.front()).is_some_and(|&first| first <= number)
        };
        while let Some(&number) = self.flushes.front()
            && !self.streams.iter().any(|stream| open(stream, number))
        {
            self.flushes.pop_front();
            self.queue.done(number);
        }
        Ok(moved)
    }

    /// Sleeps until a socket can do what it is wanted for, or a copy may be done.
    fn wait(&self, limit: Duration) -> Result<(), TransferError> {
        let limit = if self.supply.is_loading() { limit.min(LOOK_EVERY) } else { limit };
        let mut fds: Vec<_> = self
            .streams
            .iter()
            .map(|stream| {
                let mut wanted = PollFlags::empty();
                wanted.set(PollFlags::OUT, stream.has_to_send());
                wanted.set(PollFlags::IN, !stream.unacked.is_empty());
                PollFd::new(&stream.socket, wanted)
            })
            .collect();
        let limit = Timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(TransferError::broken(&format!("waiting: {error}"))),
        }
    }
}

impl Link for TcpLink {
    fn kind(&self) -> Kind {
        Kind::Tcp
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
        while let Some(bytes) = self.turn()?
            && moved < TURN_BYTES
        {
            moved += bytes;
        }
        if moved == 0 && self.outstanding() > 0 {
            self.wait(wait)?;
            self.turn()?;
        }
        self.queue.ended(events);
        Ok(())
    }

    fn outstanding(&self) -> usize {
        self.queue.len()
    }

    fn close(self: Box<Self>) -> Vec<Event> {
        for stream in &self.streams {
            // An error means that the connection is gone already.
            let _ = stream.socket.shutdown(Shutdown::Both);
        }
        self.queue.close()
    }
}
