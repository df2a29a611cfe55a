//! [`CudaEngine`]: the engine on one GPU. A launch enqueues the forward pass, the drawing of its
//! tokens and their copy to the host; nothing waits for a step but
//! [`Engine::collect`], for one event. (What is copied to the device is staged in two halves in
//! turn; a launch makes sure that the copy from its half, of two steps ago, has ended.)
//!
//! Steps of single tokens are recorded once for each of [`BUCKETS`] rows and replayed, smaller
//! batches padded. Everything else is enqueued kernel by kernel.

use crate::batch::Limits;
use crate::cpu::geometry;
use crate::engine::{Batch, Engine, EngineError, IN_FLIGHT, Sample, StepPart};
use crate::forward::{LayerProduct, Model, Pass, Scratch, Step};
use crate::load::{LoadError, LoadPlan, Progress, load};
use crate::quantised::WeightFormat;
use crate::read::{Reader, Wanted};
use crate::reference::Observed;
use crate::sample::{Drawn, Logprobs, draw};
use checkpoint::Checkpoint;
use kernels::cpu::Softmax;
use kernels::cuda::device::GPU_LOST;
use kernels::cuda::stream::Mark;
use kernels::cuda::{
    Cuda, CudaPages, CudaShape, DRAWN, Device, Draw, DrawnToken, Fetch, Frame, Heads, LIBRARY_ROWS,
    PROJECT_ROWS_MAX, PagePool, ROWS_MAX, Recorded, Tune,
};
use kernels::ops::{HostBatch, KvShape, Linear, OpError, Ops};
use shared::ids::{PageId, TokenId};
use shared::kv::{KvDtype, KvGeometry, PageStore};
use shared::request::{Read, Token};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// A margin by which the device's sampler and the host's, which sum in another order, may differ.
pub(crate) const SAMPLER_TIE: f32 = 1e-5;

/// A step that makes fewer bytes of each sequence than this is one part: it may have many
/// sequences, and each has its parts shipped by launches of its own.
const PARTS_FROM: usize = 96 << 20;

/// Rows of the recorded steps.
const BUCKETS: [usize; 14] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, ROWS_MAX];

/// How large the pool is.
#[derive(Clone, Copy, Debug)]
pub struct PoolSize {
    /// Of the memory that is free once the weights are there.
    pub fraction: f64,
    /// Most pages.
    pub pages_max: Option<u32>,
}

/// How an engine on a GPU is set up.
#[derive(Clone, Debug)]
pub struct CudaConfig {
    /// The pool.
    pub pool: PoolSize,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Host threads that load; absent: as many as the machine runs.
    pub threads: Option<usize>,
    /// Most rows of a step of single tokens that is to be fast; 0 if there will be none.
    pub decode_rows: usize,
    /// Tokens of a step that room is made for at once; a larger one makes more.
    pub step_tokens: usize,
    /// Most parts that a step's layers are complete in, at least 1: what is left to be shipped
    /// after a step's end is the last. Absent: one for a step that makes little of each sequence,
    /// else as many as there are halves.
    pub parts: Option<usize>,
}

/// Pages in device memory, as [`PageStore`] for transports that go through the host.
struct DeviceKv {
    geometry: KvGeometry,
    pool: Arc<PagePool>,
}

/// A GPU error ends the process, wherever it shows: what the GPU holds can no longer be trusted.
fn or_die(outcome: Result<(), OpError>) {
    if let Err(error) = outcome {
        tracing::error!(%error, "the GPU failed: this process ends");
        std::process::exit(GPU_LOST);
    }
}

impl PageStore for DeviceKv {
    fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }
    fn pages(&self) -> u32 {
        self.pool.pages()
    }
    fn read(&self, page: PageId, range: Range<usize>, into: &mut [u8]) {
        or_die(self.pool.read(page.get(), range, into));
    }
    fn write(&self, page: PageId, range: Range<usize>, from: &[u8]) {
        or_die(self.pool.write(page.get(), range, from));
    }
}

/// Recorded steps of single tokens, and what they compute in.
struct Decode {
    /// By rows, ascending. They go before what they touch.
    steps: Vec<Recorded>,
    frame: Frame,
    scratch: Scratch<Cuda>,
}

/// A step that was launched and is not collected yet.
struct Launched {
    /// One entry a row.
    samples: Vec<Option<Sample>>,
    results: Fetch,
    /// Whether it was a recorded one.
    recorded: bool,
    /// One entry a row, or none where nothing was read.
    read: Vec<Option<Read>>,
    /// Log-probabilities of tokens that draws are told with by id, one entry a drawn row, or none
    /// where no draw names any.
    named: Named,
}

/// A model and its pages on one GPU.
pub struct CudaEngine {
    // Recorded steps go before what they touch.
    decode: Option<Decode>,
    cuda: Cuda,
    model: Model<Cuda>,
    fingerprint: [u8; 32],
    context_length: u32,
    limits: Limits,
    kv: Arc<DeviceKv>,
    pages: CudaPages,
    scratch: Scratch<Cuda>,
    /// Oldest first.
    launched: VecDeque<Launched>,
    /// Of the step launched last.
    parts: Vec<StepPart>,
    /// Most of them, if that was asked for.
    parts_max: Option<usize>,
    /// Which of the drawn tokens is that of each row of the step launched last.
    last: Vec<Option<u32>>,
    /// Room for results that no launched step has.
    spare: Vec<Fetch>,
    /// What the step collected last has read.
    read: Vec<Option<Read>>,
    softmax: Softmax,
    logits: Vec<f32>,
}

impl CudaEngine {
    /// Loads a checkpoint onto `device` in bf16; `progress` hears bytes read so far and in all.
    ///
    /// # Errors
    /// [`LoadError`]: files, memory, a missing library, or a size that the engine cannot take.
    pub fn load(
        device: &Device,
        checkpoint: &Checkpoint,
        config: &CudaConfig,
        progress: Progress<'_>,
    ) -> Result<Self, LoadError> {
        let &CudaConfig { pool, page_tokens, threads, decode_rows, step_tokens, parts } = config;
        let model_config = checkpoint.config();
        let geometry = geometry(model_config, page_tokens, KvDtype::Bf16)?;
        let mut stage = Stage::begin(device)?;
        let shape = CudaShape {
            heads: Heads { kv: kv_shape(&geometry), heads: model_config.heads },
            vocab: model_config.vocab,
            hidden: model_config.hidden,
            intermediate: model_config.intermediate,
        };
        let cuda = Cuda::new(device, &shape)?;
        stage.end("kernels")?;
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.unwrap_or_else(all);
        let (weights, positions) = (WeightFormat::Bf16, model_config.max_positions);
        let plan = LoadPlan { ops: &cuda, dtype: KvDtype::Bf16, weights, positions, threads };
        let loaded = load(checkpoint, plan, progress)?;
        cuda.loaded()?;
        stage.end("weights")?;
        let (sizes, tokens) = (&loaded.model.sizes, step_tokens.max(1));
        let mut scratch = Scratch::new(&cuda, sizes, tokens, tokens.min(ROWS_MAX))?;
        let mut decode = match decode_rows.min(ROWS_MAX) {
            0 => None,
            rows => Some(Decode {
                frame: cuda.frame(rows * positions.div_ceil(page_tokens as usize))?,
                steps: Vec::new(),
                scratch: Scratch::new(&cuda, sizes, bucket(rows), bucket(rows))?,
            }),
        };
        stage.end("activations")?;
        let pages = pages_of(pool, device.memory()?.0, geometry.page_bytes())?;
        let memory = Arc::new(PagePool::new(device, kv_shape(&geometry), pages)?);
        let pages_seen = CudaPages::new(Arc::clone(&memory));
        stage.end("pages")?;
        rehearse(&cuda, &loaded.model, &mut scratch)?;
        stage.end("products")?;
        if let Some(decode) = &mut decode {
            decode.record(&cuda, &loaded.model, &pages_seen, decode_rows)?;
        }
        stage.end("recorded steps")?;
        tracing::info!(gpu = device.name(), pages, page_tokens, free_bytes = stage.free, "loaded");
        let room = pages as usize * page_tokens as usize;
        let (vocab, positions) = (model_config.vocab as u32, positions.min(room));
        let spare = (0..IN_FLIGHT).map(|_| cuda.results()).collect::<Result<_, _>>()?;
        Ok(Self {
            decode,
            cuda,
            model: loaded.model,
            fingerprint: loaded.fingerprint,
            context_length: model_config.max_positions as u32,
            limits: Limits { vocab, pages, page_tokens, positions, rows: ROWS_MAX },
            kv: Arc::new(DeviceKv { geometry, pool: memory }),
            pages: pages_seen,
            scratch,
            launched: VecDeque::new(),
            parts: Vec::new(),
            parts_max: parts,
            last: Vec::new(),
            spare,
            read: Vec::new(),
            softmax: Softmax::detect(),
            logits: Vec::new(),
        })
    }

    /// Enqueues a step whose rows are read too, not as a recorded one, and waits for what they say
    /// and for what the draws name.
    fn read_step(
        &mut self,
        (batch, flat): (&Batch, HostBatch),
        (step, wanted): (Step, &Wanted),
        draws: &[Draw],
    ) -> Result<(Vec<Option<Read>>, Named), OpError> {
        let room = Step { sampled: step.sampled.max(wanted.rows()), ..step };
        self.scratch.fit(&self.cuda, &self.model.sizes, room)?;
        self.enqueue_plain(flat.clone(), step, draws)?;
        // Reading writes over the logits that were drawn from.
        let named = self.named(batch)?;
        let reader = Reader { ops: &self.cuda, model: &self.model, softmax: self.softmax };
        let read = match wanted.rows() {
            0 => Vec::new(),
            _ => reader.read((batch, &flat), wanted, &mut self.scratch)?,
        };
        Ok((read, named))
    }

    /// What the draws of the step launched last name by id; waits for its logits if they do.
    fn named(&self, batch: &Batch) -> Result<Named, OpError> {
        let ids: Vec<_> = drawn_ids(batch).collect();
        if ids.iter().all(|ids| ids.is_empty()) {
            return Ok(Vec::new());
        }
        let mut host = Vec::new();
        self.cuda.download(&self.scratch.logits, ids.len(), &mut host)?;
        let mut terms = vec![0.0; self.limits.vocab as usize];
        let rows = host.chunks_exact(terms.len()).zip(ids);
        let of_row = |(logits, ids): (&[f32], &[TokenId])| {
            if ids.is_empty() {
                return Vec::new();
            }
            let logprobs = Logprobs::new(self.softmax, logits, &mut terms);
            logprobs.of_each(ids).map(|(id, logprob)| (id.get(), logprob)).collect()
        };
        Ok(rows.map(of_row).collect())
    }

    /// Enqueues a step; whether it was a recorded one.
    fn enqueue(&mut self, flat: HostBatch, step: Step, draws: &[Draw]) -> Result<bool, OpError> {
        let single = flat.segments.iter().all(|segment| segment.len == 1);
        if let Some(decode) = &mut self.decode
            && single
            && step.sampled == step.tokens
            && decode.frame.takes(draws)
            && let Some(recorded) = decode.steps.iter().find(|s| s.rows() >= step.tokens)
        {
            let at = (&mut decode.frame, recorded);
            self.cuda.replay(at, (&flat, draws), &self.pages)?;
            return Ok(true);
        }
        self.enqueue_plain(flat, step, draws)?;
        Ok(false)
    }

    /// Enqueues a step kernel by kernel.
    fn enqueue_plain(
        &mut self,
        flat: HostBatch,
        step: Step,
        draws: &[Draw],
    ) -> Result<(), OpError> {
        let longest = flat.segments.iter().map(|segment| segment.len).max().unwrap_or(0);
        let geometry = &self.kv.geometry;
        let bytes = longest * geometry.page_bytes() / geometry.page_tokens as usize;
        let parts_max = self.parts_max.unwrap_or(if bytes < PARTS_FROM { 1 } else { usize::MAX });
        let batch = self.cuda.step(flat, draws)?;
        let (pass, scratch) = (Pass { batch: &batch, step, pages: &self.pages }, &mut self.scratch);
        let (parts, layers) = (&mut self.parts, self.model.layers.len());
        let mut ends = halves(layers, parts_max).peekable();
        self.model.forward(&self.cuda, &pass, scratch, |layer| {
            let end = layer + 1;
            if ends.next_if_eq(&end).is_some() {
                let first = parts.last().map_or(0, |part| part.layers.end);
                let after = Arc::new(Mark::of(self.cuda.device())?);
                parts.push(StepPart { layers: first..end as u32, after });
            }
            Ok(())
        })?;
        self.cuda.draw(&self.scratch.logits, &batch)
    }

    /// What the oldest launched step drew, a token a sampled row.
    fn finish(&mut self) -> Result<(Launched, Vec<DrawnToken>), EngineError> {
        let launched = self.launched.pop_front();
        let mut launched =
            launched.ok_or_else(|| EngineError("collect without a launch".to_owned()))?;
        let samples = launched.samples.iter().flatten();
        let top = samples.map(|sample| usize::from(sample.logprobs.unwrap_or(0)));
        let mut drawn = launched.results.read(top).map_err(device)?;
        for (drawn, named) in drawn.iter_mut().zip(std::mem::take(&mut launched.named)) {
            drawn.top.extend(named);
        }
        self.read = std::mem::take(&mut launched.read);
        Ok((launched, drawn))
    }
}

/// Where parts of a step's layers end: each part is half of the layers that are left, so that it
/// has been shipped by the time the next one is there, and the last, for which requests wait, is
/// one layer; or what is left once there are `most`.
fn halves(layers: usize, most: usize) -> impl Iterator<Item = usize> {
    let next = move |&(end, parts): &(usize, usize)| {
        let left = layers - end;
        let part = if parts + 1 >= most { left } else { left.div_ceil(2) };
        (part > 0).then_some((end + part, parts + 1))
    };
    std::iter::successors(next(&(0, 0)), next).map(|(end, _)| end)
}

/// Tokens and their log-probabilities, one entry a drawn row.
type Named = Vec<Vec<(u32, f32)>>;

/// What each draw names by id.
fn drawn_ids(batch: &Batch) -> impl Iterator<Item = &[TokenId]> {
    batch.rows.iter().filter_map(|row| Some(&*row.sample.as_ref()?.logprob_ids))
}

/// Runs the products of a pass once for every number of rows that the library is asked for: it
/// loads a kernel when it is first used, and no prompt is to wait for that.
fn rehearse(cuda: &Cuda, model: &Model<Cuda>, scratch: &mut Scratch<Cuda>) -> Result<(), OpError> {
    model.products(scratch, |LayerProduct { x, weights, add, out }| {
        let most = x.rows().min(out.rows());
        // Few rows are asked for as they are, where no kernel of ours takes the product.
        let few = 1..=PROJECT_ROWS_MAX.min(most);
        few.chain((LIBRARY_ROWS..=most).step_by(LIBRARY_ROWS)).try_for_each(|rows| {
            cuda.linear(Linear { rows, x, weight: weights[0], bias: None, add, out })
        })
    })?;
    cuda.device().synchronize()
}

/// The smallest of [`BUCKETS`] that takes `rows`.
fn bucket(rows: usize) -> usize {
    BUCKETS.into_iter().find(|&bucket| bucket >= rows).unwrap_or(ROWS_MAX)
}

/// Says what each part of a start took, of time and of the GPU's memory.
struct Stage<'d> {
    device: &'d Device,
    begun: Instant,
    /// Bytes.
    free: usize,
}

impl<'d> Stage<'d> {
    fn begin(device: &'d Device) -> Result<Self, OpError> {
        Ok(Self { device, begun: Instant::now(), free: device.memory()?.0 })
    }

    fn end(&mut self, part: &str) -> Result<(), OpError> {
        let free = self.device.memory()?.0;
        let (seconds, bytes) = (self.begun.elapsed().as_secs_f64(), self.free.saturating_sub(free));
        tracing::info!(part, seconds, bytes, "loading");
        (self.begun, self.free) = (Instant::now(), free);
        Ok(())
    }
}

fn kv_shape(geometry: &KvGeometry) -> KvShape {
    KvShape {
        layers: geometry.layers as usize,
        kv_heads: geometry.kv_heads as usize,
        head_dim: geometry.head_dim as usize,
        page_tokens: geometry.page_tokens as usize,
    }
}

fn pages_of(pool: PoolSize, free: usize, page_bytes: usize) -> Result<u32, LoadError> {
    let fit = (free as f64 * pool.fraction / page_bytes as f64) as u64;
    let pages = fit.min(pool.pages_max.unwrap_or(u32::MAX).into()) as u32;
    if pages >= 2 {
        return Ok(pages);
    }
    Err(LoadError::Unsupported {
        field: "mem_fraction",
        value: pool.fraction.to_string(),
        want: format!("more: {free} bytes of GPU memory are free, a page takes {page_bytes}"),
    })
}

impl Decode {
    /// Records a step for each of [`BUCKETS`] up to what takes `rows`.
    fn record(
        &mut self,
        cuda: &Cuda,
        model: &Model<Cuda>,
        pages: &CudaPages,
        rows: usize,
    ) -> Result<(), OpError> {
        for bucket in BUCKETS.into_iter().take_while(|&bucket| bucket <= self::bucket(rows)) {
            let (step, scratch) = (Step { tokens: bucket, sampled: bucket }, &mut self.scratch);
            model.products(scratch, |LayerProduct { x, weights, add, out }| {
                cuda.tune(Tune { rows: bucket, x, weights: &weights, add, out })
            })?;
            let recorded = cuda.record(&mut self.frame, bucket, |batch| {
                model.forward(cuda, &Pass { batch, step, pages }, scratch, |_| Ok(()))?;
                cuda.draw(&scratch.logits, batch)
            })?;
            self.steps.push(recorded);
        }
        Ok(())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn device(error: OpError) -> EngineError {
    EngineError(error.to_string())
}

/// As the device draws it. Waits for the mask, which is uploaded with the step: the server launches
/// such a row only once its last token is known, so a mask is mostly there by now.
pub(crate) fn to_draw(sample: &Sample) -> Draw {
    let sampling = &sample.sampling;
    Draw {
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        min_p: sampling.min_p,
        seed: sampling.seed,
        output_index: sample.output_index,
        top: sample.logprobs.unwrap_or(0).into(),
        repetition: sampling.repetition_penalty,
        frequency: sampling.frequency_penalty,
        presence: sampling.presence_penalty,
        adjusted: sample.allowed_adjusted(),
        mask: sample.words().cloned(),
    }
}

fn to_token(drawn: DrawnToken) -> Token {
    let top = drawn.top.into_iter().map(|(id, logprob)| (TokenId::new(id), logprob));
    Token { id: TokenId::new(drawn.token), logprob: drawn.logprob, top: top.collect() }
}

/// Margins are computed on the host from the step's logits, so nothing may be launched before a
/// step is collected.
impl Observed for CudaEngine {
    fn collect_drawn(&mut self) -> Result<Vec<Option<Drawn>>, EngineError> {
        let (Launched { samples, recorded, results, .. }, drawn) = self.finish()?;
        self.spare.push(results);
        if !self.launched.is_empty() {
            return Err(EngineError("its logits are overwritten: launched too early".to_owned()));
        }
        let of_decode = self.decode.as_ref().filter(|_| recorded);
        let logits = of_decode.map_or(&self.scratch.logits, |decode| &decode.scratch.logits);
        self.cuda.download(logits, drawn.len(), &mut self.logits).map_err(device)?;
        let rows = self.logits.chunks_exact(self.limits.vocab as usize);
        let mut drawn = drawn.into_iter().zip(rows);
        let mut of_row = |sample: &Sample| {
            let (token, logits) = drawn.next()?;
            let (token, host) = (to_token(token), draw(self.softmax, logits, sample));
            if host.token.id != token.id && host.margin > SAMPLER_TIE {
                let (ours, margin) = (host.token.id, host.margin);
                let text = format!("drew {} where the host draws {ours} by {margin}", token.id);
                return Some(Err(EngineError(text)));
            }
            Some(Ok(Drawn { token, margin: host.margin }))
        };
        samples.iter().map(|sample| sample.as_ref().and_then(&mut of_row).transpose()).collect()
    }
    fn logits(&self) -> &[f32] {
        &self.logits
    }
}

impl Engine for CudaEngine {
    fn vocab(&self) -> u32 {
        self.limits.vocab
    }
    fn context_length(&self) -> u32 {
        self.context_length
    }
    fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }
    fn rows_max(&self) -> usize {
        self.limits.rows
    }
    fn overlaps(&self) -> bool {
        true
    }
    fn pages(&self) -> Arc<dyn PageStore> {
        Arc::<DeviceKv>::clone(&self.kv)
    }
    fn device_pool(&self) -> Option<Arc<PagePool>> {
        Some(Arc::clone(&self.kv.pool))
    }
    fn launch(&mut self, batch: &Batch) -> Result<(), EngineError> {
        let word = |row: usize| Some(DRAWN | self.last.get(row).copied().flatten()?);
        let (flat, step) = self.limits.flatten(batch, word)?;
        let results = self.spare.pop();
        let mut results = results
            .ok_or_else(|| EngineError(format!("{IN_FLIGHT} steps are launched already")))?;
        let samples: Vec<_> = batch.rows.iter().map(|row| row.sample.clone()).collect();
        let draws: Vec<_> = samples.iter().flatten().map(to_draw).collect();
        self.parts.clear();
        let (mut recorded, mut read, mut named) = (false, Vec::new(), Vec::new());
        let wanted = Wanted::of(batch, &flat);
        if wanted.rows() > 0 || drawn_ids(batch).any(|ids| !ids.is_empty()) {
            let step = (step, &wanted);
            (read, named) = self.read_step((batch, flat), step, &draws).map_err(device)?;
        } else if step.tokens > 0 {
            recorded = self.enqueue(flat, step, &draws).map_err(device)?;
        }
        self.cuda.fetch(step.sampled, &mut results).map_err(device)?;
        let mut next = 0..;
        self.last =
            samples.iter().map(|sample| sample.as_ref().and_then(|_| next.next())).collect();
        self.launched.push_back(Launched { samples, results, recorded, read, named });
        Ok(())
    }
    fn is_ready(&mut self) -> Result<bool, EngineError> {
        self.launched.front().map_or(Ok(true), |step| step.results.is_there().map_err(device))
    }
    fn parts(&self) -> &[StepPart] {
        &self.parts
    }
    fn collect(&mut self) -> Result<Vec<Option<Token>>, EngineError> {
        let (Launched { samples, results, .. }, drawn) = self.finish()?;
        self.spare.push(results);
        let mut drawn = drawn.into_iter().map(to_token);
        Ok(samples.iter().map(|sample| sample.as_ref().and_then(|_| drawn.next())).collect())
    }
    fn read(&mut self) -> Vec<Option<Read>> {
        std::mem::take(&mut self.read)
    }
    fn computed_at(&self) -> Result<Option<Instant>, EngineError> {
        let at = |results: &Fetch| results.computed_at(self.cuda.device()).map_err(device);
        self.spare.last().map(at).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_halve_and_end_with_one_layer() {
        let check = |layers, most, ends: &[usize]| {
            assert_eq!(halves(layers, most).collect::<Vec<_>>(), ends, "{layers} in {most}");
        };
        check(28, 16, &[14, 21, 25, 27, 28]);
        check(28, 4, &[14, 21, 25, 28]);
        check(28, 1, &[28]);
        check(36, 16, &[18, 27, 32, 34, 35, 36]);
        check(1, 16, &[1]);
    }
}
