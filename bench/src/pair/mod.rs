//! Two processes that share a transport and nothing else: this one, and a peer that it starts.
//!
//! They speak over a control connection, as servers do. The peer's death is noticed there.

pub mod peer;
pub mod pool;

use anyhow::{Context, ensure};
use kv_transfer::select::Choice;
use kv_transfer::tcp::TcpConfig;
use kv_transfer::{Link, Session, Sources, Targets};
use pool::Pool;
use rustix::process::{Pid, Signal, kill_process};
use shared::kv::{KvGeometry, PageStore};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Ends a peer that hangs; no figure comes near it.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Largest message: an offer, checksums, a table.
const MESSAGE_MAX: usize = 1 << 20;

/// Length-prefixed messages over a socket.
pub struct Control(TcpStream);

impl Control {
    pub fn new(socket: TcpStream) -> anyhow::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(SILENCE_MAX))?;
        Ok(Self(socket))
    }

    pub fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.0.write_all(&u32::try_from(bytes.len())?.to_le_bytes())?;
        Ok(self.0.write_all(bytes)?)
    }

    pub fn receive(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).context("the peer has gone")?;
        let length = u32::from_le_bytes(length) as usize;
        ensure!(length <= MESSAGE_MAX, "a message of {length} bytes");
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub fn receive_words(&mut self) -> anyhow::Result<Vec<u64>> {
        let bytes = self.receive()?;
        let words = bytes.chunks_exact(8).filter_map(|word| word.try_into().ok());
        Ok(words.map(u64::from_le_bytes).collect())
    }

    pub fn send_words(&mut self, words: impl IntoIterator<Item = u64>) -> anyhow::Result<()> {
        self.send(&words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>())
    }

    /// Blocks until the other process is gone.
    pub fn await_end(&mut self) {
        // An error is an end too.
        let _ = self.0.read_to_end(&mut Vec::new());
    }
}

/// The other process; killed and waited for when dropped.
pub struct Other {
    child: Child,
    pub control: Control,
}

impl Other {
    /// Starts this program again as `job`, with pages of `shape`.
    pub fn start(job: peer::Job, choice: &str, shape: usize) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let child = Command::new(std::env::current_exe()?)
            .args(["peer", job.name(), choice, &shape.to_string()])
            .arg(listener.local_addr()?.to_string())
            .stdin(Stdio::null())
            .spawn()
            .context("start a peer")?;
        let (socket, _) = listener.accept()?;
        Ok(Self { child, control: Control::new(socket)? })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::KILL)?)
    }

    /// Waits for its end; whether it ended well.
    pub fn wait(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.wait()?.success())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Fails only if it is dead and waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The receiving half of a transport, and its pool of `pages`.
pub fn targets(
    choice: Choice,
    geometry: KvGeometry,
    pages: u32,
) -> anyhow::Result<(Arc<Pool>, Targets)> {
    let bytes = geometry.page_bytes() * pages as usize;
    let (prepared, memory) = choice.target_memory(None, bytes)?;
    let pool = Arc::new(Pool::new(memory, geometry, pages, 2)?);
    let store: Arc<dyn PageStore> = pool.clone();
    Ok((pool, prepared.over(&store, TcpConfig::default())?))
}

/// The sending half of a transport, and its pool of `pages`.
pub fn sources(
    choice: Choice,
    geometry: KvGeometry,
    pages: u32,
) -> anyhow::Result<(Arc<Pool>, Sources)> {
    let bytes = geometry.page_bytes() * pages as usize;
    let (prepared, memory) = choice.source_memory(None, bytes)?;
    let pool = Arc::new(Pool::new(memory, geometry, pages, 1)?);
    let store: Arc<dyn PageStore> = pool.clone();
    Ok((pool, prepared.over(&store)?))
}

pub fn join_as_target(targets: &Targets, control: &mut Control) -> anyhow::Result<Session> {
    let offered = targets.offer()?;
    control.send(offered.bytes())?;
    let (session, verdict) = offered.settle(&control.receive()?)?;
    control.send(&verdict)?;
    Ok(session)
}

pub fn join_as_source(sources: &Sources, control: &mut Control) -> anyhow::Result<Box<dyn Link>> {
    let answered = sources.answer(&control.receive()?)?;
    control.send(answered.bytes())?;
    Ok(answered.settled(&control.receive()?)?.0)
}
