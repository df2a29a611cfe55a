//! kill -9 of a server of the ring in mid-write.
//!
//! Three scenarios in turn. In each a server freezes itself at a named point (`stop_at`), with
//! several requests pending, and then:
//! - prefill has written some pages and is killed;
//! - prefill has written some pages, decode is killed, and prefill goes on writing;
//! - decode has named pages and is killed.
//!
//! All requests that were pending must end with a typed error, the others must live and give all
//! pages back, nothing of the dead may stay in shared memory, and after a restart of the dead on
//! the same address the ring must answer.

use crate::fleet::client::Ended;
use crate::fleet::process::names_left;
use crate::fleet::{Fleet, Member, Plan};
use crate::numbers::{Random, longest, median, short};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use crate::rows::speed::greedy;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::HashSet;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const GROUP: Group = Group {
    name: "kill-ring",
    title: "kill -9 of a server in mid-write, UCX, 100 times",
    rows: &[
        Row {
            name: "kill-ring-end",
            what: "from the kill to the end of every pending request at the client, longest",
            unit: "s",
            bar: Bar::AtMost(2.0),
        },
        Row {
            name: "kill-ring-untyped",
            what: "pending requests that ended otherwise than by a typed error or an answer",
            unit: "requests",
            bar: Bar::AtMost(0.0),
        },
        Row {
            name: "kill-ring-survivors",
            what: "survivors that died",
            unit: "processes",
            bar: Bar::AtMost(0.0),
        },
        Row {
            name: "kill-ring-pages",
            what: "pages that survivors still held or quarantined 5 s after the kill",
            unit: "pages",
            bar: Bar::AtMost(0.0),
        },
        Row {
            name: "kill-ring-left",
            what: "shared memory of the dead that still has a name or is mapped by a survivor",
            unit: "count",
            bar: Bar::AtMost(0.0),
        },
    ],
    measure,
    slow: false,
};

/// Who freezes where, and who is killed.
struct Scenario {
    name: &'static str,
    frozen: Member,
    at: &'static str,
    victim: Member,
}

const PREFILL: Member = Member::Prefill(0);
const DECODE: Member = Member::Decode(0);
const SCENARIOS: [Scenario; 3] = [
    Scenario { name: "prefill writing", frozen: PREFILL, at: "prefill-writing", victim: PREFILL },
    Scenario { name: "decode written", frozen: PREFILL, at: "prefill-writing", victim: DECODE },
    Scenario { name: "decode opened", frozen: DECODE, at: "decode-opened", victim: DECODE },
];
const POOL_TOKENS: i64 = 65_536;
const KILLS: usize = 100;
const PENDING: usize = 4;
const HELD: [&str; 3] = ["owned", "granted", "quarantined"];
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// What one kill led to.
struct Kill {
    scenario: &'static str,
    seconds: f64,
    typed: usize,
    untyped: usize,
    died: usize,
    settle_s: f64,
    pages: u64,
    left: usize,
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let mut fleet = Fleet::start(place, &plan(place))?;
    let mut random = Random::new(9);
    let mut found = Findings::new("scenario,seconds,typed,untyped,died,settle_s,pages,left");
    let mut kills = Vec::new();
    for number in 0..place.rounds(KILLS) {
        let scenario = &SCENARIOS[number % SCENARIOS.len()];
        let kill = one(&mut fleet, scenario, &mut random, &mut found)?;
        let Kill { scenario, seconds, typed, untyped, died, settle_s, pages, left } = kill;
        found.raw.push(format!(
            "{scenario},{seconds:.6},{typed},{untyped},{died},{settle_s:.3},{pages},{left}"
        ));
        kills.push(kill);
    }
    found.note(format!("pools of {POOL_TOKENS} tokens, 256 MiB"));
    for Scenario { name, .. } in &SCENARIOS {
        let of = || kills.iter().filter(|kill| kill.scenario == *name);
        let times = || of().map(|kill| kill.seconds);
        let settled = longest(of().map(|kill| kill.settle_s));
        found.note(format!(
            "{name}: {} kills, {} requests ended by a typed error in {} s (median), {} s (longest); \
             pages back within {settled:.2} s",
            of().count(),
            of().map(|kill| kill.typed).sum::<usize>(),
            short(median(times().collect())),
            short(longest(times())),
        ));
    }
    let sum = |pick: fn(&Kill) -> usize| kills.iter().map(pick).sum::<usize>() as f64;
    found.set("kill-ring-end", longest(kills.iter().map(|kill| kill.seconds)));
    found.set("kill-ring-untyped", sum(|kill| kill.untyped));
    found.set("kill-ring-survivors", sum(|kill| kill.died));
    found.set("kill-ring-pages", sum(|kill| kill.pages as usize));
    found.set("kill-ring-left", sum(|kill| kill.left));
    Ok(found)
}

/// Small chunks, so that pages are written while later ones are computed. The kernel closes a dead
/// process's sockets after it has freed its memory, so the pool's size is part of the figure.
pub fn plan(place: &Place) -> Plan {
    Plan::new(&place.tiny("tiny-qwen3"), "bf16")
        .set("transport", "ucx")
        .set("page_checksums", true)
        .set("chunked_prefill_size", 64)
        .set("max_total_tokens", POOL_TOKENS)
        .set("threads", 1)
}

/// `count` long prompts, each sent by a thread; they end with the moment and the outcome.
pub fn send(
    fleet: &Fleet,
    random: &mut Random,
    count: usize,
) -> Vec<JoinHandle<(Instant, Result<Value, Ended>)>> {
    let one = |_| {
        let body = greedy(&random.ids(600, 3, 490), 32);
        let client = fleet.client.clone();
        std::thread::spawn(move || {
            let outcome = client.generate(&body);
            (Instant::now(), outcome)
        })
    };
    (0..count).map(one).collect()
}

fn one(
    fleet: &mut Fleet,
    scenario: &Scenario,
    random: &mut Random,
    found: &mut Findings,
) -> anyhow::Result<Kill> {
    let Scenario { name, frozen, at, victim } = *scenario;
    fleet.restart(frozen, &["--stop-at", at])?;
    let pending = send(fleet, random, PENDING);
    fleet.wait("a server freezes with all requests pending", |fleet| {
        Ok(fleet.process(frozen)?.is_stopped() && fleet.requests()? == PENDING as u64)
    })?;
    let memory = fleet.process(victim)?.own_memory()?;
    let start = fleet.process(victim)?.kill()?;
    if frozen != victim {
        fleet.process(frozen)?.signal(Signal::CONT)?;
    }
    let (mut seconds, mut typed, mut untyped) = (0.0_f64, 0, 0);
    for request in pending {
        let Ok((end, outcome)) = request.join() else { anyhow::bail!("a client panicked") };
        seconds = seconds.max(end.duration_since(start).as_secs_f64());
        match outcome {
            Ok(_) => {}
            Err(Ended::Typed { .. }) => typed += 1,
            Err(ended) => {
                untyped += 1;
                found.note(format!("{name}: {ended}"));
            }
        }
    }
    let others: Vec<Member> = fleet.members().into_iter().filter(|m| *m != victim).collect();
    let (settle_s, pages, left) = settled(fleet, &others, (start, &memory))?;
    let died = fleet.processes().filter_map(|process| (!process.lives()).then_some(())).count() - 1;
    fleet.restart(victim, &[])?;
    fleet.client.generate(&greedy(&random.ids(40, 3, 490), 4))?;
    Ok(Kill { scenario: name, seconds, typed, untyped, died, settle_s, pages, left })
}

/// When these members held no page and nothing of the dead any more, seconds after the kill, and
/// what they still hold.
fn settled(
    fleet: &mut Fleet,
    members: &[Member],
    (start, dead): (Instant, &HashSet<u64>),
) -> anyhow::Result<(f64, u64, usize)> {
    loop {
        let pages = members.iter().map(|member| fleet.pages(*member, &HELD));
        let pages = pages.sum::<anyhow::Result<u64>>()?;
        let left = left_by(fleet, dead)?;
        let passed = start.elapsed();
        if pages == 0 && left == 0 || passed > SETTLE_MAX {
            return Ok((passed.as_secs_f64(), pages, left));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Names that the dead left, and mappings of its memory that others still have.
fn left_by(fleet: &mut Fleet, dead: &HashSet<u64>) -> anyhow::Result<usize> {
    let mut left = names_left(dead)?;
    for process in fleet.processes() {
        if process.lives() {
            left += process.mapped_memory()?.intersection(dead).count();
        }
    }
    Ok(left)
}
