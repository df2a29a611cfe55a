//! The machine: processor, memory, limits, `/dev/shm`, clock.

use super::Finding;
use super::config::Files;
use role::settings::Device;
use rustix::process::{Resource, getrlimit};
use std::fs;
use std::path::Path;
use std::process::Command;

/// All of it.
pub fn check(files: &Files) -> Vec<Finding> {
    let mut findings = vec![processor(), memory(files), memlock(), descriptors(files), clock()];
    findings.extend(shm());
    findings
}

fn processor() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    let known = ["avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_bf16"];
    let known: Vec<_> = known.into_iter().filter(|name| has(name)).collect();
    let found = format!("{cores} cores, {}", known.join(" "));
    if has("avx2") {
        Finding::ok("processor", found)
    } else {
        let cure = "models on the CPU run many times slower without AVX2; GPUs do not care";
        Finding::warning("processor", format!("{cores} cores, no AVX2"), cure)
    }
}

/// Weights of servers without a GPU, against what there is. Servers that run already hold theirs.
fn memory(files: &Files) -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let (all, free) = (bytes("MemTotal:"), bytes("MemAvailable:"));
    let on_cpu = files.servers.iter().filter(|(_, server)| matches!(server.device, Device::Cpu));
    let weights: u64 = on_cpu
        .filter_map(|(_, server)| checkpoint::Checkpoint::open(&server.model).ok())
        .map(|model| model.stored_bytes())
        .sum();
    let [all_mb, free_mb, mb] = [all, free, weights].map(|bytes| bytes / 1_000_000);
    let found = format!("{all_mb} MB, {free_mb} free; weights take {mb}");
    let cure = "a smaller model, or fewer servers on this machine";
    match weights {
        weights if weights < free => Finding::ok("memory", found),
        weights if weights < all => Finding::warning("memory", found, cure),
        _ => Finding::broken("memory", found, cure),
    }
}

/// Memory that UCX and the NVIDIA driver pin.
fn memlock() -> Finding {
    match getrlimit(Resource::Memlock).current {
        None => Finding::ok("memlock", "unlimited"),
        Some(bytes) => {
            let found = format!("{} kB in this shell", bytes / 1024);
            let cure = "the units set it themselves; by hand: ulimit -l unlimited";
            Finding::warning("memlock", found, cure)
        }
    }
}

/// A connection takes one.
fn descriptors(files: &Files) -> Finding {
    let wanted = files.gateway.as_ref().map_or(4096, |g| g.http.max_connections) as u64 + 256;
    match getrlimit(Resource::Nofile).current {
        Some(most) if most < wanted => {
            let found = format!("{most} in this shell, the gateway may want {wanted}");
            let cure = "the units set it themselves; by hand: ulimit -n 65536";
            Finding::warning("descriptors", found, cure)
        }
        most => {
            let found = most.map_or_else(|| "unlimited".to_owned(), |most| most.to_string());
            Finding::ok("descriptors", found)
        }
    }
}

/// Where pages without a GPU lie.
fn shm() -> Option<Finding> {
    let stat = rustix::fs::statvfs("/dev/shm").ok()?;
    let (size, free) = (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize);
    let found = format!("{} MB, {} free", size / 1_000_000, free / 1_000_000);
    Some(if size < 1 << 30 {
        let cure = "page pools lie there: mount it larger (containers: --shm-size), or have TCP";
        Finding::warning("/dev/shm", found, cure)
    } else {
        Finding::ok("/dev/shm", found)
    })
}

/// Logs of several hosts are joined by their times.
fn clock() -> Finding {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Finding::ok("clock", "kept by systemd-timesyncd");
    }
    let asked = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .output();
    match asked {
        Ok(output) if output.stdout.starts_with(b"yes") => Finding::ok("clock", "synchronised"),
        _ => {
            let cure =
                "logs of several hosts are hard to join: install systemd-timesyncd or chrony";
            Finding::warning("clock", "nothing keeps it", cure)
        }
    }
}
