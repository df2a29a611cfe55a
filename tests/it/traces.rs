//! Traces of requests reach a collector, and nobody waits for one that does not take them.

use crate::http::post_with;
use crate::plan::Plan;
use crate::process::wait_for;
use crate::ring::Ring;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn plan(listener: &TcpListener) -> Plan {
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    Plan::tiny("tiny-qwen3").on_gateway("otlp_endpoint", endpoint)
}

/// Takes one post as a collector does: its path and its body.
fn collect(listener: &TcpListener) -> io::Result<(String, Value)> {
    let mut stream = BufReader::new(listener.accept()?.0);
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if let Some(rest) = line.strip_prefix("POST ") {
            path = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")?;
    Ok((path, serde_json::from_slice(&body)?))
}

fn ask(ring: &Ring, flags: &str) -> crate::http::Reply {
    let body = json!({"prompt": [1, 2, 3, 4, 5], "max_tokens": 8, "ignore_eos": true, "n": 2});
    let header = format!("traceparent: 00-{TRACE}-{PARENT}-{flags}");
    let reply = post_with(ring.url(), "/v1/completions", &header, &body).unwrap().whole().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply
}

/// All spans of posts until there are so many requests.
fn spans(listener: &TcpListener, requests: usize) -> Vec<Value> {
    let (mut spans, mut whole) = (vec![], 0);
    while whole < requests {
        let (path, body) = collect(listener).unwrap();
        assert_eq!(path, "/v1/traces");
        let posted = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone();
        whole += posted.iter().filter(|span| span["name"] == "llm_request").count();
        spans.extend(posted);
    }
    spans
}

fn ns(span: &Value, field: &str) -> u64 {
    span[field].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_clients_trace_goes_through_the_ring_and_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ring = plan(&listener).start();
    ask(&ring, "00"); // the client does not want it to be kept
    let reply = ask(&ring, "01");
    let told = reply.header("traceparent").unwrap().to_owned();
    let spans = spans(&listener, 2);
    assert!(spans.iter().all(|span| span["traceId"] == TRACE));

    let requests: Vec<_> = spans.iter().filter(|span| span["name"] == "llm_request").collect();
    assert_eq!(requests.len(), 2, "the two outputs, and nothing of the first call");
    assert!(requests.iter().all(|span| span["parentSpanId"] == PARENT && span["kind"] == 2));
    let own = format!("00-{TRACE}-{}-01", requests[0]["spanId"].as_str().unwrap());
    let other = format!("00-{TRACE}-{}-01", requests[1]["spanId"].as_str().unwrap());
    assert!(own != other && (told == own || told == other), "{told}");

    for request in requests {
        let below: Vec<_> =
            spans.iter().filter(|span| span["parentSpanId"] == request["spanId"]).collect();
        let server = |name: &str| {
            let span = below.iter().find(|span| span["name"] == name);
            let span = span.unwrap_or_else(|| panic!("no {name} in {below:?}"));
            span["attributes"][0]["value"]["stringValue"].clone()
        };
        assert_eq!(server("prefill"), "prefill-0");
        assert_eq!((server("handoff"), server("decode")), (json!("decode-0"), json!("decode-0")));
        for span in &below {
            let (start, end) = (ns(span, "startTimeUnixNano"), ns(span, "endTimeUnixNano"));
            assert!(start < end && start >= ns(request, "startTimeUnixNano"), "{span}");
            assert!(end <= ns(request, "endTimeUnixNano"), "{span}");
        }
        let has = |key: &str, value: Value| {
            let attributes = request["attributes"].as_array().unwrap();
            attributes.iter().any(|pair| pair["key"] == key && pair["value"] == value)
        };
        assert!(has("gen_ai.usage.input_tokens", json!({"intValue": "5"})), "{request}");
        assert!(has("gen_ai.usage.output_tokens", json!({"intValue": "8"})), "{request}");
    }
    // The same story is in the gateway's log, in one line a request.
    let lines = ring.gateway.log().lines().filter(|line| line.contains(TRACE)).count();
    assert_eq!(lines, 4);
}

#[test]
fn a_gateway_that_drains_leaves_no_trace_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ring = plan(&listener).start();
    // The first is being posted, since nobody accepts it; the others wait.
    (0..3).for_each(|_| drop(ask(&ring, "01")));
    ring.gateway.signal(Signal::TERM);
    wait_for("the drain", || ring.gateway.log().contains("draining").then_some(()));
    spans(&listener, 6);
    assert!(ring.gateway.exited().success());
    assert!(!ring.gateway.log().contains("has arrived"), "{}", ring.gateway.log());
}

#[test]
fn a_gateway_that_drains_does_not_wait_for_a_collector_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ring = plan(&listener).start();
    (0..3).for_each(|_| drop(ask(&ring, "01")));
    ring.gateway.signal(Signal::TERM);
    assert!(ring.gateway.exited().success());
    assert!(ring.gateway.log().contains("not every last cancel or trace has arrived"));
}

#[test]
fn a_collector_that_is_not_there_costs_traces_only() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let plan = plan(&listener);
    drop(listener);
    let ring = plan.start();
    ask(&ring, "01");
    wait_for("dropped traces to be counted", || {
        ring.gateway.metric("tandem_traces_dropped_total", &[]).filter(|&count| count >= 2.0)
    });
    assert!(ring.gateway.log().contains("the collector takes no traces"));
}
