//! A pool as the servers have it, filled with random bytes.

use crate::numbers::Random;
use kernels::cpu::memory::{HostMemory, PageMemory, PageShape};
use shared::ids::PageId;
use shared::kv::{KvDtype, KvGeometry, PageStore};
use std::io::IoSliceMut;
use std::ops::Range;

/// Pages of the demo model, and a small and a large one.
pub const SHAPES: [KvGeometry; 3] = [shape(30, 3, 16), shape(4, 2, 32), shape(16, 8, 32)];

const fn shape(layers: u32, kv_heads: u32, page_tokens: u32) -> KvGeometry {
    KvGeometry { layers, kv_heads, head_dim: 64, page_tokens, dtype: KvDtype::Bf16 }
}

pub struct Pool {
    geometry: KvGeometry,
    memory: PageMemory,
}

impl Pool {
    pub fn new(
        memory: HostMemory,
        geometry: KvGeometry,
        pages: u32,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let (parts, part_bytes) = (geometry.layers as usize, geometry.layer_bytes());
        let memory = PageMemory::new(memory, PageShape { pages, parts, part_bytes })?;
        let pool = Self { geometry, memory };
        let mut random = Random::new(seed);
        for page in 0..pages {
            let words = (0..geometry.page_bytes() / 8).flat_map(|_| random.next().to_le_bytes());
            let bytes: Vec<u8> = words.collect();
            pool.write(PageId::new(page), 0..bytes.len(), &bytes);
        }
        Ok(pool)
    }

    /// One hash of all bytes: whether anything was written in between.
    pub fn digest(&self) -> Vec<u64> {
        let pages: Vec<_> = (0..self.pages()).map(PageId::new).collect();
        kv_transfer::land::checksums(self, &pages, &(0..self.geometry.page_bytes()))
    }
}

impl PageStore for Pool {
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

/// `count` (source, target) pairs scattered over pools of `pages`, the same in every process.
pub fn scattered(pages: u32, count: usize) -> Vec<(PageId, PageId)> {
    let shuffled = |seed| {
        let mut random = Random::new(seed);
        let mut ids: Vec<u32> = (0..pages).collect();
        for at in (1..ids.len()).rev() {
            ids.swap(at, random.below(at + 1));
        }
        ids.into_iter().map(PageId::new)
    };
    shuffled(11).zip(shuffled(13)).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn scattered_pages_are_different_and_not_in_order() {
        let pairs = scattered(100, 50);
        for side in [0, 1] {
            let pick = |pair: &(PageId, PageId)| if side == 0 { pair.0 } else { pair.1 };
            let ids: Vec<u32> = pairs.iter().map(|pair| pick(pair).get()).collect();
            assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 50);
            assert!(!ids.is_sorted() && ids.iter().all(|&id| id < 100));
        }
    }
}
