//! Logs as JSON: every line of every process is an object, and a request is told by its id.

use crate::http::post_with;
use crate::plan::Plan;
use crate::process::Member;
use crate::ring::Ring;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::net::TcpListener;

const CALLS: [&str; 3] = ["call-0", "call-1", "call-2"];

fn plan() -> Plan {
    Plan::tiny("tiny-qwen3").everyone("log_format", "json").everyone("log", "info,story=debug")
}

fn lines(member: &Member) -> Vec<Value> {
    let parse = |line: &str| -> Value {
        let parsed = serde_json::from_str(line);
        parsed.unwrap_or_else(|error| panic!("{}: {error}: {line}", member.name))
    };
    let lines: Vec<Value> = member.log().lines().map(parse).collect();
    for line in &lines {
        let has = |key: &str| line[key].is_string();
        assert!(has("timestamp") && has("level") && has("target"), "{line}");
        assert!(line["fields"]["message"].is_string(), "{line}");
    }
    lines
}

/// Whether a line is about this request; `request` may name the attempt, too.
fn is_about(line: &Value, id: &str) -> bool {
    let found = line["fields"]["request"].as_str().unwrap_or_default();
    found.strip_prefix(id).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn check(mut ring: Ring) {
    for call in CALLS {
        let body = json!({"prompt": [1, 2, 3, 4, 5], "max_tokens": 4, "ignore_eos": true});
        let header = format!("x-request-id: {call}");
        let reply = post_with(ring.url(), "/v1/completions", &header, &body);
        assert_eq!(reply.unwrap().whole().unwrap().status, 200);
    }
    ring.wait_settled();
    ring.gateway.signal(Signal::TERM);
    assert!(ring.gateway.exited().success());
    for server in ring.servers_mut() {
        server.signal(Signal::TERM);
        assert!(server.exited().success());
    }
    let gateway = lines(&ring.gateway);
    let path = ring.folder().join("trace.jsonl");
    std::fs::write(&path, ring.gateway.log()).unwrap();
    let trace = plan::trace::read(&path).unwrap(); // as `tandem plan` has it
    let lengths: Vec<_> = trace.iter().map(|entry| (entry.input, entry.output)).collect();
    assert_eq!(lengths, [(5, 4); CALLS.len()]);
    let servers: Vec<Vec<Value>> = ring.servers().map(lines).collect();
    for call in CALLS {
        let tells = |line: &&Value| line["level"] == "INFO" && line["fields"]["call"] == call;
        let told: Vec<&Value> = gateway.iter().filter(tells).collect();
        assert_eq!(told.len(), 1, "one line a request: {told:?}");
        assert_eq!(
            (&told[0]["fields"]["message"], &told[0]["fields"]["output_tokens"]),
            (&json!("finished"), &json!(4))
        );
        let id = told[0]["fields"]["request"].as_str().unwrap();
        let all = servers.iter().flatten().chain(&gateway);
        let info = all.filter(|line| line["level"] == "INFO" && is_about(line, id));
        assert_eq!(info.count(), 1, "servers leave that line to the gateway");
        for process in servers.iter().chain([&gateway]) {
            assert!(process.iter().any(|line| line["level"] == "DEBUG" && is_about(line, id)));
        }
    }
}

/// A process that cannot have its port says so in a line like all others, and of nothing else.
fn check_refused(member: &mut Member) {
    let _taken = TcpListener::bind(member.listen.address).unwrap();
    member.start(&[]);
    assert!(!member.exited().success());
    let mut errors = lines(member);
    errors.retain(|line| line["level"] == "ERROR");
    let [error] = &*errors else { panic!("{}: one error: {errors:?}", member.name) };
    assert!(error["fields"]["error"].as_str().unwrap().contains("in use"), "{error}");
}

#[test]
fn what_ends_a_process_is_json_too() {
    let mut ring = Ring::new(&plan());
    ring.servers_mut().for_each(check_refused);
    check_refused(&mut ring.gateway);
    check_refused(&mut Ring::one_process(&plan()).gateway);
}

/// Also where the filter names something else alone.
#[test]
fn what_ends_a_process_passes_every_filter() {
    let plan = plan().everyone("log", "story=debug");
    let mut ring = Ring::new(&plan);
    ring.servers_mut().for_each(check_refused);
    check_refused(&mut ring.gateway);
    check_refused(&mut Ring::one_process(&plan).gateway);
}

/// Two models would be read for nothing, and servers lose their runtime as they start.
#[test]
fn one_process_starts_no_role_where_a_value_of_another_is_wrong() {
    let mut ring = Ring::one_process(&plan().on_gateway("max_connections", 0));
    ring.gateway.start(&[]);
    assert!(!ring.gateway.exited().success());
    let [line] = &*lines(&ring.gateway) else { panic!("one line: {}", ring.gateway.log()) };
    let error = line["fields"]["error"].as_str().unwrap();
    assert!(error.contains("[gateway]: `max_connections` is 0"), "{error}");
}

#[test]
fn three_processes_log_json_and_name_the_request() {
    check(plan().start());
}

#[test]
fn one_process_logs_json_and_names_the_request() {
    check(plan().start_in_one_process());
}
