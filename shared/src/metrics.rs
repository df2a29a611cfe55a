//! Every metric's name, unit and help. A closed set: what is not here is not exported.
//!
//! Names begin with `tandem_` and end with their unit; label values come from closed sets, so the
//! number of series is bounded.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// What a metric does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of observations by size.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name in Prometheus.
    pub name: &'static str,
    /// What it does.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// What it says.
    pub help: &'static str,
}

/// HTTP requests answered, by `route` and status `code`.
pub const GATEWAY_REQUESTS: &str = "tandem_gateway_requests_total";
/// HTTP calls that wait for or stream output.
pub const GATEWAY_IN_FLIGHT: &str = "tandem_gateway_requests_in_flight";
/// Requests that wait in the gateway for a pair of servers.
pub const QUEUE_DEPTH: &str = "tandem_queue_depth";
/// Time to first token.
pub const TTFT: &str = "tandem_ttft_seconds";
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

/// Tasks of this process that have not ended.
pub const TASKS: &str = "tandem_tasks";
/// Pages of a server's pool, by `server` and `state`.
pub const PAGES: &str = "tandem_pages";
/// Tickets of a decode server, by `server` and `state`.
pub const TICKETS: &str = "tandem_tickets";
/// Requests being computed, by `server`.
pub const RUNNING: &str = "tandem_running_requests";
/// Requests waiting in a server, by `server`.
pub const WAITING: &str = "tandem_waiting_requests";
/// Engine steps, by `server`.
pub const STEPS: &str = "tandem_steps_total";
/// Tokens that engine steps computed, by `server`.
pub const COMPUTED_TOKENS: &str = "tandem_computed_tokens_total";
/// Requests whose pages decode took back, by `server`.
pub const RETRACTED: &str = "tandem_retracted_requests_total";
/// Requests handed to decode, by `server`.
pub const HANDOFFS: &str = "tandem_handoffs_total";
/// The part of a handoff that nothing hides, by `server`.
pub const EXPOSED: &str = "tandem_transfer_exposed_seconds";
/// What was shipped, by `server`.
pub const TRANSFERRED: &str = "tandem_transfer_bytes_total";
/// What the self-test at join reached, by `server`, `peer` and `transport`.
pub const BANDWIDTH: &str = "tandem_transfer_bandwidth_bytes_per_second";

/// Every metric.
pub const ALL: &[Metric] = &[
    counter(GATEWAY_REQUESTS, "HTTP requests answered, by route and status code."),
    gauge(GATEWAY_IN_FLIGHT, "HTTP calls that wait for output or stream it."),
    gauge(QUEUE_DEPTH, "Requests that wait in the gateway for a pair of servers."),
    seconds(TTFT, "From a request's arrival at the gateway to its first token there."),
    seconds(ITL, "Between tokens of one output, as they reach the gateway."),
    seconds(E2E, "From a request's arrival at the gateway to its last token there."),
    counter(PROMPT_TOKENS, "Prompt tokens of requests that got a first token."),
    counter(GENERATION_TOKENS, "Output tokens that reached the gateway."),
    counter(CACHED_TOKENS, "Prompt tokens that did not have to be computed."),
    gauge(TASKS, "Tasks of the process that have not ended."),
    gauge(PAGES, "Pages of a server's pool by state; idle ones are part of the sealed ones."),
    gauge(TICKETS, "Tickets of a decode server by state."),
    gauge(RUNNING, "Requests that a server is computing."),
    gauge(WAITING, "Requests that wait in a server."),
    counter(STEPS, "Engine steps."),
    counter(COMPUTED_TOKENS, "Tokens that engine steps computed."),
    counter(RETRACTED, "Requests whose pages a decode server took back for others."),
    counter(HANDOFFS, "Requests that prefill handed to decode."),
    seconds(EXPOSED, "From the first token at prefill to all pages visible at decode."),
    counter(TRANSFERRED, "Bytes of pages shipped to decode."),
    gauge(BANDWIDTH, "Bandwidth of the self-test when a pair joined."),
];

/// Upper bounds of histogram buckets of times, seconds: two or three a decade.
pub const SECONDS_BUCKETS: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
    200.0, 500.0,
];

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, unit: Unit::Count, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, unit: Unit::Count, help }
}

const fn seconds(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, unit: Unit::Seconds, help }
}

/// Gives the installed recorder every unit and help text.
pub fn describe_all() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.unit, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
            Kind::Histogram => describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_end_with_their_unit() {
        let mut seen = HashSet::new();
        for metric in ALL {
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            assert!(metric.name.starts_with("tandem_"), "{}", metric.name);
            match metric.kind {
                Kind::Counter => assert!(metric.name.ends_with("_total"), "{}", metric.name),
                Kind::Histogram if metric.unit == Unit::Seconds => {
                    assert!(metric.name.ends_with("_seconds"), "{}", metric.name);
                }
                Kind::Histogram | Kind::Gauge => {}
            }
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
