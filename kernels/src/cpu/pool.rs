//! A small fork-join pool: some 150 joins a token must cost little, on a busy machine too.
//!
//! 1. The caller publishes a job, opens it, and runs it itself. A job takes work items until none
//!    is left.
//! 2. A worker that comes by while the job is open enters it, runs it, and leaves.
//! 3. When the caller is done, it closes the job and waits for those inside. A worker that the
//!    system did not schedule in time has missed the job and holds nobody up.
//! 4. Workers spin briefly for the next job, then park, so that an idle server idles.
//!
//! **Invariant:** [`Pool::run`] does not return, by value or by panic, before the job is closed and
//! every worker has left it: the job borrows the caller's stack.
#![expect(unsafe_code, reason = "fence: the job's borrow is erased while workers run it")]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Polls of a flag before a thread parks: some 50 µs, longer than the gap between two ops.
const SPINS: u32 = 4_000;

type Job = *const (dyn Fn() + Sync);

/// Low half of the state: the job may be entered.
const OPEN: u64 = 1 << 31;
/// Low half of the state, below [`OPEN`]: workers inside.
const INSIDE: u64 = OPEN - 1;
/// The state that ends the workers.
const STOP: u64 = u64::MAX;

struct Shared {
    /// Upper half: number of the job. Lower half: [`OPEN`] and how many workers are inside.
    state: AtomicU64,
    /// The job and who waits for it. Written while closed and empty, read by those inside.
    job: UnsafeCell<Option<(Job, Thread)>>,
    /// The job panicked on a worker.
    panicked: AtomicBool,
}

// SAFETY: `job` is written only when the state is closed with nobody inside, and read only by a
// worker inside; entering (acquire) is ordered after opening (release), the next write after
// leaving (release, seen by the caller's acquire).
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure, and is only used while `run` keeps it alive.
unsafe impl Send for Shared {}

/// Threads that run one job at a time, with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for the length of a job: one at a time. The number of jobs so far.
    entry: Mutex<u32>,
}

impl Pool {
    /// A pool of `threads` threads, the caller included (0 counts as 1). If the system refuses a
    /// thread, the pool is smaller.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
        });
        let spawn = |i| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("kernel-{i}")).spawn(move || work(&shared)).ok()
        };
        let workers = (1..threads.max(1)).map_while(spawn).collect();
        Self { shared, workers, entry: Mutex::new(0) }
    }

    /// Threads that may run a job.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` on the caller and, at most once each, on the workers that are free before the
    /// caller has finished it; returns when all of them have. Must not be called from within a job.
    ///
    /// # Panics
    /// If the job panicked on any thread.
    pub fn run(&self, job: &(dyn Fn() + Sync)) {
        if self.workers.is_empty() {
            return job();
        }
        let mut number = self.entry.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: only the lifetime is erased; workers use the pointer while inside, and this
        // function waits below, on every path, until nobody is and nobody can be.
        let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), Job>(job) };
        // SAFETY: the previous `run` left the state closed and empty, so no worker reads `job`.
        unsafe { *self.shared.job.get() = Some((erased, thread::current())) };
        *number = number.wrapping_add(1) & (u32::MAX >> 1);
        self.shared.state.store(u64::from(*number) << 32 | OPEN, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let own = catch_unwind(AssertUnwindSafe(job));
        self.shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        wait(|| self.shared.state.load(Ordering::Acquire) & INSIDE == 0);
        let panicked = self.shared.panicked.swap(false, Ordering::Relaxed);
        drop(number);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!panicked, "a kernel panicked on a worker thread; its message is above");
    }

    /// Calls `f` once with each item, spread over the threads as they come free. One item, or none,
    /// is the caller's own.
    pub fn for_each<I>(&self, items: I, f: impl Fn(I::Item) + Sync)
    where
        I: Iterator + Send,
        I::Item: Send,
    {
        if items.size_hint().1.is_some_and(|most| most <= 1) {
            return items.for_each(f);
        }
        let items = Mutex::new(items);
        self.run(&|| {
            loop {
                let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(item) = item else { break };
                f(item);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.store(STOP, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its jobs' panics, so it can only end well.
            let _ = worker.join();
        }
    }
}

/// Spins, then parks, until `ready`. Whoever makes it ready unparks this thread.
fn wait(ready: impl Fn() -> bool) {
    for _ in 0..SPINS {
        if ready() {
            return;
        }
        std::hint::spin_loop();
    }
    while !ready() {
        thread::park();
    }
}

fn work(shared: &Shared) {
    let mut seen = 0;
    loop {
        wait(|| shared.state.load(Ordering::Acquire) >> 32 != seen);
        let state = shared.state.load(Ordering::Acquire);
        if state == STOP {
            return;
        }
        if state & OPEN == 0 {
            seen = state >> 32;
            continue;
        }
        let entered =
            shared.state.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed);
        if entered.is_err() {
            continue;
        }
        seen = state >> 32;
        // SAFETY: this worker is inside an open job, so the cell is set and not written.
        let (job, caller) =
            unsafe { (*shared.job.get()).clone() }.expect("set before it is opened");
        // SAFETY: the caller stays in `run`, where the job is borrowed, until this worker leaves.
        let job = unsafe { &*job };
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        let left = shared.state.fetch_sub(1, Ordering::AcqRel);
        if left & OPEN == 0 && left & INSIDE == 1 {
            caller.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn every_item_is_visited_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for round in 0..500 {
                let mut seen = vec![0_u32; round % 37];
                pool.for_each(seen.iter_mut(), |n| *n += 1);
                assert!(seen.iter().all(|&n| n == 1));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for _ in 0..50 {
            let bad = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(0..64, |i| assert_ne!(i, 40, "wanted"));
            }));
            assert!(bad.is_err());
            let sum = AtomicUsize::new(0);
            pool.for_each(0..10, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }
}
