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

/// Told the number of the thread that runs it: 0 is the caller.
type Job = *const (dyn Fn(usize) + Sync);

/// Low half of the state: the job may be entered.
const OPEN: u64 = 1 << 31;
/// Low half of the state: the caller is parked, or about to be, until nobody is inside.
const PARKED: u64 = 1 << 30;
/// Low half of the state, below [`PARKED`]: workers inside.
const INSIDE: u64 = PARKED - 1;
/// The state that ends the workers.
const STOP: u64 = u64::MAX;

struct Shared {
    /// Upper half: number of the job. Lower half: [`OPEN`], [`PARKED`], and how many workers are
    /// inside.
    state: AtomicU64,
    /// The job. Written while closed and empty, read by those inside.
    job: UnsafeCell<Option<Job>>,
    /// Who is parked, set before [`PARKED`] is.
    caller: Mutex<Option<Thread>>,
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
            caller: Mutex::new(None),
            panicked: AtomicBool::new(false),
        });
        let spawn = |i| {
            let shared = Arc::clone(&shared);
            let worker = thread::Builder::new().name(format!("kernel-{i}"));
            worker.spawn(move || work(&shared, i)).ok()
        };
        let workers = (1..threads.max(1)).map_while(spawn).collect();
        Self { shared, workers, entry: Mutex::new(0) }
    }

    /// Threads that may run a job.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` on the caller, as thread 0, and, at most once each, on the workers that are free
    /// before the caller has finished it, each by its own number; returns when all of them have.
    /// Must not be called from within a job.
    ///
    /// # Panics
    /// If the job panicked on any thread.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        let mut number = self.entry.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: only the lifetime is erased; workers use the pointer while inside, and this
        // function waits below, on every path, until nobody is and nobody can be.
        let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
        // SAFETY: the previous `run` left the state closed and empty, so no worker reads `job`.
        unsafe { *self.shared.job.get() = Some(erased) };
        *number = number.wrapping_add(1) & (u32::MAX >> 1);
        self.shared.state.store(u64::from(*number) << 32 | OPEN, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        self.shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        self.shared.await_empty();
        let panicked = self.shared.panicked.swap(false, Ordering::Relaxed);
        drop(number);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!panicked, "a kernel panicked on a worker thread; its message is above");
    }

    /// Calls `f` once with each item, spread over the threads as they come free.
    pub fn for_each<I>(&self, items: I, f: impl Fn(I::Item) + Sync)
    where
        I: Iterator + Send,
        I::Item: Send,
    {
        self.for_each_in([items], f);
    }

    /// Calls `f` once with each item of all `lists`: each thread with those of a list of its own,
    /// in order, and then with what is left of others. One item, or none, is the caller's own.
    pub fn for_each_in<I>(&self, lists: impl IntoIterator<Item = I>, f: impl Fn(I::Item) + Sync)
    where
        I: Iterator + Send,
        I::Item: Send,
    {
        let lists: Vec<_> = lists.into_iter().collect();
        let most: Option<usize> = lists.iter().map(|list| list.size_hint().1).sum();
        if most.is_some_and(|most| most <= 1) {
            return lists.into_iter().flatten().for_each(f);
        }
        let lists: Vec<_> = lists.into_iter().map(|list| List(Mutex::new(list))).collect();
        self.run(&|thread| {
            let (others, own) = lists.split_at(thread.min(lists.len()));
            for list in own.iter().chain(others) {
                while let Some(item) = list.next() {
                    f(item);
                }
            }
        });
    }
}

/// Items that threads take one by one, in cache lines that no other list is in.
#[repr(align(64))]
struct List<I>(Mutex<I>);

impl<I: Iterator> List<I> {
    fn next(&self) -> Option<I::Item> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
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

impl Shared {
    /// Waits until nobody is inside the closed job.
    fn await_empty(&self) {
        if spin(|| self.state.load(Ordering::Acquire) & INSIDE == 0) {
            return;
        }
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        let mut state = self.state.fetch_or(PARKED, Ordering::AcqRel);
        while state & INSIDE != 0 {
            thread::park();
            state = self.state.load(Ordering::Acquire);
        }
    }

    /// Leaves the job, whose state was `state`. The last one out wakes a parked caller; it copies
    /// the handle before it is out, when the next job may start.
    fn leave(&self, mut state: u64) {
        loop {
            let last = state & PARKED != 0 && state & INSIDE == 1;
            let caller =
                last.then(|| self.caller.lock().unwrap_or_else(PoisonError::into_inner).clone());
            let left =
                self.state.compare_exchange(state, state - 1, Ordering::AcqRel, Ordering::Acquire);
            match left {
                Ok(_) => return caller.flatten().iter().for_each(Thread::unpark),
                Err(now) => state = now,
            }
        }
    }
}

/// Polls `ready` for a while; whether it became so.
fn spin(ready: impl Fn() -> bool) -> bool {
    (0..SPINS).any(|_| {
        let is_ready = ready();
        if !is_ready {
            std::hint::spin_loop();
        }
        is_ready
    })
}

fn work(shared: &Shared, number: usize) {
    let mut seen = 0;
    loop {
        let is_new = || shared.state.load(Ordering::Acquire) >> 32 != seen;
        if !spin(is_new) {
            while !is_new() {
                thread::park();
            }
        }
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
        let job = unsafe { *shared.job.get() }.expect("set before it is opened");
        // SAFETY: the caller stays in `run`, where the job is borrowed, until this worker leaves.
        let job = unsafe { &*job };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(number))) {
            shared.panicked.store(true, Ordering::Relaxed);
            std::mem::forget(panic); // its drop may panic too, and this worker has to leave
        }
        shared.leave(state + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
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
    fn a_thread_has_the_same_number_in_every_job() {
        let (pool, mut known) = (Pool::new(4), HashMap::new());
        for _ in 0..500 {
            let seen = Mutex::new(vec![]);
            pool.run(&|number| seen.lock().unwrap().push((number, thread::current().id())));
            let seen = seen.into_inner().unwrap();
            assert!(seen.contains(&(0, thread::current().id())));
            for (number, id) in seen {
                assert!(number < 4 && *known.entry(number).or_insert(id) == id, "{number}");
            }
        }
    }

    #[test]
    fn every_item_of_every_list_is_visited_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for round in 0..500 {
                let mut seen = vec![vec![0_u32; round % 7]; round % 5];
                pool.for_each_in(seen.iter_mut().map(|list| list.iter_mut()), |n| *n += 1);
                assert!(seen.iter().flatten().all(|&n| n == 1));
            }
        }
    }

    #[test]
    fn a_caller_that_parked_is_woken() {
        let pool = Pool::new(3);
        for _ in 0..5 {
            let (entered, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
            pool.run(&|thread| {
                entered.fetch_add(1, Ordering::Relaxed);
                if thread == 0 {
                    while entered.load(Ordering::Relaxed) < pool.threads() {
                        thread::yield_now();
                    }
                } else {
                    while pool.shared.state.load(Ordering::Relaxed) & PARKED == 0 {
                        thread::yield_now();
                    }
                    left.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(left.into_inner(), pool.threads() - 1);
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
