//! The names that dashboards of SGLang and vLLM ask for, made from our own exposition.
//!
//! [`Compat::render`] reads what this process exports and says it again by their names, so nothing
//! is counted twice on the way of a request. Each process translates what it alone counts: sums
//! over a ring are right when all its processes do.

use super::{
    ADMITTED_TOKENS, ALL, CACHED_TOKENS, E2E, FAILURES, GENERATION_TOKENS, ITL, Kind, OUTPUTS,
    PAGES, POOL, PROMPT_TOKENS, QUEUE_DEPTH, REQUEST_DECODE, REQUEST_GENERATION, REQUEST_MAX,
    REQUEST_PREFILL, REQUEST_PROMPT, RETRACTED, RUNNING, STEP_TOKENS, TICKETS, TTFT, TTFT_PHASE,
    WAITING,
};
use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::time::Duration;

/// A name of theirs.
#[derive(Debug, Clone, Copy)]
pub struct Alias {
    /// In Prometheus.
    pub name: &'static str,
    /// What it is of ours.
    pub source: Source,
}

/// Where its values come from.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// This metric.
    Same(&'static str),
    /// A metric whose label `from` they call `to`.
    Relabelled {
        /// Ours.
        name: &'static str,
        /// Our label.
        from: &'static str,
        /// Theirs.
        to: &'static str,
    },
    /// Those series of a metric that have this label.
    Labelled {
        /// Ours.
        name: &'static str,
        /// Our label.
        label: &'static str,
        /// Its value.
        value: &'static str,
    },
    /// Requests that wait in a gateway or at prefill. Those with a ticket are at prefill too, so
    /// decode servers count none.
    Waiting,
    /// The part of a pool's pages that no new request could get, 0 to 1.
    Usage,
    /// A counter's growth a second since the last reading.
    Rate(&'static str),
    /// The part of the prompt tokens admitted since the last reading that was cached, 0 to 1.
    HitRate,
}

use Source::{HitRate, Labelled, Rate, Relabelled, Same, Usage, Waiting};

/// All of them: what their published dashboards ask for, and what has a like of ours.
pub const ALIASES: &[Alias] = &[
    alias("sglang:num_running_reqs", Same(RUNNING)),
    alias("sglang:num_queue_reqs", Waiting),
    alias("sglang:token_usage", Usage),
    alias("sglang:cache_hit_rate", HitRate),
    alias("sglang:gen_throughput", Rate(GENERATION_TOKENS)),
    alias("sglang:prompt_tokens_total", Same(PROMPT_TOKENS)),
    alias("sglang:generation_tokens_total", Same(GENERATION_TOKENS)),
    alias("sglang:cached_tokens_total", Same(CACHED_TOKENS)),
    alias("sglang:num_requests_total", Same(OUTPUTS)),
    alias("sglang:num_aborted_requests_total", of(FAILURES, "reason", "aborted")),
    alias("sglang:num_transfer_failed_reqs_total", of(FAILURES, "reason", "peer_lost")),
    alias("sglang:num_retracted_requests_total", Same(RETRACTED)),
    alias("sglang:num_decode_prealloc_queue_reqs", of(TICKETS, "state", "granted")),
    alias("sglang:num_decode_transfer_queue_reqs", of(TICKETS, "state", "opened")),
    alias("sglang:time_to_first_token_seconds", Same(TTFT)),
    alias("sglang:inter_token_latency_seconds", Same(ITL)),
    alias("sglang:e2e_request_latency_seconds", Same(E2E)),
    alias("sglang:queue_time_seconds", of(TTFT_PHASE, "phase", "queue")),
    alias("vllm:num_requests_running", Same(RUNNING)),
    alias("vllm:num_requests_waiting", Waiting),
    alias("vllm:kv_cache_usage_perc", Usage),
    alias("vllm:num_preemptions_total", Same(RETRACTED)),
    alias("vllm:prefix_cache_queries_total", Same(ADMITTED_TOKENS)),
    alias("vllm:prefix_cache_hits_total", of(ADMITTED_TOKENS, "source", "cached")),
    alias("vllm:prompt_tokens_total", Same(PROMPT_TOKENS)),
    alias("vllm:generation_tokens_total", Same(GENERATION_TOKENS)),
    alias(
        "vllm:request_success_total",
        Relabelled { name: OUTPUTS, from: "finish", to: "finished_reason" },
    ),
    alias("vllm:iteration_tokens_total", Same(STEP_TOKENS)),
    alias("vllm:time_to_first_token_seconds", Same(TTFT)),
    alias("vllm:inter_token_latency_seconds", Same(ITL)),
    alias("vllm:e2e_request_latency_seconds", Same(E2E)),
    alias("vllm:request_queue_time_seconds", of(TTFT_PHASE, "phase", "queue")),
    alias("vllm:request_prefill_time_seconds", Same(REQUEST_PREFILL)),
    alias("vllm:request_decode_time_seconds", Same(REQUEST_DECODE)),
    alias("vllm:request_prompt_tokens", Same(REQUEST_PROMPT)),
    alias("vllm:request_generation_tokens", Same(REQUEST_GENERATION)),
    alias("vllm:request_max_num_generation_tokens", Same(REQUEST_GENERATION)),
    alias("vllm:request_params_max_tokens", Same(REQUEST_MAX)),
];

const fn alias(name: &'static str, source: Source) -> Alias {
    Alias { name, source }
}

const fn of(name: &'static str, label: &'static str, value: &'static str) -> Source {
    Labelled { name, label, value }
}

/// Translates a process's exposition; keeps what rates need from one reading to the next.
#[derive(Debug)]
pub struct Compat {
    model: String,
    /// When counters had which values, by their name and server.
    before: (Duration, HashMap<(String, String), f64>),
    /// The last hit rate of each server.
    hits: HashMap<String, f64>,
}

/// `name{labels} value` of an exposition.
#[derive(Debug, Clone, PartialEq)]
struct Series<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    value: &'a str,
}

impl Compat {
    /// For a process whose clients call the model so: their dashboards choose by it.
    pub fn new(model: &str) -> Self {
        let model = model.replace(['"', '\\', '\n'], "_");
        Self { model, before: (Duration::ZERO, HashMap::new()), hits: HashMap::new() }
    }

    /// What is to be added to the exposition `own`, read at `now` on a clock that only grows.
    pub fn render(&mut self, own: &str, now: Duration) -> String {
        let own: Vec<_> = own.lines().filter_map(parse).collect();
        let read = Reading { own: &own, passed: now.saturating_sub(self.before.0) };
        let mut text = String::new();
        for Alias { name, source } in ALIASES {
            let (kind, lines) = match source {
                Same(ours) => (kind(ours), self.renamed(name, ours, &own, Some)),
                Relabelled { name: ours, from, to } => {
                    let relabel =
                        |(key, value)| Some((if key == *from { *to } else { key }, value));
                    (kind(ours), self.renamed(name, ours, &own, relabel))
                }
                Labelled { name: ours, label, value } => {
                    let those: Vec<_> =
                        own.iter().filter(|s| s.label(label) == *value).cloned().collect();
                    let other = |pair: (_, _)| (pair.0 != *label).then_some(pair);
                    (kind(ours), self.renamed(name, ours, &those, other))
                }
                Waiting => ("gauge", self.gauges(name, waiting(&own))),
                Usage => ("gauge", self.gauges(name, usage(&own))),
                Rate(ours) => ("gauge", self.gauges(name, read.rates(ours, &self.before.1))),
                HitRate => {
                    self.hits.extend(read.hit_rates(&self.before.1));
                    ("gauge", self.gauges(name, self.hits.clone()))
                }
            };
            if !lines.is_empty() {
                // Writing to a string cannot fail.
                let _ = write!(text, "# TYPE {name} {kind}\n{lines}");
            }
        }
        self.before = (now, read.counters());
        text
    }

    fn renamed<'a>(
        &self,
        theirs: &str,
        ours: &str,
        own: &[Series<'a>],
        relabel: impl Fn((&'a str, &'a str)) -> Option<(&'a str, &'a str)>,
    ) -> String {
        let mut lines = String::new();
        for series in own {
            let Some(part) = series.name.strip_prefix(ours) else { continue };
            if !["", "_bucket", "_sum", "_count"].contains(&part) {
                continue;
            }
            let labels = series.labels.iter().copied().filter_map(&relabel);
            let labels: String = labels.map(|(k, v)| format!(",{k}=\"{v}\"")).collect();
            let (own, value) = (self.own_labels(theirs), series.value);
            let _ = writeln!(lines, "{theirs}{part}{{{own}{labels}}} {value}");
        }
        lines
    }

    fn gauges(&self, theirs: &str, values: HashMap<String, f64>) -> String {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(|a, b| a.0.cmp(&b.0));
        let own = self.own_labels(theirs);
        let server = |server: &str| match server {
            "" => String::new(),
            server => format!(",server=\"{server}\""),
        };
        values.iter().map(|(s, v)| format!("{theirs}{{{own}{}}} {v}\n", server(s))).collect()
    }

    /// What their own series have, and their dashboards choose and group by.
    fn own_labels(&self, theirs: &str) -> String {
        let engine = if theirs.starts_with("vllm:") { ",engine=\"0\"" } else { "" };
        format!("model_name=\"{}\"{engine}", self.model)
    }
}

impl Series<'_> {
    fn label(&self, key: &str) -> &str {
        self.labels.iter().find(|(own, _)| *own == key).map_or("", |(_, value)| value)
    }

    fn number(&self) -> f64 {
        self.value.parse().unwrap_or(0.0)
    }
}

/// The exposition as read now, so long after the last one.
struct Reading<'a> {
    own: &'a [Series<'a>],
    passed: Duration,
}

impl Reading<'_> {
    /// A metric by server, the empty name where it has none, of the series with this label.
    fn by_server(&self, name: &str, (label, value): (&str, &str)) -> HashMap<String, f64> {
        let mut sums = HashMap::new();
        for series in self.own.iter().filter(|s| s.name == name && s.label(label) == value) {
            *sums.entry(series.label("server").to_owned()).or_default() += series.number();
        }
        sums
    }

    /// Everything that rates are made of.
    fn counters(&self) -> HashMap<(String, String), f64> {
        let cached = self.by_server(ADMITTED_TOKENS, ("source", "cached"));
        let computed = self.by_server(ADMITTED_TOKENS, ("source", "computed"));
        let made = self.by_server(GENERATION_TOKENS, ("", ""));
        let all = [("cached", cached), ("computed", computed), (GENERATION_TOKENS, made)];
        let flat = all.into_iter().flat_map(|(name, by)| {
            by.into_iter().map(move |(server, value)| ((name.to_owned(), server), value))
        });
        flat.collect()
    }

    fn rates(&self, name: &str, before: &HashMap<(String, String), f64>) -> HashMap<String, f64> {
        let seconds = self.passed.as_secs_f64();
        let rate = |(server, now): (String, f64)| {
            let since = before.get(&(name.to_owned(), server.clone())).copied();
            let rate = since.map_or(0.0, |since| (now - since).max(0.0) / seconds.max(1e-3));
            (server, rate)
        };
        self.by_server(name, ("", "")).into_iter().map(rate).collect()
    }

    /// Of the servers that admitted something.
    fn hit_rates(&self, before: &HashMap<(String, String), f64>) -> HashMap<String, f64> {
        let grown = |name: &str| {
            let now = self.by_server(ADMITTED_TOKENS, ("source", name)).into_iter();
            let grown = now.map(|(server, now)| {
                let key = (name.to_owned(), server);
                let since = before.get(&key).copied().unwrap_or(0.0);
                (key.1, (now - since).max(0.0))
            });
            grown.collect::<HashMap<_, _>>()
        };
        let (cached, computed) = (grown("cached"), grown("computed"));
        let rate = |(server, cached): (String, f64)| {
            let all = cached + computed.get(&server).copied().unwrap_or(0.0);
            (all > 0.0).then(|| (server, cached / all))
        };
        cached.into_iter().filter_map(rate).collect()
    }
}

fn waiting(own: &[Series]) -> HashMap<String, f64> {
    let read = Reading { own, passed: Duration::ZERO };
    let decode: HashSet<_> =
        own.iter().filter(|s| s.name == TICKETS).map(|s| s.label("server")).collect();
    let mut waiting = read.by_server(WAITING, ("", ""));
    waiting.retain(|server, _| !decode.contains(&**server));
    waiting.extend(read.by_server(QUEUE_DEPTH, ("", "")));
    waiting
}

fn usage(own: &[Series]) -> HashMap<String, f64> {
    let read = Reading { own, passed: Duration::ZERO };
    let (free, idle) =
        (read.by_server(PAGES, ("state", "free")), read.by_server(PAGES, ("state", "idle")));
    let used = |(server, pool): (String, f64)| {
        let of = |by: &HashMap<String, f64>| by.get(&server).copied().unwrap_or(0.0);
        let used = 1.0 - (of(&free) + of(&idle)) / pool.max(1.0);
        (server, used)
    };
    read.by_server(POOL, ("", "")).into_iter().map(used).collect()
}

fn kind(name: &str) -> &'static str {
    match ALL.iter().find(|metric| metric.name == name).map(|metric| metric.kind) {
        Some(Kind::Counter) => "counter",
        Some(Kind::Histogram(_)) => "histogram",
        Some(Kind::Gauge) | None => "gauge",
    }
}

/// A line of an exposition, unless it is a comment.
fn parse(line: &str) -> Option<Series<'_>> {
    let (series, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
    let Some((name, rest)) = series.split_once('{') else {
        return Some(Series { name: series, labels: vec![], value });
    };
    let mut labels = vec![];
    let mut rest = rest.strip_suffix('}')?;
    while let Some((key, more)) = rest.split_once("=\"") {
        let escaped = |(at, _): &(usize, &str)| {
            let before = &more.as_bytes()[..*at];
            before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
        };
        let (end, _) = more.match_indices('"').find(|quote| !escaped(quote))?;
        labels.push((key.trim_start_matches(','), &more[..end]));
        rest = &more[end + 1..];
    }
    Some(Series { name, labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_of_metrics_that_exist() {
        let known: HashSet<_> = ALL.iter().map(|metric| metric.name).collect();
        let mut seen = HashSet::new();
        for Alias { name, source } in ALIASES {
            assert!(seen.insert(name), "{name} twice");
            let ours = match source {
                Same(name) | Rate(name) => Some(name),
                Relabelled { name, .. } | Labelled { name, .. } => Some(name),
                Usage | HitRate | Waiting => None,
            };
            assert!(ours.is_none_or(|name| known.contains(name)), "{name}");
        }
    }

    #[test]
    fn lines_are_read() {
        let series = parse(r#"a_total{route="/v1/{*model}",code="a\"}, b=\\"} 1.5"#).unwrap();
        assert_eq!(series.labels, [("route", "/v1/{*model}"), ("code", r#"a\"}, b=\\"#)]);
        assert_eq!((series.name, series.value), ("a_total", "1.5"));
        assert_eq!(parse("plain 3").unwrap().name, "plain");
        assert_eq!(parse("# TYPE plain gauge"), None);
    }

    #[test]
    fn an_exposition_is_said_again_by_their_names() {
        let mut compat = Compat::new("m");
        let first = "tandem_ttft_seconds_bucket{le=\"0.1\"} 2\ntandem_ttft_seconds_sum 0.3\n\
             tandem_ttft_phase_seconds_sum{phase=\"queue\"} 0.2\n\
             tandem_ttft_phase_seconds_sum{phase=\"ticket\"} 0.1\n\
             tandem_outputs_total{finish=\"stop\"} 4\n\
             tandem_pages{server=\"d\",state=\"free\"} 10\n\
             tandem_pages{server=\"d\",state=\"idle\"} 5\ntandem_pool_pages{server=\"d\"} 20\n\
             tandem_tickets{server=\"d\",state=\"granted\"} 1\n\
             tandem_waiting_requests{server=\"d\"} 1\ntandem_waiting_requests{server=\"p\"} 3\n\
             tandem_generation_tokens_total 100\n\
             tandem_admitted_tokens_total{server=\"p\",source=\"cached\"} 0\n\
             tandem_admitted_tokens_total{server=\"p\",source=\"computed\"} 50\n";
        let text = compat.render(first, Duration::from_secs(5));
        let says = |text: &str, line: &str| assert!(text.contains(line), "{line} not in\n{text}");
        says(&text, "# TYPE sglang:time_to_first_token_seconds histogram\n");
        says(&text, "sglang:time_to_first_token_seconds_bucket{model_name=\"m\",le=\"0.1\"} 2\n");
        says(&text, "vllm:time_to_first_token_seconds_sum{model_name=\"m\",engine=\"0\"} 0.3\n");
        says(&text, "vllm:request_queue_time_seconds_sum{model_name=\"m\",engine=\"0\"} 0.2\n");
        let success = "{model_name=\"m\",engine=\"0\",finished_reason=\"stop\"} 4\n";
        says(&text, &format!("vllm:request_success_total{success}"));
        says(&text, "sglang:token_usage{model_name=\"m\",server=\"d\"} 0.25\n");
        says(&text, "vllm:num_requests_waiting{model_name=\"m\",engine=\"0\",server=\"p\"} 3\n");
        assert!(!text.contains("num_queue_reqs{model_name=\"m\",server=\"d\"}"));
        says(&text, "sglang:gen_throughput{model_name=\"m\"} 0\n");
        says(&text, "sglang:cache_hit_rate{model_name=\"m\",server=\"p\"} 0\n");
        assert!(!text.contains("tandem_") && !text.contains("queue_time_seconds_sum{}"));
        let second = "tandem_generation_tokens_total 120\n\
             tandem_admitted_tokens_total{server=\"p\",source=\"cached\"} 30\n\
             tandem_admitted_tokens_total{server=\"p\",source=\"computed\"} 60\n";
        let text = compat.render(second, Duration::from_secs(7));
        says(&text, "sglang:gen_throughput{model_name=\"m\"} 10\n");
        says(&text, "sglang:cache_hit_rate{model_name=\"m\",server=\"p\"} 0.75\n");
    }
}
