//! From exec to ready: what each process of a ring said and when, and what it holds then.

use super::log::{Line, lines};
use super::ring::Logged;
use crate::bars::Bars;
use serde_json::{Value, json};

/// Prints each process's timeline; sets `ready`, from the first exec to the gateway's word.
pub fn timeline(processes: &[Logged], ready_us: u64, bars: &mut Bars) -> Value {
    let Some(exec_us) = processes.iter().map(|process| process.started_us).min() else {
        return Value::Null;
    };
    let ms = |us: u64| us.saturating_sub(exec_us) as f64 / 1e3;
    let mut record = vec![];
    for process in processes {
        println!("{}: started at {:.1} ms", process.name, ms(process.started_us));
        let mut before = process.started_us;
        for line in lines(&process.log).filter(|line| line.at_us <= ready_us && tells(line)) {
            let took = line.at_us.saturating_sub(before) as f64 / 1e3;
            println!("  {:>9.1} ms  +{took:>8.1}  {}", ms(line.at_us), line.text);
            before = line.at_us;
            record.push(json!({
                "process": process.name,
                "ms": ms(line.at_us),
                "said": line.text,
            }));
        }
    }
    println!("ready at {:.1} ms", ms(ready_us));
    bars.set("ready", ms(ready_us) / 1e3);
    json!({"ready_ms": ms(ready_us), "lines": record})
}

/// Not every tenth of the way.
fn tells(line: &Line<'_>) -> bool {
    !line.text.starts_with("loading weights")
}

/// Prints what each GPU server holds, from its own lines: what each part of its start took. Those
/// are differences of the GPU's free memory, so servers that start at once count each other's.
pub fn memory(processes: &[Logged]) -> Value {
    let mut record = vec![];
    for process in processes {
        let mut parts = vec![];
        for line in lines(&process.log) {
            match line.message() {
                "loading" => parts.extend(line.field("part").zip(line.number("bytes"))),
                "loaded" => parts.extend(line.number("free_bytes").map(|free| ("free", free))),
                "model loaded" if !parts.is_empty() => {
                    let role = line.field("role").unwrap_or("?");
                    let shown: Vec<String> = parts.iter().map(gigabytes).collect();
                    println!("{} ({role}), GB: {}", process.name, shown.join(", "));
                    let bytes =
                        parts.drain(..).map(|(part, bytes)| (part.to_owned(), bytes.into()));
                    let bytes: serde_json::Map<String, Value> = bytes.collect();
                    record.push(json!({"process": process.name, "role": role, "bytes": bytes}));
                }
                _ => {}
            }
        }
    }
    if record.is_empty() {
        println!("no process of this ring says what it holds of a GPU");
    }
    record.into()
}

fn gigabytes((part, bytes): &(&str, u64)) -> String {
    format!("{part} {:.3}", *bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_loaded_has_its_parts_by_role() {
        let line = |text: &str| format!("2026-11-24T14:05:22.123456Z  INFO x: {text}\n");
        let log = [
            "loading part=\"weights\" seconds=0.1 bytes=1200",
            "loading weights: 10 %",
            "loaded gpu=\"H\" pages=3 free_bytes=7",
            "model loaded role=decode pages=3",
            "model loaded role=prefill pages=3",
        ];
        let log = log.map(line).concat();
        let processes = [Logged { name: "ring".into(), started_us: 0, log }];
        let expect = json!([
            {"process": "ring", "role": "decode", "bytes": {"weights": 1200, "free": 7}}
        ]);
        assert_eq!(memory(&processes), expect);
    }
}
