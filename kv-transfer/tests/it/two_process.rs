//! Two real processes, one of which is killed, stopped or closed in mid-write.
//!
//! The other process is this test binary again, running only [`child`], told its role by an
//! environment variable and led over a control connection, as servers lead each other. It tells
//! when half of its work is done and then writes without end, so that a signal sent after that
//! always lands in mid-write.

use crate::pair::{GEOMETRY, Pool, SOURCE_PAGES, TARGET_PAGES};
use crate::same_body::{LIMIT, drive, put};
use kernels::cuda::Device;
use kernels::cuda::ship::Copier;
use kv_transfer::cuda_ipc::{Copiers, CudaIpcSource};
use kv_transfer::select::Choice;
use kv_transfer::tcp::TcpConfig;
use kv_transfer::{
    Event, Kind, Link, OpId, Proof, PushConfig, Pusher, Session, Sources, Targets, TransferError,
    WriterProcess, land,
};
use rustix::process::{Pid, Signal, kill_process};
use shared::ids::PageId;
use shared::kv::PageStore;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// Role, transport and the parent's address.
const ROLE: &str = "TANDEM_TEST_CHILD";

fn variable(name: &str) -> Option<String> {
    std::env::vars().find(|(have, _)| have == name).map(|(_, value)| value)
}

/// How often each scenario runs: 5, or 100 in `./ops/test --long`.
fn rounds() -> usize {
    if variable("TANDEM_LONG").is_some_and(|value| value == "1") { 100 } else { 5 }
}

// ---- the control connection

struct Control(TcpStream);

impl Control {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(&u32::try_from(bytes.len()).unwrap().to_le_bytes()).unwrap();
        self.0.write_all(bytes).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whether the parent said something (or went away).
    fn has_word(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let peeked = self.0.peek(&mut [0]);
        self.0.set_nonblocking(false).unwrap();
        !matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

/// A child that is killed and waited for when the test ends, however it ends.
struct Other {
    child: Child,
    control: Control,
}

impl Other {
    fn start(role: &str, choice: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["two_process::child", "--exact", "--ignored", "--nocapture"])
            .env(ROLE, format!("{role} {choice} {address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self { child, control: Control(socket) }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn kill_and_wait(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Fails only if it is dead and waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- both ends, in either process

/// The folder of a UCX that knows GPUs.
fn ucx() -> Option<PathBuf> {
    variable("TANDEM_UCX_DIR").map(PathBuf::from)
}

/// A transport by its name, and whether it is for pools in device memory: `ucx` is for others,
/// `ucx-cuda` is not; `cuda_ipc-engines` copies by copy engines alone.
fn parse(way: &str) -> (Choice, bool) {
    let name = way.split('-').next().unwrap();
    (name.parse().unwrap(), name != way || name == "cuda_ipc")
}

/// The GPU of sources (0) or of targets (1): as `TANDEM_GPUS` has them, `0,1`, or the first.
fn gpu(end: usize) -> Device {
    let number = |text: String| text.split(',').nth(end).unwrap().parse().unwrap();
    Device::open(variable("TANDEM_GPUS").map_or(0, number)).unwrap()
}

/// In device memory on a GPU that stays open while the pool lives.
fn targets(way: &str) -> (Arc<Pool>, Targets) {
    let (choice, on_device) = parse(way);
    if on_device {
        let (pool, memory) = Pool::on(&gpu(1), TARGET_PAGES);
        let tcp = TcpConfig::default();
        let targets = choice.device_targets(&memory, GEOMETRY, (ucx().as_deref(), tcp)).unwrap();
        return (pool, targets);
    }
    let bytes = GEOMETRY.page_bytes() * TARGET_PAGES as usize;
    let (prepared, memory) = choice.target_memory(None, bytes).unwrap();
    let pool = Pool::new(memory, GEOMETRY, TARGET_PAGES);
    let store: Arc<dyn PageStore> = pool.clone();
    let targets = prepared.over(&store, TcpConfig::default()).unwrap();
    (pool, targets)
}

fn sources(way: &str) -> (Arc<Pool>, Sources) {
    let (choice, on_device) = parse(way);
    if on_device {
        let (pool, memory) = Pool::on(&gpu(0), SOURCE_PAGES);
        pool.fill(1);
        if way.ends_with("-engines") {
            let source = CudaIpcSource::new(&memory, GEOMETRY).unwrap();
            let source = Box::new(source.by(Copiers::all(Copier::Engines)));
            return (pool, Sources::new(vec![(Kind::CudaIpc, Ok(source))]));
        }
        let sources = choice.device_sources(&memory, GEOMETRY, ucx().as_deref()).unwrap();
        return (pool, sources);
    }
    let bytes = GEOMETRY.page_bytes() * SOURCE_PAGES as usize;
    let (prepared, memory) = choice.source_memory(None, bytes).unwrap();
    let pool = Pool::new(memory, GEOMETRY, SOURCE_PAGES);
    pool.fill(1);
    let store: Arc<dyn PageStore> = pool.clone();
    (pool, prepared.over(&store).unwrap())
}

fn join_as_target(targets: &Targets, control: &mut Control) -> Session {
    let offered = targets.offer().unwrap();
    control.send(offered.bytes());
    let (session, verdict) = offered.settle(&control.receive()).unwrap();
    control.send(&verdict);
    session
}

fn join_as_source(sources: &Sources, control: &mut Control) -> Box<dyn Link> {
    let answered = sources.answer(&control.receive()).unwrap();
    control.send(answered.bytes());
    answered.settled(&control.receive()).unwrap().0
}

/// (source, target) of the first half of the work, which is verified, and of the second.
fn work() -> [Vec<(u32, u32)>; 2] {
    let pairs: Vec<(u32, u32)> =
        (0..SOURCE_PAGES).map(|page| (page, (page * 7 + 3) % 90)).collect();
    let (first, second) = pairs.split_at(35);
    [first.to_vec(), second.to_vec()]
}

// ---- the child

#[test]
#[ignore = "the other process of the tests here, which start it themselves"]
fn child() {
    let role = variable(ROLE).expect("started by a test of this file");
    let words: Vec<&str> = role.split(' ').collect();
    let control = Control(TcpStream::connect(words[2]).unwrap());
    match words[0] {
        "writer" => write_without_end(words[1], control),
        "target" => be_written(words[1], control),
        other => panic!("no role {other}"),
    }
}

/// Half of the work, then a word to the parent, then the other half again and again until the
/// parent speaks; then closes and says so.
fn write_without_end(way: &str, mut control: Control) {
    let (pool, sources) = sources(way);
    let mut link = join_as_source(&sources, &mut control);
    let [first, second] = work();
    let whole = 0..GEOMETRY.page_bytes();
    link.put(put(0, &first, whole.clone()));
    link.flush(OpId::new(1));
    drive(link.as_mut()).unwrap();
    let pages: Vec<_> = first.iter().map(|&(source, _)| PageId::new(source)).collect();
    let sums = land::checksums(&*pool, &pages, &whole);
    control.send(&sums.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<_>>());
    while !control.has_word() {
        link.put(put(2, &second, whole.clone()));
        link.flush(OpId::new(3));
        if drive(link.as_mut()).is_err() {
            break;
        }
    }
    // With something on its way.
    link.put(put(4, &second, whole));
    let _ = link.progress(Duration::ZERO, &mut Vec::new());
    drop(link.close());
    control.send(b"closed");
    // The parent ends this process, or hangs up.
    let _ = control.0.read_to_end(&mut Vec::new());
}

fn be_written(way: &str, mut control: Control) {
    let (_pool, targets) = targets(way);
    let session = join_as_target(&targets, &mut control);
    control.send(&ucx_inodes().iter().flat_map(|inode| inode.to_le_bytes()).collect::<Vec<_>>());
    let _ = control.0.read(&mut [0]);
    drop(session);
}

// ---- the writer dies, stops, closes; this process is the target

/// Starts a writer and takes its first half.
fn half_written(choice: &str, pool: &Pool, targets: &Targets) -> (Other, Session) {
    pool.fill(2);
    let mut other = Other::start("writer", choice);
    let session = join_as_target(targets, &mut other.control);
    let kind = session.report().kind.name();
    assert!(choice.starts_with(kind), "{kind} for {choice}");
    let sums: Vec<u64> = other
        .control
        .receive()
        .chunks(8)
        .map(|sum| u64::from_le_bytes(sum.try_into().unwrap()))
        .collect();
    let pages: Vec<_> = work()[0].iter().map(|&(_, target)| PageId::new(target)).collect();
    land::verify(pool, &pages, &(0..GEOMETRY.page_bytes()), &sums).unwrap();
    (other, session)
}

/// Inodes of UCX's segments that a process maps now.
fn segments(pid: u32) -> Vec<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let ours = maps.lines().filter(|line| line.contains("ucx_shm_posix"));
    ours.map(|line| line.split_whitespace().nth(4).unwrap().parse().unwrap()).collect()
}

/// None of a dead process's segments has a name any more.
#[track_caller]
fn shared_memory_is_clean(segments: &[u64]) {
    for entry in std::fs::read_dir("/dev/shm").unwrap().flatten() {
        let inode = entry.metadata().map_or(0, |found| found.ino());
        assert!(!segments.contains(&inode), "{:?} is left", entry.path());
    }
}

/// Fills the pool anew and, after `meanwhile`, finds every byte as it was: nobody else writes.
fn nobody_writes(pool: &Pool, meanwhile: impl FnOnce()) {
    pool.fill(7);
    let before: Vec<_> = (0..TARGET_PAGES).map(|page| pool.page(page)).collect();
    meanwhile();
    for (number, want) in before.iter().enumerate() {
        assert!(pool.page(number as u32) == *want, "page {number} was written after the proof");
    }
}

/// Over UCX a dead process has ended; of kernels NVML may say so a little later.
#[track_caller]
fn wait_ended(writer: &WriterProcess, choice: &str) {
    let start = Instant::now();
    while parse(choice).1 && !writer.ended() && start.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(writer.ended());
}

/// Kernels write while nobody looks: time for one to be caught.
fn pause(choice: &str) {
    if parse(choice).1 {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn writer_killed(choice: &str) {
    let (pool, targets) = targets(choice);
    for _ in 0..rounds() {
        let (mut other, session) = half_written(choice, &pool, &targets);
        let segments = segments(other.child.id());
        assert_eq!(segments.is_empty(), !choice.starts_with("ucx"), "{segments:?}");
        other.kill_and_wait();
        match session.revoke() {
            Proof::Immediate => assert_eq!(choice, "tcp"),
            Proof::ProcessEnd(writer) => {
                assert!(writer.is_dead());
                wait_ended(&writer, choice);
            }
        }
        nobody_writes(&pool, || pause(choice));
        shared_memory_is_clean(&segments);
    }
}

#[test]
fn ucx_writer_killed_in_mid_write() {
    writer_killed("ucx");
}

#[test]
fn tcp_writer_killed_in_mid_write() {
    writer_killed("tcp");
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_writer_killed_in_mid_write() {
    writer_killed("cuda_ipc");
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_writer_by_engines_killed_in_mid_write() {
    writer_killed("cuda_ipc-engines");
}

#[test]
#[ignore = "needs a GPU and a UCX that knows it, in TANDEM_UCX_DIR"]
fn cuda_ucx_writer_killed_in_mid_write() {
    writer_killed("ucx-cuda");
}

/// A stopped writer proves nothing until it is dead.
fn writer_stopped(choice: &str) {
    let (pool, targets) = targets(choice);
    for _ in 0..rounds() {
        let (mut other, session) = half_written(choice, &pool, &targets);
        other.signal(Signal::STOP);
        let Proof::ProcessEnd(writer) = session.revoke() else { panic!("the writer stores") };
        assert_eq!(writer.pid(), other.child.id());
        assert!(!writer.is_dead() && !writer.ended());
        other.kill_and_wait();
        assert!(writer.is_dead());
        wait_ended(&writer, choice);
        nobody_writes(&pool, || pause(choice));
    }
}

#[test]
fn ucx_writer_stopped_in_mid_write() {
    writer_stopped("ucx");
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_writer_stopped_in_mid_write() {
    writer_stopped("cuda_ipc");
}

#[test]
#[ignore = "needs a GPU and a UCX that knows it, in TANDEM_UCX_DIR"]
fn cuda_ucx_writer_stopped_in_mid_write() {
    writer_stopped("ucx-cuda");
}

/// A stopped TCP writer's session ends at once, and its late bytes land nowhere.
#[test]
fn tcp_writer_stopped_in_mid_write() {
    let (pool, targets) = targets("tcp");
    for _ in 0..rounds() {
        let (mut other, session) = half_written("tcp", &pool, &targets);
        other.signal(Signal::STOP);
        assert!(matches!(session.revoke(), Proof::Immediate));
        nobody_writes(&pool, || {
            other.signal(Signal::CONT);
            // The writer finds its link broken, closes, and says so.
            assert_eq!(other.control.receive(), b"closed");
        });
        other.kill_and_wait();
    }
}

/// A writer that closes its link is proven to have ended while its process lives.
#[test]
fn ucx_writer_closes() {
    let (pool, targets) = targets("ucx");
    for _ in 0..rounds() {
        let (mut other, session) = half_written("ucx", &pool, &targets);
        other.control.send(b"close");
        assert_eq!(other.control.receive(), b"closed");
        let Proof::ProcessEnd(writer) = session.revoke() else { panic!("UCX is no receiver") };
        assert!(!writer.is_dead() && writer.ended());
        nobody_writes(&pool, || ());
    }
}

/// Once a writer on a GPU says that its link is closed, nothing of it is on its way, though what
/// ends its session is its process.
#[test]
#[ignore = "needs a GPU and a UCX that knows it, in TANDEM_UCX_DIR"]
fn cuda_ucx_writer_closes() {
    let (pool, targets) = targets("ucx-cuda");
    for _ in 0..rounds() {
        let (mut other, session) = half_written("ucx-cuda", &pool, &targets);
        other.control.send(b"close");
        assert_eq!(other.control.receive(), b"closed");
        nobody_writes(&pool, || pause("ucx-cuda"));
        let Proof::ProcessEnd(writer) = session.revoke() else { panic!("the writer stores") };
        assert!(!writer.is_dead());
    }
}

// ---- the target dies or stops; this process is the writer

/// Inodes of UCX's shared memory that this process maps.
fn ucx_inodes() -> Vec<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let lines = maps.lines().filter(|line| line.contains("ucx_shm"));
    lines.map(|line| line.split_ascii_whitespace().nth(4).unwrap().parse().unwrap()).collect()
}

/// Whether this process maps any of another's shared memory.
fn maps_any(of_other: &[u8]) -> bool {
    let own = ucx_inodes();
    of_other.chunks(8).any(|inode| own.contains(&u64::from_le_bytes(inode.try_into().unwrap())))
}

fn writing(sources: &Sources, other: &mut Other) -> (Pusher, Receiver<Event>) {
    let link = join_as_source(sources, &mut other.control);
    let (done, events) = sync_channel(4096);
    let config = PushConfig { deadline: Duration::from_millis(300), ..PushConfig::default() };
    let pusher = Pusher::spawn("test", link, config, move |event| done.send(event).unwrap());
    (pusher.unwrap(), events)
}

/// Queues puts and flushes until `enough` says so; returns how many operations were queued.
fn queue_until(
    pusher: &Pusher,
    events: &Receiver<Event>,
    mut enough: impl FnMut(&[Event]) -> bool,
) -> (u64, Vec<Event>) {
    let (start, mut queued, mut ended) = (Instant::now(), 0, Vec::new());
    let [first, _] = work();
    while !enough(&ended) {
        assert!(start.elapsed() < LIMIT, "{queued} queued, {} ended", ended.len());
        let op = put(queued, &first, 0..GEOMETRY.page_bytes());
        queued += u64::from(pusher.put(op).is_ok());
        queued += u64::from(pusher.flush(OpId::new(queued)).is_ok());
        ended.extend(events.try_iter());
        std::thread::yield_now();
    }
    (queued, ended)
}

fn target_killed(choice: &str) {
    let (_pool, sources) = sources(choice);
    for _ in 0..rounds() {
        let mut other = Other::start("target", choice);
        let (pusher, events) = writing(&sources, &mut other);
        let (mut queued, mut ended) = queue_until(&pusher, &events, |ended| ended.len() > 20);
        let inodes = other.control.receive();
        assert!(choice == "ucx-cuda" || maps_any(&inodes) == (choice == "ucx"));
        let segments = segments(other.child.id());
        assert_eq!(segments.is_empty(), !choice.starts_with("ucx"), "{segments:?}");
        other.kill_and_wait();
        if choice == "tcp" {
            let broken = |_: &[Event]| pusher.broken().is_some();
            let (more, late) = queue_until(&pusher, &events, broken);
            queued += more;
            ended.extend(late);
        }
        // Over mapped memory nobody notices but the control connection, whose end this stands for.
        pusher.close();
        ended.extend(events.try_iter());
        assert_eq!(ended.len() as u64, queued, "every operation ends once");
        let typed = |event: &Event| match event.result() {
            Ok(()) | Err(TransferError::Closed | TransferError::Broken { .. }) => true,
            Err(other) => panic!("{other}"),
        };
        assert!(ended.iter().all(typed));
        drop(pusher);
        assert!(!maps_any(&inodes), "the dead target's pool is still mapped here");
        shared_memory_is_clean(&segments);
    }
}

#[test]
fn ucx_target_killed_in_mid_write() {
    target_killed("ucx");
}

/// What is on its way goes into memory that the mapping holds, and then the mapping goes.
#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_target_killed_in_mid_write() {
    target_killed("cuda_ipc");
}

#[test]
#[ignore = "needs a GPU and a UCX that knows it, in TANDEM_UCX_DIR"]
fn cuda_ucx_target_killed_in_mid_write() {
    target_killed("ucx-cuda");
}

#[test]
fn tcp_target_killed_in_mid_write() {
    target_killed("tcp");
}

/// A stopped TCP target takes no more: the deadline ends everything, typed.
#[test]
fn tcp_target_stopped_in_mid_write() {
    let (_pool, sources) = sources("tcp");
    for _ in 0..rounds() {
        let mut other = Other::start("target", "tcp");
        let (pusher, events) = writing(&sources, &mut other);
        let (before, mut ended) = queue_until(&pusher, &events, |ended| ended.len() > 20);
        other.signal(Signal::STOP);
        let broken = |_: &[Event]| pusher.broken().is_some();
        let (queued, late) = queue_until(&pusher, &events, broken);
        ended.extend(late);
        assert!(matches!(pusher.broken(), Some(TransferError::Deadline { limit_ms: 300 })));
        pusher.close();
        ended.extend(events.try_iter());
        assert_eq!(ended.len() as u64, before + queued, "every operation ends once");
        let typed = |event: &Event| match event.result() {
            Ok(()) | Err(TransferError::Deadline { .. } | TransferError::Closed) => true,
            Err(other) => panic!("{other}"),
        };
        assert!(ended.iter().all(typed));
    }
}
