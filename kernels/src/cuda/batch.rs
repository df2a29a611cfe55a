//! A step's batch on the device: one upload, several arrays.

use super::attention::{DecodeWork, PrefillWork};
use super::device::{Device, DeviceMemory};
use crate::ops::{HostBatch, KvShape, OpError};
use std::cell::OnceCell;

/// A batch that has been checked and uploaded. Arrays of u32, an entry a token unless said.
pub struct CudaBatch {
    memory: DeviceMemory,
    pub(super) host: HostBatch,
    tables: usize,
    sampled: usize,
    /// Work lists of attention, made by the first layer that needs them.
    pub(super) decode: OnceCell<DecodeWork>,
    pub(super) prefill: OnceCell<PrefillWork>,
}

impl CudaBatch {
    /// # Panics
    /// If segments do not tile the tokens or a sampled index is out of bounds.
    pub(super) fn new(device: &Device, host: HostBatch) -> Result<Self, OpError> {
        let tokens = host.tokens.len();
        let mut positions = Vec::with_capacity(tokens);
        let mut tables = Vec::with_capacity(tokens);
        for segment in &host.segments {
            assert!(segment.len > 0 && segment.first == positions.len(), "{segment:?}");
            let end = segment.start + segment.len;
            positions.extend((segment.start..end).map(|position| position as u32));
            tables.resize(positions.len(), segment.table as u32);
        }
        assert_eq!(positions.len(), tokens, "segments tile the tokens");
        assert!(host.sampled.iter().all(|&i| (i as usize) < tokens), "sampled tokens exist");
        let parts = [&host.tokens, &positions, &tables, &host.sampled, &host.pages];
        let memory = device.upload(&parts.map(Vec::as_slice).concat())?;
        let (sampled, tables) = (3 * tokens, 3 * tokens + host.sampled.len());
        let (decode, prefill) = (OnceCell::new(), OnceCell::new());
        Ok(Self { memory, host, tables, sampled, decode, prefill })
    }

    fn at(&self, index: usize) -> u64 {
        self.memory.address() + 4 * index as u64
    }

    /// Token ids.
    pub(super) fn tokens(&self) -> u64 {
        self.at(0)
    }
    /// Positions in their sequences.
    pub(super) fn positions(&self) -> u64 {
        self.at(self.host.tokens.len())
    }
    /// Where each token's page table begins in [`Self::tables`].
    pub(super) fn table_at(&self) -> u64 {
        self.at(2 * self.host.tokens.len())
    }
    /// Indices of the sampled tokens, an entry each.
    pub(super) fn sampled(&self) -> u64 {
        self.at(self.sampled)
    }
    /// All page tables.
    pub(super) fn tables(&self) -> u64 {
        self.at(self.tables)
    }

    /// # Panics
    /// If a page table is shorter than its segment needs.
    pub(super) fn check(&self, shape: &KvShape) {
        for segment in &self.host.segments {
            let pages = (segment.start + segment.len).div_ceil(shape.page_tokens);
            assert!(segment.table + pages <= self.host.pages.len(), "{segment:?}: page table");
        }
    }
}
