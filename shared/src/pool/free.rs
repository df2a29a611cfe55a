//! Which pages are handed out.

use crate::ids::PageId;

/// Which pages no guard holds: a bit a page, handed out lowest first.
pub(super) struct FreeMap {
    words: Box<[u64]>,
    /// No word before this one has a bit set.
    from: usize,
}

impl FreeMap {
    pub(super) fn new(pages: u32) -> Self {
        let mut words = vec![u64::MAX; (pages as usize).div_ceil(64)].into_boxed_slice();
        if let Some(last) = words.last_mut().filter(|_| !pages.is_multiple_of(64)) {
            *last = (1 << (pages % 64)) - 1;
        }
        Self { words, from: 0 }
    }

    pub(super) fn take(&mut self, n: u32) -> Vec<PageId> {
        let mut taken = Vec::with_capacity(n as usize);
        while taken.len() < n as usize {
            let word = &mut self.words[self.from];
            if *word == 0 {
                self.from += 1;
                continue;
            }
            let bit = word.trailing_zeros();
            *word &= *word - 1;
            taken.push(PageId::new(self.from as u32 * 64 + bit));
        }
        taken
    }

    pub(super) fn give(&mut self, page: PageId) {
        let word = page.get() as usize / 64;
        debug_assert_eq!(self.words[word] >> (page.get() % 64) & 1, 0, "{page} freed twice");
        self.words[word] |= 1 << (page.get() % 64);
        self.from = self.from.min(word);
    }
}
