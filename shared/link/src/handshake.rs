//! Runs the handshake over a stream, from either end.

use crate::connection::{LinkError, Timing};
use crate::identity;
use shared::wire::codec;
use shared::wire::frame::{FrameKey, FrameKind, HEADER_BYTES, Header, seal};
use shared::wire::handshake::{
    Capacity, HANDSHAKE_BYTES_MAX, Hello, Identity, Layout, Refuse, RingKey, Role, SessionKeys,
    Welcome, layout_mismatch,
};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What one end brings to every handshake.
#[derive(Clone, Debug)]
pub struct Local {
    /// Who we are.
    pub identity: Identity,
    /// The ring's key.
    pub key: RingKey,
    /// What we serve; a gateway has none.
    pub layout: Option<Layout>,
    /// Deadlines.
    pub timing: Timing,
}

/// An authenticated connection that has not spoken yet.
#[derive(Debug)]
pub struct Session {
    pub(crate) stream: TcpStream,
    pub(crate) keys: SessionKeys,
    pub(crate) initiator: bool,
    pub(crate) timing: Timing,
    /// Who the peer is.
    pub peer: Identity,
    /// What the peer serves; absent for a gateway.
    pub layout: Option<Layout>,
    /// How much of it; known of acceptors only.
    pub capacity: Option<Capacity>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer sent something else, or has another ring key.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// The peer hung up on our first words, as one does that holds another ring key.
    #[error("the peer hung up on our hello: another ring key, most likely; its log says why")]
    HungUp,
    /// The peer turned us down.
    #[error("the peer refused to join: {0}")]
    Refused(String),
    /// We turned the peer down.
    #[error("refused {peer}: {reason}")]
    Refusing {
        /// Its name.
        peer: String,
        /// What was sent to it.
        reason: String,
    },
    /// It took longer than the handshake deadline.
    #[error("no handshake within {0:?}")]
    Deadline(std::time::Duration),
}

/// Connects to `address` and joins as the initiator; `want` is the role expected there.
///
/// # Errors
/// [`HandshakeError`]; the stream is closed. Not cancel safe: start over.
pub async fn dial(address: &str, want: Role, local: &Local) -> Result<Session, HandshakeError> {
    deadline(local.timing, async {
        let stream = TcpStream::connect(address).await?;
        let session = initiate(stream, local).await?;
        if session.peer.role == want {
            return Ok(session);
        }
        let reason = format!("a {} server answers at {address}, want {want}", session.peer.role);
        Err(HandshakeError::Refusing { peer: session.peer.id.to_string(), reason })
    })
    .await
}

/// Joins as the acceptor on a fresh stream. Roles in `from` may join; of those with a layout, only
/// the ones whose layout equals ours.
///
/// # Errors
/// [`HandshakeError`]; the peer was told why if it holds the ring key. Not cancel safe.
pub async fn answer(
    stream: TcpStream,
    local: &Local,
    layout: Layout,
    capacity: Capacity,
    from: &[Role],
) -> Result<Session, HandshakeError> {
    deadline(local.timing, accept(stream, local, layout, capacity, from)).await
}

async fn deadline<T>(
    timing: Timing,
    run: impl Future<Output = Result<T, HandshakeError>>,
) -> Result<T, HandshakeError> {
    tokio::time::timeout(timing.handshake, run)
        .await
        .unwrap_or(Err(HandshakeError::Deadline(timing.handshake)))
}

async fn initiate(mut stream: TcpStream, local: &Local) -> Result<Session, HandshakeError> {
    stream.set_nodelay(true)?;
    let nonce = identity::nonce()?;
    let hello = Hello { nonce, from: local.identity.clone(), layout: local.layout };
    let hello = codec::encode(&hello).map_err(LinkError::from)?;
    write(&mut stream, FrameKind::Hello, &local.key.hello_key(), &hello).await?;
    let answered = read(&mut stream, &local.key.welcome_key(&hello), 0).await;
    let (kind, welcome) = answered.map_err(hung_up)?;
    if kind == FrameKind::Refuse {
        let refuse: Refuse = codec::decode(&welcome).map_err(LinkError::from)?;
        return Err(HandshakeError::Refused(refuse.reason));
    }
    expect(FrameKind::Welcome, kind)?;
    let keys = local.key.session_keys(&hello, &welcome);
    let welcome: Welcome = codec::decode(&welcome).map_err(LinkError::from)?;
    if let Some(why) = welcome.layout.geometry.invalid() {
        return Err(LinkError::Protocol(why.to_string()).into());
    }
    write(&mut stream, FrameKind::Confirm, &keys.initiator, &[]).await?;
    Ok(Session {
        stream,
        keys,
        initiator: true,
        timing: local.timing,
        peer: welcome.from,
        layout: Some(welcome.layout),
        capacity: Some(welcome.capacity),
    })
}

/// A stranger gets no answer: the connection just ends.
fn hung_up(error: HandshakeError) -> HandshakeError {
    use io::ErrorKind::{ConnectionReset, UnexpectedEof};
    match error {
        HandshakeError::Io(error) if matches!(error.kind(), UnexpectedEof | ConnectionReset) => {
            HandshakeError::HungUp
        }
        other => other,
    }
}

async fn accept(
    mut stream: TcpStream,
    local: &Local,
    layout: Layout,
    capacity: Capacity,
    from: &[Role],
) -> Result<Session, HandshakeError> {
    stream.set_nodelay(true)?;
    let (kind, hello_bytes) = read(&mut stream, &local.key.hello_key(), 0).await?;
    expect(FrameKind::Hello, kind)?;
    let hello: Hello = codec::decode(&hello_bytes).map_err(LinkError::from)?;
    let welcome_key = local.key.welcome_key(&hello_bytes);
    if let Some(reason) = unwelcome(&hello, local, &layout, from) {
        let refuse = codec::encode(&Refuse { reason: reason.clone() }).map_err(LinkError::from)?;
        write(&mut stream, FrameKind::Refuse, &welcome_key, &refuse).await?;
        return Err(HandshakeError::Refusing { peer: hello.from.id.to_string(), reason });
    }
    let nonce = identity::nonce()?;
    let welcome = Welcome { nonce, from: local.identity.clone(), layout, capacity };
    let welcome = codec::encode(&welcome).map_err(LinkError::from)?;
    write(&mut stream, FrameKind::Welcome, &welcome_key, &welcome).await?;
    let keys = local.key.session_keys(&hello_bytes, &welcome);
    let (kind, _) = read(&mut stream, &keys.initiator, 0).await?;
    expect(FrameKind::Confirm, kind)?;
    Ok(Session {
        stream,
        keys,
        initiator: false,
        timing: local.timing,
        peer: hello.from,
        layout: hello.layout,
        capacity: None,
    })
}

fn unwelcome(hello: &Hello, local: &Local, layout: &Layout, from: &[Role]) -> Option<String> {
    if !from.contains(&hello.from.role) {
        return Some(format!("a {} does not take a {}", local.identity.role, hello.from.role));
    }
    match &hello.layout {
        Some(theirs) => layout_mismatch(layout, theirs),
        None if hello.from.role == Role::Gateway => None,
        None => Some(format!("a {} must say what it serves", hello.from.role)),
    }
}

fn expect(want: FrameKind, got: FrameKind) -> Result<(), LinkError> {
    if want == got { Ok(()) } else { Err(LinkError::Unexpected { want, got }) }
}

async fn write(
    stream: &mut TcpStream,
    kind: FrameKind,
    key: &FrameKey,
    payload: &[u8],
) -> io::Result<()> {
    stream.write_all(&seal(kind, 0, key, payload)).await
}

async fn read(
    stream: &mut TcpStream,
    key: &FrameKey,
    counter: u64,
) -> Result<(FrameKind, Vec<u8>), HandshakeError> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let header = Header::parse(header, HANDSHAKE_BYTES_MAX, counter).map_err(LinkError::from)?;
    let mut payload = vec![0; header.length()];
    stream.read_exact(&mut payload).await?;
    header.verify(key, &payload).map_err(LinkError::from)?;
    Ok((header.kind(), payload))
}
