//! Two joined pools over a transport, in one process.

use kernels::cpu::memory::{HostMemory, PageMemory, PageShape};
use kernels::cuda::{Device, PagePool};
use kernels::ops::KvShape;
use kv_transfer::fault::Faults;
use kv_transfer::loopback::{Hub, LoopbackSource, LoopbackTarget};
use kv_transfer::tcp::{TcpConfig, TcpSource, TcpTarget};
use kv_transfer::ucx::{Ucx, UcxSource, UcxTarget, private_memory};
use kv_transfer::{Link, SessionId, Source, Target};
use shared::ids::PageId;
use shared::kv::{KvDtype, KvGeometry, PageStore};
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::Arc;

/// Pages of 4 layers, 48 KiB: smaller than a piece, so that runs of them are cut in odd places.
pub const GEOMETRY: KvGeometry =
    KvGeometry { layers: 4, kv_heads: 2, head_dim: 64, page_tokens: 24, dtype: KvDtype::Bf16 };
pub const SOURCE_PAGES: u32 = 70;
pub const TARGET_PAGES: u32 = 90;

/// A pool, as the servers have it.
pub struct Pool {
    geometry: KvGeometry,
    memory: Memory,
}

enum Memory {
    Host(PageMemory),
    Device(Arc<PagePool>),
}

impl Pool {
    pub fn new(memory: HostMemory, geometry: KvGeometry, pages: u32) -> Arc<Self> {
        let parts = geometry.layers as usize;
        let shape = PageShape { pages, parts, part_bytes: geometry.layer_bytes() };
        let memory = Memory::Host(PageMemory::new(memory, shape).unwrap());
        Arc::new(Self { geometry, memory })
    }

    /// [`GEOMETRY`]'s in device memory.
    pub fn on(device: &Device, pages: u32) -> (Arc<Self>, Arc<PagePool>) {
        let shape = KvShape {
            layers: GEOMETRY.layers as usize,
            kv_heads: GEOMETRY.kv_heads as usize,
            head_dim: GEOMETRY.head_dim as usize,
            page_tokens: GEOMETRY.page_tokens as usize,
        };
        let pool = Arc::new(PagePool::new(device, shape, pages).unwrap());
        let memory = Memory::Device(Arc::clone(&pool));
        (Arc::new(Self { geometry: GEOMETRY, memory }), pool)
    }

    pub fn page(&self, page: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.geometry.page_bytes()];
        self.read(PageId::new(page), 0..bytes.len(), &mut bytes);
        bytes
    }

    /// Fills every page with bytes that name page and place.
    pub fn fill(&self, seed: u8) {
        for page in 0..self.pages() {
            let bytes: Vec<u8> = (0..self.geometry.page_bytes() as u32)
                .map(|at| {
                    let word = (at + page * 7919).wrapping_mul(0x9E37_79B9) ^ u32::from(seed);
                    word.to_le_bytes()[3]
                })
                .collect();
            self.write(PageId::new(page), 0..bytes.len(), &bytes);
        }
    }
}

impl PageStore for Pool {
    fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }
    fn pages(&self) -> u32 {
        match &self.memory {
            Memory::Host(memory) => memory.shape().pages,
            Memory::Device(pool) => pool.pages(),
        }
    }
    fn read(&self, page: PageId, range: Range<usize>, into: &mut [u8]) {
        match &self.memory {
            Memory::Host(memory) => memory.read(page.get(), range, into),
            Memory::Device(pool) => pool.read(page.get(), range, into).unwrap(),
        }
    }
    fn lend(&self, page: PageId, range: Range<usize>, with: &mut dyn FnMut(&[&[u8]])) {
        match &self.memory {
            Memory::Host(memory) => memory.lend(page.get(), range, with),
            Memory::Device(_) => unreachable!("transports reach device memory themselves"),
        }
    }
    fn write(&self, page: PageId, range: Range<usize>, from: &[u8]) {
        match &self.memory {
            Memory::Host(memory) => memory.write(page.get(), range, from),
            Memory::Device(pool) => pool.write(page.get(), range, from).unwrap(),
        }
    }
    fn lend_mut(
        &self,
        page: PageId,
        range: Range<usize>,
        with: &mut dyn FnMut(&mut [IoSliceMut<'_>]),
    ) {
        match &self.memory {
            Memory::Host(memory) => memory.lend_mut(page.get(), range, with),
            Memory::Device(_) => unreachable!("transports reach device memory themselves"),
        }
    }
}

/// Both ends of one transport over two pools.
pub struct Ends {
    pub source_pool: Arc<Pool>,
    pub target_pool: Arc<Pool>,
    pub source: Box<dyn Source>,
    pub target: Box<dyn Target>,
}

pub struct Pair {
    pub ends: Ends,
    pub session: SessionId,
    pub link: Box<dyn Link>,
}

fn plain(pages: u32) -> Arc<Pool> {
    let bytes = GEOMETRY.page_bytes() * pages as usize;
    Pool::new(HostMemory::zeroed(bytes).unwrap(), GEOMETRY, pages)
}

pub fn loopback(faults: &Arc<Faults>) -> Ends {
    let hub = Hub::new();
    let (source_pool, target_pool) = (plain(SOURCE_PAGES), plain(TARGET_PAGES));
    let source = LoopbackSource::with_faults(&hub, source_pool.clone(), Arc::clone(faults));
    let target = LoopbackTarget::new(&hub, target_pool.clone());
    Ends { source_pool, target_pool, source: Box::new(source), target: Box::new(target) }
}

pub fn tcp() -> Ends {
    let (source_pool, target_pool) = (plain(SOURCE_PAGES), plain(TARGET_PAGES));
    let source = TcpSource::new(source_pool.clone());
    let target = TcpTarget::new(target_pool.clone(), TcpConfig::default()).unwrap();
    Ends { source_pool, target_pool, source: Box::new(source), target: Box::new(target) }
}

/// UCX must be there: a test that finds it missing fails.
pub fn ucx() -> Ends {
    let ucx = Ucx::open(None).expect("UCX is part of what is tested: install libucx0");
    let bytes = |pages: u32| GEOMETRY.page_bytes() * pages as usize;
    let (source_region, memory) = private_memory(bytes(SOURCE_PAGES)).unwrap();
    let source_pool = Pool::new(memory, GEOMETRY, SOURCE_PAGES);
    let (target_region, memory) = ucx.shared_memory(bytes(TARGET_PAGES)).unwrap();
    let target_pool = Pool::new(memory, GEOMETRY, TARGET_PAGES);
    let source = UcxSource::new(&ucx, source_region, GEOMETRY, SOURCE_PAGES).unwrap();
    let target = UcxTarget::new(&ucx, target_region, GEOMETRY, TARGET_PAGES).unwrap();
    Ends { source_pool, target_pool, source: Box::new(source), target: Box::new(target) }
}

/// Both pools in the memory of one GPU.
pub fn device_loopback() -> Ends {
    let (hub, device) = (Hub::new(), Device::open(0).unwrap());
    let (source_pool, source) = Pool::on(&device, SOURCE_PAGES);
    let (target_pool, target) = Pool::on(&device, TARGET_PAGES);
    let target = LoopbackTarget::new(&hub, target_pool.clone()).in_device_memory(&target);
    let source = LoopbackSource::new(&hub, source_pool.clone()).in_device_memory(&source).unwrap();
    Ends { source_pool, target_pool, source: Box::new(source), target: Box::new(target) }
}

/// The same, by way of the host.
pub fn device_tcp() -> Ends {
    let device = Device::open(0).unwrap();
    let (source_pool, source) = Pool::on(&device, SOURCE_PAGES);
    let (target_pool, target) = Pool::on(&device, TARGET_PAGES);
    let source = TcpSource::in_device_memory(&source, GEOMETRY);
    let config = TcpConfig::default();
    let target = TcpTarget::in_device_memory(&target, GEOMETRY, config).unwrap();
    Ends { source_pool, target_pool, source: Box::new(source), target: Box::new(target) }
}

pub fn join(ends: Ends) -> Pair {
    ends.source_pool.fill(1);
    ends.target_pool.fill(2);
    let offer = ends.target.accept().unwrap();
    let joined = ends.source.connect(&offer.bytes).unwrap();
    ends.target.confirm(offer.session, &joined.reply).unwrap();
    Pair { ends, session: offer.session, link: joined.link }
}
