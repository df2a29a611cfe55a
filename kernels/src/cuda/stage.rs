//! Weights on their way to the device: read into pinned memory by many threads, and copied from
//! there while the next piece is read.
#![expect(unsafe_code, reason = "copies that events order")]

use super::device::{Device, DeviceMemory, Event, Pinned};
use crate::ops::OpError;
use half::bf16;
use std::sync::{Mutex, PoisonError};

/// One thread's: it reads into one half while the other is copied.
pub(super) struct Stage<'a> {
    halves: Option<[Half; 2]>,
    turn: usize,
    home: &'a Stages,
}

struct Half {
    pinned: Pinned,
    /// The last copy from it.
    copied: Event,
}

/// Halves that no thread has.
#[derive(Default)]
pub(super) struct Stages(Mutex<Vec<[Half; 2]>>);

impl Stages {
    /// Gives the halves' memory back, once everything is loaded.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// For pieces of up to `bytes`.
    pub fn take(&self, device: &Device, bytes: usize) -> Result<Stage<'_>, OpError> {
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = halves.iter().position(|halves| halves[0].pinned.len() >= bytes);
        let found = fits.map(|at| halves.swap_remove(at));
        drop(halves);
        let half = || {
            let (pinned, copied) = (Pinned::new(device, bytes)?, Event::new(device)?);
            Ok::<_, OpError>(Half { pinned, copied })
        };
        let halves = match found {
            Some(halves) => halves,
            None => [half()?, half()?],
        };
        Ok(Stage { halves: Some(halves), turn: 0, home: self })
    }
}

impl Stage<'_> {
    /// Lets `read` fill in `len` elements and enqueues their copy to byte `at` of `memory`.
    ///
    /// # Errors
    /// What `read` returned, or [`OpError::Device`].
    pub fn copy<E: From<OpError>>(
        &mut self,
        memory: &DeviceMemory,
        at: usize,
        len: usize,
        read: impl FnOnce(&mut [bf16]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(halves) = &mut self.halves else { unreachable!("taken in drop alone") };
        self.turn ^= 1;
        let Half { pinned, copied } = &mut halves[self.turn];
        copied.wait()?;
        read(&mut pinned.elements()[..len])?;
        // SAFETY: this half is written again only after `copied`.
        unsafe { memory.fill_at(at, pinned, len * size_of::<bf16>()) }?;
        Ok(copied.record()?)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if let Some(halves) = self.halves.take() {
            self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(halves);
        }
    }
}
