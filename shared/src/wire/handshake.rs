//! The handshake that opens a session between two servers.
//!
//! 1. Initiator → [`Hello`] with a fresh nonce, under a key derived from the ring key.
//! 2. Acceptor → [`Welcome`] with its nonce, under a key derived from the ring key and the hash of
//!    that very Hello: it proves the ring key and that the answer is fresh. Or `Refuse`.
//! 3. Initiator → `Confirm`, the first frame under the session key, which is derived from the ring
//!    key and the hash of both messages: it proves that the Hello was no replay.
//!
//! Each direction has its own session key, so a frame cannot be reflected. The ring key never
//! crosses the wire. Who compares what: ids, roles and epochs are in the messages, hence in every
//! key; the layout is compared by the acceptor, which refuses with both values.

use super::frame::FrameKey;
use crate::ids::{Epoch, ServerId};
use crate::kv::KvGeometry;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Largest handshake message, bytes; nothing bigger is read before the peer is authenticated.
pub const HANDSHAKE_BYTES_MAX: u32 = 4096;

/// The pre-shared key of a ring.
#[derive(Clone)]
pub struct RingKey([u8; 32]);

impl RingKey {
    /// Wraps 32 random bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hex digits, as in a key file; surrounding white space is ignored.
    ///
    /// # Errors
    /// A sentence without the key in it.
    pub fn from_hex(text: &str) -> Result<Self, &'static str> {
        blake3::Hash::from_hex(text.trim())
            .map(|hash| Self(*hash.as_bytes()))
            .map_err(|_| "a ring key is 64 hex digits (make one: openssl rand -hex 32)")
    }

    fn derive(&self, context: &str, transcript: &[&[u8]]) -> FrameKey {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.0);
        for part in transcript {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        FrameKey::new(*hasher.finalize().as_bytes())
    }

    /// Key of the Hello frame.
    pub fn hello_key(&self) -> FrameKey {
        self.derive("tandem 2026 hello", &[])
    }
    /// Key of the Welcome or Refuse frame that answers `hello` (encoded).
    pub fn welcome_key(&self, hello: &[u8]) -> FrameKey {
        self.derive("tandem 2026 welcome", &[hello])
    }
    /// Keys of the session opened by `hello` and `welcome` (encoded).
    pub fn session_keys(&self, hello: &[u8], welcome: &[u8]) -> SessionKeys {
        SessionKeys {
            initiator: self.derive("tandem 2026 initiator", &[hello, welcome]),
            acceptor: self.derive("tandem 2026 acceptor", &[hello, welcome]),
        }
    }
}

impl fmt::Debug for RingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RingKey(…)")
    }
}

/// One key a direction.
#[derive(Clone, Debug)]
pub struct SessionKeys {
    /// Frames that the initiator sends.
    pub initiator: FrameKey,
    /// Frames that the acceptor sends.
    pub acceptor: FrameKey,
}

/// What a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Stands before the ring.
    Gateway,
    /// Computes prompts.
    Prefill,
    /// Makes tokens.
    Decode,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "gateway",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its role.
    pub role: Role,
    /// Its configured name.
    pub id: ServerId,
    /// This incarnation.
    pub epoch: Epoch,
}

/// What both ends of a handoff must agree on, and what a gateway needs to know of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Digest of architecture and weights.
    pub model: [u8; 32],
    /// Shape and element type of pages.
    pub geometry: KvGeometry,
    /// Tensor-parallel size; only 1 for now.
    pub tensor_parallel: u16,
}

/// A server's numbers that a gateway plans with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Pages in its pool.
    pub pages: u32,
    /// Longest sequence it accepts, tokens.
    pub context_length: u32,
    /// Vocabulary size.
    pub vocab: u32,
}

/// Opens a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Random.
    pub nonce: [u8; 16],
    /// The initiator.
    pub from: Identity,
    /// What it serves; a gateway has none.
    pub layout: Option<Layout>,
}

/// Accepts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Random.
    pub nonce: [u8; 16],
    /// The acceptor.
    pub from: Identity,
    /// What it serves.
    pub layout: Layout,
    /// How much of it.
    pub capacity: Capacity,
}

/// Turns it down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// Why, with both values where something differs.
    pub reason: String,
}

/// Why two layouts cannot exchange pages: the first field that differs, with both values.
pub fn layout_mismatch(ours: &Layout, theirs: &Layout) -> Option<String> {
    let hex = |digest: &[u8; 32]| blake3::Hash::from_bytes(*digest).to_hex()[..16].to_string();
    let differs = |name, a: String, b: String| {
        (a != b).then(|| format!("{name} differs: acceptor has {a}, initiator has {b}"))
    };
    differs("model digest", hex(&ours.model), hex(&theirs.model))
        .or_else(|| {
            let show = |g: &KvGeometry| format!("{g:?}");
            differs("page geometry", show(&ours.geometry), show(&theirs.geometry))
        })
        .or_else(|| {
            let show = |l: &Layout| l.tensor_parallel.to_string();
            differs("tensor-parallel size", show(ours), show(theirs))
        })
}
