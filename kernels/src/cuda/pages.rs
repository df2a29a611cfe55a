//! The paged cache in device memory.

use super::device::{Device, DeviceMemory};
use super::stream::Stream;
use crate::ops::{KvShape, OpError};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of an element.
const ELEMENT: usize = 2;

/// The driver hands out memory in units of this; what is exported goes in whole ones, bytes.
const UNIT: usize = 2 << 20;

/// Pages of bf16 in device memory, page-major, and a margin behind them for whoever shares them.
/// Nothing else lies in what other processes are given with it.
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
        let bytes = Self::bytes_with_margin(Self::page_bytes_of(&shape), pages)
            .and_then(|bytes| bytes.checked_next_multiple_of(UNIT));
        let memory = device.allocate(bytes.ok_or(OpError::Memory { bytes: usize::MAX })?)?;
        Ok(Self { memory, shape, pages })
    }

    /// Bytes of the margin.
    pub const MARGIN: usize = 4096;

    pub(super) fn bytes_with_margin(page_bytes: usize, pages: u32) -> Option<usize> {
        page_bytes.checked_mul(pages as usize)?.checked_add(Self::MARGIN)
    }

    const fn page_bytes_of(shape: &KvShape) -> usize {
        shape.layers * shape.layer_len() * ELEMENT
    }

    /// Pages; ids are below it.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        Self::page_bytes_of(&self.shape)
    }

    /// The device that it is on.
    pub fn device(&self) -> &Device {
        self.memory.device()
    }

    /// Where it starts on the device, for libraries that are told of its memory.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    pub(super) fn memory(&self) -> &DeviceMemory {
        &self.memory
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

    /// Copies from byte `at` of the margin, by a stream of its own.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// If it lies beyond the margin's end.
    pub fn read_margin(&self, stream: &Stream, at: usize, into: &mut [u8]) -> Result<(), OpError> {
        stream.read(&self.memory, self.margin_at(at, into.len()), into)
    }

    /// Copies to byte `at` of the margin, by a stream of its own.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// As [`Self::read_margin`].
    pub fn write_margin(&self, stream: &Stream, at: usize, from: &[u8]) -> Result<(), OpError> {
        stream.write(&self.memory, self.margin_at(at, from.len()), from)
    }

    fn margin_at(&self, at: usize, len: usize) -> usize {
        let fits = at.checked_add(len).is_some_and(|end| end <= Self::MARGIN);
        assert!(fits, "bytes {at} + {len} of the margin");
        self.pages as usize * self.page_bytes() + at
    }

    fn at(&self, page: u32, range: &Range<usize>) -> usize {
        let page_bytes = self.page_bytes();
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
