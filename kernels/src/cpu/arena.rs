//! Memory for weights: regions carved from large chunks that the system backs with huge pages.
//!
//! A matrix alone is too small and too badly aligned to lie in huge pages; without them streaming
//! weights walks the page table every 4 KiB. A chunk is freed when the last region in it is.
//!
//! **Invariant:** regions never overlap: a chunk only ever moves its border forward.
#![expect(unsafe_code, reason = "fence: typed, disjoint views of one allocation")]

use super::element::Plain;
use super::memory::HostMemory;
use crate::ops::OpError;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a chunk; a larger region has one of its own.
const CHUNK: usize = 64 << 20;

/// Alignment of a region, bytes: a cache line.
const LINE: usize = 64;

/// Hands out regions.
#[derive(Default)]
pub struct Arena {
    /// The newest chunk and how many of its bytes are handed out.
    newest: Mutex<Option<(Arc<HostMemory>, usize)>>,
}

/// Elements that this value alone owns, on a cache line.
pub struct Region<E> {
    start: NonNull<E>,
    len: usize,
    owned: PhantomData<E>,
    #[expect(dead_code, reason = "keeps the memory alive")]
    memory: Arc<HostMemory>,
}

// SAFETY: a region owns its elements as a `Vec` does, and `Plain` is `Send`.
unsafe impl<E: Plain> Send for Region<E> {}
// SAFETY: `&Region` gives `&[E]` and no more, and `Plain` is `Sync`.
unsafe impl<E: Plain> Sync for Region<E> {}

impl Arena {
    /// `len` zeros.
    ///
    /// # Errors
    /// [`OpError::Memory`] if the system has not that much.
    pub fn zeroed<E: Plain>(&self, len: usize) -> Result<Region<E>, OpError> {
        let bytes = len.checked_mul(size_of::<E>()).and_then(|n| n.checked_next_multiple_of(LINE));
        let bytes = bytes.ok_or(OpError::Memory { bytes: usize::MAX })?;
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, used) = match newest.take() {
            Some((memory, used)) if memory.len() - used >= bytes => (memory, used),
            _ => (Arc::new(HostMemory::huge(bytes.max(CHUNK))?), 0),
        };
        // SAFETY: `used + bytes <= memory.len()`, so the region lies within the chunk.
        let start = unsafe { NonNull::new_unchecked(memory.as_ptr().add(used)) }.cast();
        *newest = Some((Arc::clone(&memory), used + bytes));
        Ok(Region { start, len, owned: PhantomData, memory })
    }
}

impl<E: Plain> Deref for Region<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: `len` elements from `start` lie in memory that this region keeps alive and alone
        // refers to, aligned to a cache line, zeroed at first, and any bit pattern is a value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<E: Plain> DerefMut for Region<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as for `deref`; `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_disjoint_zeroed_and_outlive_the_arena() {
        let arena = Arena::default();
        let mut regions: Vec<Region<f32>> =
            [1, 15, 16, 17, 1000, 0, CHUNK / 4, 3].map(|n| arena.zeroed(n).unwrap()).into();
        drop(arena);
        for (i, region) in regions.iter_mut().enumerate() {
            assert!(region.iter().all(|&x| x == 0.0), "region {i}");
            assert_eq!(region.as_ptr() as usize % LINE, 0);
            region.fill(i as f32 + 1.0);
        }
        for (i, region) in regions.iter().enumerate() {
            assert!(region.iter().all(|&x| x == i as f32 + 1.0), "region {i}");
        }
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(Arena::default().zeroed::<f32>(usize::MAX / 2).is_err());
        assert!(Arena::default().zeroed::<f32>(usize::MAX / 8).is_err());
    }
}
