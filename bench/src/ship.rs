//! `tandem-bench ship`: how fast pages move between the pools of two processes on one GPU, by the
//! number of blocks that ship them, against copies within one process in the same run.
//!
//! The parent receives, the peer sends 256 scattered pages of 16 tokens a round, a prompt of 4,096
//! tokens: one put, one flush, the time until the flush's event. What landed is verified at the end
//! of each way. Then what copies without end cost a forward pass' products beside them.

use crate::numbers::median;
use crate::pair::peer::Job;
use crate::pair::pool::scattered;
use crate::pair::{Control, Other, join_as_source, join_as_target};
use anyhow::{Context, ensure};
use kernels::cuda::ship::{Kernel, PAIRS, Shipper, Target};
use kernels::cuda::{Cuda, CudaShape, Device, Heads, PagePool};
use kernels::ops::{HostMatrix, KvShape, Linear, Ops, Weights};
use kv_transfer::cuda_ipc::CudaIpcSource;
use kv_transfer::select::Choice;
use kv_transfer::tcp::TcpConfig;
use kv_transfer::{Event, Kind, Link, OpId, PushConfig, Pusher, PutOp, Sources};
use shared::ids::PageId;
use shared::kv::{KvDtype, KvGeometry};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// Pages of a round, 4,096 tokens.
const MOVED: u32 = 256;
const POOL: u32 = 2 * MOVED;
/// Puts of a stream of them with one flush.
const STREAM: usize = 8;
/// How many blocks ship; the last are eight a multiprocessor of an H100.
const BLOCKS: [u32; 8] = [4, 8, 16, 32, 64, 132, 264, 1056];
const ROUNDS: usize = 300;
const TCP_ROUNDS: usize = 10;

struct Case {
    name: &'static str,
    layers: u32,
    /// Layers of each page that are moved.
    moved: Range<u32>,
}

const CASES: [Case; 4] = [
    Case { name: "1 layer, 64 KiB a page", layers: 1, moved: 0..1 },
    Case { name: "one layer of 28 of Qwen3-0.6B", layers: 28, moved: 13..14 },
    Case { name: "Qwen3-0.6B, 1.75 MiB a page", layers: 28, moved: 0..28 },
    Case { name: "Qwen3-8B, 2.25 MiB a page", layers: 36, moved: 0..36 },
];

impl Case {
    fn geometry(&self) -> KvGeometry {
        let (layers, dtype) = (self.layers, KvDtype::Bf16);
        KvGeometry { layers, kv_heads: 8, head_dim: 128, page_tokens: 16, dtype }
    }

    fn bytes(&self) -> Range<usize> {
        self.geometry().layers_range(&self.moved)
    }

    fn moved_bytes(&self) -> f64 {
        self.bytes().len() as f64 * f64::from(MOVED)
    }

    fn shape(&self) -> KvShape {
        let geometry = self.geometry();
        KvShape {
            layers: geometry.layers as usize,
            kv_heads: geometry.kv_heads as usize,
            head_dim: geometry.head_dim as usize,
            page_tokens: geometry.page_tokens as usize,
        }
    }

    fn pool(&self, seed: u64) -> anyhow::Result<Arc<PagePool>> {
        let pool = PagePool::new(&Device::open(0)?, self.shape(), POOL)?;
        for page in 0..POOL {
            let word =
                |at: u64| (at ^ seed ^ u64::from(page) << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let bytes: Vec<u8> =
                (0..pool.page_bytes() as u64 / 8).flat_map(|at| word(at).to_le_bytes()).collect();
            pool.write(page, 0..bytes.len(), &bytes)?;
        }
        Ok(Arc::new(pool))
    }
}

fn pairs() -> Vec<(PageId, PageId)> {
    scattered(POOL, MOVED as usize)
}

fn digests(
    pool: &PagePool,
    pages: impl Iterator<Item = PageId>,
    bytes: &Range<usize>,
) -> anyhow::Result<Vec<u64>> {
    let mut page_bytes = vec![0; bytes.len()];
    pages
        .map(|page| {
            pool.read(page.get(), bytes.clone(), &mut page_bytes)?;
            let words = page_bytes.chunks_exact(8).filter_map(|word| word.try_into().ok());
            let mix =
                |sum: u64, word| (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x100_0000_01B3);
            Ok(words.fold(0xCBF2_9CE4_8422_2325, mix))
        })
        .collect()
}

// ---- the receiving parent

/// Measures everything and prints a table.
pub fn run() -> anyhow::Result<()> {
    println!(
        "| pages | way | blocks | GB/s, {STREAM} puts a flush | one put and its flush, µs: p50 | p99 |"
    );
    println!("|---|---|---|---|---|---|");
    for (number, case) in CASES.iter().enumerate() {
        let pool = case.pool(2)?;
        let mut other = Other::start(Job::Ship, "every", number)?;
        let control = &mut other.control;
        let [local] = words(control)?;
        let rate = case.moved_bytes() / f64::from_bits(local) / 1e9;
        println!("| {} | within one pool | 1056 | {rate:.0} | | |", case.name);
        for (choice, blocks) in ways() {
            let tcp = TcpConfig::default();
            let targets = choice.device_targets(&pool, case.geometry(), (ucx().as_deref(), tcp))?;
            let session = join_as_target(&targets, control)?;
            let [stream, p50, p99] = words(control)?.map(f64::from_bits);
            let rate = case.moved_bytes() * STREAM as f64 / stream / 1e9;
            let way = session.report().kind;
            let [p50, p99] = [p50, p99].map(|seconds| seconds * 1e6);
            println!("| {} | {way} | {blocks} | {rate:.1} | {p50:.0} | {p99:.0} |", case.name);
            let landed = pairs().into_iter().map(|(_, target)| target);
            let same = digests(&pool, landed, &case.bytes())? == control.receive_words()?;
            ensure!(same, "what landed is not what was sent");
        }
        ensure!(other.wait()?, "the sending peer failed");
    }
    beside()
}

fn ways() -> impl Iterator<Item = (Choice, u32)> {
    let ucx = ucx().map(|_| (Choice::Ucx, 0));
    let own = BLOCKS.into_iter().map(|blocks| (Choice::CudaIpc, blocks));
    own.chain(ucx).chain([(Choice::Tcp, 0)])
}

/// The folder of a UCX that knows GPUs; without it UCX has no rows.
fn ucx() -> Option<PathBuf> {
    std::env::var_os("TANDEM_UCX_DIR").map(PathBuf::from)
}

fn words<const N: usize>(control: &mut Control) -> anyhow::Result<[u64; N]> {
    let words = control.receive_words()?;
    words.try_into().map_err(|words| anyhow::anyhow!("{words:?} is not {N} words"))
}

// ---- beside a forward pass

/// Products of 8,192 rows, as a step of prefill has them, while pages are shipped without end
/// within one process: their time, of that without, by the number of blocks.
fn beside() -> anyhow::Result<()> {
    const PRODUCTS: usize = 20;
    let (rows, width) = (8192, 4096);
    let case = CASES.get(2).context("no such case")?;
    let pool = case.pool(1)?;
    let heads = Heads { kv: case.shape(), heads: 16 };
    let cuda = Cuda::new(
        pool.device(),
        &CudaShape { heads, vocab: 1024, hidden: 1024, intermediate: 3072 },
    )?;
    let weights = Weights::F32(vec![0.01; width * width]);
    let weight = cuda.matrix(HostMatrix { rows: width, cols: width, weights })?;
    let (x, mut out) = (cuda.tensor(rows, width)?, cuda.tensor(rows, width)?);
    let mut products = || -> anyhow::Result<f64> {
        let start = Instant::now();
        for _ in 0..PRODUCTS {
            let (x, weight, out) = (&x, &weight, &mut out);
            cuda.linear(Linear { rows, x, weight, bias: None, add: false, out })?;
        }
        cuda.device().synchronize()?;
        Ok(start.elapsed().as_secs_f64() / PRODUCTS as f64)
    };
    let mut alone = Vec::new();
    for _ in 0..10 {
        alone.push(products()?);
    }
    let alone = median(alone);
    println!("\n| blocks shipping | product of 8,192 × 4,096 × 4,096, µs | of alone | GB/s |");
    println!("|---|---|---|---|\n| 0 | {:.0} | 1 | |", alone * 1e6);
    for blocks in BLOCKS {
        let over = AtomicBool::new(false);
        let [time, rate] = std::thread::scope(|scope| -> anyhow::Result<[f64; 2]> {
            let shipping = scope.spawn(|| ship_until(&over, &pool, &case.bytes(), blocks));
            let mut times = Vec::new();
            for _ in 0..10 {
                times.push(products()?);
            }
            over.store(true, Ordering::Relaxed);
            let rate = shipping.join().map_err(|_| anyhow::anyhow!("shipping panicked"))??;
            Ok([median(times), rate])
        })?;
        println!("| {blocks} | {:.0} | {:.3} | {rate:.0} |", time * 1e6, time / alone);
    }
    Ok(())
}

/// Ships 32 pages a launch, two launches on their way; bytes a nanosecond.
fn ship_until(
    over: &AtomicBool,
    pool: &Arc<PagePool>,
    bytes: &Range<usize>,
    blocks: u32,
) -> anyhow::Result<f64> {
    let kernel = Kernel::load(pool.device())?;
    let target = Target::Own(Arc::clone(pool));
    let shipper = Shipper::new((kernel, blocks), Arc::clone(pool), target)?;
    let pairs: Vec<_> = (0..MOVED).map(|page| (page, page + MOVED)).collect();
    let (start, mut moved) = (Instant::now(), 0);
    let mut last = None;
    for list in pairs.chunks(32).cycle() {
        let mark = shipper.ship(list, bytes.clone())?;
        if let Some(before) = last.replace(mark) {
            before.wait()?;
        }
        moved += list.len() * bytes.len();
        if over.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(moved as f64 / start.elapsed().as_secs_f64() / 1e9)
}

// ---- the sending peer

/// The peer's side of [`run`].
pub fn send(case: usize, mut control: Control) -> anyhow::Result<()> {
    let case = CASES.get(case).context("no such case")?;
    let pool = case.pool(1)?;
    control.send_words([local(&pool, case.bytes())?.to_bits()])?;
    let sent = digests(&pool, pairs().into_iter().map(|(source, _)| source), &case.bytes())?;
    for (choice, blocks) in ways() {
        let sources = match choice {
            Choice::CudaIpc => {
                let source = CudaIpcSource::with_blocks(&pool, case.geometry(), blocks)?;
                Sources::new(vec![(Kind::CudaIpc, Ok(Box::new(source)))])
            }
            _ => choice.device_sources(&pool, case.geometry(), ucx().as_deref())?,
        };
        let rounds = if choice == Choice::Tcp { TCP_ROUNDS } else { ROUNDS };
        let link = join_as_source(&sources, &mut control)?;
        let figures = drive(link, &case.bytes(), rounds)?;
        control.send_words(figures.map(f64::to_bits))?;
        control.send_words(sent.iter().copied())?;
    }
    Ok(())
}

/// Seconds of a round within the pool: neighbours to neighbours, all of the GPU.
fn local(pool: &Arc<PagePool>, bytes: Range<usize>) -> anyhow::Result<f64> {
    let kernel = Kernel::load(pool.device())?;
    let shipper = Shipper::new((kernel, 1056), Arc::clone(pool), Target::Own(Arc::clone(pool)))?;
    let pairs: Vec<_> = (0..MOVED).map(|page| (page, page + MOVED)).collect();
    let round = || -> anyhow::Result<()> {
        for list in pairs.chunks(PAIRS) {
            drop(shipper.ship(list, bytes.clone())?);
        }
        Ok(())
    };
    let mut times = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..STREAM {
            round()?;
        }
        shipper.stream().synchronize()?;
        times.push(start.elapsed().as_secs_f64() / STREAM as f64);
    }
    Ok(median(times))
}

/// Seconds of a stream of puts, and of one put and its flush: the median, and 99 % of them.
fn drive(link: Box<dyn Link>, bytes: &Range<usize>, rounds: usize) -> anyhow::Result<[f64; 3]> {
    let (done, events) = sync_channel(1024);
    let config = PushConfig { deadline: Duration::from_secs(20), ..PushConfig::default() };
    // The receiver outlives the pusher, which is dropped first.
    let pusher = Pusher::spawn("ship", link, config, move |event| drop(done.send(event)))?;
    push(&pusher, &events, bytes, 1)?;
    let times = |puts, rounds| {
        (0..rounds).map(|_| push(&pusher, &events, bytes, puts)).collect::<Result<Vec<_>, _>>()
    };
    let streams = median(times(STREAM, rounds.div_ceil(20))?);
    let mut single = times(1, rounds)?;
    single.sort_by(f64::total_cmp);
    Ok([streams, median(single.clone()), single[single.len() * 99 / 100]])
}

fn push(
    pusher: &Pusher,
    events: &Receiver<Event>,
    bytes: &Range<usize>,
    puts: usize,
) -> anyhow::Result<f64> {
    let pages = pairs();
    let start = Instant::now();
    for _ in 0..puts {
        let put = PutOp::new(OpId::new(0), pages.clone(), bytes.clone(), Box::new(()));
        pusher.put(put).map_err(|(_, why)| why)?;
    }
    pusher.flush(OpId::new(1))?;
    for _ in 0..=puts {
        events.recv()?.result().clone()?;
    }
    Ok(start.elapsed().as_secs_f64())
}
