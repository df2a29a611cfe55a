//! Metrics of the servers behind this gateway. They are written when they are read: what is said
//! of an incarnation ends with it, where a recorder would keep every one for ever.

use super::Ring;
use super::server::Server;
use shared::metrics::{ALL, CREDITS_FREE, PEER_INFO, PEER_UP};
use shared::wire::handshake::Role;
use shared::wire::messages::Message;
use std::fmt::Write;

/// Lines of the three metrics.
#[derive(Default)]
struct Lines {
    up: String,
    info: String,
    credits: String,
}

impl Ring {
    /// Prometheus' text of which servers are up, which incarnations, and decode's free credits.
    pub fn peer_metrics(&self) -> String {
        let mut lines = Lines::default();
        self.0.prefill.iter().for_each(|server| lines.add(Role::Prefill, server));
        self.0.decode.iter().for_each(|server| lines.add(Role::Decode, server));
        let all = [(PEER_UP, lines.up), (PEER_INFO, lines.info), (CREDITS_FREE, lines.credits)];
        all.into_iter().filter(|(_, lines)| !lines.is_empty()).map(headed).collect()
    }
}

impl Lines {
    // Writing to a string cannot fail.
    fn add<Out: Message>(&mut self, role: Role, server: &Server<Out>) {
        let (address, up) = (escaped(&server.address), server.up());
        let is_up = u8::from(up.is_some());
        let own = format!("role=\"{role}\",address=\"{address}\"");
        let _ = writeln!(self.up, "{PEER_UP}{{{own}}} {is_up}");
        let Some(up) = up else { return };
        let (id, epoch) = (&up.id, up.epoch);
        let _ = writeln!(self.info, "{PEER_INFO}{{{own},server=\"{id}\",epoch=\"{epoch}\"}} 1");
        if role == Role::Decode {
            let labels = format!("address=\"{address}\",server=\"{id}\"");
            let pages = up.load.pages_available;
            let _ = writeln!(self.credits, "{CREDITS_FREE}{{{labels}}} {pages}");
        }
    }
}

fn headed((name, lines): (&str, String)) -> String {
    let metric = ALL.iter().find(|metric| metric.name == name);
    let help = metric.map_or("", |metric| metric.help);
    format!("# HELP {name} {help}\n# TYPE {name} gauge\n{lines}\n")
}

/// As a label's value: an address is what somebody wrote in a config.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
