//! `tandem up` with one TOML file: all roles of this machine, each with settings of its own.

use crate::http;
use crate::plan::golden_path;
use crate::ports::Port;
use crate::process::program_folder;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn up(folder: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(program_folder().join("tandem"));
    command.arg("up").arg("--run-folder").arg(folder.join("run")).args(flags).output().unwrap()
}

/// Stops what was started, however the test ends.
struct Stop<'f>(&'f Path);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        let stopped = up(self.0, &["--stop"]);
        if !std::thread::panicking() {
            assert!(stopped.status.success(), "{stopped:?}");
        }
    }
}

#[test]
fn one_file_is_a_whole_ring() {
    let folder = tempfile::tempdir().unwrap();
    let port = Port::claim();
    let model = golden_path("tiny-qwen3");
    let text = format!(
        "model = {model:?}\n\
         [gateway]\nlisten = \"{listen}\"\nserved_model_name = \"tiny\"\nmax_queued = 7\n\
         log_format = \"json\"\n\
         [server]\ndtype = \"f32\"\nthreads = 1\nmax_total_tokens = 2048\nlog_format = \"json\"\n\
         [[prefill]]\nchunked_prefill_size = 16\n\
         [[decode]]\n\
         [[decode]]\nmax_total_tokens = 1024\n",
        listen = port.address,
    );
    let file = folder.path().join("ring.toml");
    fs::write(&file, text).unwrap();
    let started = up(folder.path(), &["--config", file.to_str().unwrap(), "--detach"]);
    let _stop = Stop(folder.path());
    assert!(started.status.success(), "{started:?}");

    let info = http::get(port.address, "/server_info").unwrap().json();
    let pages = |role: &str| -> Vec<u64> {
        let servers = info[role].as_array().unwrap();
        servers.iter().map(|server| server["pages"].as_u64().unwrap()).collect()
    };
    assert_eq!((pages("prefill"), pages("decode")), (vec![128], vec![128, 64]), "{info}");
    let metrics = http::get(port.address, "/metrics").unwrap().body;
    assert!(metrics.lines().any(|line| line == "tandem_queue_limit 7"), "{metrics}");
    let models = http::get(port.address, "/v1/models").unwrap().json();
    assert_eq!(models["data"][0]["id"], "tiny");
    for name in ["gateway", "prefill-0", "decode-0", "decode-1"] {
        let log = fs::read_to_string(folder.path().join("run").join(name).with_extension("log"));
        let log = log.unwrap();
        let is_json = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok();
        assert!(!log.is_empty() && log.lines().all(is_json), "{name}: {log}");
    }
}

/// Its own questions bring the key: whether the ring is whole, and the first one.
#[test]
fn a_ring_whose_clients_need_a_key_starts() {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("clients.key");
    fs::write(&key_file, "sesame\n").unwrap();
    let port = Port::claim();
    let text = format!(
        "model = {model:?}\n\
         [gateway]\nlisten = \"{listen}\"\napi_key_file = {key_file:?}\n\
         [server]\ndtype = \"f32\"\nthreads = 1\nmax_total_tokens = 2048\n",
        model = golden_path("tiny-qwen3"),
        listen = port.address,
    );
    let file = folder.path().join("ring.toml");
    fs::write(&file, text).unwrap();
    for flags in [&[][..], &["--one-process"]] {
        let flags = [&["--config", file.to_str().unwrap(), "--detach"], flags].concat();
        let started = up(folder.path(), &flags);
        let _stop = Stop(folder.path());
        assert!(started.status.success(), "{started:?}");
        assert_eq!(http::get(port.address, "/v1/models").unwrap().status, 401);
    }
}

#[test]
fn what_is_wrong_in_the_file_is_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ring.toml");
    fs::write(&file, "[[decode]]\nmax_runing_requests = 1\n").unwrap();
    let refused = up(folder.path(), &["--config", file.to_str().unwrap(), "--check"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    for word in ["ring.toml", "[[decode]]", "max_runing_requests", "max_running_requests"] {
        assert!(said.contains(word), "{said}");
    }
    assert!(!folder.path().join("run/decode-0.toml").exists());
}
