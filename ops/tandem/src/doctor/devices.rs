//! GPUs and the libraries around them, and UCX.

use super::Finding;
use super::config::Files;
use kernels::cuda::device::{is_present, missing_libraries};
use kernels::cuda::peer::Reach;
use kernels::cuda::{Device, nvml};
use kv_transfer::select::Choice;
use kv_transfer::ucx::Ucx;
use role::settings::Device as Where;
use std::collections::BTreeSet;
use std::fs;

/// All of it.
pub fn check(files: &Files) -> Vec<Finding> {
    let mut findings = gpus(files);
    findings.push(ucx(files));
    findings
}

fn gpus(files: &Files) -> Vec<Finding> {
    let asked = files.servers.iter().any(|(_, server)| matches!(server.device, Where::Cuda(_)));
    if !is_present() {
        let found = "libcuda.so.1 is not found";
        return vec![if asked {
            Finding::broken("GPU", found, "install the NVIDIA driver, or have device = \"cpu\"")
        } else {
            Finding::ok("GPU", format!("{found}; the servers run on the processor"))
        }];
    }
    let mut devices = Vec::new();
    let mut findings = vec![driver()];
    loop {
        match Device::open(devices.len()) {
            Ok(device) => {
                findings.push(gpu(devices.len(), &device));
                devices.push(device);
            }
            Err(error) if devices.is_empty() => {
                let cure = "nvidia-smi says more; device = \"cpu\" does without";
                findings.push(Finding::broken("GPU", error.to_string(), cure));
                break;
            }
            Err(_) => break,
        }
    }
    findings.extend(libraries());
    findings.extend(reach(&devices));
    findings
}

/// The kernel's half of the driver, as it calls itself.
fn driver() -> Finding {
    /// CUDA 13's least.
    const MAJOR_MIN: u32 = 580;
    let cure = "CUDA 13 wants driver 580 or newer";
    let Ok(version) = fs::read_to_string("/sys/module/nvidia/version") else {
        let found = "libcuda.so.1 is here, the kernel's module nvidia is not loaded";
        return Finding::warning("driver", found, "modprobe nvidia; nvidia-smi says more");
    };
    let major = version.split('.').next().and_then(|major| major.trim().parse::<u32>().ok());
    match major {
        Some(major) if major < MAJOR_MIN => Finding::broken("driver", version, cure),
        _ => Finding::ok("driver", version),
    }
}

fn gpu(number: usize, device: &Device) -> Finding {
    let memory = device.memory().map(|(free, all)| (free >> 20, all >> 20));
    let (free, all) = memory.unwrap_or_default();
    let found = format!("{number}: {}, {free} of {all} MiB free", device.name());
    if free * 2 >= all {
        Finding::ok("GPU", found)
    } else {
        Finding::warning("GPU", found, "others use it: nvidia-smi says who")
    }
}

fn libraries() -> Vec<Finding> {
    let cure = "install the CUDA 13 toolkit's, or add its folder to LD_LIBRARY_PATH";
    let missing = missing_libraries();
    if missing.is_empty() {
        return vec![Finding::ok("CUDA", "NVRTC and cuBLASLt are found")];
    }
    let broken = |name: &&str| Finding::broken("CUDA", format!("{name} is not found"), cure);
    missing.iter().map(broken).collect()
}

/// Which GPUs can write into which.
fn reach(devices: &[Device]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (from, device) in devices.iter().enumerate() {
        for (to, other) in devices.iter().enumerate().filter(|&(to, _)| to != from) {
            let reach = other.uuid().and_then(|uuid| device.reach(&uuid));
            findings.push(match reach {
                Ok(Reach::Same | Reach::Peer) => {
                    let link = linked(device, other);
                    Finding::ok("peer access", format!("GPU {from} writes to GPU {to}{link}"))
                }
                Ok(why) => Finding::warning(
                    "peer access",
                    format!("GPU {from} to GPU {to}: {why}"),
                    "pages go by TCP between them; nvidia-smi topo -p2p w says more",
                ),
                Err(error) => Finding::warning("peer access", error.to_string(), "nvidia-smi"),
            });
        }
    }
    if let Some(uuid) = devices.first().and_then(|device| device.uuid().ok())
        && let Err(why) = nvml::computes(&uuid, std::process::id())
    {
        findings.push(Finding::warning(
            "NVML",
            why,
            "a dead writer's end is told by its pidfd alone",
        ));
    }
    findings
}

/// By what one GPU reaches another, as far as NVML says.
fn linked(from: &Device, to: &Device) -> String {
    let (Ok(from), Ok(to)) = (from.uuid(), to.uuid()) else { return String::new() };
    match nvml::nvlinks(&from, &to) {
        Ok(links) if links.reach => format!(" over NVLink ({} links)", links.up),
        Ok(_) => " without NVLink".to_owned(),
        Err(why) => format!("; {why}"),
    }
}

fn ucx(files: &Files) -> Finding {
    let servers = || files.servers.iter().map(|(_, server)| server);
    let folder = servers().find_map(|server| server.ucx_dir.clone());
    let ucx = match Ucx::open(folder.as_deref()) {
        Ok(ucx) => ucx,
        Err(error) => {
            let found = error.to_string();
            return if servers().any(|server| server.transport == Choice::Ucx) {
                let cure = "apt-get install libucx0, or transport = \"auto\"";
                Finding::broken("UCX", found, cure)
            } else {
                let cure = "apt-get install libucx0; without it pages travel by TCP, or between \
                            GPUs by cuda_ipc";
                Finding::warning("UCX", found, cure)
            };
        }
    };
    let modules = modules();
    let names: Vec<_> = modules.iter().map(String::as_str).collect();
    let found = format!("{}; shared memory, tcp {}", ucx.version(), names.join(" "));
    let mut on_gpu = servers().filter(|server| matches!(server.device, Where::Cuda(_)));
    let by_ucx = on_gpu.any(|server| server.transport == Choice::Ucx);
    if by_ucx && !modules.contains("cuda") {
        let cure = "Debian's knows no GPU: `ucx_dir` of one with libuct_cuda.so, or transport = \
                    \"cuda_ipc\"";
        return Finding::broken("UCX", found, cure);
    }
    Finding::ok("UCX", found)
}

/// Transports that UCX has as modules, beside those that are always in it: `ib`, `cuda`, …
fn modules() -> BTreeSet<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let name = |path: &str| {
        let module = path.rsplit('/').next()?.strip_prefix("libuct_")?;
        Some(module.split('.').next()?.to_owned())
    };
    maps.lines().filter_map(|line| name(line.split_whitespace().last()?)).collect()
}
