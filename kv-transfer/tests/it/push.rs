//! The push thread, on the loopback transport with faults.

use crate::pair::{GEOMETRY, Pair, TARGET_PAGES, join, loopback};
use crate::same_body::{LIMIT, put};
use kv_transfer::fault::{Fault, Faults};
use kv_transfer::{Event, OpId, PushConfig, Pusher, TransferError, Unqueued, land};
use shared::ids::PageId;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

struct Pushing {
    faults: Arc<Faults>,
    pair: crate::pair::Ends,
    session: kv_transfer::SessionId,
    pusher: Pusher,
    events: Receiver<Event>,
}

fn pushing(config: PushConfig) -> Pushing {
    let faults: Arc<Faults> = Arc::default();
    let Pair { ends: pair, session, link } = join(loopback(&faults));
    let (done, events) = sync_channel(4096);
    let pusher = Pusher::spawn("test", link, config, move |event| done.send(event).unwrap());
    Pushing { faults, pair, session, pusher: pusher.unwrap(), events }
}

fn whole() -> std::ops::Range<usize> {
    0..GEOMETRY.page_bytes()
}

fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(LIMIT).expect("an event")
}

fn owner_of(event: Event) -> u64 {
    match event {
        Event::Put { owner, .. } => *owner.downcast().unwrap(),
        Event::Flush { .. } => panic!("a flush owns nothing"),
    }
}

#[test]
fn a_flush_ends_after_its_puts_and_owners_come_back() {
    let Pushing { pusher, events, pair, .. } = pushing(PushConfig::default());
    for id in 0..20 {
        pusher.put(put(id, &[(id as u32, 89 - id as u32)], whole())).map_err(|e| e.1).unwrap();
    }
    pusher.flush(OpId::new(99)).unwrap();
    for id in 0..20 {
        assert_eq!(owner_of(next(&events)), id);
    }
    assert!(matches!(next(&events), Event::Flush { id, result: Ok(()) } if id.get() == 99));
    for id in 0..20 {
        assert!(pair.target_pool.page(89 - id) == pair.source_pool.page(id));
    }
    assert!(pusher.broken().is_none());
}

#[test]
fn an_operation_that_does_not_end_breaks_the_link_by_its_deadline() {
    let config = PushConfig { deadline: Duration::from_millis(30), ..PushConfig::default() };
    let Pushing { pusher, events, faults, .. } = pushing(config);
    faults.on_put(1, Fault::Lose);
    let deadline = TransferError::Deadline { limit_ms: 30 };
    for id in 0..3 {
        pusher.put(put(id, &[(0, 0)], whole())).map_err(|e| e.1).unwrap();
    }
    let mut ended: Vec<_> = (0..3).map(|_| next(&events)).collect();
    ended.sort_by_key(Event::id);
    assert_eq!(ended.iter().map(|e| e.result().is_ok()).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(*ended[1].result(), Err(deadline.clone()));
    assert_eq!(ended.into_iter().map(owner_of).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(pusher.broken(), Some(&deadline));
    pusher.put(put(7, &[(0, 0)], whole())).map_err(|e| e.1).unwrap();
    pusher.flush(OpId::new(8)).unwrap();
    for id in [7, 8] {
        let event = next(&events);
        assert_eq!((event.id().get(), event.result()), (id, &Err(deadline.clone())));
    }
}

#[test]
fn a_break_ends_everything_with_its_cause() {
    let Pushing { pusher, events, faults, .. } = pushing(PushConfig::default());
    faults.on_put(2, Fault::Break);
    faults.freeze_after(0);
    for id in 0..5 {
        pusher.put(put(id, &[(1, 1)], whole())).map_err(|e| e.1).unwrap();
    }
    pusher.flush(OpId::new(5)).unwrap();
    faults.thaw();
    for id in 0..6 {
        let event = next(&events);
        assert_eq!(event.id().get(), id);
        match event.result() {
            Ok(()) => assert!(id < 2),
            Err(TransferError::Broken { .. }) => assert!(id >= 2),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_full_queue_gives_the_put_back_and_never_blocks() {
    let config = PushConfig { queue: 3, window: 2, ..PushConfig::default() };
    let Pushing { pusher, events, faults, .. } = pushing(config);
    faults.freeze_after(1);
    pusher.put(put(0, &[(0, 0), (2, 2)], whole())).map_err(|e| e.1).unwrap();
    assert!(faults.wait_frozen(LIMIT));
    let mut queued = 1;
    let (op, why) = loop {
        match pusher.put(put(queued, &[(0, 0)], whole())) {
            Ok(()) => queued += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(why, Unqueued::Full);
    assert_eq!(op.id.get(), queued);
    assert!((4..=5).contains(&queued), "window 2 and queue 3, not {queued}");
    assert_eq!(pusher.flush(OpId::new(90)), Err(Unqueued::Full));
    faults.thaw();
    for id in 0..queued {
        assert_eq!(owner_of(next(&events)), id);
    }
    pusher.put(op).map_err(|e| e.1).unwrap();
    assert_eq!(owner_of(next(&events)), queued);
}

#[test]
fn closing_while_frozen_gives_everything_back_and_joins() {
    let Pushing { pusher, events, faults, pair, session } = pushing(PushConfig::default());
    faults.freeze_after(2);
    for id in 0..100 {
        let pages = [(0, 0), (2, 2), (4, 4)];
        pusher.put(put(id, &pages, whole())).map_err(|e| e.1).unwrap();
    }
    assert!(faults.wait_frozen(LIMIT));
    pusher.close();
    let ended: Vec<Event> = events.try_iter().collect();
    assert_eq!(
        ended.iter().map(|e| e.id().get()).collect::<Vec<_>>(),
        (0..100).collect::<Vec<_>>()
    );
    assert!(ended.iter().all(|event| *event.result() == Err(TransferError::Closed)));
    let (_, why) = pusher.put(put(0, &[], whole())).unwrap_err();
    assert_eq!(why, Unqueued::Closed);
    assert_eq!(pusher.flush(OpId::new(1)), Err(Unqueued::Closed));
    pusher.close();
    drop(pair.target.revoke(session));
}

#[test]
fn a_revoked_session_gets_no_more_bytes_and_the_link_breaks() {
    let Pushing { pusher, events, faults, pair, session } = pushing(PushConfig::default());
    faults.freeze_after(3);
    let pages: Vec<_> = (0..40).map(|page| (page, page * 2)).collect();
    pusher.put(put(0, &pages, whole())).map_err(|e| e.1).unwrap();
    assert!(faults.wait_frozen(LIMIT));
    drop(pair.target.revoke(session));
    let before: Vec<_> = (0..TARGET_PAGES).map(|page| pair.target_pool.page(page)).collect();
    faults.thaw();
    assert!(matches!(next(&events).result(), Err(TransferError::Broken { .. })));
    for (page, want) in before.iter().enumerate() {
        assert!(pair.target_pool.page(page as u32) == *want, "page {page}");
    }
}

#[test]
fn a_corrupted_page_is_found_at_landing() {
    let Pushing { pusher, events, faults, pair, .. } = pushing(PushConfig::default());
    faults.on_put(1, Fault::Corrupt);
    for id in 0..3 {
        let page = id as u32;
        pusher.put(put(id, &[(page, page + 10)], whole())).map_err(|e| e.1).unwrap();
    }
    pusher.flush(OpId::new(3)).unwrap();
    for _ in 0..4 {
        next(&events).result().clone().unwrap();
    }
    let sums = land::checksums(&*pair.source_pool, &[0, 1, 2].map(PageId::new), &whole());
    let targets = [10, 11, 12].map(PageId::new);
    let error = land::verify(&*pair.target_pool, &targets, &whole(), &sums).unwrap_err();
    assert!(matches!(error, TransferError::Checksum { page, .. } if page == PageId::new(11)));
}
