//! [`KvMemory`]: the pages of a host-memory engine, as [`PageStore`] for transports.

use kernels::cpu::memory::{HostMemory, PageMemory, PageShape};
use kernels::cpu::{CpuPages, KvElement};
use kernels::ops::{KvShape, OpError};
use shared::ids::PageId;
use shared::kv::{KvDtype, KvGeometry, PageStore};
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::Arc;

/// Pages in host memory, borrowed by layer: a finished layer may ship while a later one computes.
pub struct KvMemory {
    geometry: KvGeometry,
    memory: Arc<PageMemory>,
}

impl KvMemory {
    /// `pages` pages in `memory`, or in fresh memory, which is not touched until used.
    ///
    /// # Errors
    /// [`OpError::Memory`] if there is too little.
    pub fn new(
        geometry: KvGeometry,
        pages: u32,
        memory: Option<HostMemory>,
    ) -> Result<Self, OpError> {
        let parts = geometry.layers as usize;
        let shape = PageShape { pages, parts, part_bytes: geometry.layer_bytes() };
        let memory = match memory {
            Some(memory) => memory,
            None => HostMemory::zeroed(shape.total_bytes().unwrap_or(usize::MAX))?,
        };
        Ok(Self { geometry, memory: Arc::new(PageMemory::new(memory, shape)?) })
    }

    /// The region, for a transport that registers it.
    pub fn memory(&self) -> &HostMemory {
        self.memory.memory()
    }

    /// The same pages as the kernels see them.
    pub(crate) fn for_kernels(&self) -> CpuPages {
        let g = &self.geometry;
        let shape = KvShape {
            layers: g.layers as usize,
            kv_heads: g.kv_heads as usize,
            head_dim: g.head_dim as usize,
            page_tokens: g.page_tokens as usize,
        };
        let element = match g.dtype {
            KvDtype::F32 => KvElement::F32,
            KvDtype::Bf16 => KvElement::Bf16,
        };
        CpuPages::new(Arc::clone(&self.memory), shape, element)
    }
}

impl PageStore for KvMemory {
    fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }
    fn pages(&self) -> u32 {
        self.memory.shape().pages
    }
    fn read(&self, page: PageId, range: Range<usize>, into: &mut [u8]) {
        self.memory.read(page.get(), range, into);
    }
    fn lend(&self, page: PageId, range: Range<usize>, with: &mut dyn FnMut(&[&[u8]])) {
        self.memory.lend(page.get(), range, with);
    }
    fn write(&self, page: PageId, range: Range<usize>, from: &[u8]) {
        self.memory.write(page.get(), range, from);
    }
    fn lend_mut(
        &self,
        page: PageId,
        range: Range<usize>,
        with: &mut dyn FnMut(&mut [IoSliceMut<'_>]),
    ) {
        self.memory.lend_mut(page.get(), range, with);
    }
}
