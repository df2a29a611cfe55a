//! [`CudaEngine`]: the engine on one GPU. A launch enqueues the forward pass; its logits come to
//! the host, where tokens are drawn, when the step is collected or the next one is launched.

use crate::batch::Limits;
use crate::cpu::geometry;
use crate::engine::{Batch, Engine, EngineError, Sample};
use crate::forward::{Model, Scratch, Step};
use crate::load::{LoadError, LoadPlan, Progress, load};
use crate::reference::Observed;
use crate::sample::{Drawn, draw};
use checkpoint::Checkpoint;
use kernels::cpu::Softmax;
use kernels::cpu::pool::Pool;
use kernels::cuda::{Cuda, CudaPages, Device, PagePool};
use kernels::ops::{KvShape, OpError, Ops};
use shared::ids::PageId;
use shared::kv::{KvDtype, KvGeometry, PageStore};
use shared::request::Token;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Exit status of a process whose GPU failed: its peers see a death, its supervisor a reason.
pub const GPU_LOST: i32 = 71;

/// How an engine on a GPU is set up.
#[derive(Clone, Debug)]
pub struct CudaConfig {
    /// Pages of the pool.
    pub pages: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Host threads that load and draw; absent: as many as the machine runs.
    pub threads: Option<usize>,
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

/// A step that was launched and whose tokens are not drawn yet.
struct Launched {
    /// One entry a row.
    samples: Vec<Option<Sample>>,
    step: Step,
}

/// A model and its pages on one GPU.
pub struct CudaEngine {
    cuda: Cuda,
    pool: Pool,
    softmax: Softmax,
    model: Model<Cuda>,
    fingerprint: [u8; 32],
    context_length: u32,
    limits: Limits,
    kv: Arc<DeviceKv>,
    pages: CudaPages,
    scratch: Scratch<Cuda>,
    logits: Vec<f32>,
    launched: Option<Launched>,
    /// Results of finished steps, oldest first.
    results: VecDeque<Vec<Option<Drawn>>>,
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
        let &CudaConfig { pages, page_tokens, threads } = config;
        let model_config = checkpoint.config();
        let geometry = geometry(model_config, page_tokens, KvDtype::Bf16)?;
        let cuda = Cuda::new(device)?;
        let shape = KvShape {
            layers: geometry.layers as usize,
            kv_heads: geometry.kv_heads as usize,
            head_dim: geometry.head_dim as usize,
            page_tokens: page_tokens as usize,
        };
        let memory = Arc::new(PagePool::new(device, shape, pages)?);
        let threads = threads
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1);
        let room = pages as usize * page_tokens as usize;
        let positions = model_config.max_positions.min(room);
        let plan = LoadPlan { ops: &cuda, dtype: KvDtype::Bf16, positions, threads };
        let loaded = load(checkpoint, plan, progress)?;
        tracing::info!(gpu = device.name(), pages, page_tokens, "model loaded");
        let vocab = model_config.vocab as u32;
        Ok(Self {
            scratch: Scratch::new(&cuda, &loaded.model.sizes, 1, 1)?,
            cuda,
            pool: Pool::new(threads),
            softmax: Softmax::detect(),
            model: loaded.model,
            fingerprint: loaded.fingerprint,
            context_length: model_config.max_positions as u32,
            limits: Limits { vocab, pages, page_tokens, positions },
            pages: CudaPages::new(Arc::clone(&memory)),
            kv: Arc::new(DeviceKv { geometry, pool: memory }),
            logits: Vec::new(),
            launched: None,
            results: VecDeque::new(),
        })
    }

    /// Waits for the step that is on the GPU, if any, and draws its tokens.
    fn finish(&mut self) -> Result<(), EngineError> {
        let Some(Launched { samples, step }) = self.launched.take() else { return Ok(()) };
        let logits = &mut self.logits;
        self.cuda.download(&self.scratch.logits, step.sampled, logits).map_err(device)?;
        let mut drawn = vec![None; samples.len()];
        let rows = self.logits.chunks_exact(self.limits.vocab as usize);
        let wanted = samples.iter().zip(&mut drawn);
        let wanted = wanted.filter_map(|(sample, drawn)| Some((sample.as_ref()?, drawn)));
        let softmax = self.softmax;
        self.pool.for_each(wanted.zip(rows), |((sample, drawn), logits)| {
            *drawn = Some(draw(softmax, logits, sample));
        });
        self.results.push_back(drawn);
        Ok(())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn device(error: OpError) -> EngineError {
    EngineError(error.to_string())
}

impl Observed for CudaEngine {
    fn collect_drawn(&mut self) -> Result<Vec<Option<Drawn>>, EngineError> {
        if self.results.is_empty() {
            self.finish()?;
        }
        self.results.pop_front().ok_or_else(|| EngineError("collect without a launch".to_owned()))
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
    fn pages(&self) -> Arc<dyn PageStore> {
        Arc::<DeviceKv>::clone(&self.kv)
    }
    fn launch(&mut self, batch: &Batch) -> Result<(), EngineError> {
        self.finish()?;
        let (flat, step) = self.limits.flatten(batch)?;
        if step.tokens > 0 {
            let flat = self.cuda.batch(flat).map_err(device)?;
            let (at, scratch) = ((&flat, step), &mut self.scratch);
            self.model.forward(&self.cuda, at, &self.pages, scratch).map_err(device)?;
        }
        let samples = batch.rows.iter().map(|row| row.sample).collect();
        self.launched = Some(Launched { samples, step });
        Ok(())
    }
    fn collect(&mut self) -> Result<Vec<Option<Token>>, EngineError> {
        let drawn = self.collect_drawn()?;
        Ok(drawn.into_iter().map(|drawn| drawn.map(|d| d.token)).collect())
    }
}
