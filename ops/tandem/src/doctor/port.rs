//! Whether the addresses of the config can be listened at, and who listens there if not.

use super::Finding;
use super::config::Files;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

/// Programs of ours, as the kernel names them: what they hold is held rightly.
const OURS: [&str; 4] = ["tandem", "tandem-gateway", "tandem-prefill", "tandem-decode"];

/// Every port of the config.
pub fn check(files: &Files) -> Vec<Finding> {
    let mut wanted = Vec::new();
    wanted.extend(files.gateway.iter().map(|gateway| ("gateway.toml", "listen", gateway.listen)));
    for (name, server) in &files.servers {
        wanted.push((name, "listen", server.listen));
        wanted.extend(server.admin.map(|admin| (*name, "admin", admin)));
        wanted.push((name, "data_listen", server.data_listen));
    }
    wanted.retain(|(_, _, address)| address.port() != 0);
    let twice = |at: usize| wanted[..at].iter().find(|earlier| earlier.2 == wanted[at].2);
    (0..wanted.len())
        .map(|at| {
            let (file, key, address) = wanted[at];
            let place = format!("`{key}` of {file}");
            match twice(at) {
                Some((file, key, _)) => {
                    let found = format!("{address}: {place} and `{key}` of {file} are one");
                    Finding::broken("port", found, format!("another port as {place}"))
                }
                None => port(&place, address),
            }
        })
        .collect()
}

/// Whether an address can be listened at, or a process of ours does.
fn port(place: &str, address: SocketAddr) -> Finding {
    let error = match TcpListener::bind(address) {
        Ok(_) => return Finding::ok("port", format!("{address} is free, {place}")),
        Err(error) => error,
    };
    let mut found = format!("{address}, {place}: {error}");
    if error.kind() != ErrorKind::AddrInUse {
        let cure = "an address of this machine and a port from 1024";
        return Finding::broken("port", found, cure);
    }
    let port = address.port();
    let mut cure = format!("stop what listens there (as root: ss -ltnp sport = :{port})");
    if let Some((pid, name)) = listener(port) {
        found = format!("{address}, {place}, is taken by {name} (process {pid})");
        if OURS.contains(&name.as_str()) {
            return Finding::ok("port", found);
        }
        cure = format!("stop {name}");
    }
    Finding::broken("port", found, format!("{cure}, or another port as {place}"))
}

/// Number and name of the process that listens at a port, if it may be seen.
fn listener(port: u16) -> Option<(u32, String)> {
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .flat_map(|table| listening(&fs::read_to_string(table).unwrap_or_default(), port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str()))
    })?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some((pid, name.trim_end().to_owned()))
}

/// Inodes of a kernel table's sockets that listen at `port`.
fn listening(table: &str, port: u16) -> Vec<String> {
    // The columns of proc_net_tcp(5): number, local and remote address, state, …, inode.
    const LISTEN: &str = "0A";
    let local = format!(":{port:04X}");
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|columns| columns.get(3) == Some(&LISTEN) && columns[1].ends_with(&local))
        .filter_map(|columns| columns.get(9).map(|&inode| inode.to_owned()))
        .collect()
}
