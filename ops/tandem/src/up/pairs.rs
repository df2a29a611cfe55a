//! Which transport each pair of servers chose, read from the prefill servers' own metrics.

use std::fmt;

use shared::metrics::BANDWIDTH;

use super::ready::{REPLY_MAX, agent};

/// All metrics of one server are shorter.
const METRICS_BYTES_MAX: u64 = 1 << 20;

/// One prefill server's link to one decode server.
#[derive(Debug, PartialEq)]
pub struct Pair {
    prefill: String,
    decode: String,
    pub transport: String,
    bytes_per_second: f64,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prefill, decode, transport, bytes_per_second } = self;
        let gigabytes = bytes_per_second / 1e9;
        write!(f, "{prefill} ══ {transport}, {gigabytes:.1} GB/s ══► {decode}")
    }
}

/// The pairs of the server whose admin address this is; none where it does not answer.
pub fn of(admin: &str) -> Vec<Pair> {
    let Ok(mut response) = agent(REPLY_MAX).get(format!("http://{admin}/metrics")).call() else {
        return Vec::new();
    };
    let body = response.body_mut().with_config().limit(METRICS_BYTES_MAX).read_to_string();
    parse(&body.unwrap_or_default())
}

fn parse(metrics: &str) -> Vec<Pair> {
    // One that has parted since stands at 0.
    metrics.lines().filter_map(parse_line).filter(|pair| pair.bytes_per_second > 0.0).collect()
}

/// `name{server="…",peer="…",transport="…"} value`; ids hold no quotes and no commas.
fn parse_line(line: &str) -> Option<Pair> {
    let (labels, value) = line.strip_prefix(BANDWIDTH)?.strip_prefix('{')?.split_once("} ")?;
    let label = |name: &str| -> Option<String> {
        let labels = labels.split(',').filter_map(|label| label.split_once('='));
        let value = labels.into_iter().find(|(key, _)| *key == name)?.1;
        Some(value.trim_matches('"').to_owned())
    };
    Some(Pair {
        prefill: label("server")?,
        decode: label("peer")?,
        transport: label("transport")?,
        bytes_per_second: value.trim().parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_read_and_shown() {
        let metrics = format!(
            "# HELP {BANDWIDTH} Bandwidth.\n# TYPE {BANDWIDTH} gauge\n\
             {BANDWIDTH}{{server=\"prefill-0\",peer=\"decode-1\",transport=\"ucx\"}} 5600000000\n\
             tandem_pages{{server=\"prefill-0\"}} 3\n"
        );
        let pairs = parse(&metrics);
        assert_eq!(pairs.len(), 1);
        assert_eq!(pairs[0].to_string(), "prefill-0 ══ ucx, 5.6 GB/s ══► decode-1");
    }

    #[test]
    fn what_is_not_a_pair_is_left_out() {
        let odd = [" 1", "{server=\"a\"} 1", "{server=\"a\",peer=\"b\",transport=\"c\"} x", "{"];
        let metrics: String = odd.iter().map(|rest| format!("{BANDWIDTH}{rest}\n")).collect();
        assert!(parse(&metrics).is_empty());
    }
}
