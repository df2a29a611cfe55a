//! Fetching against a hub in this process: the real client, the real protocol, a golden model.

mod fake_hub;
mod server;

use super::hub::HubId;
use super::{Spec, demo, download};
use checkpoint::Checkpoint;
use fake_hub::{COMMIT, Place, Repository, WEIGHTS, golden};
use serde_json::json;
use server::{Reply, Server};
use std::path::Path;

#[test]
fn a_model_is_fetched_once_and_opens() {
    let hub = Repository::golden().serve();
    let place = Place::new(&hub);
    let path = place.resolve("org/tiny").unwrap();
    assert_eq!(path.file_name().unwrap(), COMMIT);
    let fetched = Checkpoint::open(&path).unwrap();
    let original = Checkpoint::open(golden("tiny-qwen2")).unwrap();
    assert_eq!(fetched.digest().unwrap(), original.digest().unwrap());
    assert_eq!(fetched.chat_template(), original.chat_template());
    assert_eq!(hub.count("golden.json"), 0, "only what a model needs is fetched");
    let requests = hub.seen().len();
    for spec in ["org/tiny", "hf:org/tiny", "org/tiny@main", &format!("org/tiny@{COMMIT}")] {
        assert_eq!(place.resolve(spec).unwrap(), path);
    }
    assert_eq!(hub.seen().len(), requests, "the cache answers");
}

#[test]
fn token_and_revision_reach_the_hub() {
    let hub = Repository::golden().serve();
    Place::with(&hub, &["--hf-token", "secret"]).resolve("org/tiny@refs/pr/7").unwrap();
    assert_eq!(hub.count("/api/models/org/tiny/revision/refs%2Fpr%2F7"), 1);
    for request in hub.seen() {
        assert_eq!(request.header("authorization"), Some("Bearer secret"), "{}", request.path);
    }
    let hub = Repository::golden().serve();
    Place::new(&hub).resolve("org/tiny").unwrap();
    assert!(hub.seen().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn a_token_left_by_a_login_is_found() {
    let hub = Repository::golden().serve();
    let place = Place::new(&hub);
    let home = place.folder.path().join("home");
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(home.join("token"), "from-login\n").unwrap();
    place.resolve("org/tiny").unwrap();
    assert_eq!(hub.seen()[0].header("authorization"), Some("Bearer from-login"));
}

#[test]
fn the_token_does_not_follow_a_redirect_to_another_host() {
    let repository = Repository::golden();
    let store = repository.clone().serve();
    let target = format!("http://localhost:{}", store.address.port());
    let hub = Server::start(move |request| match request.path.ends_with(WEIGHTS) {
        true => Reply::new(302, "").header("location", &format!("{target}{}", request.path)),
        false => repository.answer(request),
    });
    Place::with(&hub, &["--hf-token", "secret"]).resolve("org/tiny").unwrap();
    assert_eq!(store.seen().len(), 1);
    assert_eq!(store.seen()[0].header("authorization"), None);
}

#[test]
fn a_broken_transfer_goes_on_where_it_ended() {
    let repository = Repository::golden();
    let mut cuts = vec![1_000_000, 5];
    let hub = Server::start(move |request| {
        let reply = repository.answer(request);
        match request.path.ends_with(WEIGHTS) {
            true => reply.cut(cuts.pop().unwrap_or(usize::MAX)),
            false => reply,
        }
    });
    let place = Place::new(&hub);
    let path = place.resolve("org/tiny").unwrap();
    let fetched = std::fs::read(path.join(WEIGHTS)).unwrap();
    assert!(fetched == std::fs::read(golden("tiny-qwen2").join(WEIGHTS)).unwrap());
    let seen = hub.seen();
    let asked = seen.iter().filter(|request| request.path.ends_with(WEIGHTS));
    let ranges: Vec<_> = asked.map(|request| request.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=5-"), Some("bytes=1000005-")]);
}

#[test]
fn a_server_without_ranges_is_read_from_the_beginning() {
    let repository = Repository::golden();
    let mut first = true;
    let hub = Server::start(move |request| {
        let plain = server::Request { headers: Vec::new(), ..request.clone() };
        let reply = repository.answer(&plain);
        match request.path.ends_with(WEIGHTS) && std::mem::take(&mut first) {
            true => reply.cut(700_000),
            false => reply,
        }
    });
    let place = Place::new(&hub);
    let path = place.resolve("org/tiny").unwrap();
    Checkpoint::open(path).unwrap();
    assert_eq!(hub.count(WEIGHTS), 2);
}

#[test]
fn a_second_start_goes_on_where_the_first_gave_up() {
    let repository = Repository::golden();
    let mut weights_asked = 0;
    let hub = Server::start(move |request| {
        let reply = repository.answer(request);
        if !request.path.ends_with(WEIGHTS) {
            return reply;
        }
        weights_asked += 1;
        match weights_asked {
            1 => reply.cut(123_456),
            2..=6 => Reply::new(503, "busy"),
            _ => reply,
        }
    });
    let place = Place::new(&hub);
    let error = place.resolve("org/tiny").unwrap_err();
    assert!(error.contains(WEIGHTS) && error.contains("503"), "{error}");
    Checkpoint::open(place.resolve("org/tiny").unwrap()).unwrap();
    assert_eq!(hub.seen().last().unwrap().header("range"), Some("bytes=123456-"));
    assert_eq!(hub.count("/tokenizer.json"), 1, "what was whole is not fetched again");
}

#[test]
fn altered_bytes_are_never_kept() {
    let flip: fn(&mut Vec<u8>) = |bytes| bytes[100] ^= 1;
    let grow: fn(&mut Vec<u8>) = |bytes| bytes.push(0);
    for (name, alter, why) in [
        (WEIGHTS, flip, "digest is"),
        ("tokenizer.json", flip, "digest is"),
        (WEIGHTS, grow, "the hub lists"),
    ] {
        let repository = Repository::golden();
        let mut first = true;
        let hub = Server::start(move |request| {
            let mut reply = repository.answer(request);
            if request.path.ends_with(name) && std::mem::take(&mut first) {
                alter(&mut reply.body);
            }
            reply
        });
        let place = Place::new(&hub);
        let error = place.resolve("org/tiny").unwrap_err();
        assert!(error.contains(name) && error.contains(why), "{error}");
        Checkpoint::open(place.resolve("org/tiny").unwrap()).unwrap();
        assert_eq!(hub.seen().last().unwrap().header("range"), None, "nothing was kept");
    }
}

#[test]
fn a_listing_without_lengths_and_digests_will_do() {
    let mut repository = Repository::golden();
    repository.terse = true;
    let hub = repository.serve();
    let place = Place::new(&hub);
    Checkpoint::open(place.resolve("org/tiny").unwrap()).unwrap();
}

#[test]
fn refusals_say_what_to_do_and_are_not_repeated() {
    let cases = [
        (401, "", "set HF_TOKEN, or check the name"),
        (401, "wrong", "refused the token"),
        (403, "mine", "accept the model's terms"),
        (404, "", "no such model, or no revision `v2`"),
        (500, "", "try again later"),
    ];
    for (status, token, cure) in cases {
        let hub = Server::start(move |_| Reply::new(status, "{}"));
        let error = Place::with(&hub, &["--hf-token", token]).resolve("org/tiny@v2").unwrap_err();
        assert!(error.contains(cure) && error.contains("org/tiny"), "{error}");
        assert!(token.is_empty() || !error.contains(token), "a token is never shown: {error}");
        assert_eq!(hub.seen().len(), 1);
    }
}

#[test]
fn nothing_listens_there_is_said_with_the_address() {
    let hub = Repository::golden().serve();
    let (place, url) = (Place::new(&hub), hub.url());
    drop(hub);
    let error = place.resolve("org/tiny").unwrap_err();
    assert!(error.contains("cannot reach") && error.contains(&url), "{error}");
}

#[test]
fn repositories_that_are_no_model_are_refused() {
    let without = |name: &str, more: &[&str]| {
        let mut repository = Repository::golden();
        repository.files.remove(name);
        repository.files.extend(more.iter().map(|name| ((*name).to_owned(), vec![0])));
        Place::new(&repository.serve()).resolve("org/tiny").unwrap_err()
    };
    let error = without("tokenizer.json", &[]);
    assert!(error.contains("has no tokenizer.json"), "{error}");
    let error = without(WEIGHTS, &[]);
    assert!(error.contains("neither model.safetensors nor"), "{error}");
    let error = without(WEIGHTS, &["a.gguf", "b.gguf"]);
    assert!(error.contains("2 .gguf"), "{error}");
}

#[test]
fn shards_are_those_of_the_index() {
    let index = |shard: &str| {
        let mut repository = Repository::golden();
        let bytes = repository.files.remove(WEIGHTS).unwrap();
        let names = safetensors_names(&bytes);
        let map: serde_json::Map<_, _> =
            names.into_iter().map(|name| (name, shard.into())).collect();
        repository.files.insert("model-00001-of-00001.safetensors".to_owned(), bytes);
        let index = json!({"weight_map": map}).to_string().into_bytes();
        repository.files.insert("model.safetensors.index.json".to_owned(), index);
        repository.serve()
    };
    let hub = index("model-00001-of-00001.safetensors");
    let place = Place::new(&hub);
    Checkpoint::open(place.resolve("org/tiny").unwrap()).unwrap();
    let error = Place::new(&index("model-00002.safetensors")).resolve("org/tiny").unwrap_err();
    assert!(error.contains("lacks its own model-00002.safetensors"), "{error}");
    let error = Place::new(&index("../../evil.safetensors")).resolve("org/tiny").unwrap_err();
    assert!(error.contains("weight_map"), "{error}");
}

fn safetensors_names(bytes: &[u8]) -> Vec<String> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header.keys().filter(|name| *name != "__metadata__").cloned().collect()
}

#[test]
fn the_cache_of_the_hugging_face_tools_is_used_where_it_is_whole() {
    let hub = Repository::golden().serve();
    let place = Place::new(&hub);
    let repository = place.folder.path().join("home/huggingface/hub/models--org--tiny");
    let snapshot = repository.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), COMMIT).unwrap();
    for name in ["config.json", "tokenizer.json", WEIGHTS] {
        std::os::unix::fs::symlink(golden("tiny-qwen2").join(name), snapshot.join(name)).unwrap();
    }
    assert_eq!(place.resolve("org/tiny").unwrap(), snapshot);
    assert!(hub.seen().is_empty());
    std::fs::remove_file(snapshot.join(WEIGHTS)).unwrap();
    assert_ne!(place.resolve("org/tiny").unwrap(), snapshot, "half a snapshot is none");
}

#[test]
fn offline_means_no_request() {
    let hub = Repository::golden().serve();
    let place = Place::with(&hub, &["--offline"]);
    for spec in ["org/tiny", "smollm2", "smollm2-gguf"] {
        let error = place.resolve(spec).unwrap_err();
        assert!(error.contains("not in the cache"), "{error}");
    }
    assert!(hub.seen().is_empty());
}

#[test]
fn refresh_asks_again_and_keeps_what_it_has() {
    let hub = Repository::golden().serve();
    let mut place = Place::new(&hub);
    let path = place.resolve("org/tiny").unwrap();
    place.settings.refresh = true;
    assert_eq!(place.resolve("org/tiny").unwrap(), path);
    assert_eq!((hub.count("/api/"), hub.count(WEIGHTS)), (2, 1));
}

#[test]
fn two_at_once_fetch_once() {
    let hub = Repository::golden().serve();
    let place = Place::new(&hub);
    let paths: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| place.resolve("org/tiny"))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    });
    assert!(paths.iter().all(|path| *path == paths[0]));
    assert_eq!(hub.count(WEIGHTS), 1);
}

#[test]
fn what_is_said_is_understood_or_refused() {
    let hub = |id: &str| Spec::Hub(HubId::parse(id).unwrap());
    assert_eq!(Spec::parse("Qwen/Qwen3-0.6B@v1").unwrap(), hub("Qwen/Qwen3-0.6B@v1"));
    assert_eq!(Spec::parse("smollm2").unwrap(), Spec::Demo);
    let golden = golden("tiny-qwen3");
    assert_eq!(Spec::parse(golden.to_str().unwrap()).unwrap(), Spec::Path(golden));
    for wrong in [
        "",
        "name",
        "a/b/c",
        "../b",
        "a/..",
        "a/.b",
        "/b",
        "a/",
        "a/b@",
        "a/b@../c",
        "a/b@x y",
        "a/b@a//b",
        "a/b?x",
        "./absent",
        "/absent",
        "~/absent",
        "absent.gguf",
        "a/absent.gguf",
    ] {
        let error = Spec::parse(wrong).unwrap_err();
        assert!(error.to_string().contains(wrong), "{error:#}");
    }
}

#[test]
fn digests_are_those_of_the_standards() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "abc").unwrap();
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(download::sha256(&file).unwrap(), sha256);
    std::fs::write(&file, "").unwrap();
    let blob = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"; // git hash-object /dev/null
    assert_eq!(download::git_blob_id(&file, 0).unwrap(), blob);
}

#[test]
fn the_demo_file_must_have_its_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let (file, to) = (folder.path().join("file"), folder.path().join("to"));
    std::fs::write(&file, "not the model").unwrap();
    let error = demo::install(&file, &to).unwrap_err().to_string();
    assert!(error.contains("it must be b179c952"), "{error}");
    assert!(!to.exists());
    let demo = std::env::var_os("TANDEM_DEMO_MODEL")
        .expect("TANDEM_DEMO_MODEL must name the demo model's .gguf file; ops/test sets it");
    std::os::unix::fs::symlink(Path::new(&demo), file.with_extension("link")).unwrap();
    demo::install(&file.with_extension("link"), &to).unwrap();
    assert!(to.exists());
}
