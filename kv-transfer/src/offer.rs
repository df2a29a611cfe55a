//! Bytes of offers and replies: a fixed little-endian head, then the transport's own fields.
//!
//! Reading is bounds-checked and allocates nothing that the message does not itself contain, so
//! any bytes at all give a value or a [`TransferError::Malformed`].

use crate::plan::Pools;
use crate::{Kind, SessionId, TransferError};
use shared::kv::{KvDtype, KvGeometry};

/// "TKVO" and the version of this layout.
const MAGIC: u32 = u32::from_le_bytes(*b"TKVO");
const VERSION: u8 = 1;

/// Appends fixed little-endian fields.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }
    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }
    /// A length and that many bytes; at most 65,535.
    pub(crate) fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        let length = u16::try_from(bytes.len()).expect("offers hold addresses and keys, all short");
        self.0.extend(length.to_le_bytes());
        self.raw(bytes)
    }
    /// Words for a person, cut off where they grow long.
    pub(crate) fn text(&mut self, words: &str) -> &mut Self {
        self.blob(&words.as_bytes()[..words.len().min(500)])
    }
}

/// Takes fields off the front.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(
        &mut self,
        count: usize,
        field: &'static str,
    ) -> Result<&'a [u8], TransferError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| {
            let left = format!("cut off, {} bytes left", self.0.len());
            TransferError::malformed(field, &left, "a whole message")
        })?;
        self.0 = rest;
        Ok(taken)
    }
    pub(crate) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], TransferError> {
        let bytes = self.take(N, field)?;
        Ok(bytes.try_into().expect("take gives as many as asked"))
    }
    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, TransferError> {
        Ok(self.array::<1>(field)?[0])
    }
    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, TransferError> {
        self.array(field).map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, TransferError> {
        self.array(field).map(u64::from_le_bytes)
    }
    pub(crate) fn blob(&mut self, field: &'static str) -> Result<&'a [u8], TransferError> {
        let length = self.array(field).map(u16::from_le_bytes)?;
        self.take(usize::from(length), field)
    }
    pub(crate) fn end(&self) -> Result<(), TransferError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(TransferError::malformed("trailing bytes", &self.0.len(), "none"))
        }
    }
}

/// What every offer begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) session: SessionId,
    pub(crate) geometry: KvGeometry,
    pub(crate) pages: u32,
}

impl Head {
    pub(crate) fn write(&self, writer: &mut Writer) {
        let KvGeometry { layers, kv_heads, head_dim, page_tokens, dtype } = self.geometry;
        writer.u32(MAGIC).u8(VERSION).u8(self.kind.code()).u64(self.session.get());
        writer.u32(layers).u32(kv_heads).u32(head_dim).u32(page_tokens).u8(dtype_code(dtype));
        writer.u32(self.pages);
    }

    /// Reads the head of an offer of `kind`.
    pub(crate) fn read(reader: &mut Reader<'_>, kind: Kind) -> Result<Self, TransferError> {
        let magic = reader.u32("offer.magic")?;
        if magic != MAGIC {
            return Err(TransferError::malformed("offer.magic", &magic, "a transfer offer"));
        }
        let version = reader.u8("offer.version")?;
        if version != VERSION {
            return Err(TransferError::malformed("offer.version", &version, "1: same release"));
        }
        let code = reader.u8("offer.kind")?;
        if code != kind.code() {
            let want = "this transport's code";
            return Err(TransferError::malformed("offer.kind", &code, want));
        }
        let session = SessionId::new(reader.u64("offer.session")?);
        let geometry = KvGeometry {
            layers: reader.u32("offer.layers")?,
            kv_heads: reader.u32("offer.kv_heads")?,
            head_dim: reader.u32("offer.head_dim")?,
            page_tokens: reader.u32("offer.page_tokens")?,
            dtype: match reader.u8("offer.dtype")? {
                0 => KvDtype::F32,
                1 => KvDtype::Bf16,
                code => return Err(TransferError::malformed("offer.dtype", &code, "0 or 1")),
            },
        };
        if let Some(reason) = geometry.invalid() {
            return Err(TransferError::malformed("offer.geometry", reason, "a KV geometry"));
        }
        Ok(Self { kind, session, geometry, pages: reader.u32("offer.pages")? })
    }

    /// The pools of the pair, if both ends have the same shape of page.
    pub(crate) fn pair_with(
        &self,
        geometry: &KvGeometry,
        source_pages: u32,
    ) -> Result<Pools, TransferError> {
        if self.geometry == *geometry {
            let target_pages = self.pages;
            Ok(Pools { geometry: *geometry, source_pages, target_pages })
        } else {
            Err(TransferError::Refused {
                transport: self.kind.name(),
                reason: format!("pages differ: target {:?}, source {geometry:?}", self.geometry),
            })
        }
    }
}

const fn dtype_code(dtype: KvDtype) -> u8 {
    match dtype {
        KvDtype::F32 => 0,
        KvDtype::Bf16 => 1,
    }
}

/// Compares secrets without telling by time where they differ.
pub(crate) fn same_secret<const N: usize>(a: &[u8; N], b: &[u8; N]) -> bool {
    let differing = a.iter().zip(b).fold(0, |bits, (a, b)| std::hint::black_box(bits | (a ^ b)));
    differing == 0
}

/// `N` bytes from the system's random source.
pub(crate) fn random<const N: usize>(kind: Kind) -> Result<[u8; N], TransferError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| TransferError::Unavailable {
        transport: kind.name(),
        reason: format!("no random numbers from the system: {e}"),
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> Head {
        let geometry = KvGeometry {
            layers: 30,
            kv_heads: 3,
            head_dim: 64,
            page_tokens: 16,
            dtype: KvDtype::Bf16,
        };
        Head { kind: Kind::Tcp, session: SessionId::new(7), geometry, pages: 99 }
    }

    fn written(head: &Head) -> Vec<u8> {
        let mut writer = Writer::default();
        head.write(&mut writer);
        writer.0
    }

    #[test]
    fn a_head_comes_back_and_every_cut_is_refused() {
        let bytes = written(&head());
        let mut reader = Reader(&bytes);
        assert_eq!(Head::read(&mut reader, Kind::Tcp).unwrap(), head());
        reader.end().unwrap();
        for cut in 0..bytes.len() {
            let error = Head::read(&mut Reader(&bytes[..cut]), Kind::Tcp).unwrap_err();
            assert!(matches!(error, TransferError::Malformed { .. }), "{cut}: {error}");
        }
        assert!(Head::read(&mut Reader(&bytes), Kind::Ucx).is_err());
    }

    #[test]
    fn pages_of_another_shape_are_refused_with_both() {
        let other = KvGeometry { page_tokens: 32, ..head().geometry };
        let error = head().pair_with(&other, 5).unwrap_err().to_string();
        assert!(error.contains("page_tokens: 16") && error.contains("page_tokens: 32"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Head::read(&mut Reader(&bytes), Kind::Tcp);
            let mut flipped = written(&head());
            for (at, byte) in bytes.iter().enumerate().take(flipped.len()) {
                flipped[at] ^= byte;
            }
            if let Ok(read) = Head::read(&mut Reader(&flipped), Kind::Tcp) {
                prop_assert_eq!(written(&read), flipped);
            }
        }

        #[test]
        fn secrets_compare_as_arrays(a in any::<[u8; 4]>(), b in any::<[u8; 4]>()) {
            prop_assert_eq!(same_secret(&a, &b), a == b);
            prop_assert!(same_secret(&a, &a));
        }
    }
}
