//! A session at work: a typed sender and receiver, heartbeats, and deadlines.

use crate::handshake::Session;
use bytes::{Buf, BytesMut};
use shared::wire::codec::{self, CodecError, MESSAGE_BYTES_MAX};
use shared::wire::frame::{self, FrameError, FrameKey, FrameKind, HEADER_BYTES, Header};
use shared::wire::messages::Message;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

/// Bytes that either half of a connection keeps for its frames.
const BUFFER: usize = 16 << 10;

/// Deadlines of control connections.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For the whole handshake, connecting included.
    pub handshake: Duration,
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// A peer that sends nothing for this long, or takes nothing, is lost.
    pub silence: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(2),
            heartbeat: Duration::from_millis(200),
            silence: Duration::from_millis(1500),
        }
    }
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// No frame, not even a heartbeat.
    #[error("the peer was silent for {0:?}")]
    Silent(Duration),
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// Bytes that are no frame of this session.
    #[error("frame: {0}")]
    Frame(#[from] FrameError),
    /// A payload that is no message.
    #[error("message: {0}")]
    Codec(#[from] CodecError),
    /// A frame that does not belong on this arrow.
    #[error("a {got:?} frame where {want:?} belongs")]
    Unexpected {
        /// What belongs here.
        want: FrameKind,
        /// What came.
        got: FrameKind,
    },
    /// A message that breaks the protocol.
    #[error("protocol: {0}")]
    Protocol(String),
}

/// A message could not be queued; it is handed back.
#[derive(Debug, PartialEq, Eq)]
pub enum SendError<M> {
    /// The queue is full now.
    Full(M),
    /// The link has ended.
    Closed(M),
}

/// The sending half. Clones share one queue; dropping all of them closes the connection once the
/// queue is written.
#[derive(Debug)]
pub struct Sender<M> {
    queue: mpsc::Sender<M>,
    /// Messages queued and not in the socket yet.
    unwritten: Arc<AtomicUsize>,
}

impl<M> Clone for Sender<M> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), unwritten: Arc::clone(&self.unwritten) }
    }
}

impl<M: Message> Sender<M> {
    /// Queues without waiting.
    ///
    /// # Errors
    /// [`SendError`] with the message.
    pub fn try_send(&self, message: M) -> Result<(), SendError<M>> {
        match self.queue.try_reserve() {
            Ok(place) => {
                self.unwritten.fetch_add(1, Ordering::AcqRel);
                place.send(message);
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(())) => Err(SendError::Full(message)),
            Err(mpsc::error::TrySendError::Closed(())) => Err(SendError::Closed(message)),
        }
    }

    /// Queues, waiting for room. Cancel safe: the message is queued or not.
    ///
    /// # Errors
    /// The message, if the link has ended.
    pub async fn send(&self, message: M) -> Result<(), M> {
        let Ok(place) = self.queue.reserve().await else { return Err(message) };
        self.unwritten.fetch_add(1, Ordering::AcqRel);
        place.send(message);
        Ok(())
    }

    /// Whether all that was queued is in the socket: from here on it arrives even if this process
    /// ends. Also true of a link that has ended, which writes no more.
    pub fn is_written(&self) -> bool {
        self.queue.is_closed() || self.unwritten.load(Ordering::Acquire) == 0
    }

    /// Whether the link has ended.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Returns once the link has ended. Cancel safe.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }
}

/// The receiving half. Dropping it ends the link.
#[derive(Debug)]
pub struct Receiver<M> {
    stream: OwnedReadHalf,
    key: FrameKey,
    counter: u64,
    buffer: BytesMut,
    heard: Instant,
    silence: Duration,
    _stop: oneshot::Sender<()>,
    message: PhantomData<fn() -> M>,
}

impl Session {
    /// Puts the session to work; `queue` bounds the messages waiting to be written.
    pub fn start<Out: Message, In: Message>(self, queue: usize) -> (Sender<Out>, Receiver<In>) {
        let (read, write) = self.stream.into_split();
        let (ours, theirs, counter) = if self.initiator {
            (self.keys.initiator, self.keys.acceptor, (1, 0)) // Confirm was frame 0
        } else {
            (self.keys.acceptor, self.keys.initiator, (0, 1))
        };
        let (sender, waiting) = mpsc::channel(queue);
        let (stop, stopped) = oneshot::channel();
        let unwritten = Arc::<AtomicUsize>::default();
        let writer = Writer {
            stream: write,
            key: ours,
            counter: counter.0,
            timing: self.timing,
            unwritten: Arc::clone(&unwritten),
            frame: Vec::new(),
        };
        tokio::spawn(writer.run(waiting, stopped));
        let receiver = Receiver {
            stream: read,
            key: theirs,
            counter: counter.1,
            buffer: BytesMut::with_capacity(BUFFER),
            heard: Instant::now(),
            silence: self.timing.silence,
            _stop: stop,
            message: PhantomData,
        };
        (Sender { queue: sender, unwritten }, receiver)
    }
}

impl<M: Message> Receiver<M> {
    /// The next message. Cancel safe: bytes read so far are kept.
    ///
    /// Silence is counted only while this waits, so a slow reader does not condemn its peer.
    ///
    /// # Errors
    /// [`LinkError`]; the link is over.
    pub async fn recv(&mut self) -> Result<M, LinkError> {
        self.heard = Instant::now();
        loop {
            if let Some((kind, payload)) = self.frame()? {
                match kind {
                    FrameKind::Heartbeat => continue,
                    kind if kind == M::KIND => return Ok(codec::decode(&payload)?),
                    got => return Err(LinkError::Unexpected { want: M::KIND, got }),
                }
            }
            let read =
                timeout_at(self.heard + self.silence, self.stream.read_buf(&mut self.buffer));
            match read.await {
                Err(_) => return Err(LinkError::Silent(self.silence)),
                Ok(read) => match read? {
                    0 => return Err(LinkError::Closed),
                    _ => self.heard = Instant::now(),
                },
            }
        }
    }

    fn frame(&mut self) -> Result<Option<(FrameKind, BytesMut)>, LinkError> {
        let Some(head) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = Header::parse(*head, MESSAGE_BYTES_MAX as u32, self.counter)?;
        let whole = HEADER_BYTES + header.length();
        if self.buffer.len() < whole {
            self.buffer.reserve(whole - self.buffer.len());
            return Ok(None);
        }
        let mut payload = self.buffer.split_to(whole);
        payload.advance(HEADER_BYTES);
        header.verify(&self.key, &payload)?;
        self.counter += 1;
        Ok(Some((header.kind(), payload)))
    }
}

struct Writer {
    stream: OwnedWriteHalf,
    key: FrameKey,
    counter: u64,
    timing: Timing,
    unwritten: Arc<AtomicUsize>,
    /// The one that is written now.
    frame: Vec<u8>,
}

impl Writer {
    /// Ends when the receiver is gone, all senders are gone, or the peer takes nothing; the queue's
    /// end is then visible to senders as closed.
    async fn run<M: Message>(
        mut self,
        mut queue: mpsc::Receiver<M>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let mut beat = interval(self.timing.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let sent = tokio::select! {
                biased;
                _ = &mut stopped => break,
                message = queue.recv() => match message {
                    Some(message) => self.message(&message).await,
                    None => break,
                },
                _ = beat.tick() => {
                    frame::begin(&mut self.frame);
                    self.frame(FrameKind::Heartbeat).await
                }
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "link writer ends");
                break;
            }
        }
        let _ = timeout(self.timing.silence, self.stream.shutdown()).await;
    }

    async fn message<M: Message>(&mut self, message: &M) -> Result<(), LinkError> {
        frame::begin(&mut self.frame);
        codec::encode_into(message, &mut self.frame)?;
        self.frame(M::KIND).await?;
        self.unwritten.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }

    /// Writes the frame that has its payload.
    async fn frame(&mut self, kind: FrameKind) -> Result<(), LinkError> {
        frame::finish(kind, self.counter, &self.key, &mut self.frame);
        self.counter += 1;
        timeout(self.timing.silence, self.stream.write_all(&self.frame))
            .await
            .map_err(|_| LinkError::Silent(self.timing.silence))??;
        if self.frame.capacity() > BUFFER {
            self.frame = Vec::new(); // a long prompt's memory is not kept for short ones
        }
        Ok(())
    }
}
