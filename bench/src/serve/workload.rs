//! A workload at a rate, at a concurrency, or at a trace's own times; its figures as a table, its
//! requests as JSON, its course as plots.
//!
//! At a rate the load is open: a request is sent at its time, however slow the server is. A client
//! that is late itself would make the load lighter than it says, so it says how late it was.

use super::client::{Ask, Client, Sample};
use super::dataset::{DatasetOptions, Planned};
use super::load::{Run, closed, open, poisson};
use super::report::{Ranks, Summary, gaps, raw};
use crate::numbers::{Random, short};
use anyhow::ensure;
use clap::Args;
use plan::plot::Plot;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which requests, and when.
#[derive(Args, Clone)]
pub struct WorkloadOptions {
    #[command(flatten)]
    dataset: DatasetOptions,
    /// Requests a second, their arrivals a Poisson process; inf sends all at once [the trace's own
    /// times, inf where it has none].
    #[arg(long, conflicts_with = "max_concurrency", requires = "dataset_name")]
    request_rate: Option<f64>,
    /// Instead: this many requests at a time, the next when one has ended.
    #[arg(long, requires = "dataset_name")]
    max_concurrency: Option<usize>,
    #[command(flatten)]
    slo: Slo,
}

/// What a request must keep to count as good, each p99 that of its own gaps.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Slo {
    /// Goodput: the first token within this, ms.
    #[arg(long, value_name = "MS")]
    slo_ttft: Option<f64>,
    /// Goodput: p99 of a request's times between chunks within this, ms.
    #[arg(long, value_name = "MS")]
    slo_itl: Option<f64>,
    /// Goodput: a request's mean time per token after the first within this, ms.
    #[arg(long, value_name = "MS")]
    slo_tpot: Option<f64>,
    /// Goodput: the whole answer within this, ms.
    #[arg(long, value_name = "MS")]
    slo_e2e: Option<f64>,
}

impl Slo {
    /// Whether an answer came whole and in time.
    fn is_met(&self, sample: &Sample) -> bool {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        // What did not happen, like a gap in an answer of one token, was not late.
        let within = |limit: Option<f64>, took: Option<f64>| match (limit, took) {
            (Some(limit), Some(took)) => took <= limit,
            _ => true,
        };
        let itl = Some(Ranks::of(gaps(sample, None)).p99).filter(|p99| p99.is_finite());
        sample.failure.is_none()
            && within(self.slo_ttft, sample.ttft().map(ms))
            && within(self.slo_itl, itl)
            && within(self.slo_tpot, sample.tpot().map(ms))
            && within(self.slo_e2e, Some(ms(sample.end - sample.sent)))
    }

    fn words(&self) -> Option<String> {
        let limits = [
            ("TTFT", self.slo_ttft),
            ("ITL p99", self.slo_itl),
            ("TPOT", self.slo_tpot),
            ("E2E", self.slo_e2e),
        ];
        let said = limits.iter().filter_map(|(name, limit)| {
            limit.map(|limit| format!("{name} within {} ms", short(limit)))
        });
        let said: Vec<String> = said.collect();
        (!said.is_empty()).then(|| said.join(", "))
    }
}

/// A client that is later than this at p99 does not send the load that it says, ms.
const LATE_MS: f64 = 10.0;

impl WorkloadOptions {
    /// Whether a workload is asked for.
    pub fn is_wanted(&self) -> bool {
        self.dataset.dataset_name.is_some()
    }

    /// Sends it all and reads every answer to its end.
    ///
    /// # Errors
    /// An option or a file does not fit, or no request succeeds.
    pub async fn run(
        &self,
        client: Arc<Client>,
        (vocab, seed): (u32, u64),
    ) -> anyhow::Result<Outcome> {
        let (planned, left_out) = self.dataset.plan(vocab, seed)?;
        let model = client.model().map(str::to_owned);
        let ask = |name: String, prompt: &[u32], output| {
            Ask::new(name, &json!(prompt), output, model.as_deref())
        };
        // Connections, lazy compilation: no request of the workload pays for the first one.
        let first = client.ask(&ask("bench-warm-up".into(), &[vocab - 1; 16], 2)).await;
        ensure!(first.failure.is_none(), "the first request: {:?}", first.failure);
        let times = self.times(&planned, seed)?;
        let asks = planned.iter().enumerate();
        let asks = asks.map(|(n, one)| ask(format!("bench-{n}"), &one.prompt, one.output));
        let asks: Vec<Ask> = asks.collect();
        let (arrivals, run) = match (times, self.max_concurrency) {
            (_, Some(width)) => {
                ensure!(width > 0, "--max-concurrency 0: want at least 1");
                (format!("{width} at a time"), closed(&client, asks, width).await)
            }
            (Some(times), _) => {
                let arrivals = self.request_rate.map_or_else(
                    || "at the trace's times".to_owned(),
                    |rate| format!("Poisson, {} a second", short(rate)),
                );
                (arrivals, open(&client, times.into_iter().zip(asks).collect()).await)
            }
            (None, None) => {
                let width = asks.len();
                ("all at once".to_owned(), closed(&client, asks, width).await)
            }
        };
        let failure = run.samples.iter().find_map(|sample| sample.failure.clone());
        let outcome = Outcome { arrivals, run, slo: self.slo, left_out, failure };
        ensure!(outcome.summary().failed < planned.len(), "no request succeeded: {outcome}");
        Ok(outcome)
    }

    /// When each is sent, if not as soon as there is a place.
    fn times(&self, planned: &[Planned], seed: u64) -> anyhow::Result<Option<Vec<Duration>>> {
        match self.request_rate {
            _ if self.max_concurrency.is_some() => Ok(None),
            Some(rate) if rate == f64::INFINITY => Ok(None),
            Some(rate) => {
                ensure!(rate > 0.0, "--request-rate {rate}: want above 0, or inf");
                let mut random = Random::new(seed.wrapping_add(1));
                Ok(Some(poisson(&mut random, rate).take(planned.len()).collect()))
            }
            None => Ok(planned.iter().map(|one| one.at).collect()),
        }
    }
}

/// What came of a workload.
pub struct Outcome {
    arrivals: String,
    run: Run,
    slo: Slo,
    left_out: usize,
    failure: Option<String>,
}

impl Outcome {
    fn summary(&self) -> Summary {
        Summary::of(self.arrivals.clone(), &self.run)
    }

    fn good(&self) -> usize {
        self.run.samples.iter().filter(|sample| self.slo.is_met(sample)).count()
    }

    /// How late requests were sent; NaN where none had its time.
    fn late(&self) -> Ranks {
        let late = |sample: &Sample| Some(sample.sent.saturating_duration_since(sample.due?));
        Ranks::of(self.run.samples.iter().filter_map(late))
    }

    /// Requests that have been sent and not answered, at every change, in s from the first.
    fn in_flight(&self) -> Vec<(f64, f64)> {
        let samples = &self.run.samples;
        let Some(zero) = samples.iter().map(|sample| sample.sent).min() else { return vec![] };
        let ends = |sample: &Sample| [(sample.sent, 1), (sample.end, -1)];
        let mut changes: Vec<(Instant, i32)> = samples.iter().flat_map(ends).collect();
        changes.sort_unstable();
        let count = |running: &mut i32, (at, change): (Instant, i32)| {
            *running += change;
            Some(((at - zero).as_secs_f64(), f64::from(*running)))
        };
        changes.into_iter().scan(0, count).collect()
    }

    /// Everything that was observed.
    pub fn record(&self) -> Value {
        let seconds = self.run.took.as_secs_f64();
        json!({
            "arrivals": self.arrivals,
            "summary": self.summary(),
            "left_out": self.left_out,
            "slo": self.slo.words(),
            "good": self.good(),
            "goodput_requests_a_second": self.good() as f64 / seconds,
            "client_late_ms": self.late(),
            "requests": raw(&self.run),
        })
    }

    /// Plots by name: latencies, and the course of the run.
    pub fn plots(&self) -> [(&'static str, String); 2] {
        let good = || self.run.samples.iter().filter(|sample| sample.failure.is_none());
        let lines = vec![
            ("TTFT", shares(good().filter_map(|sample| sample.ttft()))),
            ("ITL", shares(good().flat_map(|sample| gaps(sample, None)))),
            ("TPOT", shares(good().filter_map(|sample| sample.tpot()))),
            ("E2E", shares(good().map(|sample| sample.end - sample.sent))),
        ];
        let title = format!("Share of latencies that are at most so long; {}", self.arrivals);
        let latency = Plot { title, x: "ms", y: "share", log: true, lines };
        let running = vec![("in flight", self.in_flight())];
        let title = format!("Requests sent and not answered; {}", self.arrivals);
        let course = Plot { title, x: "s", y: "requests", log: false, lines: running };
        [("latency", latency.svg()), ("course", course.svg())]
    }
}

/// (ms, share that is at most that long), at most 200 points.
fn shares(durations: impl Iterator<Item = Duration>) -> Vec<(f64, f64)> {
    let mut ms: Vec<f64> = durations.map(|duration| duration.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    let all = ms.len();
    let ranks = (1..=200.min(all)).map(|part| (part * all).div_ceil(200.min(all)));
    ranks.map(|rank| (ms[rank - 1], rank as f64 / all as f64)).collect()
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let summary = self.summary();
        let Summary { requests, failed, seconds, .. } = summary;
        writeln!(f, "arrivals            {}", self.arrivals)?;
        writeln!(f, "requests            {requests}, {failed} failed")?;
        if let Some(failure) = &self.failure {
            writeln!(f, "first failure       {failure}")?;
        }
        if self.left_out > 0 {
            writeln!(f, "left out            {} are longer than --max-model-len", self.left_out)?;
        }
        let peak = self.in_flight().iter().fold(0.0_f64, |most, (_, running)| most.max(*running));
        writeln!(f, "took                {} s, at most {peak} in flight", short(seconds))?;
        writeln!(f, "requests/s          {}", short(summary.requests_a_second))?;
        let input = summary.input_tokens as f64 / seconds;
        let output = summary.output_tokens_a_second;
        let cached = summary.cached_tokens as f64 / summary.input_tokens.max(1) as f64;
        writeln!(f, "prompts cached      {} %", short(100.0 * cached))?;
        writeln!(f, "tokens/s            {} in, {} out", short(input), short(output))?;
        if let Some(limits) = self.slo.words() {
            let (good, rate) = (self.good(), short(self.good() as f64 / seconds));
            writeln!(f, "goodput             {rate} requests/s, {good} of {requests}: {limits}")?;
        }
        let late = self.late();
        if late.p99.is_finite() {
            let (p50, p99) = (short(late.p50), short(late.p99));
            writeln!(f, "client late         p50 {p50} ms, p99 {p99} ms")?;
        }
        if late.p99 > LATE_MS {
            writeln!(f, "THE CLIENT WAS LATE ITSELF: the load was another than was asked for")?;
        }
        writeln!(f, "{:<12}{:>10}{:>10}{:>10}{:>10}", "ms", "mean", "p50", "p90", "p99")?;
        let rows = [
            ("TTFT", summary.ttft),
            ("ITL", summary.itl),
            ("TPOT", summary.tpot),
            ("E2E", summary.e2e),
        ];
        for (name, Ranks { mean, p50, p90, p99 }) in rows {
            writeln!(f, "{name:<12}{mean:>10.2}{p50:>10.2}{p90:>10.2}{p99:>10.2}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Chunk;
    use super::*;
    use std::time::SystemTime;

    /// Sent at 0, with a token after each of these ms.
    fn sample(start: Instant, tokens: &[u64]) -> Sample {
        let at = |ms: u64| start + Duration::from_millis(ms);
        Sample {
            name: String::new(),
            due: None,
            sent: start,
            sent_clock: SystemTime::UNIX_EPOCH,
            chunks: tokens.iter().map(|&ms| Chunk { at: at(ms), tokens: 1 }).collect(),
            end: at(tokens.last().copied().unwrap_or(0)),
            prompt_tokens: 1,
            cached_tokens: 0,
            failure: None,
        }
    }

    #[test]
    fn a_request_is_good_if_it_keeps_every_limit() {
        let start = Instant::now();
        let check = |slo: Slo, tokens: &[u64], expect: bool| {
            assert_eq!(slo.is_met(&sample(start, tokens)), expect, "{slo:?} {tokens:?}");
        };
        let all = Slo { slo_ttft: Some(50.0), slo_itl: Some(20.0), ..Slo::default() };
        check(all, &[50, 60, 80], true);
        check(all, &[51, 60, 80], false);
        check(all, &[50, 60, 81], false);
        check(all, &[50], true);
        check(Slo { slo_tpot: Some(15.0), ..Slo::default() }, &[0, 5, 30], true);
        check(Slo { slo_tpot: Some(15.0), ..Slo::default() }, &[0, 5, 31], false);
        check(Slo { slo_e2e: Some(30.0), ..Slo::default() }, &[0, 31], false);
        let failed = Sample { failure: Some("500".into()), ..sample(start, &[1]) };
        assert!(!Slo::default().is_met(&failed));
    }

    #[test]
    fn an_outcome_counts_what_ran_at_a_time_and_how_late_it_was_sent() {
        let start = Instant::now();
        let mut second = sample(start + Duration::from_millis(5), &[10, 20]);
        second.due = Some(start);
        let samples = vec![sample(start, &[10]), second];
        let run = Run { samples, took: Duration::from_millis(25) };
        let slo = Slo { slo_ttft: Some(100.0), ..Slo::default() };
        let outcome = Outcome { arrivals: "x".into(), run, slo, left_out: 0, failure: None };
        let running: Vec<f64> = outcome.in_flight().iter().map(|(_, running)| *running).collect();
        assert_eq!(running, [1.0, 2.0, 1.0, 0.0]);
        assert_eq!(outcome.late().p99, 5.0);
        assert_eq!(outcome.good(), 2);
        assert_eq!(outcome.record()["summary"]["output_tokens"], 3);
        assert!(outcome.to_string().contains("80 requests/s, 2 of 2"), "{outcome}");
    }

    #[tokio::test]
    async fn a_workload_runs_at_a_rate_and_at_a_concurrency() {
        let address = crate::fleet::free_ports(1).unwrap()[0];
        tokio::spawn(crate::echo::http::serve(address, Duration::from_millis(1)));
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for arrivals in ["--request-rate 500", "--max-concurrency 3", "--request-rate inf"] {
            let words = format!(
                "serve --dataset-name random --num-prompts 20 --random-input-len 8 \
                 --random-output-len 4 --slo-e2e 60000 {arrivals}"
            );
            let command = WorkloadOptions::augment_args(clap::Command::new("serve"));
            let matches = command.try_get_matches_from(words.split_whitespace()).unwrap();
            let options = clap::FromArgMatches::from_arg_matches(&matches);
            let options: WorkloadOptions = options.unwrap();
            let client = Arc::new(Client::new(&format!("http://{address}"), None).unwrap());
            let outcome = options.run(client, (1000, 3)).await.unwrap();
            let summary = outcome.summary();
            assert_eq!((summary.failed, summary.output_tokens, outcome.good()), (0, 80, 20));
            assert_eq!(outcome.late().p50.is_finite(), arrivals == "--request-rate 500");
            assert_eq!(outcome.record()["requests"].as_array().unwrap().len(), 20);
            assert!(outcome.plots().iter().all(|(_, svg)| svg.ends_with("</svg>\n")));
        }
    }

    #[test]
    fn shares_rise_to_one_in_at_most_200_points() {
        let durations = (1..=1000).rev().map(Duration::from_millis);
        let shares = shares(durations);
        assert_eq!((shares.len(), shares[0]), (200, (5.0, 0.005)));
        assert_eq!(shares.last(), Some(&(1000.0, 1.0)));
    }
}
