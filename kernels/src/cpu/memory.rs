//! Host memory: [`HostMemory`], a region, and [`PageMemory`], pages in one.
//!
//! Ownership of a region:
//! 1. It is allocated here (zeroed, and not touched until used, so a large pool costs nothing), or
//!    by a transport, which hands it over with an owner.
//! 2. Whoever holds the [`HostMemory`] holds the owner; dropping it frees the region.
//!
//! Pages are borrowed by part (a layer), so that finished layers ship while later ones compute:
//! 1. [`PageMemory::part`] borrows for reading, [`PageMemory::part_mut`] for writing, each by one
//!    atomic word a part; the guard's drop ends the borrow.
//! 2. A conflict is a bug of the page pool above and panics, naming page and part.
//!
//! A peer that writes the region through its own mapping is outside these borrows: the ticket
//! protocol keeps every local reader off a page until it has landed.
#![expect(unsafe_code, reason = "the memory fence: shared pages behind atomic borrow words")]

use super::element::Element;
use crate::ops::OpError;
use rustix::mm::{Advice, madvise};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::io::IoSliceMut;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Alignment of every region, bytes: a system page.
pub const ALIGN: usize = 4096;

/// A huge page, bytes.
const HUGE: usize = 2 << 20;

/// A region of host memory and what keeps it alive.
pub struct HostMemory {
    start: NonNull<u8>,
    len: usize,
    #[expect(dead_code, reason = "held for its drop")]
    owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: the region is plain bytes, reachable from any thread; nothing here hands out references.
unsafe impl Send for HostMemory {}
// SAFETY: as above: `&HostMemory` gives an address, and dereferencing it is the caller's `unsafe`.
unsafe impl Sync for HostMemory {}

struct Allocation {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is only freed, once, by drop.
unsafe impl Send for Allocation {}
// SAFETY: `&Allocation` gives access to nothing.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc_zeroed` with this layout and is freed only here.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

impl HostMemory {
    /// `len` zero bytes at [`ALIGN`].
    ///
    /// # Errors
    /// [`OpError::Memory`] if the system has not that much.
    pub fn zeroed(len: usize) -> Result<Self, OpError> {
        Self::aligned(len, ALIGN)
    }

    /// As [`Self::zeroed`], in huge pages where the system gives them.
    ///
    /// # Errors
    /// [`OpError::Memory`] if the system has not that much.
    pub fn huge(len: usize) -> Result<Self, OpError> {
        let memory = Self::aligned(len, HUGE)?;
        // SAFETY: the range is this region, and the advice changes no contents. A system without
        // huge pages refuses it, which leaves ordinary ones.
        let _ = unsafe { madvise(memory.as_ptr().cast(), len, Advice::LinuxHugepage) };
        Ok(memory)
    }

    fn aligned(len: usize, align: usize) -> Result<Self, OpError> {
        let short = || OpError::Memory { bytes: len };
        // Asked for at word alignment and aligned here: the allocator then maps fresh zero pages,
        // where a larger alignment would make it touch every byte.
        let layout = len.checked_add(align).and_then(|n| Layout::from_size_align(n, 16).ok());
        let layout = layout.ok_or_else(short)?;
        // SAFETY: the layout has a size above zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(short)?;
        let owner = Box::new(Allocation { base, layout });
        let skip = base.align_offset(align);
        // SAFETY: `skip < align`, and the allocation is `align` bytes longer than `len`.
        let start = unsafe { base.add(skip) };
        Ok(Self { start, len, owner })
    }

    /// Memory that someone else allocated.
    ///
    /// # Safety
    /// `start` must be aligned to 16 bytes and `len` bytes from it readable, writable, initialised
    /// and used by nothing else in this process until `owner` is dropped; that includes `owner`.
    pub unsafe fn from_raw(
        start: NonNull<u8>,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self { start, len, owner }
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// How a region is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    /// Pages; ids are `0..pages`.
    pub pages: u32,
    /// Parts of a page that are borrowed on their own.
    pub parts: usize,
    /// Bytes of a part, a multiple of 16.
    pub part_bytes: usize,
}

impl PageShape {
    /// Bytes of a page.
    pub const fn page_bytes(&self) -> usize {
        self.parts * self.part_bytes
    }
    /// Bytes of all pages, if they can be counted.
    pub fn total_bytes(&self) -> Option<usize> {
        self.parts.checked_mul(self.part_bytes)?.checked_mul(self.pages as usize)
    }
}

/// Pages that threads share, each part with many readers or one writer.
pub struct PageMemory {
    memory: HostMemory,
    shape: PageShape,
    /// One a part: [`WRITER`] if it is being written, plus the number of readers (beside a writer:
    /// of those about to panic).
    words: Box<[AtomicU32]>,
}

const WRITER: u32 = 1 << 31;

impl PageMemory {
    /// Divides `memory` into pages.
    ///
    /// # Errors
    /// [`OpError::Memory`] if it is smaller than the pages.
    ///
    /// # Panics
    /// If parts are empty or not a multiple of 16 bytes.
    pub fn new(memory: HostMemory, shape: PageShape) -> Result<Self, OpError> {
        assert!(shape.parts > 0 && shape.part_bytes > 0, "{shape:?}");
        assert!(shape.part_bytes.is_multiple_of(16), "{shape:?}");
        let bytes = shape.total_bytes().unwrap_or(usize::MAX);
        if bytes > memory.len() {
            return Err(OpError::Memory { bytes });
        }
        let words = (0..shape.pages as usize * shape.parts).map(|_| AtomicU32::new(0)).collect();
        Ok(Self { memory, shape, words })
    }

    /// How the region is divided.
    pub fn shape(&self) -> &PageShape {
        &self.shape
    }

    /// The region, for a transport that registers it.
    pub fn memory(&self) -> &HostMemory {
        &self.memory
    }

    /// Borrows one part of a page for reading.
    ///
    /// # Panics
    /// If there is no such part, or it is being written.
    #[inline]
    pub fn part(&self, page: u32, part: usize) -> PartRef<'_> {
        let index = self.index(page, part);
        let word = &self.words[index];
        if word.fetch_add(1, Ordering::Acquire) >= WRITER {
            word.fetch_sub(1, Ordering::Relaxed);
            panic!("page {page} part {part}: read while it is written");
        }
        PartRef { memory: self, index }
    }

    /// Borrows one part of a page for writing.
    ///
    /// # Panics
    /// If there is no such part, or anyone else holds it.
    #[inline]
    pub fn part_mut(&self, page: u32, part: usize) -> PartMut<'_> {
        let index = self.index(page, part);
        let taken =
            self.words[index].compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed);
        assert!(taken.is_ok(), "page {page} part {part}: written while someone else holds it");
        PartMut { memory: self, index }
    }

    /// Copies `range` of a page's bytes out.
    ///
    /// # Panics
    /// If page or range are out of bounds, `into` has another length, or a part is being written.
    pub fn read(&self, page: u32, range: Range<usize>, into: &mut [u8]) {
        assert_eq!(range.len(), into.len(), "page {page}: read of {range:?}");
        let mut rest = into;
        for (part, inner) in self.parts_of(page, range) {
            let (now, later) = rest.split_at_mut(inner.len());
            now.copy_from_slice(&self.part(page, part).bytes()[inner]);
            rest = later;
        }
    }

    /// Lends `range` of a page's bytes to `with` as slices in order, one a part.
    ///
    /// # Panics
    /// If page or range are out of bounds, or a part is being written.
    pub fn lend(&self, page: u32, range: Range<usize>, with: &mut dyn FnMut(&[&[u8]])) {
        let parts: Vec<_> = self
            .parts_of(page, range)
            .map(|(part, inner)| (self.part(page, part), inner))
            .collect();
        let slices: Vec<_> =
            parts.iter().map(|(part, inner)| &part.bytes()[inner.clone()]).collect();
        with(&slices);
    }

    /// Lends `range` of a page's bytes to `with` for writing, as slices in order, one a part.
    ///
    /// # Panics
    /// If page or range are out of bounds, or anyone holds a part.
    pub fn lend_mut(
        &self,
        page: u32,
        range: Range<usize>,
        with: &mut dyn FnMut(&mut [IoSliceMut<'_>]),
    ) {
        let mut parts: Vec<_> = self
            .parts_of(page, range)
            .map(|(part, inner)| (self.part_mut(page, part), inner))
            .collect();
        let slices = parts.iter_mut();
        let mut slices: Vec<_> = slices
            .map(|(part, inner)| IoSliceMut::new(&mut part.bytes_mut()[inner.clone()]))
            .collect();
        with(&mut slices);
    }

    /// Copies `from` over `range` of a page's bytes.
    ///
    /// # Panics
    /// If page or range are out of bounds, `from` has another length, or anyone holds a part.
    pub fn write(&self, page: u32, range: Range<usize>, from: &[u8]) {
        assert_eq!(range.len(), from.len(), "page {page}: write of {range:?}");
        let mut rest = from;
        for (part, inner) in self.parts_of(page, range) {
            let (now, later) = rest.split_at(inner.len());
            self.part_mut(page, part).bytes_mut()[inner].copy_from_slice(now);
            rest = later;
        }
    }

    #[inline]
    fn index(&self, page: u32, part: usize) -> usize {
        let PageShape { pages, parts, .. } = self.shape;
        assert!(page < pages && part < parts, "page {page} of {pages}, part {part} of {parts}");
        page as usize * parts + part
    }

    /// The parts that a byte range of a page touches, with the range within each.
    fn parts_of(
        &self,
        page: u32,
        range: Range<usize>,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let PageShape { pages, part_bytes: size, .. } = self.shape;
        let fits = range.start <= range.end && range.end <= self.shape.page_bytes();
        assert!(page < pages && fits, "page {page} of {pages}, bytes {range:?}");
        (range.start / size..range.end.div_ceil(size)).map(move |part| {
            let at = part * size;
            (part, range.start.max(at) - at..range.end.min(at + size) - at)
        })
    }

    /// The bytes of the part behind word `index`.
    fn span(&self, index: usize) -> NonNull<u8> {
        // SAFETY: `index` is below pages * parts, so the offset lies within the region, whose
        // length was checked in `new`.
        unsafe { self.memory.start.add(index * self.shape.part_bytes) }
    }
}

/// A part borrowed for reading.
pub struct PartRef<'a> {
    memory: &'a PageMemory,
    index: usize,
}

impl PartRef<'_> {
    /// Its bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.elements_of()
    }

    /// Its elements.
    #[inline]
    pub fn elements<E: Element>(&self) -> &[E] {
        self.elements_of()
    }

    #[inline]
    fn elements_of<T>(&self) -> &[T] {
        let len = self.memory.shape.part_bytes / size_of::<T>();
        let start = self.memory.span(self.index).cast::<T>();
        // SAFETY: the span holds `len` elements; regions and part sizes are multiples of 16, which
        // aligns `T` (u8, f32 or bf16); all their bit patterns are values; the word of this part
        // counts this guard as a reader, so nobody writes while the slice lives.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }
    }
}

impl Drop for PartRef<'_> {
    #[inline]
    fn drop(&mut self) {
        self.memory.words[self.index].fetch_sub(1, Ordering::Release);
    }
}

/// A part borrowed for writing.
pub struct PartMut<'a> {
    memory: &'a PageMemory,
    index: usize,
}

impl PartMut<'_> {
    /// Its bytes.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.elements_of()
    }

    /// Its elements.
    #[inline]
    pub fn elements_mut<E: Element>(&mut self) -> &mut [E] {
        self.elements_of()
    }

    #[inline]
    fn elements_of<T>(&mut self) -> &mut [T] {
        let len = self.memory.shape.part_bytes / size_of::<T>();
        let start = self.memory.span(self.index).cast::<T>();
        // SAFETY: as for `PartRef`; the word of this part says WRITER, so this guard is alone.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }
}

impl Drop for PartMut<'_> {
    #[inline]
    fn drop(&mut self) {
        self.memory.words[self.index].fetch_sub(WRITER, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn pages() -> PageMemory {
        let shape = PageShape { pages: 3, parts: 4, part_bytes: 32 };
        PageMemory::new(HostMemory::zeroed(3 * 128).unwrap(), shape).unwrap()
    }

    #[test]
    fn a_write_is_read_back_and_touches_nothing_else() {
        let pages = pages();
        for (start, end) in [(0, 0), (0, 128), (5, 6), (31, 33), (30, 100), (96, 128)] {
            let data: Vec<u8> = (start..end).map(|i| i as u8 + 1).collect();
            pages.write(1, start..end, &data);
            let mut all = vec![0xff; 128];
            pages.read(1, 0..128, &mut all);
            let expect = |i| if (start..end).contains(&i) { i as u8 + 1 } else { 0 };
            assert_eq!(all, (0..128).map(expect).collect::<Vec<_>>(), "{start}..{end}");
            let mut lent = Vec::new();
            pages.lend(1, start..end, &mut |slices| lent = slices.concat());
            assert_eq!(lent, data, "{start}..{end}");
            pages.lend_mut(1, start..end, &mut |slices| {
                slices.iter_mut().for_each(|slice| slice.fill(0xee));
            });
            pages.read(1, 0..128, &mut all);
            let expect = |i| if (start..end).contains(&i) { 0xee } else { 0 };
            assert_eq!(all, (0..128).map(expect).collect::<Vec<_>>(), "{start}..{end}");
            pages.write(1, 0..128, &[0; 128]);
        }
        for other in [0, 2] {
            let mut all = vec![0xff; 128];
            pages.read(other, 0..128, &mut all);
            assert_eq!(all, [0; 128]);
        }
    }

    #[test]
    fn borrows_are_by_part_and_conflicts_panic() {
        let pages = pages();
        let panics = |f: &dyn Fn()| catch_unwind(AssertUnwindSafe(f)).is_err();
        let writer = pages.part_mut(1, 2);
        drop(pages.part_mut(1, 1));
        drop(pages.part(0, 2));
        assert!(panics(&|| drop(pages.part(1, 2))));
        assert!(panics(&|| drop(pages.part_mut(1, 2))));
        assert!(panics(&|| pages.read(1, 0..128, &mut [0; 128])));
        drop(writer);
        let readers = (pages.part(1, 2), pages.part(1, 2));
        assert!(panics(&|| drop(pages.part_mut(1, 2))));
        drop(readers);
        drop(pages.part_mut(1, 2));
        assert!(panics(&|| drop(pages.part(3, 0))), "no such page");
        assert!(panics(&|| drop(pages.part(0, 4))), "no such part");
        assert!(panics(&|| pages.write(0, 100..129, &[0; 29])), "past the page");
    }

    #[test]
    fn a_foreign_region_lives_as_long_as_its_owner() {
        let mut bytes = vec![0_u128; 4];
        let start = NonNull::new(bytes.as_mut_ptr().cast::<u8>()).unwrap();
        let held = std::sync::Arc::new(());
        let owner = Box::new((bytes, std::sync::Arc::clone(&held)));
        // SAFETY: 64 aligned bytes that `owner` keeps and nobody touches.
        let memory = unsafe { HostMemory::from_raw(start, 64, owner) };
        let pages =
            PageMemory::new(memory, PageShape { pages: 2, parts: 1, part_bytes: 32 }).unwrap();
        pages.part_mut(1, 0).elements_mut::<f32>()[7] = 2.5;
        assert_eq!(pages.part(1, 0).elements::<f32>()[7], 2.5);
        assert_eq!(std::sync::Arc::strong_count(&held), 2);
        drop(pages);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }

    #[test]
    fn too_little_memory_is_an_error() {
        let memory = HostMemory::zeroed(100).unwrap();
        let shape = PageShape { pages: 4, parts: 1, part_bytes: 32 };
        assert!(matches!(PageMemory::new(memory, shape), Err(OpError::Memory { bytes: 128 })));
        assert!(matches!(HostMemory::zeroed(usize::MAX), Err(OpError::Memory { .. })));
    }
}
