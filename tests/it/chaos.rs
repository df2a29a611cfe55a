//! Servers die, freeze, drain and come back at random under load. Every request ends: equal to the
//! bare engine's, or with a typed error; and in the end the ring is whole and holds nothing.

use crate::ask::{Ask, Outcome, engine};
use crate::plan::{Plan, golden_path, long};
use crate::process::{Member, wait_for};
use crate::random::{Random, Shape};
use crate::ring::Ring;
use model::sample::Drawn;
use rustix::process::Signal;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const SHAPE: Shape = Shape { vocab: 512, page: 16, longest: 120, output: 40 };
const CLIENTS: usize = 8;

/// What is asked in a circle, and what must come of it.
fn cases() -> Vec<(Ask, Vec<Drawn>)> {
    let mut engine = engine(&golden_path("tiny-qwen3"), 512);
    let asks = SHAPE.asks(&mut Random::new(21), 60);
    asks.into_iter().map(|ask| (ask.clone(), ask.reference(&mut engine))).collect()
}

/// Clients that ask until told to stop.
struct Load {
    url: SocketAddr,
    cases: Vec<(Ask, Vec<Drawn>)>,
    next: AtomicUsize,
    ended: AtomicUsize,
    failed: AtomicUsize,
    over: AtomicBool,
}

impl Load {
    fn client(&self) {
        while !self.over.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed) % self.cases.len();
            let (ask, reference) = &self.cases[index];
            let outcome: Outcome = ask.send(self.url).unwrap();
            if outcome.error.is_some() {
                outcome.assert_typed_error();
                self.failed.fetch_add(1, Ordering::Relaxed);
            } else {
                outcome.assert_equal(reference);
            }
            self.ended.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until so many more have ended, well or not.
    #[track_caller]
    fn wait_more(&self, count: u32) {
        let goal = self.ended.load(Ordering::Relaxed) + count as usize;
        let there = || (self.ended.load(Ordering::Relaxed) >= goal).then_some(());
        wait_for("requests that end", there);
    }
}

/// Ends the clients when the test is over, however it ends.
struct Over<'a>(&'a Load);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

fn one_fault(victim: &mut Member, random: &mut Random, load: &Load) {
    load.wait_more(1 + random.below(20));
    match random.below(4) {
        0 | 1 => {
            victim.kill();
            load.wait_more(random.below(20));
            victim.start(&[]);
        }
        2 => {
            victim.signal(Signal::STOP);
            load.wait_more(1 + random.below(20));
            victim.signal(Signal::CONT);
        }
        _ => {
            victim.signal(Signal::TERM);
            let status = victim.exited();
            assert!(status.success(), "{}: {status}", victim.name);
            victim.start(&[]);
        }
    }
}

#[track_caller]
fn run(plan: Plan, seed: u64) {
    let mut ring = plan.of(2, 2).everyone("heartbeat_ms", 100).everyone("silence_ms", 1500).start();
    let mut random = Random::new(seed);
    let load = Load {
        url: ring.url(),
        cases: cases(),
        next: AtomicUsize::new(0),
        ended: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        over: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let over = Over(&load);
        for _ in 0..CLIENTS {
            scope.spawn(|| load.client());
        }
        for _ in 0..if long() { 40 } else { 4 } {
            let victim = random.below(4) as usize;
            one_fault(ring.servers_mut().nth(victim).unwrap(), &mut random, &load);
            ring.wait_ready();
        }
        drop(over);
    });
    finish(&mut ring, &load);
}

#[track_caller]
fn finish(ring: &mut Ring, load: &Load) {
    ring.wait_ready();
    ring.wait_settled();
    let serves = || ring.generate(&load.cases[0].0).error.is_none().then_some(());
    wait_for("a request that is served", serves);
    ring.gateway.assert_alive();
    let (ended, failed) = (load.ended.load(Ordering::Relaxed), load.failed.load(Ordering::Relaxed));
    println!("{ended} requests ended, {failed} of them with an error");
}

#[test]
fn over_ucx() {
    run(Plan::tiny("tiny-qwen3").servers("transport", "ucx"), 31);
}

#[test]
fn over_tcp_with_retries() {
    run(Plan::tiny("tiny-qwen3").servers("transport", "tcp").on_gateway("retries", 2), 32);
}
