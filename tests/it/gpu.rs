//! The ring with its models on a GPU, pages by `cuda_ipc`, within one process, and by TCP. Needs
//! one, so these run only where asked for: `./ops/test --gpu`.

use crate::ask::Ask;
use crate::frozen;
use crate::grammar::check_grammars;
use crate::killed::{self, Victim};
use crate::plan::{Plan, demo_model, golden_path};
use crate::process::wait_for;
use crate::random::Random;
use crate::ring::Ring;
use checkpoint::Checkpoint;
use kernels::cuda::Device;
use model::cuda::{CudaConfig, CudaEngine, PoolSize};
use model::equal::Agreement;
use rustix::process::Signal;
use shared::kv::KvDtype;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Tokens of the tiny models' vocabularies.
const TINY_VOCAB: u32 = 512;

fn on_gpu(model: PathBuf) -> Plan {
    Plan::new(model).servers("device", "cuda").servers("dtype", "bf16").servers("threads", 2)
}

fn bare(model: &Path) -> CudaEngine {
    let pool = PoolSize { fraction: 0.5, pages_max: Some(512) };
    let (page_tokens, threads) = (16, Some(2));
    let config = CudaConfig { pool, page_tokens, threads, decode_rows: 16, step_tokens: 512 };
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
    let device = Device::open(0).unwrap();
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
