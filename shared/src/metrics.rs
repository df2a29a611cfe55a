//! Every metric's name, unit, labels and help. A closed set: what is not here is not exported.
//!
//! Names begin with `tandem_` and end with their unit; label values come from closed sets, so the
//! number of series is bounded. `ops/monitoring/metrics.md` is [`document::table`] of this list,
//! and a test holds it to that.

pub mod compat;
pub mod document;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// What a metric does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of observations by size, with these upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// Which processes export a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Gateways.
    Gateway,
    /// Prefill servers.
    Prefill,
    /// Decode servers.
    Decode,
    /// Prefill and decode servers.
    Servers,
    /// Every process.
    All,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name in Prometheus.
    pub name: &'static str,
    /// Who exports it.
    pub from: Origin,
    /// What it does.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// HTTP requests answered, by `route` and status `code`.
pub const GATEWAY_REQUESTS: &str = "tandem_gateway_requests_total";
/// HTTP calls that wait for or stream output.
pub const GATEWAY_IN_FLIGHT: &str = "tandem_gateway_requests_in_flight";
/// Requests that wait in the gateway for a pair of servers.
pub const QUEUE_DEPTH: &str = "tandem_queue_depth";
/// The most that may wait there.
pub const QUEUE_LIMIT: &str = "tandem_queue_limit";
/// Whether the gateway would serve a request now.
pub const RING_READY: &str = "tandem_ring_ready";
/// Whether the gateway has a link to a server, by `role` and `address`.
pub const PEER_UP: &str = "tandem_peer_up";
/// Which incarnation of a server is up, by `role`, `address`, `server` and `epoch`.
pub const PEER_INFO: &str = "tandem_peer_info";
/// Pages that a request could get of a decode server, by `address` and `server`.
pub const CREDITS_FREE: &str = "tandem_credits_free_pages";
/// Outputs that ended, by how they did: `finish`.
pub const OUTPUTS: &str = "tandem_outputs_total";
/// Requests that ended without a result, by `reason`.
pub const FAILURES: &str = "tandem_failures_total";
/// Traces of requests that no collector got.
pub const TRACES_DROPPED: &str = "tandem_traces_dropped_total";
/// Attempts after a request's first, by `reason`.
pub const RETRIES: &str = "tandem_retries_total";
/// Time to first token.
pub const TTFT: &str = "tandem_ttft_seconds";
/// The parts of the time to the first tokens, by `phase`.
pub const TTFT_PHASE: &str = "tandem_ttft_phase_seconds";
/// From the ticket to the first token.
pub const REQUEST_PREFILL: &str = "tandem_request_prefill_seconds";
/// From the first token to the last.
pub const REQUEST_DECODE: &str = "tandem_request_decode_seconds";
/// Inter-token latency.
pub const ITL: &str = "tandem_itl_seconds";
/// End to end.
pub const E2E: &str = "tandem_e2e_seconds";
/// Prompt tokens.
pub const PROMPT_TOKENS: &str = "tandem_prompt_tokens_total";
/// Output tokens.
pub const GENERATION_TOKENS: &str = "tandem_generation_tokens_total";
/// Prompt tokens found in a cache.
pub const CACHED_TOKENS: &str = "tandem_cached_tokens_total";
/// Prompt tokens of a request.
pub const REQUEST_PROMPT: &str = "tandem_request_prompt_tokens";
/// Output tokens of a request.
pub const REQUEST_GENERATION: &str = "tandem_request_generation_tokens";
/// Output tokens that a request may have.
pub const REQUEST_MAX: &str = "tandem_request_max_tokens";

/// A process's name, incarnation and version, by `role`, `server`, `epoch` and `version`.
pub const PROCESS_INFO: &str = "tandem_process_info";
/// Tasks of this process that have not ended.
pub const TASKS: &str = "tandem_tasks";
/// Pages of a server's pool, by `server` and `state`.
pub const PAGES: &str = "tandem_pages";
/// All pages of a server's pool, by `server`.
pub const POOL: &str = "tandem_pool_pages";
/// Pages that a server keeps for a remote writer, by `server` and `state`.
pub const REMOTE_PAGES: &str = "tandem_remote_pages";
/// Tickets of a decode server, by `server` and `state`.
pub const TICKETS: &str = "tandem_tickets";
/// Requests being computed, by `server`.
pub const RUNNING: &str = "tandem_running_requests";
/// Requests waiting in a server, by `server`.
pub const WAITING: &str = "tandem_waiting_requests";
/// Requests that a server did not take, by `server` and `reason`.
pub const REFUSALS: &str = "tandem_refusals_total";
/// Engine steps, by `server`.
pub const STEPS: &str = "tandem_steps_total";
/// Tokens of a step, by `server`.
pub const STEP_TOKENS: &str = "tandem_step_tokens";
/// Tokens that engine steps computed, by `server`.
pub const COMPUTED_TOKENS: &str = "tandem_computed_tokens_total";
/// Prompt tokens that prefill admitted, by `server` and `source`.
pub const ADMITTED_TOKENS: &str = "tandem_admitted_tokens_total";
/// Requests whose pages decode took back, by `server`.
pub const RETRACTED: &str = "tandem_retracted_requests_total";
/// Requests handed to decode, by `server`.
pub const HANDOFFS: &str = "tandem_handoffs_total";
/// The part of a handoff that nothing hides, by `server`.
pub const EXPOSED: &str = "tandem_transfer_exposed_seconds";
/// What was shipped, by `server`.
pub const TRANSFERRED: &str = "tandem_transfer_bytes_total";
/// Pages of prompts that decode held already, by `server`.
pub const HELD_PAGES: &str = "tandem_transfer_spared_pages_total";
/// What the self-test at join reached, by `server`, `peer` and `transport`.
pub const BANDWIDTH: &str = "tandem_transfer_bandwidth_bytes_per_second";

use Origin::{All, Decode, Gateway, Prefill, Servers};

/// Every metric.
pub const ALL: &[Metric] = &[
    counter(Gateway, GATEWAY_REQUESTS, "HTTP requests answered, by route and status code.")
        .by(&["route", "code"]),
    gauge(Gateway, GATEWAY_IN_FLIGHT, "HTTP calls that wait for output or stream it."),
    gauge(Gateway, QUEUE_DEPTH, "Requests that wait in the gateway for a pair of servers."),
    gauge(Gateway, QUEUE_LIMIT, "Requests that may wait there; more are refused."),
    gauge(Gateway, RING_READY, "1 if a request would be served now, else 0: as /ready says."),
    gauge(Gateway, PEER_UP, "1 while the gateway has a link to the server, else 0.")
        .by(&["role", "address"]),
    gauge(Gateway, PEER_INFO, "1 for the incarnation of each server that is up.")
        .by(&["role", "address", "server", "epoch"]),
    gauge(Gateway, CREDITS_FREE, "Pages that requests could get of a decode server that is up.")
        .by(&["address", "server"]),
    counter(Gateway, OUTPUTS, "Outputs that ended: by a stop (stop) or by length (length).")
        .by(&["finish"]),
    counter(Gateway, FAILURES, "Requests refused or failed, by the class of the error.")
        .by(&["reason"]),
    counter(Gateway, RETRIES, "Attempts after the first, by what ended the one before.")
        .by(&["reason"]),
    counter(Gateway, TRACES_DROPPED, "Traces of requests that the collector did not take in time."),
    seconds(Gateway, TTFT, "From a request's arrival at the gateway to its first token there."),
    seconds(All, TTFT_PHASE, PHASES).by(&["phase"]),
    seconds(Gateway, REQUEST_PREFILL, "From a request's ticket to its first token."),
    seconds(Gateway, REQUEST_DECODE, "From an output's first token to its end."),
    seconds(Gateway, ITL, "Between tokens of one output, as they reach the gateway."),
    seconds(Gateway, E2E, "From a request's arrival at the gateway to its last token there."),
    counter(Gateway, PROMPT_TOKENS, "Prompt tokens of requests that got a first token."),
    counter(Gateway, GENERATION_TOKENS, "Output tokens that reached the gateway."),
    counter(Gateway, CACHED_TOKENS, "Prompt tokens that did not have to be computed."),
    tokens(Gateway, REQUEST_PROMPT, "Prompt tokens of a request that got a first token."),
    tokens(Gateway, REQUEST_GENERATION, "Output tokens of an output that ended."),
    tokens(Gateway, REQUEST_MAX, "Output tokens that a request may have (max_tokens)."),
    gauge(All, PROCESS_INFO, "1, with the process's name, incarnation and version.")
        .by(&["role", "server", "epoch", "version"]),
    gauge(All, TASKS, "Tasks of the process that have not ended."),
    gauge(
        Servers,
        PAGES,
        "Pages of a server's pool by state; idle ones are part of the sealed ones.",
    )
    .by(&["server", "state"]),
    gauge(Servers, POOL, "All pages of a server's pool.").by(&["server"]),
    gauge(Decode, REMOTE_PAGES, REMOTE).by(&["server", "state"]),
    gauge(Decode, TICKETS, "Tickets of a decode server by state.").by(&["server", "state"]),
    gauge(Servers, RUNNING, "Requests that a server is computing.").by(&["server"]),
    gauge(Servers, WAITING, "Requests that wait in a server.").by(&["server"]),
    counter(
        Servers,
        REFUSALS,
        "Requests that a server did not take, by why; some are asked again.",
    )
    .by(&["server", "reason"]),
    counter(Servers, STEPS, "Engine steps.").by(&["server"]),
    tokens(Servers, STEP_TOKENS, "Tokens that an engine step computes.").by(&["server"]),
    counter(Servers, COMPUTED_TOKENS, "Tokens that engine steps computed.").by(&["server"]),
    counter(Prefill, ADMITTED_TOKENS, "Prompt tokens admitted: found in the cache, or to compute.")
        .by(&["server", "source"]),
    counter(Decode, RETRACTED, "Requests whose pages a decode server took back for others.")
        .by(&["server"]),
    counter(Prefill, HANDOFFS, "Requests that prefill handed to decode.").by(&["server"]),
    seconds(Prefill, EXPOSED, "From the first token at prefill to all pages visible at decode.")
        .by(&["server"]),
    bytes(Prefill, TRANSFERRED, "Bytes of pages shipped to decode.").by(&["server"]),
    counter(Decode, HELD_PAGES, "Pages of prompts that decode held, so that nobody shipped them.")
        .by(&["server"]),
    gauge(Prefill, BANDWIDTH, "What the self-test reached when the pair joined; 0 once it parted.")
        .by(&["server", "peer", "transport"]),
];

const PHASES: &str = "Parts of the time to the first tokens. Gateway: tokenize (read, check, \
    template, tokenizer), queue (for a turn and a pair), ticket (asked to granted). Prefill: \
    intake (until the first chunk), prefill (until the first token), handoff (until all pages are \
    visible at decode). Decode: first_decode (from landing to its first own token).";
const REMOTE: &str = "Pages kept for prefill servers: granted (promised by tickets), opened \
    (named to a writer), quarantined (a lost writer might still write them).";

/// Upper bounds of buckets of times, seconds: three a decade from 10 µs, so that a handoff by
/// shared memory and a wait of minutes are both told.
pub const SECONDS_BUCKETS: &[f64] = &[
    0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
    0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0,
];
/// Upper bounds of buckets of token counts: powers of two, halved where most requests are.
pub const TOKENS_BUCKETS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0, 32768.0, 65536.0, 131072.0,
];

const fn metric(from: Origin, name: &'static str, kind: Kind, help: &'static str) -> Metric {
    Metric { name, from, kind, unit: Unit::Count, labels: &[], help }
}

const fn counter(from: Origin, name: &'static str, help: &'static str) -> Metric {
    metric(from, name, Kind::Counter, help)
}

const fn bytes(from: Origin, name: &'static str, help: &'static str) -> Metric {
    Metric { unit: Unit::Bytes, ..metric(from, name, Kind::Counter, help) }
}

const fn gauge(from: Origin, name: &'static str, help: &'static str) -> Metric {
    metric(from, name, Kind::Gauge, help)
}

const fn seconds(from: Origin, name: &'static str, help: &'static str) -> Metric {
    let kind = Kind::Histogram(SECONDS_BUCKETS);
    Metric { unit: Unit::Seconds, ..metric(from, name, kind, help) }
}

const fn tokens(from: Origin, name: &'static str, help: &'static str) -> Metric {
    metric(from, name, Kind::Histogram(TOKENS_BUCKETS), help)
}

impl Metric {
    const fn by(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }
}

/// Gives the installed recorder every unit and help text.
pub fn describe_all() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.unit, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
            Kind::Histogram(_) => describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// What a gauge's name may end with: a unit, or what is counted.
    const COUNTED: &[&str] = &[
        "_bytes_per_second",
        "_pages",
        "_requests",
        "_tickets",
        "_tasks",
        "_in_flight",
        "_depth",
        "_limit",
        "_ready",
        "_up",
        "_info",
    ];

    #[test]
    fn names_are_unique_and_end_with_their_unit() {
        let mut seen = HashSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(seen.insert(name), "{name} twice");
            assert!(name.starts_with("tandem_"), "{name}");
            let fits = match (metric.kind, metric.unit) {
                (Kind::Counter, Unit::Bytes) => name.ends_with("_bytes_total"),
                (Kind::Counter, _) => name.ends_with("_total"),
                (Kind::Histogram(_), Unit::Seconds) => name.ends_with("_seconds"),
                (Kind::Histogram(_), _) => name.ends_with("_tokens"),
                (Kind::Gauge, _) => COUNTED.iter().any(|unit| name.ends_with(unit)),
            };
            assert!(fits, "{name} does not end with its unit");
            assert!(metric.help.ends_with('.') && !metric.help.contains('|'), "{name}");
        }
    }
}
