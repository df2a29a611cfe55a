//! Waiting until the gateway says that a request would be answered.

use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};

use super::interrupt::Interrupt;
use super::process::Servers;

/// Weights of a large model come from a cold disk within this time.
const READY_MAX: Duration = Duration::from_secs(600);
const ASK_EVERY: Duration = Duration::from_millis(100);
pub const REPLY_MAX: Duration = Duration::from_secs(2);

/// What the gateway may say about itself is cut to this many bytes.
const REPLY_BYTES_MAX: u64 = 4096;

/// True when the ring is ready, false when the user wants to stop.
///
/// # Errors
/// Where a server dies, or none is ready in time; both with the end of a log.
pub fn wait(url: &str, servers: &mut Servers<'_>, interrupt: &Interrupt) -> anyhow::Result<bool> {
    let style =
        ProgressStyle::with_template("{spinner} starting the servers ({elapsed}) {wide_msg}")?;
    let spinner = ProgressBar::new_spinner().with_style(style);
    spinner.enable_steady_tick(ASK_EVERY);
    let agent = agent(REPLY_MAX);
    let start = Instant::now();
    let outcome = loop {
        if let Some(report) = servers.report_of_a_death() {
            bail!("{report}");
        }
        match probe(&agent, url) {
            Ok(()) => break true,
            Err(reason) if start.elapsed() > READY_MAX => {
                let seconds = READY_MAX.as_secs();
                bail!("the ring was not ready within {seconds} s; the gateway says: {reason}");
            }
            Err(reason) => spinner.set_message(reason),
        }
        if interrupt.within(ASK_EVERY) {
            break false;
        }
    };
    spinner.finish_and_clear();
    if outcome {
        println!("ready in {:.1} s", start.elapsed().as_secs_f32());
    }
    Ok(outcome)
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

/// Ok when ready; else one line of what the gateway says.
fn probe(agent: &ureq::Agent, url: &str) -> Result<(), String> {
    let Ok(mut response) = agent.get(format!("{url}/ready")).call() else {
        return Err(String::new());
    };
    if response.status().is_success() {
        return Ok(());
    }
    let body = response.body_mut().with_config().limit(REPLY_BYTES_MAX).read_to_string();
    Err(reason(&body.unwrap_or_default()))
}

/// The message of an error body, or the body's first line.
fn reason(body: &str) -> String {
    let json: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let message = json.as_ref().and_then(|json| json["error"]["message"].as_str());
    message.or_else(|| body.lines().next()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_message_where_there_is_one() {
        assert_eq!(reason(r#"{"error": {"message": "no decode server"}}"#), "no decode server");
        assert_eq!(reason("warming up\nmore"), "warming up");
        assert_eq!(reason(""), "");
    }
}
