//! Many mixed requests with cancels among them: afterwards every server is as it was.

use crate::ask::{Ask, Outcome};
use crate::plan::{Plan, long};
use crate::process::{Member, wait_for};
use crate::random::{Random, Shape};
use crate::ring::Ring;
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};

const SHAPE: Shape = Shape { vocab: 512, page: 16, longest: 200, output: 60 };

/// What a client does.
enum Client {
    /// Reads to the end.
    Stays(Ask),
    /// Hangs up after so many events; at once if there are none.
    Leaves(Ask, u32),
    /// Sends what is refused.
    Errs,
}

/// 5 in a hundred leave, 2 send nonsense.
fn clients(seed: u64, count: usize) -> Vec<Client> {
    let mut random = Random::new(seed);
    let asks = SHAPE.asks(&mut random, count);
    let client = |ask: Ask| match random.below(100) {
        0..5 => Client::Leaves(ask.streamed(), random.below(20)),
        5..7 => Client::Errs,
        _ => Client::Stays(Ask { salt: random.pick(&["", "", "a", "b"]).into(), ..ask }),
    };
    asks.into_iter().map(client).collect()
}

#[track_caller]
fn serve(ring: &Ring, client: &Client) {
    match client {
        Client::Stays(ask) => ring.generate(ask).assert_done(),
        Client::Leaves(ask, events) => {
            let call = ring.post("/generate", &ask.body());
            if *events > 0 {
                let mut answer = call.answer().unwrap();
                let mut seen = 0;
                while seen < *events && answer.event().unwrap().is_some() {
                    seen += 1; // it may end before
                }
            }
        }
        Client::Errs => {
            let body = json!({"input_ids": [1, 512]});
            let reply = ring.post("/generate", &body).whole().unwrap();
            assert_eq!(reply.status, 400, "{}", reply.body);
        }
    }
}

/// Serves all of them, 16 at once.
#[track_caller]
fn serve_all(ring: &Ring, clients: &[Client]) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while let Some(client) = clients.get(next.fetch_add(1, Ordering::Relaxed)) {
                    serve(ring, client);
                }
            });
        }
    });
    ring.wait_settled();
}

/// Threads and descriptors of every process of the ring.
fn counts(ring: &Ring) -> Vec<(usize, usize)> {
    members(ring).map(|member| (member.threads(), member.descriptors())).collect()
}

fn members(ring: &Ring) -> impl Iterator<Item = &Member> {
    ring.servers().chain([&ring.gateway])
}

#[test]
fn mixed_requests_leave_nothing_behind() {
    let half = if long() { 1000 } else { 150 };
    // A pool that the first half fills.
    let plan = Plan::tiny("tiny-qwen3").servers("max_total_tokens", 2048);
    let mut ring = plan.of(2, 2).start();
    let before = counts(&ring);
    serve_all(&ring, &clients(1, half));
    let memory: Vec<_> = members(&ring).map(Member::resident_kib).collect();
    serve_all(&ring, &clients(2, half));
    for (member, before) in members(&ring).zip(memory) {
        // The second half meets the first one's caches, queues and buffers.
        let (after, most) = (member.resident_kib(), before + before / 20 + 8192);
        assert!(after <= most, "{}: {before} KiB after half, {after} at the end", member.name);
    }
    for (index, (threads, descriptors)) in before.into_iter().enumerate() {
        wait_for("the threads and descriptors of the start", || {
            let (now, open) = counts(&ring)[index];
            (now <= threads && open <= descriptors).then_some(())
        });
    }
    ring.servers_mut().for_each(Member::assert_alive);
    ring.flush_cache();
    for server in ring.servers() {
        wait_for("a free pool", || (server.pages("sealed") == Some(0.0)).then_some(()));
    }
}

/// One that stays gets what it would have got alone, whoever leaves beside it.
#[test]
fn those_who_stay_get_the_same_tokens() {
    let ring = Plan::tiny("tiny-qwen3").of(1, 1).start();
    let clients = clients(3, 60);
    let stays = clients.iter().filter_map(|client| match client {
        Client::Stays(ask) => Some(ask.clone()),
        Client::Leaves(..) | Client::Errs => None,
    });
    let asks: Vec<_> = stays.collect();
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let leaving = clients.iter().filter(|client| !matches!(client, Client::Stays(_)));
            leaving.for_each(|client| serve(&ring, client));
        });
        let outcomes = ring.generate_all(&asks, 8);
        others.join().unwrap();
        outcomes
    });
    let mut engine = crate::ask::engine(&crate::plan::golden_path("tiny-qwen3"), 512);
    for (ask, outcome) in asks.iter().zip(&outcomes) {
        outcome.assert_equal(&ask.reference(&mut engine));
    }
    ring.wait_settled();
}
