//! The doctor on a folder of configs with one thing wrong in it.

use super::*;
use std::fs;
use std::net::TcpListener;
use tempfile::TempDir;

/// The package's configs, with a key and an empty model folder, and no port in use.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("key"), "5a".repeat(32)).unwrap();
    fs::create_dir(folder.path().join("model")).unwrap();
    for (file, text) in [
        ("gateway.toml", include_str!("../../../config/gateway.toml")),
        ("prefill.toml", include_str!("../../../config/prefill.toml")),
        ("decode.toml", include_str!("../../../config/decode.toml")),
    ] {
        let own = |name: &str| folder.path().join(name).display().to_string();
        let text = text
            .replace("/etc/tandem/key", &own("key"))
            .replace("/var/lib/tandem/model", &own("model"))
            .replace("auto:{instance}", "cpu");
        fs::write(folder.path().join(file), text).unwrap();
    }
    folder
}

/// All that is broken of `what` in `folder`.
fn broken(folder: &TempDir, what: &str) -> String {
    let doctor = DoctorCommand { config: folder.path().into(), instance: 0 };
    let findings = doctor.findings();
    let broken = findings.iter().filter(|f| f.what == what && f.verdict == Verdict::Broken);
    let broken: Vec<_> = broken.map(Finding::to_string).collect();
    assert!(!broken.is_empty(), "{findings:#?}");
    broken.join("\n")
}

fn edit(folder: &TempDir, file: &str, edit: impl Fn(String) -> String) {
    let path = folder.path().join(file);
    fs::write(&path, edit(fs::read_to_string(&path).unwrap())).unwrap();
}

#[test]
fn an_unknown_key_is_named_with_the_nearest() {
    let folder = folder();
    for (file, wrong, right) in [
        ("decode.toml", "page_sise", "page_size"),
        ("prefill.toml", "transprot", "transport"),
        ("gateway.toml", "max_queue", "max_queued"),
    ] {
        edit(&folder, file, |text| format!("{text}\n{wrong} = 16\n"));
        let said = broken(&folder, file);
        let wanted = format!("unknown key `{wrong}`; did you mean `{right}`?");
        assert!(said.contains(&wanted) && said.contains("->"), "{said}");
    }
}

#[test]
fn a_value_that_does_not_fit_is_named() {
    let folder = folder();
    edit(&folder, "decode.toml", |text| format!("{text}\nmem_fraction = 7.0\n"));
    assert!(broken(&folder, "decode.toml").contains("mem_fraction: 7 is not in (0, 1]"));
}

#[test]
fn a_model_without_weights_is_named_with_the_command_that_fetches_one() {
    let folder = folder();
    let said = broken(&folder, "model");
    let path = folder.path().join("model").display().to_string();
    assert!(said.contains(&path) && said.contains("-> tandem model install"), "{said}");
}

#[test]
fn a_key_that_is_none_is_named() {
    let folder = folder();
    let path = folder.path().join("key");
    fs::write(&path, "short").unwrap();
    let said = broken(&folder, "key");
    assert!(said.contains(&path.display().to_string()) && said.contains("-> openssl"), "{said}");
}

#[test]
fn a_port_that_is_taken_is_named_with_the_process_that_has_it() {
    let folder = folder();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    edit(&folder, "gateway.toml", |text| text.replace("127.0.0.1:8000", &address));
    let said = broken(&folder, "port");
    let holder = format!("process {}", std::process::id());
    for part in [&address, "`listen` of gateway.toml", &holder, "-> stop"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    drop(listener);
    let doctor = DoctorCommand { config: folder.path().into(), instance: 0 };
    let findings = doctor.findings();
    let free = |f: &Finding| f.verdict == Verdict::Ok && f.found.contains(&address);
    assert!(findings.iter().any(free), "{findings:#?}");
}

#[test]
fn one_port_for_two_things_is_broken() {
    let folder = folder();
    edit(&folder, "gateway.toml", |text| text.replace("127.0.0.1:8000", "127.0.0.1:7100"));
    let said = broken(&folder, "port");
    let parts = ["127.0.0.1:7100", "`listen` of gateway.toml", "`listen` of prefill.toml"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
}
