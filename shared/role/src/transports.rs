//! Which transports this server has, best first, and why it lacks the others.

use crate::settings::{Config, TransportChoice};
use kernels::cpu::memory::HostMemory;
use kv_transfer::loopback::{Hub, LoopbackSource, LoopbackTarget};
use kv_transfer::tcp::{TcpConfig, TcpSource, TcpTarget};
use kv_transfer::ucx::{Region, Ucx, UcxSource, UcxTarget, private_memory};
use kv_transfer::{Source, Target, TransferError};
use shared::kv::PageStore;
use shared::wire::messages::TransportKind;
use std::sync::Arc;

/// What was found before the pool exists: whether UCX can be used.
pub struct Plan {
    choice: TransportChoice,
    ucx: Option<Ucx>,
    hub: Option<Arc<Hub>>,
    lacking: Vec<String>,
}

/// The pool's memory, and the handle by which UCX reaches it.
pub struct PoolMemory {
    /// For the engine; absent: it makes its own.
    pub memory: Option<HostMemory>,
    region: Option<Region>,
}

impl Plan {
    /// Looks for what `config` allows. `hub` is there when both roles share this process.
    ///
    /// # Errors
    /// If UCX is asked for by name and cannot be loaded.
    pub fn new(config: &Config, hub: Option<Arc<Hub>>) -> Result<Self, TransferError> {
        let mut plan = Self { choice: config.transport, ucx: None, hub, lacking: vec![] };
        if matches!(plan.choice, TransportChoice::Auto | TransportChoice::Ucx) {
            match Ucx::open(config.ucx_dir.as_deref()) {
                Ok(ucx) => plan.ucx = Some(ucx),
                Err(error) if plan.choice == TransportChoice::Ucx => return Err(error),
                Err(error) => plan.lacking.push(error.to_string()),
            }
        }
        Ok(plan)
    }

    /// Memory for a pool that peers write.
    ///
    /// # Errors
    /// If UCX is asked for by name and cannot allocate it.
    pub fn target_memory(&mut self, bytes: usize) -> Result<PoolMemory, TransferError> {
        let Some(ucx) = &self.ucx else { return Ok(PoolMemory { memory: None, region: None }) };
        match ucx.shared_memory(bytes) {
            Ok((region, memory)) => Ok(PoolMemory { memory: Some(memory), region: Some(region) }),
            Err(error) if self.choice == TransportChoice::Ucx => Err(error),
            Err(error) => {
                self.lacking.push(error.to_string());
                self.ucx = None;
                Ok(PoolMemory { memory: None, region: None })
            }
        }
    }

    /// Memory for a pool that is only read by transports.
    ///
    /// # Errors
    /// If there is too little.
    pub fn source_memory(&self, bytes: usize) -> Result<PoolMemory, TransferError> {
        if self.ucx.is_none() {
            return Ok(PoolMemory { memory: None, region: None });
        }
        let (region, memory) = private_memory(bytes)?;
        Ok(PoolMemory { memory: Some(memory), region: Some(region) })
    }

    /// The receiving halves over a pool, best first.
    ///
    /// # Errors
    /// If a transport that was asked for by name cannot start, or none can.
    pub fn targets(
        mut self,
        config: &Config,
        store: &Arc<dyn PageStore>,
        region: Option<Region>,
    ) -> Result<Vec<Arc<dyn Target>>, TransferError> {
        let mut targets: Vec<Arc<dyn Target>> = vec![];
        if let (TransportChoice::Loopback, Some(hub)) = (self.choice, &self.hub) {
            targets.push(Arc::new(LoopbackTarget::new(hub, store.clone())));
        }
        if let (Some(ucx), Some(region)) = (&self.ucx, region) {
            let target = UcxTarget::new(ucx, region, *store.geometry(), store.pages())?;
            tracing::info!(library = %ucx.version(), "ucx may write this pool");
            targets.push(Arc::new(target));
        }
        if matches!(self.choice, TransportChoice::Auto | TransportChoice::Tcp) {
            let tcp = TcpConfig {
                listen: config.data_listen,
                advertise: config.data_advertise,
                ..TcpConfig::default()
            };
            match TcpTarget::new(store.clone(), tcp) {
                Ok(target) => targets.push(Arc::new(target)),
                Err(error) => self.lacking.push(error.to_string()),
            }
        }
        self.some(targets)
    }

    /// The sending halves over a pool, best first.
    ///
    /// # Errors
    /// As [`Self::targets`].
    pub fn sources(
        self,
        store: &Arc<dyn PageStore>,
        region: Option<Region>,
    ) -> Result<Vec<Arc<dyn Source>>, TransferError> {
        let mut sources: Vec<Arc<dyn Source>> = vec![];
        if let (TransportChoice::Loopback, Some(hub)) = (self.choice, &self.hub) {
            sources.push(Arc::new(LoopbackSource::new(hub, store.clone())));
        }
        if let (Some(ucx), Some(region)) = (&self.ucx, region) {
            let source = UcxSource::new(ucx, region, *store.geometry(), store.pages())?;
            sources.push(Arc::new(source));
        }
        if matches!(self.choice, TransportChoice::Auto | TransportChoice::Tcp) {
            sources.push(Arc::new(TcpSource::new(store.clone())));
        }
        self.some(sources)
    }

    fn some<T>(self, found: Vec<T>) -> Result<Vec<T>, TransferError> {
        for reason in &self.lacking {
            tracing::warn!(%reason, "a transport is lacking");
        }
        if found.is_empty() {
            let reason = self.lacking.join("; ");
            return Err(TransferError::Unavailable { transport: "every transport", reason });
        }
        Ok(found)
    }
}

impl PoolMemory {
    /// Takes memory and handle apart.
    pub fn split(self) -> (Option<HostMemory>, Option<Region>) {
        (self.memory, self.region)
    }
}

/// A transport's name on the wire.
pub fn on_wire(kind: kv_transfer::Kind) -> TransportKind {
    match kind {
        kv_transfer::Kind::Loopback => TransportKind::Loopback,
        kv_transfer::Kind::Tcp => TransportKind::Tcp,
        kv_transfer::Kind::Ucx => TransportKind::Ucx,
    }
}
