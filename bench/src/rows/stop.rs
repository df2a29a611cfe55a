//! SIGSTOP of a server for 10 s: requests on it end, its pages wait for it.
//!
//! Prefill freezes itself in mid-write, by UCX, where nobody but the frozen process can take its
//! hands off decode's pages. Its requests must end with a typed error; the pages that it could
//! still write must stay quarantined until it resumes, or is dead, and go back then. Decode freezes
//! too: its requests must end, and after it resumes the ring must answer.

use crate::fleet::client::Ended;
use crate::fleet::{Fleet, Member};
use crate::numbers::{Random, longest, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use crate::rows::kill_ring::{plan, send};
use crate::rows::speed::greedy;
use rustix::process::Signal;
use std::time::{Duration, Instant};

pub const GROUP: Group = Group {
    name: "stop",
    title: "SIGSTOP of a server for 10 s, UCX",
    rows: &[
        Row {
            name: "stop-end",
            what: "from the stop to the typed error of every pending request, longest",
            unit: "s",
            bar: Bar::AtMost(2.0),
        },
        Row {
            name: "stop-untyped",
            what: "pending requests that ended otherwise than by a typed error",
            unit: "requests",
            bar: Bar::AtMost(0.0),
        },
        Row {
            name: "stop-quarantine",
            what: "fewest pages in quarantine while prefill is stopped, from 2 s after the stop on",
            unit: "pages",
            bar: Bar::AtLeast(1.0),
        },
        Row {
            name: "stop-pages",
            what: "pages still held or quarantined 5 s after it resumed or was killed",
            unit: "pages",
            bar: Bar::AtMost(0.0),
        },
    ],
    measure,
    slow: false,
};

/// Who freezes where, and whether it is killed instead of resumed.
struct Scenario {
    name: &'static str,
    frozen: Member,
    at: &'static str,
    killed: bool,
}

const PREFILL: Member = Member::Prefill(0);
const DECODE: Member = Member::Decode(0);
const SCENARIOS: [Scenario; 3] = [
    Scenario { name: "prefill, resumed", frozen: PREFILL, at: "prefill-writing", killed: false },
    Scenario { name: "prefill, killed", frozen: PREFILL, at: "prefill-writing", killed: true },
    Scenario { name: "decode, resumed", frozen: DECODE, at: "decode-stepped:8", killed: false },
];
/// By then every peer has noticed the silence (1.5 s).
const NOTICED: Duration = Duration::from_secs(2);
const STOPPED: Duration = Duration::from_secs(10);
const PENDING: usize = 3;
const HELD: [&str; 3] = ["owned", "granted", "quarantined"];
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// What one stop led to.
struct Stop {
    seconds: f64,
    typed: usize,
    untyped: usize,
    /// Fewest while stopped; none where decode is the stopped one, which cannot say.
    quarantined: Option<u64>,
    settle_s: f64,
    pages: u64,
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let mut fleet = Fleet::start(place, &plan(place))?;
    let mut random = Random::new(19);
    let mut found = Findings::new("scenario,seconds,typed,untyped,quarantined,settle_s,pages");
    let mut stops = Vec::new();
    for scenario in &SCENARIOS {
        for _ in 0..place.rounds(3) {
            let stop = one(&mut fleet, scenario, &mut random, &mut found)?;
            let Stop { seconds, typed, untyped, quarantined, settle_s, pages } = &stop;
            let waits = quarantined.map_or("-".to_owned(), |pages| pages.to_string());
            let name = scenario.name;
            found.raw.push(format!(
                "{name},{seconds:.6},{typed},{untyped},{waits},{settle_s:.3},{pages}"
            ));
            found.note(format!(
                "{name}: {typed} typed errors after {} s; {waits} pages in quarantine while \
                 stopped; all back {} s after",
                short(*seconds),
                short(*settle_s),
            ));
            stops.push(stop);
        }
    }
    let waits = stops.iter().filter_map(|stop| stop.quarantined).min();
    found.set("stop-end", longest(stops.iter().map(|stop| stop.seconds)));
    found.set("stop-untyped", stops.iter().map(|stop| stop.untyped).sum::<usize>() as f64);
    found.set("stop-quarantine", waits.unwrap_or(0) as f64);
    found.set("stop-pages", stops.iter().map(|stop| stop.pages).sum::<u64>() as f64);
    Ok(found)
}

fn one(
    fleet: &mut Fleet,
    scenario: &Scenario,
    random: &mut Random,
    found: &mut Findings,
) -> anyhow::Result<Stop> {
    let Scenario { name, frozen, at, killed } = *scenario;
    fleet.restart(frozen, &["--stop-at", at])?;
    let pending = send(fleet, random, PENDING);
    let mut start = Instant::now();
    fleet.wait("a server freezes", |fleet| {
        // The moment before the last look that found it running.
        let before = Instant::now();
        let is_stopped = fleet.process(frozen)?.is_stopped();
        start = if is_stopped { start } else { before };
        Ok(is_stopped)
    })?;
    let (mut seconds, mut typed, mut untyped) = (0.0_f64, 0, 0);
    for request in pending {
        let Ok((end, outcome)) = request.join() else { anyhow::bail!("a client panicked") };
        seconds = seconds.max(end.duration_since(start).as_secs_f64());
        match outcome {
            // Answered before the stop.
            Ok(_) if end < start => {}
            Err(Ended::Typed { .. }) => typed += 1,
            other => {
                untyped += 1;
                found.note(format!("{name}: ended with {other:?}"));
            }
        }
    }
    let quarantined = (frozen == PREFILL).then(|| fewest_quarantined(fleet, start)).transpose()?;
    while start.elapsed() < STOPPED {
        std::thread::sleep(Duration::from_millis(10));
    }
    match killed {
        true => drop(fleet.process(frozen)?.kill()?),
        false => fleet.process(frozen)?.signal(Signal::CONT)?,
    }
    let (settle_s, pages) = settled(fleet, killed.then_some(frozen))?;
    if killed {
        fleet.restart(frozen, &[])?;
    }
    fleet.wait_ready()?;
    fleet.client.generate(&greedy(&random.ids(40, 3, 490), 4))?;
    Ok(Stop { seconds, typed, untyped, quarantined, settle_s, pages })
}

/// The fewest pages in quarantine at decode until the stop has lasted its time, from when decode
/// itself must have noticed: before that they are the writer's own, and as safe.
fn fewest_quarantined(fleet: &Fleet, start: Instant) -> anyhow::Result<u64> {
    let mut fewest = u64::MAX;
    while start.elapsed() < NOTICED {
        std::thread::sleep(Duration::from_millis(10));
    }
    while start.elapsed() < STOPPED {
        fewest = fewest.min(fleet.pages(DECODE, &["quarantined"])?);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(fewest)
}

/// Seconds until no server that lives held a page any more, and what they still hold.
fn settled(fleet: &Fleet, dead: Option<Member>) -> anyhow::Result<(f64, u64)> {
    let start = Instant::now();
    let members: Vec<_> = fleet.members().into_iter().filter(|m| Some(*m) != dead).collect();
    loop {
        let pages = members.iter().map(|member| fleet.pages(*member, &HELD));
        let pages = pages.sum::<anyhow::Result<u64>>()?;
        let passed = start.elapsed();
        if pages == 0 || passed > SETTLE_MAX {
            return Ok((passed.as_secs_f64(), pages));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
