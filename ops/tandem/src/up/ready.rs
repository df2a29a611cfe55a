//! Waiting until the gateway says that a request would be answered.

use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::fleet::Fleet;
use super::process::Servers;
use crate::interrupt::Interrupt;

/// Weights of a large model come from a cold disk within this time.
const READY_MAX: Duration = Duration::from_secs(600);
const ASK_EVERY: Duration = Duration::from_millis(100);
pub const REPLY_MAX: Duration = Duration::from_secs(2);

/// What the gateway may say about itself is cut to this many bytes.
const REPLY_BYTES_MAX: u64 = 1 << 20;

/// How a server's log says how much of the weights it has read.
const LOADING: &str = "loading weights: ";

/// True when every server is up and every pair joined, false when the user wants to stop.
///
/// # Errors
/// Where a server dies, or the ring is not whole in time; both with the end of a log.
pub fn wait(
    fleet: &Fleet,
    servers: &mut Servers<'_>,
    interrupt: &Interrupt,
) -> anyhow::Result<bool> {
    let style = ProgressStyle::with_template(
        "{spinner} starting the servers [{bar:24}] {elapsed} {wide_msg}",
    )?;
    let bar = ProgressBar::new(100).with_style(style);
    bar.enable_steady_tick(ASK_EVERY);
    let agent = agent(REPLY_MAX);
    let start = Instant::now();
    let is_whole = loop {
        if let Some(report) = servers.report_of_a_death() {
            bail!("{report}");
        }
        match probe(&agent, fleet) {
            Ok(()) => break true,
            Err(reason) if start.elapsed() > READY_MAX => {
                let seconds = READY_MAX.as_secs();
                bail!("the ring was not ready within {seconds} s; the gateway says: {reason}");
            }
            Err(reason) => bar.set_message(reason),
        }
        bar.set_position(percent_loaded(&servers.log_tails()));
        if interrupt.within(ASK_EVERY) {
            break false;
        }
    };
    bar.finish_and_clear();
    if is_whole {
        println!("ready in {:.1} s", start.elapsed().as_secs_f32());
    }
    Ok(is_whole)
}

/// The mean over the servers that load weights; those that do not say so do not count.
fn percent_loaded(logs: &[String]) -> u64 {
    let percents = logs.iter().filter_map(|log| {
        let (_, after) = log.rsplit_once(LOADING)?;
        after.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    let percents: Vec<u64> = percents.collect();
    let count = u64::try_from(percents.len()).unwrap_or(u64::MAX);
    percents.iter().sum::<u64>().checked_div(count).unwrap_or(0)
}

/// A client that speaks to this machine only, so no proxy is asked.
pub fn agent(reply_max: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .timeout_connect(Some(REPLY_MAX))
        .timeout_recv_response(Some(reply_max))
        .build();
    config.into()
}

/// Ok when ready and whole; else one line that says what is missing.
fn probe(agent: &ureq::Agent, fleet: &Fleet) -> Result<(), String> {
    let get = |path: &str| -> Option<(bool, String)> {
        let request = agent.get(format!("{}{path}", fleet.url));
        let request = request.header("authorization", fleet.authorization());
        let mut response = request.call().ok()?;
        let body = response.body_mut().with_config().limit(REPLY_BYTES_MAX).read_to_string();
        Some((response.status().is_success(), body.unwrap_or_default()))
    };
    // Nothing at all: the gateway does not listen yet.
    let (is_ready, body) = get("/ready").ok_or_else(String::new)?;
    if !is_ready {
        return Err(reason(&body));
    }
    let (is_told, info) = get("/server_info").ok_or_else(String::new)?;
    if !is_told {
        return Err(reason(&info));
    }
    let info: Value = serde_json::from_str(&info).map_err(|error| error.to_string())?;
    missing(&info).map_or(Ok(()), Err)
}

/// What `/server_info` says is not there yet: a server, or a pair of them. The ring answers before
/// it is whole, but whoever asked for N servers wants to see N.
fn missing(info: &Value) -> Option<String> {
    let none = Vec::new();
    let list = |role: &str| info[role].as_array().unwrap_or(&none);
    let down = list("prefill").iter().chain(list("decode")).find(|server| server["up"] != true);
    if let Some(server) = down {
        return Some(format!("waiting for {}", server["address"]));
    }
    let decodes = list("decode").len();
    let lonely = list("prefill")
        .iter()
        .find(|server| server["joined"].as_array().is_none_or(|joined| joined.len() < decodes));
    lonely.map(|server| format!("waiting for {} to join every decode server", server["id"]))
}

/// The message of an error body, or the body's first line.
fn reason(body: &str) -> String {
    let json: Option<Value> = serde_json::from_str(body).ok();
    let message = json.as_ref().and_then(|json| json["error"]["message"].as_str());
    message.or_else(|| body.lines().next()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_ring_is_whole_when_every_pair_has_joined() {
        let prefill = |up: bool, joined: &[&str]| json!({"id": "p", "up": up, "joined": joined});
        let decode = |up: bool| json!({"address": "d", "up": up});
        let ring = |prefill: Value, decode: [Value; 2]| {
            missing(&json!({"prefill": [prefill], "decode": decode}))
        };
        assert_eq!(ring(prefill(true, &["a", "b"]), [decode(true), decode(true)]), None);
        for broken in [
            ring(prefill(true, &["a"]), [decode(true), decode(true)]),
            ring(prefill(true, &["a", "b"]), [decode(true), decode(false)]),
            ring(prefill(false, &[]), [decode(true), decode(true)]),
        ] {
            assert!(broken.unwrap().starts_with("waiting for"));
        }
    }

    #[test]
    fn the_bar_is_the_mean_of_those_that_load() {
        let log = |text: &str| text.to_owned();
        assert_eq!(percent_loaded(&[]), 0);
        assert_eq!(percent_loaded(&[log("INFO listening")]), 0);
        let half = log("x loading weights: 40 %\nx loading weights: 50 %\nx");
        assert_eq!(percent_loaded(&[half, log(""), log("loading weights: 100 %")]), 75);
    }

    #[test]
    fn the_reason_is_the_message_where_there_is_one() {
        assert_eq!(reason(r#"{"error": {"message": "no decode server"}}"#), "no decode server");
        assert_eq!(reason("warming up\nmore"), "warming up");
        assert_eq!(reason(""), "");
    }
}
