//! A small fork-join pool: some 150 joins a token must cost little.
//!
//! 1. The caller publishes a job and bumps the generation; workers that parked are woken.
//! 2. The caller runs the job too. A job takes work items until none is left.
//! 3. A worker that is done decrements `pending`; the last one wakes the caller.
//! 4. Workers spin briefly for the next generation, then park, so that an idle server idles.
//!
//! **Invariant:** [`Pool::run`] does not return, by value or by panic, before every worker has left
//! the job: the job borrows the caller's stack.
#![expect(unsafe_code, reason = "fence: the job's borrow is erased while workers run it")]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Polls of a flag before a thread parks: some 30 µs, longer than the gap between two ops.
const SPINS: u32 = 4_000;

type Job = *const (dyn Fn() + Sync);

struct Shared {
    /// Number of the current job; `STOP` ends the workers.
    generation: AtomicU64,
    /// Written by the caller before a new generation, read by workers after it.
    job: UnsafeCell<Option<(Job, Thread)>>,
    /// Workers that have not finished the current job.
    pending: AtomicUsize,
    /// A worker's job panicked.
    panicked: AtomicBool,
}

const STOP: u64 = u64::MAX;

// SAFETY: `job` is written only while `pending == 0`, that is, when no worker reads it; the
// generation's release and acquire order the write before the reads.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure, and is only used while `run` keeps it alive.
unsafe impl Send for Shared {}

/// Threads that run one job at a time, with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for the length of a job: one at a time.
    entry: Mutex<u64>,
}

impl Pool {
    /// A pool of `threads` threads, the caller included (0 counts as 1). If the system refuses a
    /// thread, the pool is smaller.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            generation: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            pending: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        let spawn = |i| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("kernel-{i}")).spawn(move || work(&shared)).ok()
        };
        let workers = (1..threads.max(1)).map_while(spawn).collect();
        Self { shared, workers, entry: Mutex::new(0) }
    }

    /// Threads that run a job.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` once on every thread, and returns when all have returned. Must not be called from
    /// within a job.
    ///
    /// # Panics
    /// If the job panicked on any thread.
    pub fn run(&self, job: &(dyn Fn() + Sync)) {
        if self.workers.is_empty() {
            return job();
        }
        let mut generation = self.entry.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: only the lifetime is erased; workers use the pointer before `pending` is 0, and
        // this function waits for that below on every path.
        let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), Job>(job) };
        // SAFETY: `pending` is 0 (the previous `run` waited for it), so no worker reads `job`.
        unsafe { *self.shared.job.get() = Some((erased, thread::current())) };
        self.shared.pending.store(self.workers.len(), Ordering::Relaxed);
        *generation += 1;
        self.shared.generation.store(*generation, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let own = catch_unwind(AssertUnwindSafe(job));
        wait(|| self.shared.pending.load(Ordering::Acquire) == 0);
        drop(generation);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        let panicked = self.shared.panicked.swap(false, Ordering::Relaxed);
        assert!(!panicked, "a kernel panicked on a worker thread; its message is above");
    }

    /// Calls `f` once with each item, spread over the threads as they come free.
    pub fn for_each<I>(&self, items: I, f: impl Fn(I::Item) + Sync)
    where
        I: Iterator + Send,
        I::Item: Send,
    {
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
        self.shared.generation.store(STOP, Ordering::Release);
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
        wait(|| shared.generation.load(Ordering::Acquire) != seen);
        seen = shared.generation.load(Ordering::Acquire);
        if seen == STOP {
            return;
        }
        // SAFETY: the acquire above saw this generation, so the job's write is visible, and it is
        // not written again before this worker's decrement below.
        let (job, caller) =
            unsafe { (*shared.job.get()).clone() }.expect("set before a generation");
        // SAFETY: the caller waits in `run` until `pending` is 0, so the job is alive.
        let job = unsafe { &*job };
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        if shared.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            caller.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
