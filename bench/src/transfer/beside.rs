//! What shipping without end costs work at either end, and what it gets beside it.
//!
//! Two kinds of work: products of 8,192 rows, as prefill has them, bound by arithmetic; and one of
//! 8 rows with a vocabulary's weights, as decode has them, bound by memory. All within one process:
//! the copies are the same, and on one GPU two processes would take turns. Each is timed alone
//! before every way of shipping, since clocks drift.

use super::Gpus;
use super::case::{Case, MOVED, WHOLE, case};
use crate::numbers::median;
use kernels::cuda::ship::{Copier, Kernel, Shipper, Target};
use kernels::cuda::{Cuda, CudaMatrix, CudaShape, CudaTensor, Device, Heads, PagePool};
use kernels::ops::{HostMatrix, Linear, Ops, Weights};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const COPIERS: [Copier; 8] = [
    Copier::Blocks(4),
    Copier::Blocks(8),
    Copier::Blocks(16),
    Copier::Blocks(32),
    Copier::Blocks(64),
    Copier::Blocks(132),
    Copier::Blocks(1056),
    Copier::Engines,
];

/// Pages of a launch.
const LAUNCH: usize = 32;

/// A product that is computed again and again.
struct Work {
    name: &'static str,
    cuda: Cuda,
    rows: usize,
    weight: CudaMatrix,
    x: CudaTensor,
    out: CudaTensor,
}

impl Work {
    fn new(
        (name, cuda): (&'static str, Cuda),
        (rows, cols, outputs): (usize, usize, usize),
    ) -> anyhow::Result<Self> {
        let weights = Weights::F32(vec![0.01; outputs * cols]);
        let weight = cuda.matrix(HostMatrix { rows: outputs, cols, weights })?;
        let (x, out) = (cuda.tensor(rows, cols)?, cuda.tensor(rows, outputs)?);
        Ok(Self { name, cuda, rows, weight, x, out })
    }

    /// As prefill has it, and as decode has it.
    fn both(device: &Device, case: &Case) -> anyhow::Result<[Self; 2]> {
        let cuda = || {
            let heads = Heads { kv: case.shape(), heads: 16 };
            let shape = CudaShape { heads, vocab: 1024, hidden: 1024, intermediate: 3072 };
            Cuda::new(device, &shape)
        };
        let prefill = ("8,192 x 4,096 x 4,096", cuda()?);
        let decode = ("8 x 1,024 x 151,936", cuda()?);
        Ok([Self::new(prefill, (8192, 4096, 4096))?, Self::new(decode, (8, 1024, 151_936))?])
    }

    /// Seconds of a product, the median of rounds of some milliseconds each.
    fn seconds(&mut self) -> anyhow::Result<f64> {
        let products = if self.rows > 8 { 20 } else { 100 };
        let mut times = Vec::new();
        for _ in 0..10 {
            let start = Instant::now();
            for _ in 0..products {
                let (rows, x, weight, out) = (self.rows, &self.x, &self.weight, &mut self.out);
                self.cuda.linear(Linear { rows, x, weight, bias: None, add: false, out })?;
            }
            self.cuda.device().synchronize()?;
            times.push(start.elapsed().as_secs_f64() / f64::from(products));
        }
        Ok(median(times))
    }
}

/// Measures, prints a table, and returns it as a record.
pub fn run(gpus: Gpus) -> anyhow::Result<Value> {
    let case = case(WHOLE)?;
    let source = case.pool(&Device::open(gpus.source)?, 1)?;
    let mut ends = vec![("where pages leave", Work::both(source.device(), case)?)];
    let target = if gpus.source == gpus.target {
        Arc::clone(&source)
    } else {
        let device = Device::open(gpus.target)?;
        ends.push(("where pages arrive", Work::both(&device, case)?));
        case.pool(&device, 2)?
    };
    println!(
        "\n| work | GPU | shipping by | µs | of alone | GB/s shipped |\n|---|---|---|---|---|---|"
    );
    let mut rows = vec![];
    for (end, works) in &mut ends {
        for work in works {
            for copier in COPIERS {
                let alone = work.seconds()?;
                let (time, rate) = beside(work, (&source, &target), copier)?;
                let (name, by) = (work.name, format!("{copier:?}"));
                let ([alone, us], ratio) = ([alone, time].map(|s| s * 1e6), time / alone);
                println!(
                    "| {name} | {end} | {by} | {alone:.1} | {us:.1} | {ratio:.3} | {rate:.0} |"
                );
                rows.push(json!({
                    "work": name, "gpu": end, "by": by, "us_alone": alone, "us": us,
                    "of_alone": ratio, "gb_s": rate,
                }));
            }
        }
    }
    Ok(rows.into())
}

/// Seconds of `work` while pages are shipped, and at which rate they are, bytes a ns.
fn beside(
    work: &mut Work,
    pools: (&Arc<PagePool>, &Arc<PagePool>),
    copier: Copier,
) -> anyhow::Result<(f64, f64)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let shipping = scope.spawn(|| ship_until(&over, pools, copier));
        let time = work.seconds();
        over.store(true, Ordering::Relaxed);
        let rate = shipping.join().map_err(|_| anyhow::anyhow!("shipping panicked"))??;
        Ok((time?, rate))
    })
}

/// Ships [`LAUNCH`] pages a launch, two launches on their way; bytes a nanosecond.
fn ship_until(
    over: &AtomicBool,
    (source, target): (&Arc<PagePool>, &Arc<PagePool>),
    copier: Copier,
) -> anyhow::Result<f64> {
    let kernel = Kernel::load(source.device())?;
    let target = Target::Own(Arc::clone(target));
    let shipper = Shipper::new(kernel, Arc::clone(source), target)?;
    let bytes = 0..source.page_bytes();
    // Neighbours are in no order, so that no run is longer than a page.
    let scattered = |page| (page, MOVED + (page * 77) % MOVED);
    let pairs: Vec<_> = (0..MOVED).map(scattered).collect();
    let (start, mut moved) = (Instant::now(), 0);
    let mut last = None;
    for list in pairs.chunks(LAUNCH).cycle() {
        let mark = shipper.ship(list, bytes.clone(), copier)?;
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
