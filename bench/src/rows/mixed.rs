//! 2,000 mixed requests over two prefill and two decode servers, 5 % of which the client leaves:
//! nothing may stay behind.
//!
//! Long prompts fill the page pools, which are small, before it begins; a first thousand warms
//! every other buffer; both halves ask what it asked, so that caches have their size. Private
//! memory is compared after the first half and after the second, always idle. Decode's pools are
//! shared with prefill and of a fixed size: they are not counted.

use crate::fleet::client::{Client, Ended};
use crate::fleet::process::Holdings;
use crate::fleet::{Fleet, Member, Plan, metrics};
use crate::numbers::{Random, longest};
use crate::place::Place;
use crate::row::{Bar, Findings, Group, Row};
use crate::rows::speed::greedy;
use serde_json::{Value, json};
use shared::metrics as names;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub const GROUP: Group = Group {
    name: "mixed",
    title: "2,000 mixed requests, 5 % left by their client, two prefill and two decode servers",
    rows: &[
        Row {
            name: "mixed-pages",
            what: "pages owned, granted or quarantined at the end, all servers",
            unit: "pages",
            bar: Bar::AtMost(0.0),
        },
        Row {
            name: "mixed-requests",
            what: "requests still held at the end, gateway and servers",
            unit: "requests",
            bar: Bar::AtMost(0.0),
        },
        Row {
            name: "mixed-memory",
            what: "growth of private resident memory in the second half, worst process",
            unit: "%",
            bar: Bar::AtMost(5.0),
        },
        Row {
            name: "mixed-tasks",
            what: "tasks, threads and files beyond those before the first request, all processes",
            unit: "count",
            bar: Bar::AtMost(0.0),
        },
        Row {
            name: "mixed-odd",
            what: "requests that ended neither well nor by their own client",
            unit: "requests",
            bar: Bar::AtMost(0.0),
        },
    ],
    measure,
    slow: false,
};

const HALF: usize = 1_000;
const CLIENTS: usize = 8;
const CANCEL_PERCENT: usize = 5;
/// Idle threads of a runtime's blocking pool go after 10 s.
const STEADY: Duration = Duration::from_secs(11);
const SETTLE_MAX: Duration = Duration::from_secs(30);
const POOL_TOKENS: i64 = 4_096;
/// How often the pools are filled before the first half.
const FILLS: f64 = 3.0;
const FILL_ROUNDS_MAX: usize = 60;
const HELD: [&str; 3] = ["owned", "granted", "quarantined"];

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    done: usize,
    left: usize,
    odd: usize,
}

fn measure(place: &Place) -> anyhow::Result<Findings> {
    let plan = Plan::new(&place.tiny("tiny-qwen3"), "bf16")
        .servers(2, 2)
        .set("max_total_tokens", POOL_TOKENS)
        .set("threads", 1);
    let mut fleet = Fleet::start(place, &plan)?;
    let before = steady(&mut fleet)?;
    let tasks_before = tasks(&fleet)?;
    let half = place.rounds(HALF);
    let mut found = Findings::default();
    fill_pools(&fleet)?;
    let warm = run(&fleet.client, half, &mut found);
    let first = run(&fleet.client, half, &mut found);
    let middle = settle(&mut fleet, &before, tasks_before)?;
    let second = run(&fleet.client, half, &mut found);
    let after = settle(&mut fleet, &before, tasks_before)?;
    found.set("mixed-pages", pages(&fleet)? as f64);
    found.set("mixed-requests", requests(&fleet)?);
    found.set("mixed-odd", (warm.odd + first.odd + second.odd) as f64);
    let mut growth = Vec::new();
    let tasks_after = tasks(&fleet)?;
    found.note(format!("tasks in all: {tasks_before} before, {tasks_after} after"));
    let mut beyond = tasks_after.saturating_sub(tasks_before) as usize;
    for (((name, before), (_, middle)), (_, after)) in before.iter().zip(&middle).zip(&after) {
        let percent = 100.0 * (after.private_bytes as f64 / middle.private_bytes as f64 - 1.0);
        growth.push(percent);
        beyond += after.threads.saturating_sub(before.threads);
        beyond += after.files.saturating_sub(before.files);
        let mib = |holdings: &Holdings| holdings.private_bytes as f64 / f64::from(1 << 20);
        found.note(format!(
            "{name}: {:.1} MiB at the start, {:.1} after {half}, {:.1} after {} ({percent:+.2} %); \
             threads {} to {}, files {} to {}",
            mib(before),
            mib(middle),
            mib(after),
            2 * half,
            before.threads,
            after.threads,
            before.files,
            after.files,
        ));
    }
    let (done, left) = (first.done + second.done, first.left + second.left);
    found.note(format!("{done} answered, {left} left by their client"));
    found.set("mixed-memory", longest(growth));
    found.set("mixed-tasks", beyond as f64);
    Ok(found)
}

fn holdings(fleet: &mut Fleet) -> anyhow::Result<Vec<(String, Holdings)>> {
    fleet.processes().map(|process| Ok((process.name.clone(), process.holdings()?))).collect()
}

/// What all hold once their threads and files have not changed for a while, or at a deadline.
fn steady(fleet: &mut Fleet) -> anyhow::Result<Vec<(String, Holdings)>> {
    let start = Instant::now();
    let (mut last, mut since) = (holdings(fleet)?, start);
    while since.elapsed() < STEADY && start.elapsed() < SETTLE_MAX {
        std::thread::sleep(Duration::from_millis(50));
        let now = holdings(fleet)?;
        let counts = |all: &[(String, Holdings)]| -> Vec<_> {
            all.iter().map(|(_, holdings)| (holdings.threads, holdings.files)).collect()
        };
        if counts(&now) != counts(&last) {
            since = Instant::now();
        }
        last = now;
    }
    Ok(last)
}

fn pages(fleet: &Fleet) -> anyhow::Result<u64> {
    fleet.members().into_iter().map(|member| fleet.pages(member, &HELD)).sum()
}

/// Held by the gateway, waiting or running in servers.
fn requests(fleet: &Fleet) -> anyhow::Result<f64> {
    let mut held = fleet.requests()? as f64;
    for member in fleet.members() {
        let text = fleet.metrics(member)?;
        for name in [names::RUNNING, names::WAITING] {
            held += metrics::sum(&text, name, &[]);
        }
    }
    Ok(held)
}

/// Tasks that have not ended, gateway and servers.
fn tasks(fleet: &Fleet) -> anyhow::Result<u64> {
    let gateway = fleet.client.get(&format!("{}/metrics", fleet.client.url()))?;
    let mut tasks = metrics::sum(&gateway, names::TASKS, &[]);
    for member in fleet.members() {
        tasks += metrics::sum(&fleet.metrics(member)?, names::TASKS, &[]);
    }
    Ok(tasks as u64)
}

/// What all hold once nothing is held for requests and tasks, threads and files are as before, or
/// after a bounded time.
fn settle(
    fleet: &mut Fleet,
    before: &[(String, Holdings)],
    tasks_before: u64,
) -> anyhow::Result<Vec<(String, Holdings)>> {
    let start = Instant::now();
    loop {
        let is_idle = pages(fleet)? == 0 && requests(fleet)? == 0.0;
        // The connections that have just asked are closed by then.
        std::thread::sleep(Duration::from_millis(50));
        let now = holdings(fleet)?;
        let is_as_before = before.iter().zip(&now).all(|((_, before), (_, now))| {
            now.threads <= before.threads && now.files <= before.files
        }) && tasks(fleet)? <= tasks_before;
        if is_idle && is_as_before || start.elapsed() > SETTLE_MAX {
            return Ok(now);
        }
    }
}

/// Long prompts until every prefill server has computed several times what its pool holds.
fn fill_pools(fleet: &Fleet) -> anyhow::Result<()> {
    let prefills = fleet.members().into_iter().filter(|m| matches!(m, Member::Prefill(_)));
    let prefills: Vec<_> = prefills.collect();
    let mut random = Random::new(4_096);
    let mut computed = Vec::new();
    for _ in 0..FILL_ROUNDS_MAX {
        let tokens = prefills.iter().map(|member| -> anyhow::Result<f64> {
            Ok(metrics::sum(&fleet.metrics(*member)?, names::COMPUTED_TOKENS, &[]))
        });
        computed = tokens.collect::<anyhow::Result<Vec<_>>>()?;
        if computed.iter().all(|&tokens| tokens >= FILLS * POOL_TOKENS as f64) {
            return Ok(());
        }
        // One after the other at each client: loads that the gateway hears of spread them.
        let prompts: Vec<Vec<_>> = (0..CLIENTS)
            .map(|_| (0..8).map(|_| greedy(&random.ids(400, 3, 490), 4)).collect())
            .collect();
        std::thread::scope(|scope| {
            let ask = |bodies: &[Value]| {
                bodies.iter().try_for_each(|body| fleet.client.generate(body).map(drop))
            };
            let clients = prompts.iter().map(|bodies| scope.spawn(move || ask(bodies)));
            let clients: Vec<_> = clients.collect();
            clients.into_iter().try_for_each(|client| {
                client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
                anyhow::Ok(())
            })
        })?;
    }
    anyhow::bail!("the page pools do not fill: {computed:?} tokens computed")
}

/// The same `count` requests every time, by a few clients at once.
fn run(client: &Client, count: usize, found: &mut Findings) -> Tally {
    let random = Mutex::new((Random::new(1), 0));
    let next = || {
        let mut random = random.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        random.1 += 1;
        (random.1 <= count).then(|| request(&mut random.0))
    };
    let work = || {
        let (mut tally, mut odd) = (Tally::default(), Vec::new());
        while let Some((body, leaves)) = next() {
            match ask(client, &body, leaves) {
                Ok(true) => tally.done += 1,
                Ok(false) => tally.left += 1,
                Err(ended) => {
                    tally.odd += 1;
                    odd.push(ended.to_string());
                }
            }
        }
        (tally, odd)
    };
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
        for client in clients {
            let (tally, odd) = client.join().unwrap_or_default();
            all.done += tally.done;
            all.left += tally.left;
            all.odd += tally.odd;
            odd.into_iter().take(5).for_each(|what| found.note(format!("odd: {what}")));
        }
    });
    all
}

/// When a client goes away.
#[derive(Clone, Copy)]
enum Leaves {
    Never,
    /// After so many milliseconds, whatever has come by then.
    After(u64),
    /// After so many events.
    AfterEvents(usize),
}

/// Some share a prefix of three pages, some are sampled, some are long.
fn request(random: &mut Random) -> (Value, Leaves) {
    let mut prompt = if random.chance(40) {
        let which = random.below(8) as u32;
        (0..48).map(|i| 3 + (i * 7 + which * 31) % 490).collect()
    } else {
        Vec::new()
    };
    let length = if random.chance(10) { 400 } else { 60 };
    let own = 1 + random.below(length);
    prompt.extend(random.ids(own, 3, 490));
    let temperature = if random.chance(50) { 0.0 } else { 0.9 };
    let tokens = 1 + random.below(32);
    let sampling =
        json!({"temperature": temperature, "max_new_tokens": tokens, "ignore_eos": true});
    let leaves = match (random.chance(CANCEL_PERCENT), random.chance(50)) {
        (false, _) => Leaves::Never,
        (true, true) => Leaves::After(1 + random.below(30) as u64),
        (true, false) => Leaves::AfterEvents(1 + random.below(4)),
    };
    let stream = random.chance(50);
    (json!({"input_ids": prompt, "sampling_params": sampling, "stream": stream}), leaves)
}

/// Whether it was answered; false if the client left.
fn ask(client: &Client, body: &Value, leaves: Leaves) -> Result<bool, Ended> {
    let stream = body["stream"] == true;
    match leaves {
        Leaves::Never if stream => client.stream(body).map(|_| true),
        Leaves::Never => client.generate(body).map(|_| true),
        Leaves::After(ms) => {
            let hasty = Client::patient(client.url().to_owned(), Duration::from_millis(ms));
            let outcome =
                if stream { hasty.stream(body).map(drop) } else { hasty.generate(body).map(drop) };
            Ok(outcome.is_ok())
        }
        Leaves::AfterEvents(count) => {
            let mut seen = 0;
            let outcome = client.stream_until(body, |_| {
                seen += 1;
                if seen == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            outcome.map(|streamed| streamed.is_some())
        }
    }
}
