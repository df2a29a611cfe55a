//! What a record says of the machine that it was taken on. Names no paths.

use std::fs::read_to_string;
use std::process::Command;

/// `name: value`, a line each.
pub fn describe() -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = field("/proc/cpuinfo", "model name");
    let flags = field("/proc/cpuinfo", "flags");
    let has = |flag: &str| flags.split(' ').any(|have| have == flag);
    let vector: Vec<_> = ["avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "amx_bf16"]
        .into_iter()
        .filter(|flag| has(flag))
        .collect();
    let memory = field("/proc/meminfo", "MemTotal");
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let kernel = release.split('-').next().unwrap_or(&release);
    let system = field_by("/etc/os-release", '=', "PRETTY_NAME");
    vec![
        format!("processor: {cpu}, {cores} cores ({})", vector.join(", ")),
        format!("memory: {memory}"),
        format!("system: {}, Linux {kernel}", system.trim_matches('"')),
        format!("compiler: {}", said("rustc", &["--version"])),
        format!("UCX: libucx0 {}", said("dpkg-query", &["-W", "-f", "${Version}", "libucx0"])),
    ]
}

/// The checkout: its commit, and whether files differ from it.
pub fn commit() -> String {
    let head = said("git", &["rev-parse", "--short=12", "HEAD"]);
    let changed =
        said("git", &["status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/runs"]);
    match changed.is_empty() {
        true => head,
        false => format!("{head}, and {} changed files", changed.lines().count()),
    }
}

/// Now, in UTC, to the minute.
pub fn now() -> String {
    said("date", &["-u", "+%Y-%m-%d %H:%M"])
}

/// The load of the last minute: 0 is a quiet machine.
pub fn load() -> String {
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("?").to_owned()
}

fn field(file: &str, name: &str) -> String {
    field_by(file, ':', name)
}

fn field_by(file: &str, separator: char, name: &str) -> String {
    let text = read_to_string(file).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(separator));
    let value = pairs.into_iter().find(|(key, _)| key.trim() == name);
    value.map_or("unknown", |(_, value)| value.trim()).to_owned()
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
