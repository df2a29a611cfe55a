//! kill -9 of a peer in mid-write, where only a transport joins the two: no server, no gateway.
//!
//! Four scenarios in turn, UCX and TCP, writer and target killed. This process is the survivor. It
//! notices the death by the end of the control connection, as a server does, and then:
//! - as the writer, every operation that was queued must end once, with a typed error or done;
//! - as the target, the session must be over with a proof, and its pages change no more.

use crate::fleet::process::{mapped_memory, names_left, own_memory};
use crate::numbers::{longest, median, short};
use crate::pair::peer::{Job, KILL_PAGES};
use crate::pair::pool::{Pool, SHAPES, scattered};
use crate::pair::{Other, join_as_source, join_as_target, sources, targets};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use anyhow::ensure;
use kv_transfer::{OpId, Proof, PushConfig, Pusher, PutOp, Sources, Targets};
use std::collections::HashSet;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

pub const GROUP: Group = Group {
    name: "kill-pair",
    title: "kill -9 in mid-write: two processes and a transport, 100 times",
    rows: &[
        Row {
            name: "kill-pair-end",
            what: "from the kill to the end of everything that was pending, longest",
            unit: "s",
            bar: Bar::AtMost(2.0),
        },
        Row {
            name: "kill-pair-lost",
            what: "operations without exactly one end, done or a typed error; pages that changed \
                   after the proof",
            unit: "count",
            bar: Bar::AtMost(0.0),
        },
        Row {
            name: "kill-pair-left",
            what: "shared memory of the dead that still has a name or is mapped by the survivor",
            unit: "count",
            bar: Bar::AtMost(0.0),
        },
    ],
    measure,
    slow: false,
};

const SHAPE: usize = 0;
const WRITES_MIN: usize = 20;

/// What one kill led to.
struct Kill {
    seconds: f64,
    pending: usize,
    lost: usize,
    left: usize,
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let mut found = Findings::new("scenario,seconds,pending,lost,left");
    let mut kills = Vec::new();
    for scenario in ["ucx target", "tcp target", "ucx writer", "tcp writer"] {
        let rounds = place.rounds(25);
        let ends = match scenario.split_once(' ') {
            Some((choice, "target")) => targets_killed(choice, rounds)?,
            Some((choice, _)) => writers_killed(choice, rounds)?,
            None => Vec::new(),
        };
        let line = |kill: &Kill| {
            let Kill { seconds, pending, lost, left } = kill;
            format!("{scenario},{seconds:.6},{pending},{lost},{left}")
        };
        found.raw.extend(ends.iter().map(line));
        let times = || ends.iter().map(|kill| kill.seconds);
        let pending = median(ends.iter().map(|kill| kill.pending as f64).collect());
        let (middle, most) = (short(median(times().collect())), short(longest(times())));
        let count = ends.len();
        found.note(format!(
            "{scenario} killed {count} times: {middle} s in the median, {most} s at most, \
             {pending} operations pending"
        ));
        kills.extend(ends);
    }
    found.set("kill-pair-end", longest(kills.iter().map(|kill| kill.seconds)));
    found.set("kill-pair-lost", kills.iter().map(|kill| kill.lost).sum::<usize>() as f64);
    found.set("kill-pair-left", kills.iter().map(|kill| kill.left).sum::<usize>() as f64);
    Ok(found)
}

/// Names that the dead left, and mappings of its memory that this process still has.
fn left_by(dead: &HashSet<u64>) -> anyhow::Result<usize> {
    let mapped = mapped_memory(std::process::id())?.intersection(dead).count();
    Ok(mapped + names_left(dead)?)
}

// ---- this process writes, the target is killed

fn targets_killed(choice: &str, rounds: usize) -> anyhow::Result<Vec<Kill>> {
    let (_pool, sources) = sources(choice.parse()?, SHAPES[SHAPE], KILL_PAGES)?;
    (0..rounds).map(|_| target_killed(choice, &sources)).collect()
}

fn target_killed(choice: &str, sources: &Sources) -> anyhow::Result<Kill> {
    let mut other = Other::start(Job::Target, choice, SHAPE)?;
    let link = join_as_source(sources, &mut other.control)?;
    other.control.receive()?;
    let memory = own_memory(other.pid())?;
    ensure!(choice != "ucx" || !memory.is_empty(), "the target shares no memory");
    let (done, events) = sync_channel(4096);
    // The receiver outlives the pusher, which is closed before.
    let on_event = move |event| drop(done.send(event));
    let pusher = Pusher::spawn("bench", link, PushConfig::default(), on_event)?;
    let (mut queued, mut ended) = (0, 0);
    while ended < WRITES_MIN {
        queued += fill(&pusher);
        events.recv_timeout(Duration::from_secs(10))?;
        ended += 1 + events.try_iter().count();
    }
    queued += fill(&pusher);
    ended += events.try_iter().count();
    let pending = queued - ended;
    let start = Instant::now();
    other.kill()?;
    other.control.await_end();
    pusher.close();
    ended += events.try_iter().count();
    let seconds = start.elapsed().as_secs_f64();
    drop(pusher);
    other.wait()?;
    Ok(Kill { seconds, pending, lost: queued.abs_diff(ended), left: left_by(&memory)? })
}

/// Queues puts and flushes until the queue is full; returns how many.
fn fill(pusher: &Pusher) -> usize {
    let pages = scattered(KILL_PAGES, KILL_PAGES as usize / 2);
    let bytes = 0..SHAPES[SHAPE].page_bytes();
    let mut queued = 0;
    loop {
        let (id, pages, bytes) = (OpId::new(1), pages.clone(), bytes.clone());
        let put = pusher.put(PutOp::new(id, pages, bytes, Box::new(())));
        if put.is_err() {
            return queued;
        }
        queued += 1 + usize::from(pusher.flush(OpId::new(2)).is_ok());
    }
}

// ---- this process is written, the writer is killed

fn writers_killed(choice: &str, rounds: usize) -> anyhow::Result<Vec<Kill>> {
    let (pool, targets) = targets(choice.parse()?, SHAPES[SHAPE], KILL_PAGES)?;
    (0..rounds).map(|_| writer_killed(choice, &pool, &targets)).collect()
}

fn writer_killed(choice: &str, pool: &Pool, targets: &Targets) -> anyhow::Result<Kill> {
    let mut other = Other::start(Job::Writer, choice, SHAPE)?;
    let session = join_as_target(targets, &mut other.control)?;
    other.control.receive()?;
    let memory = own_memory(other.pid())?;
    let start = Instant::now();
    other.kill()?;
    other.control.await_end();
    let proof = session.revoke();
    while !proven(&proof) {
        ensure!(start.elapsed() < Duration::from_secs(10), "no proof of the writer's end");
        std::thread::yield_now();
    }
    let seconds = start.elapsed().as_secs_f64();
    let digest = pool.digest();
    other.wait()?;
    let changed = digest.iter().zip(pool.digest()).filter(|(a, b)| **a != *b).count();
    Ok(Kill { seconds, pending: 1, lost: changed, left: left_by(&memory)? })
}

fn proven(proof: &Proof) -> bool {
    match proof {
        Proof::Immediate => true,
        Proof::ProcessEnd(writer) => writer.is_dead() && writer.ended(),
    }
}
