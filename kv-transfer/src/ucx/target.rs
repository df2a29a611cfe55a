//! The receiving half: lets writers into the pool and proves their end.
//!
//! Life of a session:
//! 1. offered: has a probe slot and a worker that the writer connects to;
//! 2. confirmed: the writer's process is watched;
//! 3. revoked: worker and slot go back; the writer's process, if it was confirmed, is handed to
//!    the caller, who keeps the pages in quarantine until it has ended.

use super::context::Ucx;
use super::memory::{Region, SLOTS};
use super::source::check_fits;
use super::worker::Worker;
use super::{refused, unavailable};
use crate::host::{BOOT_ID_BYTES, boot_id};
use crate::offer::{Head, Reader, Writer, random};
use crate::proof::Mapping;
use crate::{Kind, Offer, Proof, SessionId, Target, TransferError, WriterProcess};
use shared::kv::KvGeometry;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What an offer says.
pub(super) struct Terms<'a> {
    pub(super) head: Head,
    pub(super) boot_id: [u8; BOOT_ID_BYTES],
    /// The pool's address at the target.
    pub(super) base: u64,
    /// The probe slot's address at the target.
    pub(super) slot: u64,
    pub(super) nonce: u64,
    pub(super) address: &'a [u8],
    pub(super) key: &'a [u8],
}

impl<'a> Terms<'a> {
    pub(super) fn read(offer: &'a [u8]) -> Result<Self, TransferError> {
        let mut reader = Reader(offer);
        let terms = Self {
            head: Head::read(&mut reader, Kind::Ucx)?,
            boot_id: reader.array("offer.boot_id")?,
            base: reader.u64("offer.base")?,
            slot: reader.u64("offer.slot")?,
            nonce: reader.u64("offer.nonce")?,
            address: reader.blob("offer.address")?,
            key: reader.blob("offer.key")?,
        };
        reader.end()?;
        Ok(terms)
    }

    fn write(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        self.head.write(&mut writer);
        writer.raw(&self.boot_id).u64(self.base).u64(self.slot).u64(self.nonce);
        writer.blob(self.address).blob(self.key);
        writer.0
    }
}

/// A pool in shared memory that peers on this host may store into.
pub struct UcxTarget {
    ucx: Ucx,
    region: Region,
    geometry: KvGeometry,
    pages: u32,
    key: Vec<u8>,
    boot_id: [u8; BOOT_ID_BYTES],
    mapping: Mapping,
    sessions: Mutex<Sessions>,
}

struct Sessions {
    last: u64,
    open: HashMap<SessionId, Session>,
    free_slots: Vec<usize>,
}

struct Session {
    slot: usize,
    nonce: u64,
    /// Never progressed: puts over shared memory need nothing of the target.
    #[expect(dead_code, reason = "the address in the offer is valid as long as this lives")]
    worker: Worker,
    writer: Option<WriterProcess>,
}

impl UcxTarget {
    /// A target over the pool that lies in `region`, pages in order of their ids.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] if the region is not shared memory or smaller than the pool.
    pub fn new(
        ucx: &Ucx,
        region: Region,
        geometry: KvGeometry,
        pages: u32,
    ) -> Result<Self, TransferError> {
        check_fits(&region, &geometry, pages)?;
        let key = region.remote_key()?;
        let key = key.ok_or_else(|| unavailable("the pool lies in ordinary memory"))?;
        let mapping = Mapping::of_own(region.base())
            .ok_or_else(|| unavailable("the pool's memory is not a shared mapping"))?;
        let free_slots = (0..SLOTS).rev().collect();
        let sessions = Mutex::new(Sessions { last: 0, open: HashMap::new(), free_slots });
        let boot_id = boot_id(Kind::Ucx)?;
        Ok(Self { ucx: ucx.clone(), region, geometry, pages, key, boot_id, mapping, sessions })
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_reply(&self, slot: usize, nonce: u64, reply: &[u8]) -> Result<u32, TransferError> {
        let mut reader = Reader(reply);
        let pid = reader.u32("reply.pid")?;
        let answer = reader.u64("reply.answer")?;
        reader.end()?;
        if self.region.read_slot(slot) == [nonce, answer] {
            Ok(pid)
        } else {
            Err(refused("the writer's probe did not arrive in this pool"))
        }
    }
}

impl Target for UcxTarget {
    fn kind(&self) -> Kind {
        Kind::Ucx
    }

    fn accept(&self) -> Result<Offer, TransferError> {
        let nonce = u64::from_le_bytes(random(Kind::Ucx)?);
        let mut worker = Worker::new(&self.ucx)?;
        let address = worker.address()?;
        let mut sessions = self.sessions();
        let slot = sessions.free_slots.pop();
        let slot =
            slot.ok_or_else(|| unavailable(format!("{SLOTS} sessions are open, the most")))?;
        self.region.clear_slot(slot);
        sessions.last += 1;
        let session = SessionId::new(sessions.last);
        sessions.open.insert(session, Session { slot, nonce, worker, writer: None });
        let terms = Terms {
            head: Head { kind: Kind::Ucx, session, geometry: self.geometry, pages: self.pages },
            boot_id: self.boot_id,
            base: self.region.base(),
            slot: self.region.slot_address(slot),
            nonce,
            address: &address,
            key: &self.key,
        };
        Ok(Offer { session, bytes: terms.write() })
    }

    fn confirm(&self, session: SessionId, reply: &[u8]) -> Result<(), TransferError> {
        let mut sessions = self.sessions();
        let entry = sessions.open.get(&session);
        let entry = entry
            .ok_or_else(|| TransferError::malformed("session", &session, "an open session"))?;
        let writer = self
            .check_reply(entry.slot, entry.nonce, reply)
            .and_then(|pid| WriterProcess::watch(pid, self.mapping.clone()));
        match writer {
            Ok(writer) => {
                sessions.open.entry(session).and_modify(|entry| entry.writer = Some(writer));
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
