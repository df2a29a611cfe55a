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
use crate::host::{BOOT_ID_BYTES, ProcessName, boot_id};
use crate::offer::{Head, Reader, Writer};
use crate::proof::Mapping;
use crate::sessions::{Probe, Sessions};
use crate::{Kind, Offer, Proof, SessionId, Target, TransferError, WriterProcess};
use shared::kv::KvGeometry;

/// The UUID of a pool's GPU that is on none.
pub(super) const NO_GPU: [u8; 16] = [0; 16];

/// What an offer says.
pub(super) struct Terms<'a> {
    pub(super) head: Head,
    pub(super) boot_id: [u8; BOOT_ID_BYTES],
    /// The GPU that the pool is on, or [`NO_GPU`].
    pub(super) uuid: [u8; 16],
    /// The pool's address at the target.
    pub(super) base: u64,
    /// The probe slot, below [`SLOTS`]: that it is reached shows that `base` is right.
    pub(super) slot: u32,
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
            uuid: reader.array("offer.uuid")?,
            base: reader.u64("offer.base")?,
            slot: reader.u32("offer.slot")?,
            nonce: reader.u64("offer.nonce")?,
            address: reader.blob("offer.address")?,
            key: reader.blob("offer.key")?,
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
        writer.raw(&self.boot_id).raw(&self.uuid).u64(self.base).u32(self.slot).u64(self.nonce);
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
    /// The GPU that the pool is on, or [`NO_GPU`].
    uuid: [u8; 16],
    /// The pool's memory, if the host has it.
    mapping: Option<Mapping>,
    /// Each with a worker that is never progressed: puts over shared memory need nothing of the
    /// target, and its address is valid as long as it lives.
    sessions: Sessions<Worker>,
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
        let (mapping, uuid) = match region.device() {
            Some(device) => (None, device.uuid().map_err(|e| unavailable(e.to_string()))?),
            None => (Mapping::of_own(region.base()), NO_GPU),
        };
        if mapping.is_none() && region.device().is_none() {
            return Err(unavailable("the pool's memory is not a shared mapping"));
        }
        let sessions = Sessions::new(Kind::Ucx, SLOTS);
        let boot_id = boot_id(Kind::Ucx)?;
        Ok(Self {
            ucx: ucx.clone(),
            region,
            geometry,
            pages,
            key,
            boot_id,
            uuid,
            mapping,
            sessions,
        })
    }

    /// The writer, if its reply is what it left in its slot.
    fn check_reply(&self, probe: Probe, reply: &[u8]) -> Result<WriterProcess, TransferError> {
        let mut reader = Reader(reply);
        let process = ProcessName::read(&mut reader)?;
        let uuid = reader.array("reply.uuid")?;
        let answer = reader.u64("reply.answer")?;
        reader.end()?;
        if self.region.read_slot(probe.slot)? != [probe.nonce, answer] {
            return Err(refused("the writer's probe did not arrive in this pool"));
        }
        match &self.mapping {
            Some(mapping) => WriterProcess::watch(process.pid, mapping.clone()),
            None => WriterProcess::watch_on_gpu(process, uuid),
        }
    }
}

impl Target for UcxTarget {
    fn kind(&self) -> Kind {
        Kind::Ucx
    }

    fn accept(&self) -> Result<Offer, TransferError> {
        let mut worker = Worker::new(&self.ucx)?;
        let address = worker.address()?;
        let (session, Probe { slot, nonce }) = self.sessions.open(worker)?;
        if let Err(error) = self.region.clear_slot(slot) {
            self.sessions.end(session);
            return Err(error);
        }
        let terms = Terms {
            head: Head { kind: Kind::Ucx, session, geometry: self.geometry, pages: self.pages },
            boot_id: self.boot_id,
            uuid: self.uuid,
            base: self.region.base(),
            slot: slot as u32,
            nonce,
            address: &address,
            key: &self.key,
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
