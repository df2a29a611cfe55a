//! The ring with its models on a GPU, pages by `cuda_ipc`, within one process, and by TCP. Needs
//! one, so these run only where asked for: `./ops/test --gpu`. `./ops/test --gpu 2` runs all of
//! them with prefill on the first GPU and decode on the second.

use crate::ask::Ask;
use crate::frozen;
use crate::grammar::check_grammars;
use crate::killed::{self, Victim};
use crate::plan::{Plan, demo_model, golden_path};
use crate::process::wait_for;
use crate::random::Random;
use crate::ring::Ring;
use checkpoint::Checkpoint;
use kernels::cuda::{Device, nvml};
use model::cuda::{CudaConfig, CudaEngine, PoolSize};
use model::equal::Agreement;
use rustix::process::Signal;
use shared::kv::KvDtype;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Tokens of the tiny models' vocabularies.
const TINY_VOCAB: u32 = 512;

/// GPUs of prefill and of decode: as `TANDEM_GPUS` has them, `0,1`, or the first for both.
fn gpus() -> [usize; 2] {
    let found = std::env::vars().find(|(name, _)| name == "TANDEM_GPUS");
    let Some((_, text)) = found else { return [0, 0] };
    let numbers: Vec<_> = text.split(',').map(|number| number.parse().unwrap()).collect();
    numbers.try_into().expect("TANDEM_GPUS is two numbers: 0,1")
}

fn on_gpu(model: PathBuf) -> Plan {
    let [prefill, decode] = gpus().map(|gpu| format!("cuda:{gpu}"));
    let plan = Plan::new(model).on_prefill("device", prefill).on_decode("device", decode);
    plan.servers("dtype", "bf16").servers("threads", 2)
}

fn bare(model: &Path) -> CudaEngine {
    let pool = PoolSize { fraction: 0.5, pages_max: Some(512) };
    let (page_tokens, threads) = (16, Some(2));
    let config =
        CudaConfig { pool, page_tokens, threads, decode_rows: 16, step_tokens: 512, parts: None };
    let checkpoint = Checkpoint::open(model).unwrap();
    CudaEngine::load(&Device::open(0).unwrap(), &checkpoint, &config, &mut |_, _| {}).unwrap()
}

/// Greedy requests of random prompts, at once and one by one, against the bare engine on the GPU.
#[track_caller]
fn check(ring: &Ring, model: &Path, vocab: u32) {
    let mut random = Random::new(31);
    let prompt = |random: &mut Random| {
        let length = 1 + random.below(300);
        (0..length).map(|_| random.below(vocab)).collect::<Vec<_>>()
    };
    let asks: Vec<_> = (0..16).map(|_| Ask::greedy(&prompt(&mut random), 24)).collect();
    let mut engine = bare(model);
    let expected: Vec<_> = asks.iter().map(|ask| ask.reference(&mut engine)).collect();
    for width in [16, 1] {
        let outcomes = ring.generate_all(&asks, width);
        let same = outcomes.iter().zip(&expected).filter(|(outcome, expected)| {
            outcome.assert_equal_in(expected, KvDtype::Bf16) == Agreement::Same
        });
        println!("{} of {} the same, {width} at a time", same.count(), asks.len());
    }
    ring.wait_settled();
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_three_processes() {
    check(&on_gpu(demo_model()).start(), &demo_model(), 49_152);
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_one_process() {
    check(&on_gpu(demo_model()).start_in_one_process(), &demo_model(), 49_152);
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_outputs_follow_grammars() {
    check_grammars(&on_gpu(demo_model()).start());
    check_grammars(&on_gpu(demo_model()).start_in_one_process());
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_tiny_models() {
    for name in ["tiny-qwen3", "tiny-llama3", "tiny-qwen2"] {
        let ring = on_gpu(golden_path(name)).start();
        let ask = Ask::greedy(&[1, 2, 3, 4, 5], 40);
        let outcome = ring.generate(&ask);
        outcome.assert_done();
        assert_eq!(outcome.ids.len(), 40, "{name}");
        ring.wait_settled();
    }
}

/// A tiny model, pages by `transport` and nothing else.
fn tiny(transport: &str) -> Plan {
    on_gpu(golden_path("tiny-qwen3")).servers("transport", transport)
}

/// Over a UCX that knows GPUs.
fn tiny_over_ucx() -> Plan {
    let folder = std::env::var_os("TANDEM_UCX_DIR").expect("TANDEM_UCX_DIR names UCX's folder");
    tiny("ucx").servers("ucx_dir", &*folder.to_string_lossy())
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_gives_the_tokens_of_the_bare_engine() {
    check(&tiny("cuda_ipc").start(), &golden_path("tiny-qwen3"), TINY_VOCAB);
}

#[test]
#[ignore = "needs a GPU and a UCX that knows it, in TANDEM_UCX_DIR"]
fn cuda_ucx_gives_the_tokens_of_the_bare_engine() {
    check(&tiny_over_ucx().start(), &golden_path("tiny-qwen3"), TINY_VOCAB);
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_tcp_gives_the_tokens_of_the_bare_engine() {
    check(&tiny("tcp").start(), &golden_path("tiny-qwen3"), TINY_VOCAB);
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_loopback_gives_the_tokens_of_the_bare_engine() {
    check(&tiny("auto").start_in_one_process(), &golden_path("tiny-qwen3"), TINY_VOCAB);
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_auto_takes_ipc_and_says_so() {
    let ring = tiny("auto").start();
    for member in [&ring.prefill[0], &ring.decode[0]] {
        assert!(member.log().contains("cuda_ipc"), "{}", member.log());
    }
    // One end that wants TCP gets it, and the other learns why.
    let ring = tiny("auto").on_prefill("transport", "tcp").start();
    let log = ring.decode[0].log();
    assert!(log.contains("tcp; not cuda_ipc: at the source: tcp was asked for"), "{log}");
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_prefill_killed_in_mid_write() {
    killed::check_in(tiny("cuda_ipc"), Victim::Prefill, "prefill-writing:2");
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_prefill_killed_with_all_pages_written() {
    killed::check_in(tiny("cuda_ipc"), Victim::Prefill, "prefill-written");
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_decode_killed_with_an_opened_ticket() {
    killed::check_in(tiny("cuda_ipc"), Victim::Decode, "decode-opened:2");
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_decode_killed_in_mid_stream() {
    killed::check_in(tiny("cuda_ipc"), Victim::Decode, "decode-stepped:5");
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_pages_of_a_frozen_writer_wait_until_it_is_dead() {
    frozen::quarantine_until_dead(tiny("cuda_ipc"));
}

/// A dead server's memory is the driver's as long as a peer has it mapped, and no longer.
#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_a_dead_peers_memory_is_unmapped() {
    a_dead_peers_memory_is_unmapped(tiny("cuda_ipc"));
}

#[test]
#[ignore = "needs a GPU and a UCX that knows it, in TANDEM_UCX_DIR"]
fn cuda_ucx_a_dead_peers_memory_is_unmapped() {
    a_dead_peers_memory_is_unmapped(tiny_over_ucx());
}

fn a_dead_peers_memory_is_unmapped(plan: Plan) {
    let plan = plan.on_decode("mem_fraction", 0.05);
    let mut ring = plan.on_decode("max_total_tokens", i64::from(u32::MAX)).start();
    let device = Device::open(gpus()[1]).unwrap();
    let free = || device.memory().unwrap().0;
    let before = free();
    ring.prefill[0].signal(Signal::STOP);
    ring.decode[0].kill();
    std::thread::sleep(Duration::from_secs(1));
    let frozen = free();
    let start = Instant::now();
    ring.prefill[0].signal(Signal::CONT);
    let after = wait_for("the memory of a dead pool", || {
        let now = free();
        (now > frozen + (1 << 30)).then_some(now)
    });
    println!(
        "free: {} MiB, {} once decode was dead, {} within {:?} of prefill going on",
        before >> 20,
        frozen >> 20,
        after >> 20,
        start.elapsed()
    );
    ring.decode[0].start(&[]);
    ring.wait_ready();
    ring.generate(&Ask::greedy(&[1, 2, 3, 4, 5], 10)).assert_done();
}

/// What a killed prefill server had is the driver's again while decode runs on, and nothing of it
/// is left on decode's GPU.
#[test]
#[ignore = "needs a GPU"]
fn cuda_ipc_a_dead_writers_memory_is_free() {
    let devices = gpus().map(|gpu| Device::open(gpu).unwrap());
    let free = || devices.each_ref().map(|device| device.memory().unwrap().0);
    let plan = tiny("cuda_ipc").on_prefill("mem_fraction", 0.05);
    let mut ring = plan.on_prefill("max_total_tokens", i64::from(u32::MAX)).start();
    let ask = Ask::greedy(&[1, 2, 3, 4, 5], 10);
    ring.generate(&ask).assert_done();
    ring.wait_settled();
    let before = free();
    let pid = ring.prefill[0].pid().as_raw_nonzero().get() as u32;
    let uuids = devices.each_ref().map(|device| device.uuid().unwrap());
    let listed = nvml::computes(&uuids[0], pid);
    println!("NVML lists prefill, which runs: {listed:?}");
    let start = Instant::now();
    ring.prefill[0].kill();
    let waited = start.elapsed();
    let after = wait_for("the memory of a dead server", || {
        let now = free();
        (now[0] > before[0] + (1 << 30) && now[1] >= before[1]).then_some(now)
    });
    let freed = start.elapsed();
    for uuid in uuids {
        wait_for("the driver to forget a dead process", || {
            nvml::computes(&uuid, pid).is_ok_and(|computes| !computes).then_some(())
        });
    }
    let mib = |bytes: [usize; 2]| bytes.map(|bytes| bytes >> 20);
    println!(
        "free on the GPUs of prefill and decode: {:?} MiB, {:?} {freed:?} after SIGKILL (waited for \
         after {waited:?}); on neither's list after {:?}",
        mib(before),
        mib(after),
        start.elapsed()
    );
    ring.decode[0].assert_alive();
    ring.prefill[0].start(&[]);
    ring.wait_ready();
    ring.generate(&ask).assert_done();
}

/// Pages of 64 tokens, so that half of their layers are enough for a copy engine, where two GPUs
/// have them; not checksummed, for that wants all layers.
fn in_layer_groups() -> Plan {
    let plan = on_gpu(demo_model()).servers("page_size", 64).servers("page_checksums", false);
    plan.on_prefill("layer_groups", 16)
}

#[test]
#[ignore = "needs a GPU"]
fn cuda_layers_leave_while_later_ones_are_computed() {
    check(&in_layer_groups().start(), &demo_model(), 49_152);
}

/// Each server sees its own GPU and no other.
#[test]
#[ignore = "needs a GPU"]
fn cuda_servers_that_see_one_gpu_each() {
    let mut ring = Ring::new(&in_layer_groups().servers("device", "cuda:0"));
    let [prefill, decode] = gpus().map(|gpu| gpu.to_string());
    for (members, gpu) in [(&mut ring.prefill, prefill), (&mut ring.decode, decode)] {
        members.iter_mut().for_each(|member| member.set("CUDA_VISIBLE_DEVICES", &gpu));
    }
    ring.start_all();
    ring.wait_ready();
    let log = ring.decode[0].log();
    let joined = log.lines().find(|line| line.contains("pages by")).unwrap();
    assert!(joined.contains("transport=cuda_ipc"), "{joined}");
    check(&ring, &demo_model(), 49_152);
}
