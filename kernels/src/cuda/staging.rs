//! Pinned host memory that a pool's bytes pass through, copied while the host does something else.

use super::device::{Device, DeviceMemory, Pinned};
use super::pages::PagePool;
use super::stream::{Mark, Stream};
use crate::ops::OpError;
use std::sync::Arc;

/// A buffer in pinned memory and the copy that it is part of, if any.
pub struct Slot {
    memory: Pinned,
    copying: Option<Mark>,
}

impl Slot {
    /// `bytes` bytes, zero.
    ///
    /// # Errors
    /// [`OpError::Memory`] if the system gives no more pinned memory.
    pub fn new(device: &Device, bytes: usize) -> Result<Self, OpError> {
        Ok(Self { memory: Pinned::new(device, bytes)?, copying: None })
    }

    /// Whether no copy is under way. Does not wait.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn is_free(&mut self) -> Result<bool, OpError> {
        if let Some(copy) = &self.copying
            && copy.reached()?
        {
            self.copying = None;
        }
        Ok(self.copying.is_none())
    }

    /// Waits for the copy that is under way.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn wait(&mut self) -> Result<(), OpError> {
        self.copying.take().map_or(Ok(()), |copy| copy.wait())
    }

    /// Its bytes.
    ///
    /// # Panics
    /// If a copy is under way, as far as was looked.
    pub fn bytes(&mut self) -> &mut [u8] {
        assert!(self.copying.is_none(), "a copy is under way");
        self.memory.bytes()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // An error means that the context is lost, and with it the copy.
        let _ = self.wait();
    }
}

/// Copies between one pool and slots, in order, on a stream of its own.
pub struct Staging {
    stream: Arc<Stream>,
    pool: Arc<PagePool>,
}

impl Staging {
    /// For `pool`.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn new(pool: &Arc<PagePool>) -> Result<Self, OpError> {
        Ok(Self { stream: Arc::new(Stream::new(pool.device())?), pool: Arc::clone(pool) })
    }

    /// The stream that copies go to.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Enqueues a copy of `len` bytes from byte `at` of the pool to the slot's start, once the
    /// slot is free.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// If they do not lie in the pool's pages, or do not fit the slot.
    pub fn load(&self, slot: &mut Slot, at: usize, len: usize) -> Result<(), OpError> {
        slot.wait()?;
        self.check(at, len);
        self.stream.fetch(self.memory(), at, &mut slot.memory, len)?;
        slot.copying = Some(self.mark()?);
        Ok(())
    }

    /// Enqueues a copy of the slot's first `len` bytes to byte `at` of the pool, once the slot is
    /// free.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// As [`Self::load`].
    pub fn store(&self, slot: &mut Slot, at: usize, len: usize) -> Result<(), OpError> {
        slot.wait()?;
        self.check(at, len);
        self.stream.fill(self.memory(), at, &mut slot.memory, len)?;
        slot.copying = Some(self.mark()?);
        Ok(())
    }

    /// Without a mark nobody would know when a slot is free, so then it is waited for here.
    fn mark(&self) -> Result<Mark, OpError> {
        self.stream.mark().inspect_err(|_| drop(self.stream.synchronize()))
    }

    fn memory(&self) -> &DeviceMemory {
        self.pool.memory()
    }

    fn check(&self, at: usize, len: usize) {
        let bytes = self.pool.pages() as usize * self.pool.page_bytes();
        let fits = at.checked_add(len).is_some_and(|end| end <= bytes);
        assert!(fits, "bytes {at} + {len} of a pool of {bytes}");
    }
}

impl Drop for Staging {
    /// Waits for its copies: the pool may go next.
    fn drop(&mut self) {
        // An error means that the context is lost, and that nothing of it runs any more.
        let _ = self.stream.synchronize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::KvShape;
    use crate::parity::Random;

    #[test]
    #[ignore = "needs a GPU"]
    fn cuda_bytes_pass_through_slots() {
        let (device, mut random) = (Device::open(0).unwrap(), Random(63));
        let shape = KvShape { layers: 2, kv_heads: 2, head_dim: 64, page_tokens: 16 };
        let pool = Arc::new(PagePool::new(&device, shape, 7).unwrap());
        let staging = Staging::new(&pool).unwrap();
        let bytes = 7 * pool.page_bytes();
        let mut slots = [8192, 50_000].map(|bytes| Slot::new(&device, bytes).unwrap());
        let mut model = vec![0_u8; bytes];
        for (page, bytes) in (0..).zip(model.chunks(pool.page_bytes())) {
            pool.write(page, 0..bytes.len(), bytes).unwrap();
        }
        for turn in 0..60 {
            let slot = &mut slots[turn % 2];
            let len = 1 + random.below(8192);
            let at = random.below(bytes - len);
            slot.wait().unwrap();
            slot.bytes()[..len].iter_mut().for_each(|byte| *byte = random.below(256) as u8);
            model[at..at + len].copy_from_slice(&slot.bytes()[..len]);
            staging.store(slot, at, len).unwrap();
        }
        staging.stream().synchronize().unwrap();
        for (page, expected) in (0..).zip(model.chunks(pool.page_bytes())) {
            let mut found = vec![0; expected.len()];
            pool.read(page, 0..found.len(), &mut found).unwrap();
            assert!(found == expected, "page {page}");
        }
        for _ in 0..20 {
            let len = 1 + random.below(50_000);
            let at = random.below(bytes - len);
            staging.load(&mut slots[1], at, len).unwrap();
            while !slots[1].is_free().unwrap() {}
            assert!(slots[1].bytes()[..len] == model[at..at + len], "{at} + {len}");
        }
    }
}
