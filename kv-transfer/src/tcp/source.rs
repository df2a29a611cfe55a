//! The sending half: one thread, non-blocking sockets, one copy buffer a stream.

use super::wire::{Frame, HEAD_BYTES, Hello, WELCOME};
use super::{BUFFER, STREAMS};
use crate::offer::{Head, Reader};
use crate::queue::{Next, Piece, Queue, by_page};
use crate::{Event, Joined, Kind, Link, OpId, PutOp, Source, TransferError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use shared::kv::PageStore;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Longest time that each step of a join may take.
const JOIN_LIMIT: Duration = Duration::from_secs(2);
/// Frames that one turn may send before the link looks at its owner's commands: 16 MiB.
const FRAMES_A_TURN: usize = 64;

/// A pool whose pages can be sent to targets.
pub struct TcpSource {
    store: Arc<dyn PageStore>,
}

impl TcpSource {
    /// A source over `store`.
    pub fn new(store: Arc<dyn PageStore>) -> Self {
        Self { store }
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
        let pools = terms.head.pair_with(self.store.geometry(), self.store.pages())?;
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
        let link = TcpLink {
            queue: Queue::new(pools),
            store: Arc::clone(&self.store),
            streams,
            flushes: VecDeque::new(),
            marks: 0,
        };
        Ok(Joined { link: Box::new(link), reply: Vec::new() })
    }
}

/// One data connection.
struct Stream {
    socket: TcpStream,
    /// Frames on their way: `buffer[sent..]` is still to be sent.
    buffer: Vec<u8>,
    sent: usize,
    /// Flush marks taken from the queue by another stream and not yet in this one's buffer.
    marks: VecDeque<u64>,
    /// The last mark that the target acknowledged; bytes of the next acknowledgement so far.
    acked: u64,
    ack: [u8; 8],
    ack_len: usize,
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
        let buffer = Vec::with_capacity(BUFFER + HEAD_BYTES);
        let marks = VecDeque::new();
        Ok(Self { socket, buffer, sent: 0, marks, acked: 0, ack: [0; 8], ack_len: 0 })
    }

    fn has_to_send(&self) -> bool {
        self.sent < self.buffer.len() || !self.marks.is_empty()
    }

    /// Sends what the socket takes; whether the buffer is empty then.
    fn send(&mut self) -> Result<bool, TransferError> {
        while self.sent < self.buffer.len() {
            match self.socket.write(&self.buffer[self.sent..]) {
                Ok(0) => return Err(TransferError::broken("the socket takes nothing")),
                Ok(count) => self.sent += count,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(false),
                    ErrorKind::Interrupted => {}
                    _ => return Err(TransferError::broken(&format!("sending: {error}"))),
                },
            }
        }
        self.buffer.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Takes acknowledgements that have arrived; whether there was any.
    fn receive(&mut self) -> Result<bool, TransferError> {
        let mut any = false;
        loop {
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
                self.acked = u64::from_le_bytes(self.ack);
                any = true;
            }
        }
    }
}

struct TcpLink {
    queue: Queue,
    store: Arc<dyn PageStore>,
    streams: Vec<Stream>,
    /// Flushes sent and not acknowledged by every stream, oldest first.
    flushes: VecDeque<(u64, OpId)>,
    /// Flush marks given out so far.
    marks: u64,
}

impl TcpLink {
    /// Fills stream `at` with the next frame; whether there was any.
    fn fill(&mut self, at: usize, events: &mut Vec<Event>) -> bool {
        if let Some(number) = self.streams[at].marks.pop_front() {
            self.streams[at].buffer.extend(Frame::Flush { number }.write());
            return true;
        }
        match self.queue.next(BUFFER, events) {
            None => return false,
            Some(Next::Piece(piece)) => self.copy_into(at, piece),
            Some(Next::Flush(id)) => {
                self.marks += 1;
                self.flushes.push_back((self.marks, id));
                for stream in &mut self.streams {
                    stream.marks.push_back(self.marks);
                }
            }
        }
        // A piece that was taken is copied: its put needs the source pages no longer.
        self.queue.finish_done(events);
        true
    }

    fn copy_into(&mut self, at: usize, piece: Piece) {
        let len = u32::try_from(piece.len).expect("a piece is at most the buffer");
        let buffer = &mut self.streams[at].buffer;
        buffer.extend(Frame::Piece { at: piece.target as u64, len }.write());
        buffer.resize(HEAD_BYTES + piece.len, 0);
        let page_bytes = self.store.geometry().page_bytes();
        for (page, bytes, whole) in by_page(page_bytes, piece.source, piece.len) {
            self.store.read(page, bytes, &mut buffer[HEAD_BYTES..][whole]);
        }
    }

    /// One round over the streams; whether anything moved.
    fn turn(&mut self, events: &mut Vec<Event>) -> Result<bool, TransferError> {
        let mut moved = false;
        for at in 0..self.streams.len() {
            if !self.flushes.is_empty() {
                moved |= self.streams[at].receive()?;
            }
            while self.streams[at].send()? && self.fill(at, events) {
                moved = true;
                if !self.streams[at].send()? {
                    break;
                }
            }
        }
        let acked = self.streams.iter().map(|stream| stream.acked).min().unwrap_or(0);
        while let Some(&(_, id)) = self.flushes.front().filter(|(number, _)| *number <= acked) {
            self.flushes.pop_front();
            events.push(Event::Flush { id, result: Ok(()) });
        }
        Ok(moved)
    }

    /// Sleeps until a socket can do what it is wanted for.
    fn wait(&self, limit: Duration) -> Result<(), TransferError> {
        let mut fds: Vec<_> = self
            .streams
            .iter()
            .map(|stream| {
                let out = if stream.has_to_send() { PollFlags::OUT } else { PollFlags::empty() };
                PollFd::new(&stream.socket, PollFlags::IN | out)
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
        for _ in 0..FRAMES_A_TURN {
            if !self.turn(events)? {
                break;
            }
        }
        if events.is_empty() && self.outstanding() > 0 {
            self.wait(wait)?;
            self.turn(events)?;
        }
        Ok(())
    }

    fn outstanding(&self) -> usize {
        self.queue.len() + self.flushes.len()
    }

    fn close(self: Box<Self>) -> Vec<Event> {
        let Self { queue, streams, flushes, .. } = *self;
        for stream in streams {
            // An error means that the connection is gone already.
            let _ = stream.socket.shutdown(Shutdown::Both);
        }
        let closed = || Err(TransferError::Closed);
        let mut events: Vec<_> =
            flushes.into_iter().map(|(_, id)| Event::Flush { id, result: closed() }).collect();
        events.extend(queue.close());
        events
    }
}
