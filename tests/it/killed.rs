//! kill -9 of a server at every point where it matters: nothing hangs, nothing leaks, and a restart
//! on the same address makes the ring whole without anyone touching the others.
//!
//! The server stops itself at the named point; only then is it killed.

use crate::ask::{Ask, Outcome};
use crate::plan::Plan;
use crate::process::Member;
use crate::ring::Ring;
use std::thread::ScopedJoinHandle;

#[derive(Clone, Copy, PartialEq)]
pub enum Victim {
    Prefill,
    Decode,
}

impl Victim {
    fn of(self, ring: &mut Ring) -> &mut Member {
        match self {
            Self::Prefill => &mut ring.prefill[0],
            Self::Decode => &mut ring.decode[0],
        }
    }
}

/// Requests of several chunks and pages, half of them streamed.
fn asks() -> Vec<Ask> {
    let ask = |seed: u32| {
        let prompt: Vec<u32> = (0..100).map(|i| (i * 7 + seed * 31) % 512).collect();
        Ask { stream: seed.is_multiple_of(2), ..Ask::greedy(&prompt, 40) }
    };
    (0..6).map(ask).collect()
}

#[track_caller]
fn check(victim: Victim, point: &str, transport: &str) {
    check_in(Plan::tiny("tiny-qwen3").servers("transport", transport), victim, point);
}

/// Kills `victim` at its stop point with requests on it, and starts it again.
#[track_caller]
pub fn check_in(plan: Plan, victim: Victim, point: &str) {
    let plan = plan.on_prefill("chunked_prefill_size", 32);
    let mut ring = Ring::new(&plan);
    for member in ring.servers_mut() {
        let is_victim = member.name.starts_with(point.split('-').next().unwrap());
        let flags: &[&str] = &["--stop-at", point];
        member.start(if is_victim { flags } else { &[] });
    }
    ring.gateway.start(&[]);
    ring.wait_ready();
    let gateway = ring.gateway.pid();

    let asks = asks();
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let url = ring.url();
        let pending: Vec<ScopedJoinHandle<Outcome>> =
            asks.iter().map(|ask| scope.spawn(move || ask.send(url).unwrap())).collect();
        let victim = victim.of(&mut ring);
        victim.wait_stopped();
        victim.kill();
        pending.into_iter().map(|ask| ask.join().unwrap()).collect()
    });
    check_outcomes(victim, &outcomes);
    check_survivors(&mut ring, victim);

    victim.of(&mut ring).start(&[]);
    ring.wait_ready();
    assert_eq!(ring.gateway.pid(), gateway);
    let again = ring.generate_all(&asks, 6);
    again.iter().for_each(|outcome| assert_eq!(outcome.ids.len(), 40, "{outcome:?}"));
    again.iter().for_each(Outcome::assert_done);
    ring.wait_settled();
}

/// All failed, and say why. Only what had left prefill before it died may be whole.
#[track_caller]
fn check_outcomes(victim: Victim, outcomes: &[Outcome]) {
    for outcome in outcomes {
        match victim {
            Victim::Prefill => outcome.assert_whole_or_typed_error(40),
            Victim::Decode => outcome.assert_typed_error(),
        }
    }
    assert!(outcomes.iter().any(|outcome| outcome.error.is_some()), "nobody noticed");
}

/// The others run on, and hold nothing of the dead.
#[track_caller]
fn check_survivors(ring: &mut Ring, victim: Victim) {
    ring.gateway.assert_alive();
    let survivor = match victim {
        Victim::Prefill => &mut ring.decode[0],
        Victim::Decode => &mut ring.prefill[0],
    };
    survivor.assert_alive();
    survivor.wait_settled();
    ring.wait_idle();
}

macro_rules! kills {
    ($($name:ident: $victim:ident $point:literal $transport:literal,)*) => {
        $(#[test]
        fn $name() {
            check(Victim::$victim, $point, $transport);
        })*
    };
}

kills! {
    prefill_with_a_queued_request: Prefill "prefill-queued" "ucx",
    prefill_about_to_open: Prefill "prefill-opening" "ucx",
    prefill_with_a_computed_chunk: Prefill "prefill-computed:2" "ucx",
    prefill_in_mid_write: Prefill "prefill-writing:2" "ucx",
    prefill_with_all_pages_written: Prefill "prefill-written" "ucx",
    prefill_with_a_handoff_on_its_way: Prefill "prefill-handed:2" "ucx",
    decode_with_a_granted_ticket: Decode "decode-granted:2" "ucx",
    decode_with_an_opened_ticket: Decode "decode-opened:2" "ucx",
    decode_with_a_landed_request: Decode "decode-landed" "ucx",
    decode_in_mid_stream: Decode "decode-stepped:5" "ucx",
    prefill_in_mid_write_over_tcp: Prefill "prefill-writing:2" "tcp",
    decode_with_an_opened_ticket_over_tcp: Decode "decode-opened:2" "tcp",
    decode_in_mid_stream_over_tcp: Decode "decode-stepped:5" "tcp",
}
