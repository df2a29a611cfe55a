//! [`CpuEngine`]: the engine on the CPU backend. A launch returns when the step is computed.

use crate::batch::Limits;
use crate::engine::{Batch, Engine, EngineError, Sample};
use crate::forward::{Model, Pass, Scratch, Step};
use crate::kv::KvMemory;
use crate::load::{LoadError, LoadPlan, Progress, load};
use crate::quantised::WeightFormat;
use crate::read::{Reader, Wanted};
use crate::reference::Observed;
use crate::sample::{Drawn, draw};
use checkpoint::{Checkpoint, ModelConfig};
use kernels::cpu::memory::HostMemory;
use kernels::cpu::simd::Level;
use kernels::cpu::{Cpu, CpuPages, Matrix, Softmax};
use kernels::ops::{OpError, Ops};
use shared::kv::{KvDtype, KvGeometry, PageStore};
use shared::request::{Read, Token};
use std::collections::VecDeque;
use std::sync::Arc;

/// How an engine is set up.
pub struct EngineConfig {
    /// Element of keys and values; f32 also keeps the weights of an f32 checkpoint exact.
    pub dtype: KvDtype,
    /// How matrices are kept in memory.
    pub weights: WeightFormat,
    /// Pages of the pool.
    pub pages: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Threads that compute, the engine's own included; absent: as many as the machine runs.
    pub threads: Option<usize>,
    /// Memory for the pool that a transport allocated; absent: fresh memory.
    pub memory: Option<HostMemory>,
}

/// Shape of the pages that [`CpuEngine::load`] will use, for who allocates their memory first.
///
/// # Errors
/// [`LoadError::Unsupported`] naming what does not fit.
pub fn geometry(
    config: &ModelConfig,
    page_tokens: u32,
    dtype: KvDtype,
) -> Result<KvGeometry, LoadError> {
    if !config.head_dim.is_multiple_of(16) {
        return Err(unsupported("head_dim", &config.head_dim, "a multiple of 16"));
    }
    let (layers, kv_heads) = (config.layers as u32, config.kv_heads as u32);
    let head_dim = config.head_dim as u32;
    let geometry = KvGeometry { layers, kv_heads, head_dim, page_tokens, dtype };
    match geometry.invalid() {
        None => Ok(geometry),
        Some(why) => Err(unsupported("page_tokens", &page_tokens, why)),
    }
}

fn unsupported(field: &'static str, value: &dyn ToString, want: &str) -> LoadError {
    LoadError::Unsupported { field, value: value.to_string(), want: want.to_owned() }
}

/// What a step drew and read, one entry a row each; no entries where nothing was read.
type Results = (Vec<Option<Drawn>>, Vec<Option<Read>>);

/// A model, its pages and its threads.
pub struct CpuEngine {
    cpu: Cpu,
    softmax: Softmax,
    model: Model<Cpu>,
    fingerprint: [u8; 32],
    context_length: u32,
    limits: Limits,
    kv: Arc<KvMemory>,
    pages: CpuPages,
    scratch: Scratch<Cpu>,
    logits: Vec<f32>,
    /// Results of launched steps, oldest first.
    results: VecDeque<Results>,
    /// What the step collected last has read.
    read: Vec<Option<Read>>,
    /// What the rows of the last launched step drew.
    last: Vec<Option<u32>>,
}

impl CpuEngine {
    /// Loads a checkpoint; `progress` hears bytes read so far and in all.
    ///
    /// # Errors
    /// [`LoadError`]: files, memory, or a size that the engine cannot take, by name.
    pub fn load(
        checkpoint: &Checkpoint,
        config: EngineConfig,
        progress: Progress<'_>,
    ) -> Result<Self, LoadError> {
        Self::load_at(checkpoint, config, Level::detect(), progress)
    }

    /// As [`Self::load`], to use no more of this CPU than `level`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_at(
        checkpoint: &Checkpoint,
        config: EngineConfig,
        level: Level,
        progress: Progress<'_>,
    ) -> Result<Self, LoadError> {
        let EngineConfig { dtype, weights, pages, page_tokens, threads, memory } = config;
        let model_config = checkpoint.config();
        let geometry = geometry(model_config, page_tokens, dtype)?;
        if pages == 0 {
            return Err(unsupported("pages", &pages, "at least one; give the pool more memory"));
        }
        let kv = Arc::new(KvMemory::new(geometry, pages, memory)?);
        let threads = threads
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1);
        let cpu = Cpu::with_level(threads, level);
        let room = pages as usize * page_tokens as usize;
        let positions = model_config.max_positions.min(room);
        let plan = LoadPlan { ops: &cpu, dtype, weights, positions, threads };
        let loaded = load(checkpoint, plan, progress)?;
        let name = level.name();
        tracing::info!(threads, level = name, pages, page_tokens, ?dtype, ?weights, "model loaded");
        let vocab = model_config.vocab as u32;
        let scratch = Scratch::new(&cpu, &loaded.model.sizes, 1, 1)?;
        Ok(Self {
            cpu,
            softmax: Softmax::with_level(level),
            model: loaded.model,
            fingerprint: loaded.fingerprint,
            context_length: model_config.max_positions as u32,
            limits: Limits { vocab, pages, page_tokens, positions, rows: usize::MAX },
            pages: kv.for_kernels(),
            kv,
            scratch,
            logits: Vec::new(),
            results: VecDeque::new(),
            read: Vec::new(),
            last: Vec::new(),
        })
    }

    /// The pages, with their region.
    pub fn kv(&self) -> &Arc<KvMemory> {
        &self.kv
    }

    /// Bytes of weights that a step of one token reads.
    pub fn weight_bytes(&self) -> usize {
        self.model.matrices().map(Matrix::bytes).sum()
    }

    /// Reads those bytes on the engine's threads and only sums them: the floor of a step's time.
    pub fn sum_weights(&self) -> f64 {
        self.model.matrices().map(|matrix| self.cpu.sum(matrix)).sum()
    }

    fn compute(&mut self, batch: &Batch) -> Result<Results, EngineError> {
        let (flat, step) =
            self.limits.flatten(batch, |row| self.last.get(row).copied().flatten())?;
        let device = |error: OpError| EngineError(error.to_string());
        let mut drawn = vec![None; batch.rows.len()];
        if step.tokens == 0 {
            return Ok((drawn, Vec::new()));
        }
        let wanted = Wanted::of(batch, &flat);
        let host = (wanted.rows() > 0).then(|| flat.clone());
        let flat = self.cpu.batch(flat).map_err(device)?;
        let (pass, s) = (Pass { batch: &flat, step, pages: &self.pages }, &mut self.scratch);
        let room = Step { sampled: step.sampled.max(wanted.rows()), ..step };
        s.fit(&self.cpu, &self.model.sizes, room).map_err(device)?;
        self.model.forward(&self.cpu, &pass, s, |_| Ok(())).map_err(device)?;
        self.cpu.download(&self.scratch.logits, step.sampled, &mut self.logits).map_err(device)?;
        let logits = self.logits.chunks_exact(self.limits.vocab as usize);
        let rows = batch.rows.iter().zip(&mut drawn);
        let sampled = rows.filter_map(|(row, drawn)| Some((row.sample.as_ref()?, drawn)));
        let draw_one = |((sample, drawn), logits): ((&Sample, &mut Option<Drawn>), &[f32])| {
            *drawn = Some(draw(self.softmax, logits, sample));
        };
        self.cpu.pool().for_each(sampled.zip(logits), draw_one);
        let Some(host) = host else { return Ok((drawn, Vec::new())) };
        let reader = Reader { ops: &self.cpu, model: &self.model, softmax: self.softmax };
        let read = reader.read((batch, &host), &wanted, &mut self.scratch).map_err(device)?;
        Ok((drawn, read))
    }
}

impl Observed for CpuEngine {
    fn collect_drawn(&mut self) -> Result<Vec<Option<Drawn>>, EngineError> {
        let results = self.results.pop_front();
        let results = results.ok_or_else(|| EngineError("collect without a launch".to_owned()))?;
        let (drawn, read) = results;
        self.read = read;
        Ok(drawn)
    }
    fn logits(&self) -> &[f32] {
        &self.logits
    }
}

impl Engine for CpuEngine {
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
        false
    }
    fn pages(&self) -> Arc<dyn PageStore> {
        Arc::<KvMemory>::clone(&self.kv)
    }
    fn launch(&mut self, batch: &Batch) -> Result<(), EngineError> {
        let results = self.compute(batch)?;
        let id = |drawn: &Option<Drawn>| drawn.as_ref().map(|drawn| drawn.token.id.get());
        self.last = results.0.iter().map(id).collect();
        self.results.push_back(results);
        Ok(())
    }
    fn collect(&mut self) -> Result<Vec<Option<Token>>, EngineError> {
        let drawn = self.collect_drawn()?;
        Ok(drawn.into_iter().map(|drawn| drawn.map(|d| d.token)).collect())
    }
    fn read(&mut self) -> Vec<Option<Read>> {
        std::mem::take(&mut self.read)
    }
}
