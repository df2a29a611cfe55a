//! The sending peer.

use super::case::{Case, MOVED, case, digests, gathered, pairs};
use super::{ALL, Gpus, STREAM, Way, ucx_folder};
use crate::numbers::median;
use crate::pair::{Control, join_as_source};
use kernels::cuda::ship::{Copier, Kernel, PAIRS, Shipper, Target};
use kernels::cuda::{Device, PagePool};
use kv_transfer::cuda_ipc::{Copiers, CudaIpcSource};
use kv_transfer::{Event, Kind, Link, OpId, PushConfig, Pusher, PutOp, Sources};
use shared::ids::PageId;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

const ROUNDS: usize = 300;
/// Of ways that take a hundred milliseconds a round.
const SLOW_ROUNDS: usize = 10;

/// The peer's side of [`super::Transfer::run`]: every way of one case.
///
/// # Errors
/// As there.
pub fn send(gpus: Gpus, number: usize, mut control: Control) -> anyhow::Result<()> {
    let case = case(number)?;
    let device = Device::open(gpus.source)?;
    let pool = case.pool(&device, 1)?;
    control.send_words(link_seconds(gpus, case, &pool)?.map(f64::to_bits))?;
    for way in Way::all(case) {
        let sources = match way {
            Way::Blocks(blocks) => own(case, &pool, Copier::Blocks(blocks))?,
            Way::Engines(_) => own(case, &pool, Copier::Engines)?,
            Way::Ucx | Way::UcxGathered | Way::Tcp => {
                way.choice().device_sources(&pool, case.geometry(), ucx_folder().as_deref())?
            }
        };
        let link = join_as_source(&sources, &mut control)?;
        // The parent has put other bytes where these will land.
        control.receive()?;
        let figures = Drive::new(way, link, case, &pool)?.figures(way)?;
        control.send_words(figures.map(f64::to_bits))?;
        let sent = pairs(way.run()).into_iter().map(|(source, _)| source);
        control.send_words(digests(&pool, sent, &case.bytes())?)?;
    }
    Ok(())
}

fn own(case: &Case, pool: &Arc<PagePool>, copier: Copier) -> anyhow::Result<Sources> {
    let source = CudaIpcSource::new(pool, case.geometry())?.by(Copiers::all(copier));
    Ok(Sources::new(vec![(Kind::CudaIpc, Ok(Box::new(source)))]))
}

/// Seconds of a round in order, within this process: by a copy engine, and by all blocks.
fn link_seconds(gpus: Gpus, case: &Case, pool: &Arc<PagePool>) -> anyhow::Result<[f64; 2]> {
    let target = if gpus.source == gpus.target {
        Arc::clone(pool)
    } else {
        let device = Device::open(gpus.target)?;
        case.pool(&device, 3)?
    };
    let pairs: Vec<_> = (0..MOVED).map(|page| (page, page + MOVED)).collect();
    let mut seconds = [0.0; 2];
    for (copier, seconds) in [Copier::Engines, Copier::Blocks(ALL)].iter().zip(&mut seconds) {
        let kernel = Kernel::load(pool.device())?;
        let shipper = Shipper::new(kernel, Arc::clone(pool), Target::Own(Arc::clone(&target)))?;
        let mut times = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            for _ in 0..STREAM {
                for list in pairs.chunks(PAIRS) {
                    drop(shipper.ship(list, case.bytes(), *copier)?);
                }
            }
            shipper.stream().synchronize()?;
            times.push(start.elapsed().as_secs_f64() / STREAM as f64);
        }
        *seconds = median(times);
    }
    Ok(seconds)
}

/// Puts pages through a link as a server does, and waits for the flush's event.
struct Drive {
    pusher: Pusher,
    events: Receiver<Event>,
    pages: Vec<(PageId, PageId)>,
    bytes: Range<usize>,
    gather: Option<(Shipper, Vec<(u32, u32)>)>,
}

impl Drive {
    fn new(
        way: Way,
        link: Box<dyn Link>,
        case: &Case,
        pool: &Arc<PagePool>,
    ) -> anyhow::Result<Self> {
        let (done, events) = sync_channel(1024);
        let config = PushConfig { deadline: Duration::from_secs(20), ..PushConfig::default() };
        let pusher = Pusher::spawn("transfer", link, config, move |event| drop(done.send(event)))?;
        let mut drive =
            Self { pusher, events, pages: pairs(way.run()), bytes: case.bytes(), gather: None };
        if way == Way::UcxGathered {
            let scattered = drive.pages.iter().map(|(source, _)| source.get());
            let list = scattered.zip(gathered()).collect();
            drive.pages = gathered().map(|page| (PageId::new(page), PageId::new(page))).collect();
            let kernel = Kernel::load(pool.device())?;
            let own = Target::Own(Arc::clone(pool));
            drive.gather = Some((Shipper::new(kernel, Arc::clone(pool), own)?, list));
        }
        Ok(drive)
    }

    /// Seconds of a stream of puts, and of one put and its flush: the median, and 99 % of them.
    fn figures(&self, way: Way) -> anyhow::Result<[f64; 3]> {
        let rounds = if way == Way::Tcp { SLOW_ROUNDS } else { ROUNDS };
        self.push(1)?;
        let times =
            |puts, rounds| (0..rounds).map(|_| self.push(puts)).collect::<Result<Vec<_>, _>>();
        let streams = median(times(STREAM, rounds.div_ceil(20))?);
        let mut single = times(1, rounds)?;
        single.sort_by(f64::total_cmp);
        Ok([streams, median(single.clone()), single[single.len() * 99 / 100]])
    }

    fn push(&self, puts: usize) -> anyhow::Result<f64> {
        let start = Instant::now();
        for _ in 0..puts {
            if let Some((shipper, list)) = &self.gather {
                for list in list.chunks(PAIRS) {
                    drop(shipper.ship(list, self.bytes.clone(), Copier::Blocks(ALL))?);
                }
                shipper.stream().synchronize()?;
            }
            let (pages, bytes) = (self.pages.clone(), self.bytes.clone());
            let put = PutOp::new(OpId::new(0), pages, bytes, Box::new(()));
            self.pusher.put(put).map_err(|(_, why)| why)?;
        }
        self.pusher.flush(OpId::new(1))?;
        for _ in 0..=puts {
            self.events.recv()?.result().clone()?;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}
