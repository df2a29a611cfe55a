//! The model, its pages, and who this server is: what a role needs before its loop can run.

use crate::guide::Guides;
use crate::settings::{BadSetting, Config, Device};
use checkpoint::Checkpoint;
use grammar::Compiler;
use kernels::cpu::memory::HostMemory;
use kernels::cuda::{self, PagePool, device::Priority};
use kernels::ops::OpError;
use kv_transfer::loopback::{Hub, LoopbackSource, LoopbackTarget};
use kv_transfer::tcp::TcpConfig;
use kv_transfer::{Kind, Sources, Targets, TransferError};
use link::{Local, identity};
use model::cpu::{CpuEngine, EngineConfig, geometry};
use model::cuda::{CudaConfig, CudaEngine, PoolSize};
use model::engine::Engine;
use model::load::LoadError;
use model::sim::{SimConfig, SimEngine, StepTable};
use model::worker::Worker;
use shared::kv::KvGeometry;
use shared::pool::Pool;
use shared::radix::RadixCache;
use shared::wire::handshake::{Capacity, Layout, Role};
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting.
    #[error("{0}")]
    Setting(#[from] BadSetting),
    /// The model's files.
    #[error("{0}")]
    Checkpoint(#[from] checkpoint::Error),
    /// The model on this device.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// The GPU.
    #[error("{0}")]
    Gpu(#[from] OpError),
    /// Transports.
    #[error("{0}")]
    Transfer(#[from] TransferError),
    /// The system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A server's substance.
pub struct Core {
    /// Computes.
    pub engine: Box<dyn Engine>,
    /// Who holds which page.
    pub pool: Pool,
    /// Which pages hold which tokens.
    pub cache: RadixCache,
    /// This server to its peers.
    pub local: Local,
    /// What pages look like.
    pub layout: Layout,
    /// How much there is.
    pub capacity: Capacity,
    /// Follows outputs that have a grammar.
    pub guides: Guides,
}

impl Core {
    /// Loads a decode server's core, with the transports by which peers write its pool. With a
    /// `hub`, both roles are in this process and that is the transport.
    ///
    /// # Errors
    /// [`StartError`], by name.
    pub fn decode(config: &Config, hub: Option<&Arc<Hub>>) -> Result<(Self, Targets), StartError> {
        let sized = Sized::of(config, Role::Decode)?;
        if let Some(hub) = hub {
            let core = Self::load(config, sized, Role::Decode, None)?;
            let target = LoopbackTarget::new(hub, core.engine.pages());
            let target = match core.engine.device_pool() {
                Some(pool) => target.in_device_memory(&pool),
                None => target,
            };
            return Ok((core, Targets::new(vec![(Kind::Loopback, Ok(Box::new(target)))])));
        }
        let (prepared, memory) = match sized.gpu {
            Some(_) => (None, None),
            None => {
                let ucx = config.ucx_dir.as_deref();
                let (prepared, memory) = config.transport.target_memory(ucx, sized.bytes())?;
                (Some(prepared), Some(memory))
            }
        };
        let core = Self::load(config, sized, Role::Decode, memory)?;
        let tcp = TcpConfig {
            listen: config.data_listen,
            advertise: config.data_advertise,
            ..TcpConfig::default()
        };
        let store = core.engine.pages();
        let targets = match prepared {
            Some(prepared) => prepared.over(&store, tcp)?,
            None => {
                let pool = core.device_pool();
                let ucx = config.ucx_dir.as_deref();
                config.transport.device_targets(&pool, *store.geometry(), (ucx, tcp))?
            }
        };
        Ok((core, targets))
    }

    /// Loads a prefill server's core, with the transports by which it writes peers' pools.
    ///
    /// # Errors
    /// [`StartError`], by name.
    pub fn prefill(config: &Config, hub: Option<&Arc<Hub>>) -> Result<(Self, Sources), StartError> {
        let sized = Sized::of(config, Role::Prefill)?;
        if let Some(hub) = hub {
            let core = Self::load(config, sized, Role::Prefill, None)?;
            let source = LoopbackSource::new(hub, core.engine.pages());
            let source = match core.engine.device_pool() {
                Some(pool) => source.in_device_memory(&pool)?,
                None => source,
            };
            return Ok((core, Sources::new(vec![(Kind::Loopback, Ok(Box::new(source)))])));
        }
        let (prepared, memory) = match sized.gpu {
            Some(_) => (None, None),
            None => {
                let ucx = config.ucx_dir.as_deref();
                let (prepared, memory) = config.transport.source_memory(ucx, sized.bytes())?;
                (Some(prepared), Some(memory))
            }
        };
        let core = Self::load(config, sized, Role::Prefill, memory)?;
        let store = core.engine.pages();
        let sources = match prepared {
            Some(prepared) => prepared.over(&store)?,
            None => {
                let (pool, ucx) = (core.device_pool(), config.ucx_dir.as_deref());
                config.transport.device_sources(&pool, *store.geometry(), ucx)?
            }
        };
        Ok((core, sources))
    }

    fn device_pool(&self) -> Arc<PagePool> {
        self.engine.device_pool().expect("an engine on a GPU has its pages there")
    }

    fn load(
        config: &Config,
        sized: Sized,
        role: Role,
        memory: Option<HostMemory>,
    ) -> Result<Self, StartError> {
        let start = Instant::now();
        let guides = guides(&sized.checkpoint)?;
        let engine = sized.engine((config, role), memory)?;
        let store = engine.pages();
        let pages = store.pages();
        let model = engine.fingerprint();
        let context = engine.context_length();
        let context_length = config.context_length.map_or(context, |asked| asked.min(context));
        if config.context_length.is_some_and(|asked| asked > context) {
            tracing::warn!(asked = config.context_length, context, "context_length is the model's");
        }
        let seconds = start.elapsed().as_secs_f32();
        tracing::info!(%role, pages, page_tokens = config.page_size, seconds, "model loaded");
        Ok(Self {
            pool: Pool::new(pages),
            cache: RadixCache::new(config.page_size, config.eviction.build()),
            local: Local {
                identity: identity::draw(role, config.id.clone())?,
                key: config.key.clone(),
                layout: None,
                timing: config.timing,
            },
            layout: Layout { model, geometry: *store.geometry(), tensor_parallel: 1 },
            capacity: Capacity { pages, context_length, vocab: engine.vocab() },
            engine,
            guides,
        })
    }
}

/// Starts what follows grammars; a model without a usable tokenizer serves all other requests.
fn guides(checkpoint: &Checkpoint) -> io::Result<Guides> {
    let tokenizer = checkpoint.tokenizer_json().map_err(|error| error.to_string());
    let (vocab, eos) = (checkpoint.config().vocab as u32, checkpoint.eos_token_ids());
    Guides::start(move || {
        Compiler::new(&tokenizer?, vocab, &eos).map_err(|error| error.to_string())
    })
}

/// A model's files, and how large the pool over it will be.
struct Sized {
    checkpoint: Checkpoint,
    geometry: KvGeometry,
    /// In host memory; 0 where a GPU's memory is to be measured once its weights are there.
    pages: u32,
    /// Most pages that were asked for.
    asked: Option<u32>,
    /// Opened, if the model is to run there.
    gpu: Option<cuda::Device>,
}

impl Sized {
    /// As many pages as a fraction of the memory that is available now holds, and no more than
    /// asked for.
    fn of(config: &Config, role: Role) -> Result<Self, StartError> {
        let checkpoint = Checkpoint::open(&config.model)?;
        let geometry = geometry(checkpoint.config(), config.page_size, config.dtype)?;
        let asked = config.max_total_tokens.map(|tokens| geometry.pages_for(tokens));
        if let Device::Cuda(ordinal) = config.device {
            let priority = match role {
                Role::Decode => Priority::High,
                Role::Prefill | Role::Gateway => Priority::Normal,
            };
            let gpu = cuda::Device::open_for(ordinal, priority)?;
            tracing::info!(%role, gpu = gpu.name(), "device opened");
            return Ok(Self { checkpoint, geometry, pages: 0, asked, gpu: Some(gpu) });
        }
        let budget = available_memory()? as f64 * config.mem_fraction;
        let fit = (budget / geometry.page_bytes() as f64) as u64;
        let pages = asked.map_or(fit, |asked| u64::from(asked).min(fit));
        let pages = pages.min(u64::from(u32::MAX)) as u32;
        if pages >= 2 {
            return Ok(Self { checkpoint, geometry, pages, asked, gpu: None });
        }
        let problem = format!(
            "{} of the available memory holds {fit} pages of {} bytes; raise it",
            config.mem_fraction,
            geometry.page_bytes()
        );
        Err(BadSetting::Value { name: "mem_fraction", problem }.into())
    }

    /// Loads the model, with the pool in `memory` if that is given.
    fn engine(
        self,
        (config, role): (&Config, Role),
        memory: Option<HostMemory>,
    ) -> Result<Box<dyn Engine>, StartError> {
        let Self { checkpoint, pages, asked, gpu, .. } = self;
        let (page_tokens, threads) = (config.page_size, config.threads);
        let mut tenth = 0;
        let mut progress = |done: u64, all: u64| {
            let now = done * 10 / all.max(1);
            if now > tenth {
                tenth = now;
                tracing::info!("loading weights: {} %", now * 10);
            }
        };
        if let Some(gpu) = gpu {
            let pool = PoolSize { fraction: config.mem_fraction, pages_max: asked };
            let (decode_rows, step_tokens) = match role {
                Role::Decode => (config.batch_max, 1),
                Role::Prefill | Role::Gateway => (0, config.chunk_tokens as usize),
            };
            let parts = config.layer_groups;
            let config = CudaConfig { pool, page_tokens, threads, decode_rows, step_tokens, parts };
            return Ok(Box::new(CudaEngine::load(&gpu, &checkpoint, &config, &mut progress)?));
        }
        if let Device::Sim(table) = &config.device {
            let table = StepTable::clone(table);
            let config = SimConfig { table, dtype: config.dtype, pages, page_tokens, memory };
            return Ok(Box::new(SimEngine::new(&checkpoint, config)?));
        }
        let config = EngineConfig {
            dtype: config.dtype,
            weights: config.weights,
            pages,
            page_tokens,
            threads,
            memory,
        };
        let engine = CpuEngine::load(&checkpoint, config, &mut progress)?;
        Ok(Box::new(Worker::new(engine)?))
    }

    fn bytes(&self) -> usize {
        self.pages as usize * self.geometry.page_bytes()
    }
}

fn available_memory() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other("/proc/meminfo names no MemAvailable"))
}
