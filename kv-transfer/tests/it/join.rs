//! Choosing a transport for a pair, and the self-test.

use crate::pair::{Ends, GEOMETRY, Pair, SOURCE_PAGES, TARGET_PAGES, join, loopback, tcp, ucx};
use crate::same_body::{drive, put};
use kv_transfer::fault::Faults;
use kv_transfer::select::Choice;
use kv_transfer::tcp::TcpConfig;
use kv_transfer::{
    Kind, Link, OpId, SelfTest, Session, Sources, Targets, TransferError, self_test,
};
use shared::ids::PageId;
use shared::kv::PageStore;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

type Joined = (Box<dyn Link>, Session);

fn meet(sources: &Sources, targets: &Targets) -> Result<Joined, TransferError> {
    let offered = targets.offer()?;
    let answered = sources.answer(offered.bytes())?;
    let (session, verdict) = offered.settle(answered.bytes())?;
    let (link, report) = answered.settled(&verdict)?;
    assert_eq!(report, *session.report(), "both ends know the same");
    assert_eq!(link.kind(), report.kind);
    Ok((link, session))
}

/// Servers of one process as the operator asked for them.
fn servers(source: Choice, target: Choice, target_ucx: Option<&Path>) -> (Sources, Targets) {
    let bytes = |pages: u32| GEOMETRY.page_bytes() * pages as usize;
    let (prepared, memory) = target.target_memory(target_ucx, bytes(TARGET_PAGES)).unwrap();
    let pool: Arc<dyn PageStore> = crate::pair::Pool::new(memory, GEOMETRY, TARGET_PAGES);
    let targets = prepared.over(&pool, TcpConfig::default()).unwrap();
    let (prepared, memory) = source.source_memory(None, bytes(SOURCE_PAGES)).unwrap();
    let pool: Arc<dyn PageStore> = crate::pair::Pool::new(memory, GEOMETRY, SOURCE_PAGES);
    (prepared.over(&pool).unwrap(), targets)
}

fn check(source: Choice, target: Choice, want: Kind, reasons: &[&str]) {
    let (sources, targets) = servers(source, target, None);
    let (mut link, session) = meet(&sources, &targets).unwrap();
    assert_eq!(session.report().kind, want);
    let said = session.report().to_string();
    for reason in reasons {
        assert!(said.contains(reason), "{said:?} does not say {reason:?}");
    }
    link.put(put(1, &[(1, 2)], 0..GEOMETRY.page_bytes()));
    link.flush(OpId::new(2));
    assert!(drive(link.as_mut()).unwrap().iter().all(|event| event.result().is_ok()));
}

#[test]
fn auto_takes_ucx_on_one_host() {
    check(Choice::Auto, Choice::Auto, Kind::Ucx, &[]);
    check(Choice::Ucx, Choice::Auto, Kind::Ucx, &[]);
}

#[test]
fn cuda_ipc_is_refused_a_pool_in_host_memory() {
    let error = |outcome: Result<(), TransferError>| outcome.unwrap_err().to_string();
    for refused in [
        error(Choice::CudaIpc.target_memory(None, 1 << 20).map(drop)),
        error(Choice::CudaIpc.source_memory(None, 1 << 20).map(drop)),
    ] {
        assert!(refused.contains("cuda_ipc") && refused.contains("host memory"), "{refused}");
        assert!(refused.contains("device = \"cuda\""), "{refused}");
    }
    assert_eq!("cuda_ipc".parse(), Ok(Choice::CudaIpc));
    assert!("rdma".parse::<Choice>().unwrap_err().to_string().contains("cuda_ipc"));
}

#[test]
fn what_one_end_does_not_want_is_said_by_both() {
    check(Choice::Auto, Choice::Tcp, Kind::Tcp, &["not ucx: at the target: tcp was asked for"]);
    check(Choice::Tcp, Choice::Auto, Kind::Tcp, &["not ucx: at the source: tcp was asked for"]);
}

#[test]
fn a_choice_that_cannot_be_met_is_refused_with_all_reasons() {
    let (sources, targets) = servers(Choice::Ucx, Choice::Tcp, None);
    let error = meet(&sources, &targets).map(drop).unwrap_err().to_string();
    assert!(error.contains("at the target: tcp was asked for"), "{error}");
    assert!(error.contains("at the source: ucx was asked for"), "{error}");
}

/// Without `libucp`, auto is TCP and says why; asked for by name, UCX is an error.
#[test]
fn a_missing_library_is_a_reason_or_an_error() {
    let nowhere = Path::new("/nonexistent");
    let (sources, targets) = servers(Choice::Auto, Choice::Auto, Some(nowhere));
    let (_link, session) = meet(&sources, &targets).unwrap();
    let report = session.report();
    assert_eq!(report.kind, Kind::Tcp);
    assert!(
        report.to_string().contains("not ucx: at the target: ucx is not available"),
        "{report}"
    );
    let error = Choice::Ucx.target_memory(Some(nowhere), 1 << 20).map(drop).unwrap_err();
    assert!(matches!(error, TransferError::Unavailable { transport: "ucx", .. }), "{error}");
}

#[test]
fn a_pool_beyond_shared_memory_is_refused_before_it_is_allocated() {
    let error = Choice::Ucx.target_memory(None, 1 << 50).map(drop).unwrap_err();
    let TransferError::NoSharedMemory { need, free, .. } = error else { panic!("{error}") };
    assert!(need > free && need > 1 << 50);
}

/// A target that its source cannot reach is passed over, and sessions that came to nothing end.
#[test]
fn a_transport_that_fails_to_join_is_passed_over() {
    let Ends { source, .. } = ucx();
    let Ends { target: elsewhere, .. } = loopback(&Arc::default());
    let (near, far) = (tcp(), loopback(&Arc::default()));
    let targets = Targets::new(vec![(Kind::Loopback, Ok(elsewhere)), (Kind::Tcp, Ok(near.target))]);
    let sources = Sources::new(vec![
        (Kind::Tcp, Ok(near.source)),
        (Kind::Ucx, Ok(source)),
        (Kind::Loopback, Ok(far.source)),
    ]);
    let (_link, session) = meet(&sources, &targets).unwrap();
    let report = session.report();
    assert_eq!(report.kind, Kind::Tcp);
    assert!(report.to_string().contains("not loopback: "), "{report}");
    assert!(report.to_string().contains("not open on this hub"), "{report}");
}

#[test]
fn broken_messages_are_refused_at_every_cut() {
    let (sources, targets) = servers(Choice::Tcp, Choice::Tcp, None);
    let offered = targets.offer().unwrap();
    for cut in 0..offered.bytes().len() {
        assert!(sources.answer(&offered.bytes()[..cut]).is_err(), "offer cut at {cut}");
    }
    let answered = sources.answer(offered.bytes()).unwrap();
    for cut in 0..answered.bytes().len() {
        let fresh = targets.offer().unwrap();
        assert!(fresh.settle(&answered.bytes()[..cut]).is_err(), "answer cut at {cut}");
    }
    let (_session, verdict) = offered.settle(answered.bytes()).unwrap();
    for cut in 0..verdict.len() {
        let offered = targets.offer().unwrap();
        let answered = sources.answer(offered.bytes()).unwrap();
        assert!(answered.settled(&verdict[..cut]).is_err(), "verdict cut at {cut}");
    }
    assert!(answered.settled(&[2, 0]).is_err(), "a transport that was not answered");
}

#[test]
fn the_self_test_measures_and_holds_the_floor() {
    let pages: Vec<_> = (0..10).map(|i| (PageId::new(i), PageId::new(i + 20))).collect();
    let page_bytes = GEOMETRY.page_bytes();
    for ends in [loopback(&Arc::default()), tcp(), ucx()] {
        let Pair { ends: _ends, mut link, .. } = join(ends);
        let test = SelfTest { bytes: 1 << 20, ..SelfTest::default() };
        assert!(self_test(link.as_mut(), &pages, page_bytes, test).unwrap().mb_s > 0);
        let test = SelfTest { floor_mb_s: u64::MAX, ..test };
        let error = self_test(link.as_mut(), &pages, page_bytes, test).unwrap_err();
        assert!(matches!(error, TransferError::TooSlow { .. }), "{error}");
        let beyond = [(PageId::new(0), PageId::new(TARGET_PAGES))];
        assert!(self_test(link.as_mut(), &beyond, page_bytes, test).is_err());
        assert!(self_test(link.as_mut(), &[], page_bytes, test).is_err());
    }
    let faults: Arc<Faults> = Arc::default();
    let Pair { ends: _ends, mut link, .. } = join(loopback(&faults));
    faults.freeze_after(4);
    let test = SelfTest { limit: Duration::from_millis(20), ..SelfTest::default() };
    let error = self_test(link.as_mut(), &pages, page_bytes, test).unwrap_err();
    assert_eq!(error, TransferError::Deadline { limit_ms: 20 });
}

/// UCX's constructor may install handlers of crashes, whose backtraces would hide ours.
#[test]
fn ucx_leaves_signals_alone() {
    let caught = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find(|line| line.starts_with("SigCgt")).unwrap().to_owned()
    };
    let before = caught();
    drop(ucx());
    assert_eq!(caught(), before);
}
