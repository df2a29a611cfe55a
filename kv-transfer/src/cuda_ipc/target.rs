//! The receiving half: lets writers into the pool and proves their end.
//!
//! Life of a session:
//! 1. offered: has a probe slot;
//! 2. confirmed: the writer's process is watched;
//! 3. revoked: the slot goes back; the writer's process, if it was confirmed, is handed to the
//!    caller, who keeps the pages in quarantine until it has ended.

use super::{SLOT_BYTES, SLOTS, check_pages, refused, unavailable};
use crate::host::{BOOT_ID_BYTES, ProcessName, boot_id};
use crate::offer::{Head, Reader, Writer, random, same_secret};
use crate::{Kind, Offer, Proof, SessionId, Target, TransferError, WriterProcess};
use kernels::cuda::PagePool;
use kernels::cuda::ipc::HANDLE_BYTES;
use kernels::cuda::stream::Stream;
use shared::kv::KvGeometry;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    sessions: Mutex<Sessions>,
}

struct Sessions {
    last: u64,
    open: HashMap<SessionId, Session>,
    free_slots: Vec<u32>,
}

struct Session {
    slot: u32,
    nonce: u64,
    writer: Option<WriterProcess>,
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
        let free_slots = (0..SLOTS as u32).rev().collect();
        Ok(Self {
            stream: Stream::new(device).map_err(unavailable)?,
            geometry,
            handle: pool.export().map_err(unavailable)?,
            uuid: device.uuid().map_err(unavailable)?,
            boot_id: boot_id(Kind::CudaIpc)?,
            sessions: Mutex::new(Sessions { last: 0, open: HashMap::new(), free_slots }),
            pool: Arc::clone(pool),
        })
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer, if its reply is what it left in its slot.
    fn check_reply(
        &self,
        slot: u32,
        nonce: u64,
        reply: &[u8],
    ) -> Result<WriterProcess, TransferError> {
        let mut reader = Reader(reply);
        let process = ProcessName::read(&mut reader)?;
        let uuid = reader.array("reply.uuid")?;
        let mut expected = [0; SLOT_BYTES];
        expected[..8].copy_from_slice(&nonce.to_le_bytes());
        expected[8..].copy_from_slice(&reader.array::<8>("reply.answer")?);
        reader.end()?;
        let mut found = [0; SLOT_BYTES];
        let at = slot as usize * SLOT_BYTES;
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
        let nonce = u64::from_le_bytes(random(Kind::CudaIpc)?);
        let mut sessions = self.sessions();
        let slot = sessions.free_slots.pop();
        let slot =
            slot.ok_or_else(|| unavailable(format!("{SLOTS} sessions are open, the most")))?;
        sessions.last += 1;
        let session = SessionId::new(sessions.last);
        sessions.open.insert(session, Session { slot, nonce, writer: None });
        let at = slot as usize * SLOT_BYTES;
        if let Err(error) = self.pool.write_margin(&self.stream, at, &[0; SLOT_BYTES]) {
            sessions.end(session);
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
            slot,
            nonce,
        };
        Ok(Offer { session, bytes: terms.write() })
    }

    fn confirm(&self, session: SessionId, reply: &[u8]) -> Result<(), TransferError> {
        let mut sessions = self.sessions();
        let entry = sessions.open.get_mut(&session);
        let entry = entry
            .ok_or_else(|| TransferError::malformed("session", &session, "an open session"))?;
        match self.check_reply(entry.slot, entry.nonce, reply) {
            Ok(writer) => {
                entry.writer = Some(writer);
                Ok(())
            }
            Err(error) => {
                sessions.end(session);
                Err(error)
            }
        }
    }

    fn revoke(&self, session: SessionId) -> Proof {
        let writer = self.sessions().end(session);
        writer.map_or(Proof::Immediate, Proof::ProcessEnd)
    }
}

impl Sessions {
    fn end(&mut self, session: SessionId) -> Option<WriterProcess> {
        let ended = self.open.remove(&session)?;
        self.free_slots.push(ended.slot);
        ended.writer
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
