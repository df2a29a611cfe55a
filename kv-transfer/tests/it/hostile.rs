//! A TCP target against peers that mean harm, and against its own engine's use of pages.

use crate::pair::{Ends, GEOMETRY, Pair, TARGET_PAGES, join, tcp};
use crate::same_body::{LIMIT, drive, put};
use kv_transfer::tcp::{TcpConfig, TcpSource, TcpTarget};
use kv_transfer::{Link, OpId, Source, Target, TransferError};
use shared::ids::PageId;
use shared::kv::{KvGeometry, PageStore};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where an offer says to connect, and its session and secret: what an eavesdropper would know.
fn read_offer(offer: &[u8]) -> (SocketAddr, Vec<u8>, Vec<u8>) {
    let head = 4 + 1 + 1 + 8 + 16 + 1 + 4;
    let address = std::str::from_utf8(&offer[head + 32 + 2..]).unwrap().parse().unwrap();
    (address, offer[6..14].to_vec(), offer[head..head + 32].to_vec())
}

fn hello(stream: u8, session: &[u8], secret: &[u8]) -> Vec<u8> {
    [b"TKVD", &[1, stream][..], session, secret].concat()
}

/// Sends bytes; what comes back until the target closes.
fn answer(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    // The target may close before all is sent.
    let _ = socket.write_all(bytes);
    let mut back = Vec::new();
    let mut buffer = [0; 64];
    while let Ok(count @ 1..) = socket.read(&mut buffer) {
        back.extend(&buffer[..count]);
    }
    back
}

/// The target still takes a decent source's pages.
fn still_serves(ends: Ends) {
    let Pair { ends, mut link, .. } = join(ends);
    link.put(put(1, &[(5, 6)], 0..GEOMETRY.page_bytes()));
    link.flush(OpId::new(2));
    drive(link.as_mut()).unwrap();
    assert!(ends.target_pool.page(6) == ends.source_pool.page(5));
}

#[test]
fn strangers_are_cut_off() {
    let ends = tcp();
    let offer = ends.target.accept().unwrap();
    let (address, session, secret) = read_offer(&offer.bytes);
    let mut wrong = secret.clone();
    wrong[31] ^= 0x80;
    let other_session = (offer.session.get() + 1).to_le_bytes();
    let mut old = hello(0, &session, &secret);
    old[4] = 9;
    let garbage: Vec<u8> = (0..4096_u32).map(|i| (i * 31 % 251) as u8).collect();
    let attempts: [(&str, Vec<u8>); 6] = [
        ("garbage", garbage),
        (
            "http",
            b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n0123456789012345678901234567890".to_vec(),
        ),
        ("wrong secret", hello(0, &session, &wrong)),
        ("another session", hello(0, &other_session, &secret)),
        ("no such stream", hello(200, &session, &secret)),
        ("another version", old),
    ];
    for (name, bytes) in attempts {
        assert_eq!(answer(address, &bytes), b"", "{name}");
    }
    still_serves(ends);
}

#[test]
fn a_stream_joins_once() {
    let ends = tcp();
    let offer = ends.target.accept().unwrap();
    let (address, session, secret) = read_offer(&offer.bytes);
    let joined = ends.source.connect(&offer.bytes).unwrap();
    assert_eq!(answer(address, &hello(0, &session, &secret)), b"");
    ends.target.confirm(offer.session, &joined.reply).unwrap();
    drop(joined.link.close());
    still_serves(ends);
}

#[test]
fn a_session_without_its_connections_is_not_confirmed() {
    let ends = tcp();
    let offer = ends.target.accept().unwrap();
    let error = ends.target.confirm(offer.session, &[]).unwrap_err();
    assert!(matches!(error, TransferError::Refused { .. }), "{error}");
    assert!(ends.source.connect(&offer.bytes).is_err(), "that session is over");
    still_serves(ends);
}

/// Frames that would write outside of the pool, allocate without bound or mean nothing end the
/// session before a byte of their payload is read.
#[test]
fn frames_out_of_bounds_end_the_session() {
    let ends = tcp();
    ends.target_pool.fill(2);
    let before: Vec<_> = (0..TARGET_PAGES).map(|page| ends.target_pool.page(page)).collect();
    let pool = GEOMETRY.page_bytes() as u64 * u64::from(TARGET_PAGES);
    let frame = |kind: u32, len: u32, value: u64| {
        [&kind.to_le_bytes()[..], &len.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let frames = [
        frame(1, 16, pool),
        frame(1, 16, pool - 15),
        frame(1, 16, u64::MAX - 3),
        frame(1, u32::MAX, 0),
        frame(1, 0, 0),
        frame(2, 1, 0),
        frame(77, 0, 0),
    ];
    for bytes in frames {
        let offer = ends.target.accept().unwrap();
        let (address, session, secret) = read_offer(&offer.bytes);
        let mut all = hello(0, &session, &secret);
        all.extend(&bytes);
        all.extend([0xee; 64]);
        assert_eq!(answer(address, &all), b"\x57", "{bytes:?}");
        assert!(ends.target.confirm(offer.session, &[]).is_err(), "the session is over");
    }
    for (number, want) in before.iter().enumerate() {
        assert!(ends.target_pool.page(number as u32) == *want, "page {number} changed");
    }
    still_serves(ends);
}

/// Silence and dribble: both are cut off by the limit of the hello, and leave room for others.
#[test]
fn those_who_say_nothing_do_not_use_up_the_places() {
    let limit = Duration::from_millis(50);
    let store = crate::pair::tcp().target_pool;
    let config = TcpConfig { sessions: 1, hello_limit: limit, ..TcpConfig::default() };
    let target = TcpTarget::new(store, config).unwrap();
    let mut silent: Vec<_> =
        (0..100).map(|_| TcpStream::connect(target.address()).unwrap()).collect();
    for socket in &mut silent {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        // Closed (or reset) by the target: never a byte, never a hang.
        assert!(matches!(socket.read(&mut [0]), Ok(0) | Err(_)));
    }
    let offer = target.accept().unwrap();
    let second = target.accept().unwrap_err();
    assert!(second.to_string().contains("1 sessions are open"), "{second}");
    let source = TcpSource::new(crate::pair::tcp().source_pool);
    let joined = source.connect(&offer.bytes).unwrap();
    target.confirm(offer.session, &joined.reply).unwrap();
    drop(target.revoke(offer.session));
    target.accept().unwrap();
    drop(joined.link.close());
}

/// A store whose next writes stop until they are let go, or panic as a page in use does.
struct Gate {
    inner: Arc<crate::pair::Pool>,
    arrived: SyncSender<()>,
    pass: Mutex<Receiver<bool>>,
}

impl PageStore for Gate {
    fn geometry(&self) -> &KvGeometry {
        self.inner.geometry()
    }
    fn pages(&self) -> u32 {
        self.inner.pages()
    }
    fn read(&self, page: PageId, range: Range<usize>, into: &mut [u8]) {
        self.inner.read(page, range, into);
    }
    fn write(&self, page: PageId, range: Range<usize>, from: &[u8]) {
        let _ = self.arrived.try_send(());
        let pass = self.pass.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A hung-up gate is open.
        assert!(pass.recv().unwrap_or(true), "page {page} is in use");
        self.inner.write(page, range, from);
    }
}

struct Gated {
    target: TcpTarget,
    pool: Arc<crate::pair::Pool>,
    session: kv_transfer::SessionId,
    link: Box<dyn Link>,
    arrived: Receiver<()>,
    pass: SyncSender<bool>,
}

fn gated() -> Gated {
    let Ends { source, source_pool, target_pool: pool, .. } = tcp();
    source_pool.fill(1);
    pool.fill(2);
    let (arrived_in, arrived) = sync_channel(1);
    let (pass, pass_out) = sync_channel(1);
    let inner = Arc::clone(&pool);
    let gate = Arc::new(Gate { inner, arrived: arrived_in, pass: Mutex::new(pass_out) });
    let target = TcpTarget::new(gate, TcpConfig::default()).unwrap();
    let offer = target.accept().unwrap();
    let joined = source.connect(&offer.bytes).unwrap();
    target.confirm(offer.session, &joined.reply).unwrap();
    Gated { target, pool, session: offer.session, link: joined.link, arrived, pass }
}

/// Revoking waits for the write that is under way, and after it returns nothing is written,
/// although the source goes on sending.
#[test]
fn revoke_in_mid_stream_is_the_last_write() {
    let Gated { target, pool, session, mut link, arrived, pass } = gated();
    let pages: Vec<_> = (0..60).map(|page| (page, page)).collect();
    // Far more than fits into sockets, so that the stream is cut off in its middle.
    for id in 0..50 {
        link.put(put(id, &pages, 0..GEOMETRY.page_bytes()));
    }
    link.flush(OpId::new(99));
    let mut events = Vec::new();
    while arrived.try_recv().is_err() {
        link.progress(Duration::from_millis(1), &mut events).unwrap();
    }
    let before = std::thread::scope(|scope| {
        let revoking = scope.spawn(|| drop(target.revoke(session)));
        // One write at a time, until revoking comes between two.
        while !revoking.is_finished() {
            let _ = pass.try_send(true);
            std::thread::yield_now();
        }
        // Other bytes than the source's, so that a late write would show.
        pool.fill(7);
        drop(pass);
        (0..TARGET_PAGES).map(|page| pool.page(page)).collect::<Vec<_>>()
    });
    let broken = loop {
        if let Err(error) = link.progress(Duration::from_millis(1), &mut events) {
            break error;
        }
        assert!(link.outstanding() > 0, "the flush was never acknowledged");
    };
    assert!(matches!(broken, TransferError::Broken { .. }), "{broken}");
    drop(link.close());
    for (number, want) in before.iter().enumerate() {
        assert!(pool.page(number as u32) == *want, "page {number} changed after revoke");
    }
}

/// A peer that writes a page that this side uses ends its own session, not this process.
#[test]
fn a_page_in_use_ends_the_session_only() {
    let Gated { target, session, mut link, pass, .. } = gated();
    pass.send(false).unwrap();
    link.put(put(1, &[(0, 0)], 0..GEOMETRY.page_bytes()));
    link.flush(OpId::new(2));
    let mut events = Vec::new();
    while link.progress(Duration::from_millis(1), &mut events).is_ok() {
        assert!(link.outstanding() > 0, "the flush was never acknowledged");
    }
    drop(link.close());
    assert!(target.confirm(session, &[]).is_err(), "the session is over");
    target.accept().unwrap();
}
