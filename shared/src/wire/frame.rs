//! Frames: a fixed little-endian header, then the payload.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `TNDM` |
//! | 4 | 2 | version of the wire |
//! | 6 | 2 | kind: which arrow or handshake step the payload belongs to |
//! | 8 | 4 | payload length |
//! | 12 | 4 | reserved, zero |
//! | 16 | 8 | counter: frames sent before this one in this direction |
//! | 24 | 16 | MAC: keyed blake3 of the header (MAC zeroed) and the payload, truncated |
//!
//! The MAC is both the checksum and the proof of origin; the counter makes a replayed or dropped
//! frame visible. Lengths are checked before anything is allocated.

use std::fmt;

/// Version of the wire; both ends must speak the same.
pub const WIRE_VERSION: u16 = 7;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 40;

const MAGIC: [u8; 4] = *b"TNDM";
const COUNTER_AT: usize = 16;
const MAC_AT: usize = 24;
const MAC_BYTES: usize = 16;
const _: () = assert!(MAC_AT == COUNTER_AT + 8 && HEADER_BYTES == MAC_AT + MAC_BYTES);

/// What a payload is. The number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameKind {
    /// First frame of a connection, by the initiator.
    Hello = 1,
    /// The acceptor's answer.
    Welcome = 2,
    /// The initiator's proof that it holds the session key; empty payload.
    Confirm = 3,
    /// The acceptor's refusal, with the reason.
    Refuse = 4,
    /// Nothing to say, still alive; empty payload.
    Heartbeat = 5,
    /// Gateway to decode.
    GatewayToDecode = 16,
    /// Decode to gateway.
    DecodeToGateway = 17,
    /// Gateway to prefill.
    GatewayToPrefill = 18,
    /// Prefill to gateway.
    PrefillToGateway = 19,
    /// Prefill to decode.
    PrefillToDecode = 20,
    /// Decode to prefill.
    DecodeToPrefill = 21,
}

impl FrameKind {
    const ALL: [Self; 11] = [
        Self::Hello,
        Self::Welcome,
        Self::Confirm,
        Self::Refuse,
        Self::Heartbeat,
        Self::GatewayToDecode,
        Self::DecodeToGateway,
        Self::GatewayToPrefill,
        Self::PrefillToGateway,
        Self::PrefillToDecode,
        Self::DecodeToPrefill,
    ];

    fn from_wire(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == raw)
    }
}

/// A 256-bit key for one direction of a session (or for a handshake step).
#[derive(Clone, PartialEq, Eq)]
pub struct FrameKey([u8; 32]);

impl FrameKey {
    /// Wraps key bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn mac(&self, header: &[u8; HEADER_BYTES], payload: &[u8]) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&header[..MAC_AT]).update(payload);
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&hasher.finalize().as_bytes()[..MAC_BYTES]);
        mac
    }
}

impl fmt::Debug for FrameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameKey(…)")
    }
}

/// Why received bytes are not the expected frame. Any of these ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol.
    #[error("first bytes {0:02x?} are not a Tandem frame")]
    Magic([u8; 4]),
    /// Another version of it.
    #[error("peer speaks wire version {peer}, we speak {WIRE_VERSION}: upgrade the older side")]
    Version {
        /// What the peer speaks.
        peer: u16,
    },
    /// A kind that this version does not know.
    #[error("unknown frame kind {0}")]
    Kind(u16),
    /// Reserved bytes that are not zero.
    #[error("reserved header bytes hold {0:#x}, want 0")]
    Reserved(u32),
    /// Longer than the receiver allows.
    #[error("payload of {length} bytes, at most {limit} allowed")]
    Length {
        /// What the header says.
        length: u32,
        /// What the receiver accepts.
        limit: u32,
    },
    /// Lost, repeated or reordered.
    #[error("frame number {got}, expected {want}")]
    Counter {
        /// Counter in the header.
        got: u64,
        /// Counter due.
        want: u64,
    },
    /// Damaged, or made without the key.
    #[error("frame MAC does not match: the ring keys differ, or the bytes were damaged")]
    Mac,
}

/// A header that passed every check that needs no payload.
#[derive(Clone, Debug)]
pub struct Header {
    bytes: [u8; HEADER_BYTES],
    kind: FrameKind,
    length: u32,
}

impl Header {
    /// Checks everything but the MAC.
    ///
    /// # Errors
    /// [`FrameError`] naming the field that does not fit.
    pub fn parse(bytes: [u8; HEADER_BYTES], limit: u32, want: u64) -> Result<Self, FrameError> {
        let magic = field(&bytes, 0);
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let peer = u16::from_le_bytes(field(&bytes, 4));
        if peer != WIRE_VERSION {
            return Err(FrameError::Version { peer });
        }
        let raw_kind = u16::from_le_bytes(field(&bytes, 6));
        let kind = FrameKind::from_wire(raw_kind).ok_or(FrameError::Kind(raw_kind))?;
        let length = u32::from_le_bytes(field(&bytes, 8));
        if length > limit {
            return Err(FrameError::Length { length, limit });
        }
        let reserved = u32::from_le_bytes(field(&bytes, 12));
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let got = u64::from_le_bytes(field(&bytes, COUNTER_AT));
        if got != want {
            return Err(FrameError::Counter { got, want });
        }
        Ok(Self { bytes, kind, length })
    }

    /// What the payload is.
    pub fn kind(&self) -> FrameKind {
        self.kind
    }
    /// Bytes of payload that follow the header.
    pub fn length(&self) -> usize {
        self.length as usize
    }

    /// Checks the MAC over header and payload, in constant time.
    ///
    /// # Errors
    /// [`FrameError::Mac`].
    pub fn verify(&self, key: &FrameKey, payload: &[u8]) -> Result<(), FrameError> {
        let widen = |mac: [u8; MAC_BYTES]| {
            let mut wide = [0; 32];
            wide[..MAC_BYTES].copy_from_slice(&mac);
            blake3::Hash::from_bytes(wide) // its equality is constant-time
        };
        let (want, got) = (key.mac(&self.bytes, payload), field(&self.bytes, MAC_AT));
        if widen(want) == widen(got) { Ok(()) } else { Err(FrameError::Mac) }
    }
}

/// A whole frame, ready to send.
pub fn seal(kind: FrameKind, counter: u64, key: &FrameKey, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    begin(&mut frame);
    frame.extend_from_slice(payload);
    finish(kind, counter, key, &mut frame);
    frame
}

/// Makes `frame` one whose payload is to be appended.
pub fn begin(frame: &mut Vec<u8>) {
    frame.clear();
    frame.resize(HEADER_BYTES, 0);
}

/// Makes a frame that was [begun](begin), and has its payload, ready to send.
///
/// # Panics
/// If it was not begun.
pub fn finish(kind: FrameKind, counter: u64, key: &FrameKey, frame: &mut [u8]) {
    let (head, payload) = frame.split_at_mut(HEADER_BYTES);
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&WIRE_VERSION.to_le_bytes());
    header[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
    header[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[COUNTER_AT..MAC_AT].copy_from_slice(&counter.to_le_bytes());
    let mac = key.mac(&header, payload);
    header[MAC_AT..].copy_from_slice(&mac);
    head.copy_from_slice(&header);
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: FrameKey = FrameKey::new([7; 32]);

    fn open(frame: &[u8], counter: u64) -> Result<(FrameKind, Vec<u8>), FrameError> {
        let header = Header::parse(frame[..HEADER_BYTES].try_into().unwrap(), 1024, counter)?;
        header.verify(&KEY, &frame[HEADER_BYTES..])?;
        Ok((header.kind(), frame[HEADER_BYTES..].to_vec()))
    }

    #[test]
    fn a_sealed_frame_opens_with_its_key_and_counter_only() {
        let frame = seal(FrameKind::GatewayToDecode, 3, &KEY, b"payload");
        assert_eq!(open(&frame, 3), Ok((FrameKind::GatewayToDecode, b"payload".to_vec())));
        assert_eq!(open(&frame, 4), Err(FrameError::Counter { got: 3, want: 4 }));
        let other = FrameKey::new([8; 32]);
        let header = Header::parse(frame[..HEADER_BYTES].try_into().unwrap(), 1024, 3).unwrap();
        assert_eq!(header.verify(&other, b"payload"), Err(FrameError::Mac));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let frame = seal(FrameKind::Heartbeat, 0, &KEY, b"x");
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&bad, 0).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn golden_bytes() {
        let golden = include_bytes!("../../../tests/golden/wire/heartbeat.bin");
        assert_eq!(seal(FrameKind::Heartbeat, 5, &KEY, b""), golden, "bump WIRE_VERSION");
    }
}
