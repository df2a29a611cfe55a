//! How fast pages move between two processes, against plain copies on the same machine in the same
//! run: `cargo run --release -p kv-transfer --example transfer [-- --ucx-dir DIR --rounds N]`.
//!
//! The parent receives, a child sends. Every round moves the same 128 MiB of pages, scattered over
//! pools of 256 MiB, four ways, one after the other: memcpy within the child (the floor for UCX),
//! UCX, TCP, and a bare socket with the same pages (the floor for TCP). Medians over the rounds, of
//! rates and of each round's ratio.
//! The landed pages are verified by checksum after the last round of UCX and of TCP.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]

use kernels::cpu::memory::{HostMemory, PageMemory, PageShape};
use kv_transfer::select::Choice;
use kv_transfer::tcp::TcpConfig;
use kv_transfer::{Event, OpId, PushConfig, Pusher, PutOp, Sources, Targets, land};
use shared::ids::PageId;
use shared::kv::{KvDtype, KvGeometry, PageStore};
use std::io::{BufRead, BufReader, Read, Write, stdin, stdout};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

const POOL_BYTES: usize = 256 << 20;
const MOVED_BYTES: usize = 128 << 20;
/// Pages of one put, as a chunk of a long prompt ships.
const PAGES_A_PUT: usize = 32;

/// The demo model's page, and a small and a large one.
const SHAPES: [KvGeometry; 3] = [shape(30, 3, 16), shape(4, 2, 32), shape(16, 8, 32)];

const fn shape(layers: u32, kv_heads: u32, page_tokens: u32) -> KvGeometry {
    KvGeometry { layers, kv_heads, head_dim: 64, page_tokens, dtype: KvDtype::Bf16 }
}

struct Pool {
    geometry: KvGeometry,
    memory: PageMemory,
}

impl Pool {
    fn filled(memory: HostMemory, geometry: KvGeometry, seed: u64) -> Arc<dyn PageStore> {
        let (pages, parts) = (page_count(&geometry), geometry.layers as usize);
        let part_bytes = geometry.layer_bytes();
        let memory = PageMemory::new(memory, PageShape { pages, parts, part_bytes }).unwrap();
        let pool = Self { geometry, memory };
        let mut random = Random(seed);
        for page in 0..pages {
            let bytes: Vec<u8> =
                (0..geometry.page_bytes() / 8).flat_map(|_| random.next().to_le_bytes()).collect();
            pool.write(PageId::new(page), 0..bytes.len(), &bytes);
        }
        Arc::new(pool)
    }
}

impl PageStore for Pool {
    fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }
    fn pages(&self) -> u32 {
        self.memory.shape().pages
    }
    fn read(&self, page: PageId, range: Range<usize>, into: &mut [u8]) {
        self.memory.read(page.get(), range, into);
    }
    fn lend(&self, page: PageId, range: Range<usize>, with: &mut dyn FnMut(&[&[u8]])) {
        self.memory.lend(page.get(), range, with);
    }
    fn write(&self, page: PageId, range: Range<usize>, from: &[u8]) {
        self.memory.write(page.get(), range, from);
    }
}

fn page_count(geometry: &KvGeometry) -> u32 {
    u32::try_from(POOL_BYTES.div_ceil(geometry.page_bytes())).unwrap()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The pages that move, the same at both ends: half of each pool in random order.
fn scattered(geometry: &KvGeometry) -> Vec<(PageId, PageId)> {
    let shuffled = |seed| {
        let mut random = Random(seed);
        let mut ids: Vec<u32> = (0..page_count(geometry)).collect();
        for at in (1..ids.len()).rev() {
            ids.swap(at, usize::try_from(random.next() % (at as u64 + 1)).unwrap());
        }
        ids
    };
    let (sources, targets) = (shuffled(11), shuffled(13));
    let count = MOVED_BYTES / geometry.page_bytes();
    sources
        .into_iter()
        .zip(targets)
        .take(count)
        .map(|(s, t)| (PageId::new(s), PageId::new(t)))
        .collect()
}

struct Arguments {
    ucx: Option<PathBuf>,
    rounds: usize,
    /// Set in the child: which shape, and the parent's bare socket.
    child: Option<(usize, String)>,
}

fn arguments() -> Arguments {
    let mut arguments = Arguments { ucx: None, rounds: 15, child: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} wants a value"));
        match word.as_str() {
            "--ucx-dir" => arguments.ucx = Some(value().into()),
            "--rounds" => arguments.rounds = value().parse().unwrap(),
            "--child" => arguments.child = Some((value().parse().unwrap(), value())),
            _ => panic!("{word:?}: want --ucx-dir DIR or --rounds N"),
        }
    }
    arguments
}

fn main() {
    let arguments = arguments();
    match &arguments.child {
        Some((shape, socket)) => send(&arguments, &SHAPES[*shape], socket),
        None => (0..SHAPES.len()).for_each(|shape| receive(&arguments, shape)),
    }
}

fn say(to: &mut impl Write, bytes: &[u8]) {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(to, "{hex}").unwrap();
    to.flush().unwrap();
}

fn hear(from: &mut impl BufRead) -> Vec<u8> {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    let digits = line.trim().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

// ---- the receiving parent

fn receive(arguments: &Arguments, shape: usize) {
    let geometry = SHAPES[shape];
    let bytes = page_count(&geometry) as usize * geometry.page_bytes();
    let joins = [Choice::Ucx, Choice::Tcp].map(|choice| {
        let (prepared, memory) = choice.target_memory(arguments.ucx.as_deref(), bytes).unwrap();
        let pool = Pool::filled(memory, geometry, 2);
        let targets: Targets = prepared.over(&pool, TcpConfig::default()).unwrap();
        (pool, targets)
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--rounds", &arguments.rounds.to_string(), "--child", &shape.to_string()]);
    child.arg(listener.local_addr().unwrap().to_string());
    if let Some(directory) = &arguments.ucx {
        child.arg("--ucx-dir").arg(directory);
    }
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut to = child.stdin.take().unwrap();
    let mut from = BufReader::new(child.stdout.take().unwrap());
    let bare = std::thread::spawn(move || receive_bare(&listener, &geometry));
    let mut sessions = Vec::new();
    for (_, targets) in &joins {
        let offered = targets.offer().unwrap();
        say(&mut to, offered.bytes());
        let (session, verdict) = offered.settle(&hear(&mut from)).unwrap();
        say(&mut to, &verdict);
        sessions.push(session);
    }
    let moved = scattered(&geometry);
    let targets: Vec<_> = moved.iter().map(|&(_, target)| target).collect();
    let sums: Vec<u64> =
        hear(&mut from).chunks(8).map(|sum| u64::from_le_bytes(sum.try_into().unwrap())).collect();
    for (pool, _) in &joins {
        land::verify(&**pool, &targets, &(0..geometry.page_bytes()), &sums).unwrap();
    }
    let mut table = String::new();
    from.read_to_string(&mut table).unwrap();
    print!("{table}");
    bare.join().unwrap();
    assert!(child.wait().unwrap().success());
}

fn receive_bare(listener: &TcpListener, geometry: &KvGeometry) {
    let page_bytes = geometry.page_bytes();
    let mut pool = vec![1_u8; page_count(geometry) as usize * page_bytes];
    let (mut socket, _) = listener.accept().unwrap();
    socket.set_nodelay(true).unwrap();
    let pages = MOVED_BYTES / page_bytes;
    let mut id = [0; 4];
    while socket.read_exact(&mut id).is_ok() {
        for page in 0..pages {
            let at = u32::from_le_bytes(id) as usize * page_bytes;
            socket.read_exact(&mut pool[at..at + page_bytes]).unwrap();
            if page + 1 < pages {
                socket.read_exact(&mut id).unwrap();
            }
        }
        socket.write_all(&[1]).unwrap();
    }
}

// ---- the sending child

fn send(arguments: &Arguments, geometry: &KvGeometry, socket: &str) {
    let page_bytes = geometry.page_bytes();
    let bytes = page_count(geometry) as usize * page_bytes;
    let mut parent = BufReader::new(stdin());
    let mut to = stdout();
    let mut ways = Vec::new();
    let mut pools = Vec::new();
    for choice in [Choice::Ucx, Choice::Tcp] {
        let (prepared, memory) = choice.source_memory(arguments.ucx.as_deref(), bytes).unwrap();
        let pool = Pool::filled(memory, *geometry, 1);
        let sources: Sources = prepared.over(&pool).unwrap();
        let answered = sources.answer(&hear(&mut parent)).unwrap();
        say(&mut to, answered.bytes());
        let (link, _) = answered.settled(&hear(&mut parent)).unwrap();
        let (done, events) = sync_channel(1024);
        let config = PushConfig { deadline: Duration::from_secs(20), ..PushConfig::default() };
        let pusher = Pusher::spawn("bench", link, config, move |event| done.send(event).unwrap());
        ways.push((pusher.unwrap(), events));
        pools.push(pool);
    }
    let mut bare = TcpStream::connect(socket).unwrap();
    bare.set_nodelay(true).unwrap();
    let moved = scattered(geometry);
    let source: Vec<u8> = (0..bytes).map(|at| at.to_le_bytes()[1]).collect();
    let mut target = vec![1_u8; bytes];
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..=arguments.rounds {
        let start = Instant::now();
        for &(from, to) in &moved {
            let [from, to] = [from, to].map(|page| page.get() as usize * page_bytes);
            target[to..to + page_bytes].copy_from_slice(&source[from..from + page_bytes]);
        }
        std::hint::black_box(&mut target);
        times[0].push(start.elapsed().as_secs_f64());
        for (way, times) in ways.iter().zip(&mut times[1..]) {
            times.push(push(way, &moved, page_bytes));
        }
        times[3].push(send_bare(&mut bare, &source, &moved, page_bytes));
    }
    let sources: Vec<_> = moved.iter().map(|&(source, _)| source).collect();
    let sums = land::checksums(&*pools[0], &sources, &(0..page_bytes));
    say(&mut to, &sums.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<_>>());
    let moved_bytes = (moved.len() * page_bytes) as f64;
    let rate = |times: &[f64]| moved_bytes / median(times.to_vec()) / 1e9;
    // Of each round's own ratio: what else the machine does changes from round to round.
    let ratio = |fast: &[f64], floor: &[f64]| {
        median(fast.iter().zip(floor).map(|(time, floor)| floor / time).collect())
    };
    let [memcpy, ucx, tcp, socket] = times.each_ref().map(|times| &times[1..]);
    println!(
        "page {page_bytes:>8} B: memcpy {:.2} GB/s, ucx {:.2} ({:.2} of memcpy), \
         socket {:.2}, tcp {:.2} ({:.2} of socket)",
        rate(memcpy),
        rate(ucx),
        ratio(ucx, memcpy),
        rate(socket),
        rate(tcp),
        ratio(tcp, socket)
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// All pages in puts, then a flush; seconds until the flush's event.
fn push(
    (pusher, events): &(Pusher, Receiver<Event>),
    moved: &[(PageId, PageId)],
    page_bytes: usize,
) -> f64 {
    let start = Instant::now();
    let puts = moved.chunks(PAGES_A_PUT);
    let mut left = puts.len() + 1;
    for pages in puts {
        let (id, pages, bytes) = (OpId::new(0), pages.to_vec(), 0..page_bytes);
        pusher.put(PutOp { id, pages, bytes, owner: Box::new(()) }).map_err(|e| e.1).unwrap();
    }
    pusher.flush(OpId::new(1)).unwrap();
    while left > 0 {
        events.recv().unwrap().result().clone().unwrap();
        left -= 1;
    }
    start.elapsed().as_secs_f64()
}

fn send_bare(
    socket: &mut TcpStream,
    source: &[u8],
    moved: &[(PageId, PageId)],
    page_bytes: usize,
) -> f64 {
    let start = Instant::now();
    for &(from, to) in moved {
        socket.write_all(&to.get().to_le_bytes()).unwrap();
        let from = from.get() as usize * page_bytes;
        socket.write_all(&source[from..from + page_bytes]).unwrap();
    }
    socket.read_exact(&mut [0]).unwrap();
    start.elapsed().as_secs_f64()
}
