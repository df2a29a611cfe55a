//! The sending half: maps a target's pool.

use super::target::Terms;
use super::{Copiers, SLOT_BYTES, ShipLink, check_pages, refused, unavailable};
use crate::host::{ProcessName, same_host};
use crate::offer::{Writer, random};
use crate::queue::Queue;
use crate::{Joined, Kind, Source, TransferError};
use kernels::cuda::PagePool;
use kernels::cuda::ipc::MappedPool;
use kernels::cuda::peer::Reach;
use kernels::cuda::ship::{Kernel, Shipper, Target};
use shared::kv::KvGeometry;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// Longest time that the probe of a join may take.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// A pool in device memory whose pages can be stored into targets on this host.
pub struct CudaIpcSource {
    pool: Arc<PagePool>,
    geometry: KvGeometry,
    kernel: Kernel,
    uuid: [u8; 16],
    /// Absent: what suits the way to the target.
    copiers: Option<Copiers>,
    /// Held while a probe is on its way: the pool's margin has one place for its word.
    joining: Mutex<()>,
}

impl CudaIpcSource {
    /// A source over `pool`.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] if the pool has other pages than `geometry`, or the kernel
    /// that copies cannot be compiled or loaded.
    pub fn new(pool: &Arc<PagePool>, geometry: KvGeometry) -> Result<Self, TransferError> {
        check_pages(pool, &geometry)?;
        let kernel = Kernel::load(pool.device()).map_err(unavailable)?;
        let uuid = pool.device().uuid().map_err(unavailable)?;
        Ok(Self {
            pool: Arc::clone(pool),
            geometry,
            kernel,
            uuid,
            copiers: None,
            joining: Mutex::new(()),
        })
    }

    /// The same, shipping by these.
    #[must_use]
    pub fn by(self, copiers: Copiers) -> Self {
        Self { copiers: Some(copiers), ..self }
    }
}

impl Source for CudaIpcSource {
    fn kind(&self) -> Kind {
        Kind::CudaIpc
    }

    fn connect(&self, offer: &[u8]) -> Result<Joined, TransferError> {
        let terms = Terms::read(offer)?;
        let pools = terms.head.pair_with(&self.geometry, self.pool.pages())?;
        same_host(Kind::CudaIpc, &terms.boot_id)?;
        let device = self.pool.device();
        let reach = device.reach(&terms.uuid).map_err(refused)?;
        if reach == Reach::Never {
            return Err(refused(reach));
        }
        let mapped = MappedPool::open(device, &terms.handle).map_err(refused)?;
        let target = Target::Mapped(mapped, terms.head.pages);
        let source = Arc::clone(&self.pool);
        let shipper = Shipper::new(self.kernel, source, target).map_err(refused)?;
        let answer = random::<8>(Kind::CudaIpc)?;
        let mut word = terms.nonce.to_le_bytes().to_vec();
        word.extend(answer);
        let at = terms.slot as usize * SLOT_BYTES;
        let joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        let left = shipper.leave_word(at, &word, PROBE_LIMIT).map_err(refused)?;
        drop(joining);
        if !left {
            return Err(unavailable(format!("the join's probe took over {PROBE_LIMIT:?}")));
        }
        let own = ProcessName::own()
            .map_err(|e| unavailable(format!("cannot tell who this process is: {e}")))?;
        let mut reply = Writer::default();
        own.write(&mut reply);
        reply.raw(&self.uuid).raw(&answer);
        let live = Arc::new(RwLock::new(true));
        let suits = if reach == Reach::Same { Copiers::SAME_GPU } else { Copiers::PEER };
        let by = (shipper, self.copiers.unwrap_or(suits));
        let link = ShipLink::new(Kind::CudaIpc, Queue::new(pools), by, live);
        Ok(Joined { link: Box::new(link), reply: reply.0 })
    }
}
