//! The receiving half: lets writers into the pool and proves their end.
//!
//! Life of a session:
//! 1. offered: has a probe slot;
//! 2. confirmed: the writer's process is watched;
//! 3. revoked: the slot goes back; the writer's process, if it was confirmed, is handed to the
//!    caller, who keeps the pages in quarantine until it has ended.

use super::{SLOT_BYTES, SLOTS, check_pages, refused, unavailable};
use crate::host::{BOOT_ID_BYTES, ProcessName, boot_id};
use crate::offer::{Head, Reader, Writer, same_secret};
use crate::sessions::{Probe, Sessions};
use crate::{Kind, Offer, Proof, SessionId, Target, TransferError, WriterProcess};
use kernels::cuda::PagePool;
use kernels::cuda::ipc::HANDLE_BYTES;
use kernels::cuda::stream::Stream;
use shared::kv::KvGeometry;
use std::sync::Arc;

/// What an offer says.
pub(super) struct Terms {
    pub(super) head: Head,
    pub(super) boot_id: [u8; BOOT_ID_BYTES],
    /// The GPU that the pool is on.
    pub(super) uuid: [u8; 16],
    pub(super) handle: [u8; HANDLE_BYTES],
    /// The probe slot, below [`SLOTS`].
    pub(super) slot: u32,
    pub(super) nonce: u64,
}

impl Terms {
    pub(super) fn read(offer: &[u8]) -> Result<Self, TransferError> {
        let mut reader = Reader(offer);
        let terms = Self {
            head: Head::read(&mut reader, Kind::CudaIpc)?,
            boot_id: reader.array("offer.boot_id")?,
            uuid: reader.array("offer.uuid")?,
            handle: reader.array("offer.handle")?,
            slot: reader.u32("offer.slot")?,
            nonce: reader.u64("offer.nonce")?,
        };
        reader.end()?;
        if terms.slot as usize >= SLOTS {
            return Err(TransferError::malformed("offer.slot", &terms.slot, "0 to 255"));
        }
        Ok(terms)
    }

    fn write(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        self.head.write(&mut writer);
        writer.raw(&self.boot_id).raw(&self.uuid).raw(&self.handle);
        writer.u32(self.slot).u64(self.nonce);
        writer.0
    }
}

/// A pool in device memory that peers on this host may store into.
pub struct CudaIpcTarget {
    pool: Arc<PagePool>,
    /// For probes, beside the forward pass.
    stream: Stream,
    geometry: KvGeometry,
    handle: [u8; HANDLE_BYTES],
    uuid: [u8; 16],
    boot_id: [u8; BOOT_ID_BYTES],
    sessions: Sessions<()>,
}

impl CudaIpcTarget {
    /// A target over `pool`.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] if the pool has other pages than `geometry` or the driver
    /// cannot export it.
    pub fn new(pool: &Arc<PagePool>, geometry: KvGeometry) -> Result<Self, TransferError> {
        check_pages(pool, &geometry)?;
        let device = pool.device();
        Ok(Self {
            stream: Stream::new(device).map_err(unavailable)?,
            geometry,
            handle: pool.export().map_err(unavailable)?,
            uuid: device.uuid().map_err(unavailable)?,
            boot_id: boot_id(Kind::CudaIpc)?,
            sessions: Sessions::new(Kind::CudaIpc, SLOTS),
            pool: Arc::clone(pool),
        })
    }

    /// The writer, if its reply is what it left in its slot.
    fn check_reply(&self, probe: Probe, reply: &[u8]) -> Result<WriterProcess, TransferError> {
        let mut reader = Reader(reply);
        let process = ProcessName::read(&mut reader)?;
        let uuid = reader.array("reply.uuid")?;
        let mut expected = [0; SLOT_BYTES];
        expected[..8].copy_from_slice(&probe.nonce.to_le_bytes());
        expected[8..].copy_from_slice(&reader.array::<8>("reply.answer")?);
        reader.end()?;
        let mut found = [0; SLOT_BYTES];
        let at = probe.slot * SLOT_BYTES;
        self.pool.read_margin(&self.stream, at, &mut found).map_err(unavailable)?;
        if same_secret(&found, &expected) {
            WriterProcess::watch_on_gpu(process, uuid)
        } else {
            Err(refused("the writer's probe did not arrive in this pool"))
        }
    }
}

impl Target for CudaIpcTarget {
    fn kind(&self) -> Kind {
        Kind::CudaIpc
    }

    fn accept(&self) -> Result<Offer, TransferError> {
        let (session, Probe { slot, nonce }) = self.sessions.open(())?;
        let at = slot * SLOT_BYTES;
        if let Err(error) = self.pool.write_margin(&self.stream, at, &[0; SLOT_BYTES]) {
            self.sessions.end(session);
            return Err(unavailable(error));
        }
        let terms = Terms {
            head: Head {
                kind: Kind::CudaIpc,
                session,
                geometry: self.geometry,
                pages: self.pool.pages(),
            },
            boot_id: self.boot_id,
            uuid: self.uuid,
            handle: self.handle,
            slot: slot as u32,
            nonce,
        };
        Ok(Offer { session, bytes: terms.write() })
    }

    fn confirm(&self, session: SessionId, reply: &[u8]) -> Result<(), TransferError> {
        self.sessions.confirm(session, |probe| self.check_reply(probe, reply))
    }

    fn revoke(&self, session: SessionId) -> Proof {
        self.sessions.end(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::kv::KvDtype;

    #[test]
    fn an_offer_comes_back_and_every_cut_is_refused() {
        let geometry = KvGeometry {
            layers: 2,
            kv_heads: 2,
            head_dim: 8,
            page_tokens: 4,
            dtype: KvDtype::Bf16,
        };
        let head = Head { kind: Kind::CudaIpc, session: SessionId::new(3), geometry, pages: 9 };
        let (boot_id, uuid, handle) = ([1; BOOT_ID_BYTES], [2; 16], [3; HANDLE_BYTES]);
        let terms = Terms { head, boot_id, uuid, handle, slot: 255, nonce: 77 };
        let bytes = terms.write();
        let read = Terms::read(&bytes).unwrap();
        assert_eq!((read.head, read.slot, read.nonce), (head, 255, 77));
        assert_eq!((read.boot_id, read.uuid, read.handle), (boot_id, uuid, handle));
        for cut in 0..bytes.len() {
            assert!(Terms::read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let beyond = Terms { slot: 256, ..read }.write();
        let error = Terms::read(&beyond).map(drop).unwrap_err().to_string();
        assert!(error.contains("offer.slot") && error.contains("256"), "{error}");
    }
}
