//! From exec to ready: what each process of a ring said and when, and what it holds then.

use super::bars::Bars;
use super::log::{Line, lines};
use super::ring::Logged;
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

/// Prints what each GPU server holds, from its own line.
pub fn memory(processes: &[Logged]) -> Value {
    let mut record = vec![];
    for process in processes {
        for line in lines(&process.log).filter(|line| line.message() == "GPU memory") {
            let role = line.field("role").unwrap_or("?");
            let parts = ["weights", "pool", "other", "free", "total"];
            let bytes = parts.map(|part| (part, line.number(part).unwrap_or(0)));
            let shown = bytes.map(|(part, bytes)| format!("{part} {:.2}", bytes as f64 / 1e9));
            println!("{} ({role}), GB: {}", process.name, shown.join(", "));
            let bytes = bytes.into_iter().map(|(part, bytes)| (part.to_owned(), bytes.into()));
            let bytes: serde_json::Map<String, Value> = bytes.collect();
            record.push(json!({"process": process.name, "role": role, "bytes": bytes}));
        }
    }
    if record.is_empty() {
        println!("no process of this ring says what it holds of a GPU");
    }
    record.into()
}
