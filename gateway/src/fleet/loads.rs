//! `/v1/loads`: how busy every server that is up is, in SGLang's names where it has them.
//!
//! Pages that are cached and held by no request count as free: a new request gets them.

use super::Ring;
use super::server::Up;
use serde_json::{Value, json};

/// What is added up.
#[derive(Default)]
struct Sum {
    running: u64,
    waiting: u64,
    usage: f64,
}

impl Ring {
    /// The loads as last reported, prefill servers first, and their sum. A server's waiting
    /// requests are those it has taken in; `gateway_waiting_reqs` have no ticket yet.
    pub fn loads(&self) -> Value {
        let fleet = &self.0;
        let mut sum = Sum::default();
        let mut loads: Vec<Value> = Vec::new();
        loads.extend(fleet.prefill_up().iter().map(|up| one("prefill", up, &mut sum)));
        loads.extend(fleet.decode_up().iter().map(|up| one("decode", up, &mut sum)));
        let (_, queued) = self.depth();
        let waiting = sum.waiting + queued as u64;
        let count = loads.len().max(1) as f64;
        json!({
            "dp_rank_count": loads.len(),
            "loads": loads,
            "aggregate": {
                "total_running_reqs": sum.running,
                "total_waiting_reqs": waiting,
                "total_reqs": sum.running + waiting,
                "gateway_waiting_reqs": queued,
                "avg_token_usage": sum.usage / count,
            },
        })
    }
}

fn one<Out>(role: &str, up: &Up<Out>, sum: &mut Sum) -> Value {
    let (pages, free) = (up.capacity.pages, up.load.pages_available.min(up.capacity.pages));
    let used = pages - free;
    let page_size = u64::from(up.layout.geometry.page_tokens);
    let usage = f64::from(used) / f64::from(pages.max(1));
    sum.running += u64::from(up.load.running);
    sum.waiting += u64::from(up.load.queued);
    sum.usage += usage;
    json!({
        "role": role,
        "id": up.id.as_str(),
        "num_running_reqs": up.load.running,
        "num_waiting_reqs": up.load.queued,
        "num_used_tokens": u64::from(used) * page_size,
        "max_total_num_tokens": u64::from(pages) * page_size,
        "token_usage": usage,
        "num_tokens": up.load.tokens,
        "pages_used": used,
        "pages_free": free,
        "page_size": page_size,
    })
}
