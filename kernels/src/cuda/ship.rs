//! Copies of pages between pools: by a kernel, one launch for a list of pages, wherever they lie,
//! or by copy engines, one copy a run.
//!
//! Copy calls cost the CPU 5 µs a page and reach 12 GB/s at 64 KiB a page; the kernel costs one
//! launch and is bound by memory, or by the link to another GPU.
#![expect(unsafe_code, reason = "kernel launches")]

use super::device::{Device, failed};
use super::ipc::MappedPool;
use super::module::{Entry, Kernel as Loaded};
use super::pages::PagePool;
use super::stream::{Mark, Stream};
use crate::ops::OpError;
use cudarc::driver::{result, sys};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Most pages of one launch; as kPairs in cuda/ship.cu.
pub const PAIRS: usize = 480;
/// As in cuda/ship.cu.
const THREADS: u32 = 512;
/// Pools and pages are aligned to it, bytes.
const ALIGN: usize = 16;

/// The kernel, compiled and loaded for one device. Clones share it.
#[derive(Clone, Copy)]
pub struct Kernel(sys::CUfunction);

// SAFETY: a function's handle may be used from any thread that binds its context.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Compiles (or finds in the cache) and loads it, for good.
    ///
    /// # Errors
    /// [`OpError::Device`] with what the compiler or the driver said.
    pub fn load(device: &Device) -> Result<Self, OpError> {
        Ok(Self(Loaded::load(device, Entry::plain("ship", "ship"))?.function()))
    }
}

/// What copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copier {
    /// The kernel, by so many blocks of 512 threads: few leave the GPU to others.
    Blocks(u32),
    /// The copy engines, a call for each run of adjacent whole pages, or for each page's part. They
    /// take no multiprocessor.
    Engines,
}

/// Where pages are shipped to.
pub enum Target {
    /// A pool of this process, on the same GPU or on a peer.
    Own(Arc<PagePool>),
    /// A pool of another process, with so many pages.
    Mapped(MappedPool, u32),
}

#[repr(C)]
struct Pairs {
    source: [u32; PAIRS],
    target: [u32; PAIRS],
}

/// Ships pages of one pool to one other, in order, on a stream of its own.
pub struct Shipper {
    stream: Arc<Stream>,
    kernel: Kernel,
    source: Arc<PagePool>,
    target: Target,
}

impl Shipper {
    /// Ships from `source`, on whose device the kernel was loaded.
    ///
    /// # Errors
    /// [`OpError::Device`] if the target is too small for its pages, a page is no multiple of 16
    /// bytes, the target is on a GPU that is no peer, or a stream cannot be made.
    pub fn new(kernel: Kernel, source: Arc<PagePool>, target: Target) -> Result<Self, OpError> {
        let page_bytes = source.page_bytes();
        let refused = |what: String| Err(OpError::Device(format!("shipping pages: {what}")));
        if !page_bytes.is_multiple_of(ALIGN) {
            return refused(format!("a page has {page_bytes} bytes, want a multiple of {ALIGN}"));
        }
        match &target {
            Target::Own(pool) if pool.page_bytes() != page_bytes => {
                return refused(format!("pages of {page_bytes} and {} bytes", pool.page_bytes()));
            }
            Target::Mapped(pool, pages) => {
                let need = PagePool::bytes_with_margin(page_bytes, *pages);
                if need.is_none_or(|need| need > pool.len()) {
                    let bytes = pool.len();
                    return refused(format!("{pages} pages do not fit the {bytes} bytes mapped"));
                }
            }
            Target::Own(pool) if pool.device().uuid()? != source.device().uuid()? => {
                source.device().enable_peer(pool.device())?;
            }
            Target::Own(_) => {}
        }
        let stream = Arc::new(Stream::new(source.device())?);
        Ok(Self { stream, kernel, source, target })
    }

    /// The stream that copies go to. For pages of a forward pass that still runs, have it wait for
    /// a mark behind them.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.source.page_bytes()
    }

    /// Pages at the target; ids are below it.
    pub fn target_pages(&self) -> u32 {
        match &self.target {
            Target::Own(pool) => pool.pages(),
            Target::Mapped(_, pages) => *pages,
        }
    }

    fn target_at(&self) -> u64 {
        match &self.target {
            Target::Own(pool) => pool.address(),
            Target::Mapped(pool, _) => pool.address(),
        }
    }

    /// Enqueues copies of `bytes` of each (source, target) page, by `copier`; the mark is behind
    /// them. Pages must be left alone until it is reached.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// If a page or the range is out of bounds, or there are more than [`PAIRS`].
    pub fn ship(
        &self,
        pairs: &[(u32, u32)],
        bytes: Range<usize>,
        copier: Copier,
    ) -> Result<Mark, OpError> {
        let (most, page_bytes) = (self.target_pages(), self.source.page_bytes());
        assert!(pairs.len() <= PAIRS, "{} pages in one launch", pairs.len());
        assert!(bytes.start <= bytes.end && bytes.end <= page_bytes, "bytes {bytes:?} of a page");
        let fits = |&(from, to): &(u32, u32)| from < self.source.pages() && to < most;
        let outside = pairs.iter().find(|pair| !fits(pair));
        assert!(outside.is_none(), "pages {outside:?} of {} and {most}", self.source.pages());
        if !pairs.is_empty() && !bytes.is_empty() {
            match copier {
                Copier::Blocks(blocks) => self.launch(blocks.max(1), pairs, bytes)?,
                Copier::Engines => self.copy(pairs, &bytes)?,
            }
        }
        self.stream.mark()
    }

    fn copy(&self, pairs: &[(u32, u32)], bytes: &Range<usize>) -> Result<(), OpError> {
        self.stream.device().bind()?;
        let page_bytes = self.source.page_bytes();
        let at = |page: u32| (page as usize * page_bytes + bytes.start) as u64;
        let whole = bytes.len() == page_bytes;
        let mut left = pairs;
        while let Some(&(from, to)) = left.first() {
            let adjacent = |&(pair, step): &(&(u32, u32), u32)| *pair == (from + step, to + step);
            let run = if whole { left.iter().zip(0..).take_while(adjacent).count() } else { 1 };
            let (source, target) = (self.source.address() + at(from), self.target_at() + at(to));
            let (len, stream) = (run * bytes.len(), self.stream.handle());
            // SAFETY: all bytes lie in the two pools, as `ship` and `new` checked; both are held
            // until drop has waited for the stream.
            unsafe { result::memcpy_dtod_async(target, source, len, stream) }
                .map_err(|e| failed("copying pages", e))?;
            left = &left[run..];
        }
        Ok(())
    }

    fn launch(
        &self,
        blocks: u32,
        pairs: &[(u32, u32)],
        bytes: Range<usize>,
    ) -> Result<(), OpError> {
        let mut list = Pairs { source: [0; PAIRS], target: [0; PAIRS] };
        for (at, &(from, to)) in pairs.iter().enumerate() {
            (list.source[at], list.target[at]) = (from, to);
        }
        let (mut source, mut target) = (self.source.address(), self.target_at());
        let mut sizes = [self.source.page_bytes() as u64, bytes.start as u64, bytes.end as u64];
        let [page_bytes, start, end] = &mut sizes;
        let mut count = pairs.len() as u32;
        let mut arguments = [
            (&raw mut source).cast(),
            (&raw mut target).cast(),
            (&raw mut *page_bytes).cast(),
            (&raw mut *start).cast(),
            (&raw mut *end).cast(),
            (&raw mut count).cast(),
            (&raw mut list).cast(),
        ];
        self.stream.device().bind()?;
        let (grid, block) = ((blocks, 1, 1), (THREADS, 1, 1));
        let (function, stream) = (self.kernel.0, self.stream.handle());
        // SAFETY: the kernel's arguments in order, copied before the call returns. All bytes lie in
        // the two pools, as `ship` and `new` checked; both are held until drop has waited for the
        // stream.
        unsafe { result::launch_kernel(function, grid, block, 0, stream, &mut arguments) }
            .map_err(|e| failed("shipping pages", e))
    }

    /// Writes `bytes` at the end of the source's margin, and from there at `at` of the target's by
    /// a copy as [`Copier::Engines`] makes them; whether they were there after `limit`. One at a
    /// time from one source.
    ///
    /// # Errors
    /// [`OpError::Device`].
    ///
    /// # Panics
    /// If they do not fit the margin.
    pub fn leave_word(&self, at: usize, bytes: &[u8], limit: Duration) -> Result<bool, OpError> {
        let end = at.checked_add(bytes.len());
        assert!(end.is_some_and(|end| end <= PagePool::MARGIN), "{at} + {} bytes", bytes.len());
        let page_bytes = self.source.page_bytes();
        let start = self.target_at() + (self.target_pages() as usize * page_bytes + at) as u64;
        self.stream.device().bind()?;
        let at_end = PagePool::MARGIN - bytes.len();
        let staged =
            self.source.address() + (self.source.pages() as usize * page_bytes + at_end) as u64;
        // SAFETY: the ranges are in the source's margin and in the target's, as `new` checked for a
        // mapping; `bytes` is pageable, which the driver copies to its own before the call returns.
        // Both pools are held until drop has waited for the stream.
        unsafe {
            result::memcpy_htod_async(staged, bytes, self.stream.handle())
                .and_then(|()| {
                    result::memcpy_dtod_async(start, staged, bytes.len(), self.stream.handle())
                })
                .map_err(|e| failed("copying to the target's margin", e))?;
        }
        self.stream.settle(limit)
    }
}

impl Drop for Shipper {
    /// Waits for its copies, however long they take: the pools that they use may go next.
    fn drop(&mut self) {
        // An error means that the context is lost, and that nothing of it runs any more.
        let _ = self.stream.synchronize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::peer::Reach;
    use crate::ops::KvShape;
    use crate::parity::Random;

    fn filled(device: &Device, shape: KvShape, pages: u32, random: &mut Random) -> Arc<PagePool> {
        let pool = PagePool::new(device, shape, pages).unwrap();
        for page in 0..pages {
            let bytes: Vec<u8> = (0..pool.page_bytes()).map(|_| random.below(256) as u8).collect();
            pool.write(page, 0..pool.page_bytes(), &bytes).unwrap();
        }
        Arc::new(pool)
    }

    fn read(pool: &PagePool) -> Vec<Vec<u8>> {
        let page = |page| {
            let mut bytes = vec![0; pool.page_bytes()];
            pool.read(page, 0..pool.page_bytes(), &mut bytes).unwrap();
            bytes
        };
        (0..pool.pages()).map(page).collect()
    }

    /// Random lists and ranges, aligned and not, beside copies by the host.
    #[test]
    #[ignore = "needs a GPU"]
    fn cuda_shipped_pages() {
        let (device, mut random) = (Device::open(0).unwrap(), Random(61));
        let kernel = Kernel::load(&device).unwrap();
        for (layers, page_tokens) in [(1, 1), (3, 16), (28, 16)] {
            let shape = KvShape { layers, kv_heads: 2, head_dim: 64, page_tokens };
            let source = filled(&device, shape, 9, &mut random);
            let target = filled(&device, shape, 12, &mut random);
            let (from, mut expected) = (read(&source), read(&target));
            let page_bytes = source.page_bytes();
            for copier in [1, 7, 300].map(Copier::Blocks).into_iter().chain([Copier::Engines]) {
                let to = Target::Own(Arc::clone(&target));
                let shipper = Shipper::new(kernel, Arc::clone(&source), to).unwrap();
                for case in 0..40 {
                    // Each target once: the order of copies within a launch is open.
                    let skip = random.below(4) as u32;
                    let pairs: Vec<_> = (skip..12).map(|to| (random.below(9) as u32, to)).collect();
                    let (a, b) = (random.below(page_bytes + 1), random.below(page_bytes + 1));
                    let near = (a + random.below(40)).min(page_bytes);
                    let bytes = match case % 3 {
                        0 => 0..page_bytes,
                        1 => a.min(b)..a.max(b),
                        _ => a..near,
                    };
                    for &(s, t) in &pairs {
                        let copied = &from[s as usize][bytes.clone()];
                        expected[t as usize][bytes.clone()].copy_from_slice(copied);
                    }
                    let mark = shipper.ship(&pairs, bytes.clone(), copier).unwrap();
                    assert!(shipper.stream().settle(Duration::from_secs(5)).unwrap());
                    assert!(mark.reached().unwrap());
                    assert!(read(&target) == expected, "{bytes:?} of {pairs:?} by {copier:?}");
                }
            }
        }
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn cuda_a_full_list_in_one_launch_and_a_word_in_the_margin() {
        let (device, mut random) = (Device::open(0).unwrap(), Random(62));
        let kernel = Kernel::load(&device).unwrap();
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 64, page_tokens: 1 };
        let source = filled(&device, shape, PAIRS as u32, &mut random);
        let target = filled(&device, shape, PAIRS as u32, &mut random);
        let to = Target::Own(Arc::clone(&target));
        let shipper = Shipper::new(kernel, Arc::clone(&source), to).unwrap();
        let pairs: Vec<_> = (0..PAIRS as u32).map(|page| (page, PAIRS as u32 - 1 - page)).collect();
        // A second stream that waits for the first sees what it shipped.
        let beside = Stream::new(&device).unwrap();
        let shipped = shipper.ship(&pairs, 0..source.page_bytes(), Copier::Blocks(16)).unwrap();
        beside.wait_for(&shipped).unwrap();
        let limit = Duration::from_secs(5);
        assert!(shipper.leave_word(32, b"sixteen letters!", limit).unwrap());
        assert!(beside.settle(limit).unwrap());
        let mut expected = read(&source);
        expected.reverse();
        assert!(read(&target) == expected);
        let mut word = [0; 16];
        target.read_margin(&beside, 32, &mut word).unwrap();
        assert_eq!(&word, b"sixteen letters!");
        target.write_margin(&beside, 32, &[7; 16]).unwrap();
        target.read_margin(&beside, 32, &mut word).unwrap();
        assert_eq!(word, [7; 16]);
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn cuda_a_pool_of_this_process_is_not_mapped_twice() {
        let device = Device::open(0).unwrap();
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 64, page_tokens: 1 };
        let pool = PagePool::new(&device, shape, 4).unwrap();
        let handle = pool.export().unwrap();
        assert!(MappedPool::open(&device, &handle).is_err());
        assert!(MappedPool::open(&device, &[0x5a; 64]).is_err());
        assert_eq!(device.reach(&device.uuid().unwrap()).unwrap(), Reach::Same);
        assert_eq!(device.reach(&[9; 16]).unwrap(), Reach::Unseen);
    }
}
