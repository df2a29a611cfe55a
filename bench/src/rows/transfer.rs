//! How fast pages move between two processes, against plain copies of the same bytes in the same
//! run.
//!
//! The parent receives, the peer sends. Every round moves the same 128 MiB of pages, scattered over
//! pools of 256 MiB, four ways, one after the other: memcpy within the peer (the floor of UCX),
//! UCX, a bare socket with the same pages (the floor of TCP), TCP. The figure is the median of each
//! round's own ratio: what else the machine does changes from round to round. The landed pages are
//! verified by checksum.

use crate::numbers::{median, short};
use crate::pair::peer::Job;
use crate::pair::pool::{Pool, SHAPES, scattered};
use crate::pair::{Control, Other, join_as_source, join_as_target, sources, targets};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use anyhow::{Context, ensure};
use kv_transfer::select::Choice;
use kv_transfer::{Event, OpId, PushConfig, Pusher, PutOp, land};
use shared::ids::PageId;
use shared::kv::KvGeometry;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

pub const GROUP: Group = Group {
    name: "transfer",
    title: "Page transfer between two processes",
    rows: &[
        Row {
            name: "transfer-ucx",
            what: "UCX writes of the demo model's pages to another process, of memcpy",
            unit: "ratio",
            bar: Bar::AtLeast(0.7),
        },
        Row {
            name: "transfer-tcp",
            what: "TCP transport of the demo model's pages, of a bare socket",
            unit: "ratio",
            bar: Bar::AtLeast(0.8),
        },
    ],
    measure,
    slow: false,
};

const POOL_BYTES: usize = 256 << 20;
const MOVED_BYTES: usize = 128 << 20;
/// Pages of one put, as a chunk of a long prompt ships.
const PAGES_A_PUT: usize = 32;
const WAYS: [&str; 4] = ["memcpy", "ucx", "socket", "tcp"];

fn page_count(geometry: &KvGeometry) -> anyhow::Result<u32> {
    Ok(u32::try_from(POOL_BYTES.div_ceil(geometry.page_bytes()))?)
}

fn moved(geometry: &KvGeometry) -> anyhow::Result<Vec<(PageId, PageId)>> {
    Ok(scattered(page_count(geometry)?, MOVED_BYTES / geometry.page_bytes()))
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let mut found = Findings::new("page_bytes,memcpy_s,ucx_s,socket_s,tcp_s");
    for (number, geometry) in SHAPES.iter().enumerate() {
        let times = receive(number, geometry, place.rounds(21))?;
        let page_bytes = geometry.page_bytes();
        let bytes = (MOVED_BYTES / page_bytes * page_bytes) as f64;
        let row = |times: &[f64; 4]| times.map(|time| format!("{time:.6}")).join(",");
        found.raw.extend(times.iter().map(|times| format!("{page_bytes},{}", row(times))));
        let rates = WAYS.iter().enumerate().map(|(way, name)| {
            let time = median(times.iter().map(|times| times[way]).collect());
            format!("{name} {:.2}", bytes / time / 1e9)
        });
        let rates = rates.collect::<Vec<_>>().join(", ");
        let of = |way: usize, floor: usize| {
            median(times.iter().map(|times| times[floor] / times[way]).collect())
        };
        let (ucx, tcp) = (of(1, 0), of(3, 2));
        let ratios = format!("ucx {} of memcpy, tcp {} of socket", short(ucx), short(tcp));
        found.note(format!("pages of {page_bytes} B, GB/s: {rates}; {ratios}"));
        if number == 0 {
            found.set("transfer-ucx", ucx);
            found.set("transfer-tcp", tcp);
        }
    }
    Ok(found)
}

// ---- the receiving parent

/// Seconds of each way, a line a round.
fn receive(shape: usize, geometry: &KvGeometry, rounds: usize) -> anyhow::Result<Vec<[f64; 4]>> {
    let halves = [Choice::Ucx, Choice::Tcp].map(|c| targets(c, *geometry, page_count(geometry)?));
    let [ucx, tcp] = halves;
    let halves = [ucx?, tcp?];
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut other = Other::start(Job::Speed, "every", shape)?;
    let control = &mut other.control;
    control.send(listener.local_addr()?.to_string().as_bytes())?;
    control.send_words([rounds as u64])?;
    let (pages, page_bytes) = (page_count(geometry)? as usize, geometry.page_bytes());
    let bare = std::thread::spawn(move || receive_bare(&listener, pages, page_bytes));
    let mut sessions = Vec::new();
    for (_, targets) in &halves {
        sessions.push(join_as_target(targets, control)?);
    }
    let times = control.receive_words()?;
    let sums = control.receive_words()?;
    let landed: Vec<_> = moved(geometry)?.into_iter().map(|(_, target)| target).collect();
    for (pool, _) in &halves {
        land::verify(&**pool, &landed, &(0..page_bytes), &sums)?;
    }
    ensure!(other.wait()?, "the sending peer failed");
    bare.join().map_err(|_| anyhow::anyhow!("the bare receiver failed"))??;
    let (rows, _) = times.as_chunks::<4>();
    Ok(rows.iter().map(|row| row.map(f64::from_bits)).collect())
}

/// Reads (page number, page) until the sender goes; a byte back after each round.
fn receive_bare(listener: &TcpListener, pages: usize, page_bytes: usize) -> anyhow::Result<()> {
    let mut pool = vec![1_u8; pages * page_bytes];
    let (mut socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let mut id = [0; 4];
    loop {
        for _ in 0..MOVED_BYTES / page_bytes {
            match socket.read_exact(&mut id) {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                outcome => outcome?,
            }
            let at = u32::from_le_bytes(id) as usize * page_bytes;
            let page = pool.get_mut(at..at + page_bytes).context("no such page")?;
            socket.read_exact(page)?;
        }
        socket.write_all(&[1])?;
    }
}

// ---- the sending peer

type Way = (Pusher, Receiver<Event>, Arc<Pool>);

/// The peer's side of [`receive`].
pub fn send(shape: usize, mut control: Control) -> anyhow::Result<()> {
    let geometry = SHAPES.get(shape).context("no such shape")?;
    let page_bytes = geometry.page_bytes();
    let address = String::from_utf8(control.receive()?)?;
    let rounds = control.receive_words()?.first().copied().context("no rounds")?;
    let [ucx, tcp] = [Choice::Ucx, Choice::Tcp].map(|c| way(c, geometry, &mut control));
    let (ucx, tcp) = (ucx?, tcp?);
    let mut bare = TcpStream::connect(address)?;
    bare.set_nodelay(true)?;
    let moved = moved(geometry)?;
    let bytes = page_count(geometry)? as usize * page_bytes;
    let source: Vec<u8> = (0..bytes).map(|at| at.to_le_bytes()[1]).collect();
    let mut target = vec![1_u8; bytes];
    let mut times = Vec::new();
    for round in 0..=rounds {
        let round_times = [
            copy(&source, &mut target, &moved, page_bytes),
            push(&ucx, &moved, page_bytes)?,
            send_bare(&mut bare, &source, &moved, page_bytes)?,
            push(&tcp, &moved, page_bytes)?,
        ];
        // The first touches every page for the first time.
        if round > 0 {
            times.extend(round_times.map(f64::to_bits));
        }
    }
    control.send_words(times)?;
    let pages: Vec<_> = moved.iter().map(|&(source, _)| source).collect();
    control.send_words(land::checksums(&*ucx.2, &pages, &(0..page_bytes)))
}

fn way(choice: Choice, geometry: &KvGeometry, control: &mut Control) -> anyhow::Result<Way> {
    let (pool, sources) = sources(choice, *geometry, page_count(geometry)?)?;
    let link = join_as_source(&sources, control)?;
    let (done, events) = sync_channel(1024);
    let config = PushConfig { deadline: Duration::from_secs(20), ..PushConfig::default() };
    // The receiver outlives the pusher, which is dropped first.
    let pusher = Pusher::spawn("bench", link, config, move |event| drop(done.send(event)))?;
    Ok((pusher, events, pool))
}

fn copy(source: &[u8], target: &mut [u8], moved: &[(PageId, PageId)], page_bytes: usize) -> f64 {
    let start = Instant::now();
    for &(from, to) in moved {
        let [from, to] = [from, to].map(|page| page.get() as usize * page_bytes);
        target[to..to + page_bytes].copy_from_slice(&source[from..from + page_bytes]);
    }
    std::hint::black_box(target);
    start.elapsed().as_secs_f64()
}

/// All pages in puts, then a flush; seconds until the flush's event.
fn push(way: &Way, moved: &[(PageId, PageId)], page_bytes: usize) -> anyhow::Result<f64> {
    let (pusher, events, _) = way;
    let start = Instant::now();
    let puts = moved.chunks(PAGES_A_PUT);
    let left = puts.len() + 1;
    for pages in puts {
        let (id, pages, bytes) = (OpId::new(0), pages.to_vec(), 0..page_bytes);
        pusher.put(PutOp::new(id, pages, bytes, Box::new(()))).map_err(|(_, why)| why)?;
    }
    pusher.flush(OpId::new(1))?;
    for _ in 0..left {
        events.recv()?.result().clone()?;
    }
    Ok(start.elapsed().as_secs_f64())
}

fn send_bare(
    socket: &mut TcpStream,
    source: &[u8],
    moved: &[(PageId, PageId)],
    page_bytes: usize,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    for &(from, to) in moved {
        socket.write_all(&to.get().to_le_bytes())?;
        let from = from.get() as usize * page_bytes;
        socket.write_all(&source[from..from + page_bytes])?;
    }
    socket.read_exact(&mut [0])?;
    Ok(start.elapsed().as_secs_f64())
}
