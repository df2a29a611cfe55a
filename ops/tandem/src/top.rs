//! `tandem top`: the ring as it works, in a terminal. Two looks at the gateway's `/ring` make a
//! frame: counts are differences a second, everything else is of the later look.

use crate::interrupt::Interrupt;
use crate::up::ready::agent;
use ::plan::numbers::{Ranks, short};
use anyhow::{Context, ensure};
use clap::Args;
use serde::Deserialize;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

/// For one answer of the gateway.
const PATIENCE: Duration = Duration::from_secs(5);
/// Characters of a bar of pages.
const BAR: usize = 20;
/// Links that are shown, busiest first.
const LINKS_MAX: usize = 16;
/// The other screen of a terminal without its cursor, and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Show the ring live: servers, queues, pages, tokens and handoffs a second. Ctrl-C ends it.
#[derive(Args)]
pub struct TopCommand {
    /// The gateway.
    #[arg(default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// Print one frame and end.
    #[arg(long)]
    once: bool,
    /// File with the key that the gateway asks for.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

/// What `/ring` says, as far as it is shown.
#[derive(Debug, Clone, Default, Deserialize)]
struct Look {
    now_us: u64,
    epoch: String,
    requests: u64,
    queued: u64,
    queued_max: u64,
    finished: u64,
    failed: u64,
    dropped: u64,
    prefill: Vec<Server>,
    decode: Vec<Server>,
    links: Vec<Link>,
    times: Times,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Server {
    name: Option<String>,
    address: String,
    state: String,
    why: Option<String>,
    requests: u64,
    tokens: u64,
    pages: u64,
    pages_used: u64,
    pages_quarantined: u64,
    queued: u64,
    running: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Link {
    prefill: usize,
    decode: usize,
    coming: u64,
    handoffs: u64,
    exposed_us: u64,
}

/// Histograms: how many times of at least each bound, and below the next, there were.
#[derive(Debug, Clone, Default, Deserialize)]
struct Times {
    from_us: Vec<u64>,
    ttft: Vec<u64>,
    itl: Vec<u64>,
}

impl TopCommand {
    /// Looks and prints until it is told to end.
    ///
    /// # Errors
    /// An option does not fit, or the gateway does not answer the first look.
    pub fn run(&self) -> anyhow::Result<()> {
        let seconds = self.interval;
        ensure!((0.1..=3600.0).contains(&seconds), "--interval {seconds}: want 0.1 to 3600");
        let key = match &self.api_key_file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path);
                Some(text.with_context(|| path.display().to_string())?.trim().to_owned())
            }
        };
        let interrupt = Interrupt::listen()?;
        let mut before = self.look(key.as_deref())?;
        let whole = !self.once && io::stdout().is_terminal();
        let mut out = io::stdout().lock();
        if whole {
            write!(out, "{ENTER}")?;
        }
        while !interrupt.within(Duration::from_secs_f64(seconds)) {
            let text = match self.look(key.as_deref()) {
                Ok(now) => {
                    let text = frame(&self.url, &before, &now);
                    before = now;
                    text
                }
                Err(error) => format!("{}: {error:#}\n", self.url),
            };
            if whole {
                write!(out, "\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))?;
            } else {
                writeln!(out, "{text}")?;
            }
            out.flush()?;
            if self.once {
                break;
            }
        }
        if whole {
            write!(out, "{LEAVE}")?;
        }
        Ok(())
    }

    fn look(&self, key: Option<&str>) -> anyhow::Result<Look> {
        let url = format!("{}/ring", self.url.trim_end_matches('/'));
        let mut request = agent(PATIENCE).get(&url);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.call().with_context(|| url.clone())?;
        let status = response.status();
        let body = response.body_mut().read_to_string()?;
        let cure = if status == 401 { ": give its key by --api-key-file" } else { "" };
        ensure!(status.is_success(), "{url} answers {status}{cure}");
        serde_json::from_str(&body).with_context(|| format!("{url}: no gateway of this version"))
    }
}

/// What changed between two looks, and how things are.
fn frame(url: &str, before: &Look, now: &Look) -> String {
    // A gateway that has begun anew counts from 0.
    let fresh = Look::default();
    let before = if before.epoch == now.epoch { before } else { &fresh };
    let seconds = (now.now_us.saturating_sub(before.now_us) as f64 / 1e6).max(1e-3);
    let rate = |now: u64, before: u64| short(now.saturating_sub(before) as f64 / seconds);
    let servers = || now.prefill.iter().chain(&now.decode);
    let joined = servers().filter(|server| server.state == "joined").count();
    let mut text = format!("tandem   {url}   {joined} of {} servers joined\n", servers().count());
    let _ = writeln!(
        text,
        "requests {}   queued {} of {}   finished {}/s   failed {}   dropped {}",
        now.requests,
        now.queued,
        now.queued_max,
        rate(now.finished, before.finished),
        now.failed,
        now.dropped,
    );
    let ranks = |of: fn(&Times) -> &Vec<u64>| now.times.since(&before.times, of);
    let (ttft, itl) = (ranks(|times| &times.ttft), ranks(|times| &times.itl));
    let _ = writeln!(text, "TTFT {ttft}   ITL {itl}\n");
    let _ = writeln!(
        text,
        "{:<16} {:<9} {:<BAR$} {:>15} {:>6} {:>7} {:>9} {:>7}",
        "SERVER", "STATE", "PAGES", "", "QUEUED", "RUNNING", "TOKENS/S", "REQ/S"
    );
    for (servers, earlier) in [(&now.prefill, &before.prefill), (&now.decode, &before.decode)] {
        for (slot, server) in servers.iter().enumerate() {
            let was = earlier.get(slot).cloned().unwrap_or_default();
            let tokens = rate(server.tokens, was.tokens);
            let requests = rate(server.requests, was.requests);
            text += &server.line(&tokens, &requests);
        }
    }
    let mut links: Vec<_> = now.links.iter().map(|link| (link, link.since(before))).collect();
    links.sort_by_key(|(link, handed)| std::cmp::Reverse((*handed, link.handoffs)));
    if !links.is_empty() {
        let _ = writeln!(text, "\n{:<34} {:>9} {:>7} {:>9}", "HANDOFFS", "/S", "COMING", "EXPOSED");
    }
    for (link, handed) in links.iter().take(LINKS_MAX) {
        let name = |servers: &[Server], slot: usize| servers.get(slot).map(Server::name);
        let (prefill, decode) = (name(&now.prefill, link.prefill), name(&now.decode, link.decode));
        let pair = format!("{} → {}", prefill.unwrap_or_default(), decode.unwrap_or_default());
        let exposed = format!("{} ms", short(link.exposed_us as f64 / 1e3));
        let rate = short(*handed as f64 / seconds);
        let _ = writeln!(text, "{pair:<34} {rate:>9} {:>7} {exposed:>9}", link.coming);
    }
    text
}

impl Server {
    fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.address.clone())
    }

    fn line(&self, tokens: &str, requests: &str) -> String {
        let (name, state) = (self.name(), &self.state);
        if state == "lost" {
            let why = self.why.as_deref().unwrap_or("not found yet");
            return format!("{name:<16} {state:<9} {why}\n");
        }
        let part =
            |pages: u64| (pages * BAR as u64).div_ceil(self.pages.max(1)).min(BAR as u64) as usize;
        let held = part(self.pages_quarantined);
        let used = part(self.pages_used).saturating_sub(held);
        let free = BAR - used - held;
        let bar = ["█".repeat(used), "▒".repeat(held), "·".repeat(free)].concat();
        let pages = format!("{}/{}", self.pages_used, self.pages);
        format!(
            "{name:<16} {state:<9} {bar} {pages:>15} {:>6} {:>7} {tokens:>9} {requests:>7}\n",
            self.queued, self.running
        )
    }
}

impl Link {
    /// Handoffs that came since then.
    fn since(&self, before: &Look) -> u64 {
        let pair = (self.prefill, self.decode);
        let was = before.links.iter().find(|link| (link.prefill, link.decode) == pair);
        self.handoffs.saturating_sub(was.map_or(0, |link| link.handoffs))
    }
}

impl Times {
    /// Ranks of the times that came since `before`, by the lower bounds of their buckets.
    fn since(&self, before: &Self, of: fn(&Self) -> &Vec<u64>) -> String {
        let earlier = of(before).iter().copied().chain(std::iter::repeat(0));
        let counts = of(self).iter().zip(earlier).map(|(now, was)| now.saturating_sub(was) as u32);
        let values = self.from_us.iter().map(|us| *us as f64 / 1e3).zip(counts);
        let ranks = Ranks::of(values.filter(|(_, count)| *count > 0).collect());
        if ranks.p50.is_nan() {
            return "–".to_owned();
        }
        format!("p50 {} ms, p99 {} ms", short(ranks.p50), short(ranks.p99))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn look(now_us: u64, tokens: u64, decode: &Value) -> Look {
        let prefill = json!({
            "name": "prefill-0", "address": "127.0.0.1:1", "state": "joined", "why": null,
            "requests": tokens / 10, "tokens": tokens, "pages": 100, "pages_used": 30,
            "pages_quarantined": 10, "queued": 2, "running": 3,
        });
        serde_json::from_value(json!({
            "now_us": now_us, "epoch": "e", "requests": 5, "queued": 1, "queued_max": 64,
            "finished": tokens / 10, "failed": 0, "dropped": 0,
            "prefill": [prefill], "decode": [decode],
            "links": [{"prefill": 0, "decode": 0, "coming": 1, "handoffs": tokens / 10,
                       "exposed_us": 1500}],
            "times": {"from_us": [64, 1000], "ttft": [0, tokens], "itl": [tokens, 0]},
        }))
        .unwrap()
    }

    #[test]
    fn a_frame_has_rates_bars_and_what_is_lost() {
        let lost = json!({"name": null, "address": "10.0.0.2:7002", "state": "lost",
                          "why": "connection refused", "requests": 0, "tokens": 0});
        let text = frame("http://gateway", &look(0, 100, &lost), &look(2_000_000, 300, &lost));
        let said = |line: &str| assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        said("tandem   http://gateway   1 of 2 servers joined");
        said("requests 5   queued 1 of 64   finished 10/s   failed 0   dropped 0");
        said("TTFT p50 1 ms, p99 1 ms   ITL p50 0.0640 ms, p99 0.0640 ms");
        said(
            "prefill-0        joined    ████▒▒··············          30/100      2       3       \
             100      10",
        );
        said("10.0.0.2:7002    lost      connection refused");
        said("prefill-0 → 10.0.0.2:7002                 10       1   1.50 ms");
    }

    #[test]
    fn a_gateway_that_began_anew_counts_from_zero() {
        let up = json!({"address": "a", "state": "joining"});
        let mut now = look(1_000_000, 50, &up);
        now.epoch = "f".to_owned();
        let text = frame("u", &look(9_000_000, 900, &up), &now);
        assert!(text.contains("finished 5/s"), "{text}");
    }
}
