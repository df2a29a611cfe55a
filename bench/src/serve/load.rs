//! How requests arrive: so many at a time, or one every so often.

use super::client::{Ask, Client, Sample};
use crate::numbers::Random;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, JoinSet};

/// All requests of an experiment, each with what came of it.
pub struct Run {
    pub samples: Vec<Sample>,
    /// From the first request's start to the last one's end.
    pub took: Duration,
}

impl Run {
    /// A task's panic is the caller's.
    async fn gather(start: Instant, tasks: JoinSet<Vec<Sample>>) -> Self {
        let samples = tasks.join_all().await.into_iter().flatten().collect();
        Self { samples, took: start.elapsed() }
    }
}

/// Keeps `width` requests running until all have been sent and answered.
pub async fn closed(client: &Arc<Client>, asks: Vec<Ask>, width: usize) -> Run {
    let asks = Arc::new(asks);
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..width.min(asks.len()) {
        let (client, asks, next) = (client.clone(), asks.clone(), next.clone());
        tasks.spawn(async move {
            let mut samples = vec![];
            while let Some(ask) = asks.get(next.fetch_add(1, Ordering::Relaxed)) {
                samples.push(client.ask(ask).await);
            }
            samples
        });
    }
    Run::gather(start, tasks).await
}

/// Sends all at once.
pub async fn at_once(client: &Arc<Client>, asks: Vec<Ask>) -> Run {
    let width = asks.len();
    closed(client, asks, width).await
}

/// Sends each request at its time from the start, however slow the answers to those before it.
pub async fn open(client: &Arc<Client>, asks: Vec<(Duration, Ask)>) -> Run {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (at, ask) in asks {
        let due = start + at;
        tokio::time::sleep_until(due.into()).await;
        let client = client.clone();
        tasks.spawn(async move {
            let mut sample = client.ask(&ask).await;
            sample.due = Some(due);
            vec![sample]
        });
    }
    Run::gather(start, tasks).await
}

/// Times of arrivals at `rate` a second that know nothing of each other: a Poisson process.
pub fn poisson(random: &mut Random, rate: f64) -> impl Iterator<Item = Duration> + '_ {
    let gap = move || -(1.0 - random.unit()).ln() / rate;
    std::iter::repeat_with(gap).scan(0.0, |at, gap| {
        *at += gap;
        Some(Duration::from_secs_f64(*at))
    })
}

/// Sends what `make` makes every `period`, whether or not the ones before are answered, until
/// `others` have ended; gives their result and what came of these.
pub async fn beside<T>(
    client: &Arc<Client>,
    others: &mut JoinHandle<T>,
    period: Duration,
    mut make: impl FnMut() -> Ask,
) -> (Result<T, tokio::task::JoinError>, Run) {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    let mut clock = tokio::time::interval(period);
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut *others => break ended,
            _ = clock.tick() => {
                let (client, ask) = (client.clone(), make());
                tasks.spawn(async move { vec![client.ask(&ask).await] });
            }
        }
    };
    (ended, Run::gather(start, tasks).await)
}
