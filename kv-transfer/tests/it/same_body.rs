//! The same test body for every transport.

use crate::pair::{Ends, GEOMETRY, Pair, SOURCE_PAGES, TARGET_PAGES, join};
use kv_transfer::{Event, Link, OpId, PutOp, TransferError, land};
use proptest::test_runner::{Config, TestRunner};
use proptest::{collection::vec, prelude::*};
use shared::ids::PageId;
use shared::kv::PageStore;
use std::collections::HashSet;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Far above anything that a passing test needs.
pub const LIMIT: Duration = Duration::from_secs(20);

pub fn put(id: u64, pages: &[(u32, u32)], bytes: Range<usize>) -> PutOp {
    let pages = pages.iter().map(|&(s, t)| (PageId::new(s), PageId::new(t))).collect();
    PutOp::new(OpId::new(id), pages, bytes, Box::new(id))
}

/// Drives a link until nothing is outstanding.
pub fn drive(link: &mut dyn Link) -> Result<Vec<Event>, TransferError> {
    let start = Instant::now();
    let mut events = Vec::new();
    while link.outstanding() > 0 {
        link.progress(Duration::from_millis(1), &mut events)?;
        assert!(start.elapsed() < LIMIT, "stuck with {} outstanding", link.outstanding());
    }
    Ok(events)
}

fn whole() -> Range<usize> {
    0..GEOMETRY.page_bytes()
}

/// Random puts arrive exactly, nothing else changes, and every operation ends once.
fn random_puts(ends: Ends) {
    let Pair { ends, mut link, .. } = join(ends);
    let page = GEOMETRY.page_bytes();
    let mut model: Vec<Vec<u8>> = (0..TARGET_PAGES).map(|p| ends.target_pool.page(p)).collect();
    let source: Vec<Vec<u8>> = (0..SOURCE_PAGES).map(|p| ends.source_pool.page(p)).collect();
    let run = (0..SOURCE_PAGES - 6, 0..TARGET_PAGES - 6, 1u32..6);
    let layers = (0..GEOMETRY.layers, 1..=GEOMETRY.layers);
    let puts = vec((vec(run, 0..5), layers, any::<bool>()), 1..12);
    let mut runner =
        TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let link = std::cell::RefCell::new(&mut link);
    let model = std::cell::RefCell::new(&mut model);
    runner
        .run(&puts, |puts| {
            let (mut link, mut model) = (link.borrow_mut(), model.borrow_mut());
            let (mut ids, mut events, mut touched) =
                (Vec::new(), Vec::new(), HashSet::<u32>::new());
            for (number, (runs, (first, count), all)) in puts.into_iter().enumerate() {
                let mut pages: Vec<(u32, u32)> = runs
                    .iter()
                    .flat_map(|&(s, t, n)| (0..n).map(move |i| (s + i, t + i)))
                    .collect();
                // One writer a target page between flushes that have ended.
                let mut unique = HashSet::new();
                pages.retain(|&(_, to)| unique.insert(to));
                if !touched.is_disjoint(&unique) {
                    events.extend(drive(link.as_mut()).unwrap());
                    touched.clear();
                }
                touched.extend(unique);
                let last = (first + count).min(GEOMETRY.layers);
                let bytes = if all { 0..page } else { GEOMETRY.layers_range(&(first..last)) };
                for &(from, to) in &pages {
                    model[to as usize][bytes.clone()]
                        .copy_from_slice(&source[from as usize][bytes.clone()]);
                }
                let id = number as u64 * 2;
                link.put(put(id, &pages, bytes));
                link.flush(OpId::new(id + 1));
                ids.extend([id, id + 1]);
            }
            events.extend(drive(link.as_mut()).unwrap());
            let mut got: Vec<u64> = events.iter().map(|event| event.id().get()).collect();
            got.sort_unstable();
            prop_assert_eq!(got, ids);
            prop_assert!(events.iter().all(|event| event.result().is_ok()), "{:?}", events);
            for event in events {
                if let Event::Put { id, owner, .. } = event {
                    prop_assert_eq!(*owner.downcast::<u64>().unwrap(), id.get());
                }
            }
            for (number, want) in model.iter().enumerate() {
                let page = ends.target_pool.page(number as u32);
                prop_assert!(page == *want, "target page {} differs", number);
            }
            Ok(())
        })
        .unwrap();
}

/// What landed is checked by the source's checksums; a changed byte is named.
fn checksums(ends: Ends) {
    let Pair { ends, mut link, .. } = join(ends);
    let layers = GEOMETRY.layers_range(&(1..3));
    let sources = [5, 6, 40].map(PageId::new);
    let targets = [80, 81, 3].map(PageId::new);
    let sums = land::checksums(&*ends.source_pool, &sources, &layers);
    link.put(put(1, &[(5, 80), (6, 81), (40, 3)], layers.clone()));
    link.flush(OpId::new(2));
    drive(link.as_mut()).unwrap();
    let store = &*ends.target_pool;
    land::verify(store, &targets, &layers, &sums).unwrap();
    let mut byte = [0];
    store.read(PageId::new(81), layers.start..layers.start + 1, &mut byte);
    store.write(PageId::new(81), layers.start..layers.start + 1, &[byte[0] ^ 1]);
    let error = land::verify(store, &targets, &layers, &sums).unwrap_err();
    assert!(matches!(error, TransferError::Checksum { page, .. } if page == PageId::new(81)));
    assert!(land::verify(store, &targets[..2], &layers, &sums).is_err());
    let beyond = [PageId::new(TARGET_PAGES)];
    assert!(land::verify(store, &beyond, &layers, &sums[..1]).is_err());
}

/// A put that is out of bounds moves nothing, ends typed, and leaves the link working.
fn out_of_bounds(ends: Ends) {
    let Pair { ends, mut link, .. } = join(ends);
    assert_eq!(link.target_pages(), TARGET_PAGES);
    let before: Vec<_> = (0..TARGET_PAGES).map(|page| ends.target_pool.page(page)).collect();
    let page = GEOMETRY.page_bytes();
    let bad: [(&[(u32, u32)], _); 5] = [
        (&[(0, 0), (SOURCE_PAGES, 1)], 0..page),
        (&[(0, 0), (1, TARGET_PAGES)], 0..page),
        (&[(0, u32::MAX)], 0..page),
        (&[(0, 0)], 0..page + 1),
        (&[(0, 0)], 8..8),
    ];
    for (number, (pages, bytes)) in bad.into_iter().enumerate() {
        link.put(put(number as u64, pages, bytes));
    }
    link.flush(OpId::new(9));
    let events = drive(link.as_mut()).unwrap();
    assert_eq!(events.len(), 6);
    for event in &events {
        match (event.id().get(), event.result()) {
            (0..=2, Err(TransferError::PageOutOfBounds { .. }))
            | (3..=4, Err(TransferError::RangeOutOfBounds { .. }))
            | (9, Ok(())) => {}
            other => panic!("{other:?}"),
        }
    }
    for (number, want) in before.iter().enumerate() {
        assert!(ends.target_pool.page(number as u32) == *want, "page {number} changed");
    }
    link.put(put(10, &[(3, 4)], whole()));
    link.flush(OpId::new(11));
    drive(link.as_mut()).unwrap();
    assert!(ends.target_pool.page(4) == ends.source_pool.page(3));
}

/// Closing gives every outstanding operation back, with its owner, and nothing is written after.
fn close_with_outstanding(ends: Ends) {
    let Pair { ends, mut link, session } = join(ends);
    for id in 0..8 {
        link.put(put(id, &[(id as u32, id as u32 + 20)], whole()));
    }
    link.flush(OpId::new(8));
    let events = link.close();
    let ids: Vec<_> = events.iter().map(|event| event.id().get()).collect();
    assert_eq!(ids, (0..9).collect::<Vec<_>>());
    assert!(events.iter().all(|event| *event.result() == Err(TransferError::Closed)));
    drop(ends.target.revoke(session));
    let before: Vec<_> = (0..TARGET_PAGES).map(|page| ends.target_pool.page(page)).collect();
    ends.source_pool.fill(9);
    for (number, want) in before.iter().enumerate() {
        assert!(ends.target_pool.page(number as u32) == *want, "page {number} changed");
    }
}

/// Joins that cannot be: a wrong offer, a wrong reply, a wrong shape, a session used up.
#[expect(clippy::needless_pass_by_value, reason = "as the others")]
fn bad_joins(ends: Ends) {
    let offer = ends.target.accept().unwrap();
    for cut in 0..offer.bytes.len() {
        assert!(ends.source.connect(&offer.bytes[..cut]).is_err(), "offer cut at {cut}");
    }
    assert!(ends.source.connect(b"GET / HTTP/1.1\r\n\r\n").is_err());
    let joined = ends.source.connect(&offer.bytes).unwrap();
    let mut reply = joined.reply;
    reply.push(0);
    let error = ends.target.confirm(offer.session, &reply).unwrap_err();
    assert!(matches!(error, TransferError::Malformed { .. }), "{error}");
    drop(ends.target.revoke(offer.session));
    assert!(ends.target.confirm(offer.session, &reply[..reply.len() - 1]).is_err(), "revoked");
    // Every session's resources come back: far more joins than any bound.
    for _ in 0..600 {
        let offer = ends.target.accept().unwrap();
        drop(ends.target.revoke(offer.session));
    }
}

macro_rules! for_all {
    ($($body:ident),*) => {
        mod loopback {
            use crate::pair::loopback;
            $(#[test] fn $body() { super::$body(loopback(&std::sync::Arc::default())); })*
        }
        mod tcp {
            use crate::pair::tcp;
            $(#[test] fn $body() { super::$body(tcp()); })*
        }
        mod ucx {
            use crate::pair::ucx;
            $(#[test] fn $body() { super::$body(ucx()); })*
        }
        mod cuda_loopback {
            use crate::pair::device_loopback;
            $(
                #[test]
                #[ignore = "needs a GPU"]
                fn $body() { super::$body(device_loopback()); }
            )*
        }
        mod cuda_tcp {
            use crate::pair::device_tcp;
            $(
                #[test]
                #[ignore = "needs a GPU"]
                fn $body() { super::$body(device_tcp()); }
            )*
        }
    };
}

for_all!(random_puts, checksums, out_of_bounds, close_with_outstanding, bad_joins);
