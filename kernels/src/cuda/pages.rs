//! The paged cache in device memory.

use super::device::{Device, DeviceMemory};
use crate::ops::{KvShape, OpError};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of an element.
const ELEMENT: usize = 2;

/// Pages of bf16 in device memory, page-major.
///
/// Who may touch which page when is decided above: pages of a launched step stay untouched until
/// it is collected. Copies here wait for the work that was queued before them.
pub struct PagePool {
    memory: DeviceMemory,
    shape: KvShape,
    pages: u32,
}

impl PagePool {
    /// `pages` pages of `shape`, undefined.
    ///
    /// # Errors
    /// [`OpError::Memory`] if the GPU has not that much.
    pub fn new(device: &Device, shape: KvShape, pages: u32) -> Result<Self, OpError> {
        let bytes = Self::page_bytes_of(&shape).checked_mul(pages as usize);
        let memory = device.allocate(bytes.ok_or(OpError::Memory { bytes: usize::MAX })?)?;
        Ok(Self { memory, shape, pages })
    }

    const fn page_bytes_of(shape: &KvShape) -> usize {
        shape.layers * shape.layer_len() * ELEMENT
    }

    /// Pages; ids are below it.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Copies `range` of a page's bytes out.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// If page or range are out of bounds, or `into` has another length.
    pub fn read(&self, page: u32, range: Range<usize>, into: &mut [u8]) -> Result<(), OpError> {
        assert_eq!(range.len(), into.len(), "page {page}: read of {range:?}");
        self.memory.read(self.at(page, &range), into)
    }

    /// Copies `from` over `range` of a page's bytes.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// As [`Self::read`].
    pub fn write(&self, page: u32, range: Range<usize>, from: &[u8]) -> Result<(), OpError> {
        assert_eq!(range.len(), from.len(), "page {page}: write of {range:?}");
        self.memory.write(self.at(page, &range), from)
    }

    fn at(&self, page: u32, range: &Range<usize>) -> usize {
        let page_bytes = Self::page_bytes_of(&self.shape);
        let fits = range.start <= range.end && range.end <= page_bytes;
        assert!(page < self.pages && fits, "page {page} of {}, bytes {range:?}", self.pages);
        page as usize * page_bytes + range.start
    }
}

/// The pool as kernels see it.
#[derive(Clone)]
pub struct CudaPages(Arc<PagePool>);

impl CudaPages {
    /// Sees `pool`.
    pub fn new(pool: Arc<PagePool>) -> Self {
        Self(pool)
    }
    pub(super) fn shape(&self) -> &KvShape {
        &self.0.shape
    }
    /// Tokens that all pages hold.
    pub(super) fn tokens(&self) -> u64 {
        u64::from(self.0.pages) * self.0.shape.page_tokens as u64
    }
    pub(super) fn address(&self) -> u64 {
        self.0.memory.address()
    }
    /// Elements from a page to the next.
    pub(super) fn page_stride(&self) -> u64 {
        (self.0.shape.layers * self.0.shape.layer_len()) as u64
    }
    /// Elements from a page's start to a layer's.
    pub(super) fn layer_at(&self, layer: usize) -> u64 {
        assert!(layer < self.0.shape.layers, "layer {layer}");
        (layer * self.0.shape.layer_len()) as u64
    }
    /// # Panics
    /// If a page of `tables` is not in the pool.
    pub(super) fn check(&self, tables: &[u32]) {
        let outside = tables.iter().find(|&&page| page >= self.0.pages);
        assert!(outside.is_none(), "page {outside:?} of {}", self.0.pages);
    }
}
