#!/usr/bin/env bash
# Every figure of a ring whose prefill server has one GPU and whose decode server another, beside the
# same ring on one GPU in the same run.
#
#   bench/gpu/two_gpus.sh MODEL FOLDER [BIN_DIR]
#
# MODEL is a folder that make_model.py has written; FOLDER gets the record. NVLink multicast is not
# used. Wants two NVIDIA GPUs of one host with peer access, and release builds in BIN_DIR
# (target/release).
set -euo pipefail
model=${1:?"which model: a folder that bench/gpu/make_model.py has written"}
out=${2:?"where the record goes"}
bin=${3:-target/release}
mkdir -p "$out"

measure() { # NAME COMMAND… : its output goes to the terminal and into the record
    local name=$1
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    "$@" 2>&1 | tee "$out/$name.txt"
}
bench() { "$bin/tandem-bench" "$@"; }
ring() { # VERB NAME DECODE_DEVICE OPTIONS… : a ring of three processes
    local verb=$1 name=$2 decode=$3
    shift 3
    measure "$name" bench "$verb" --bin-dir "$bin" --model "$model" --mode three --device cuda:0 \
        --decode-device "$decode" --out "$out" "$@"
}

measure versions nvidia-smi
measure topology nvidia-smi topo -m
measure links nvidia-smi nvlink -s -i 0
measure visible python3 "$(dirname "${BASH_SOURCE[0]}")/visible.py"
measure transfer bench transfer --gpus 0,1 --out "$out"

# Tokens of a prompt; most groups of layers that its pages are shipped in. One group is none.
for tokens in 512 1024 2048 4096 32768; do
    for groups in 1 16; do
        ring story "story-$tokens-groups-$groups" cuda:1 --input "$tokens" --requests 20 \
            --set "layer_groups=$groups"
    done
done
# What is served, on one GPU and on two; the rows of the record.
for decode in cuda:0 cuda:1; do
    ring story "story-4096-decode-on-${decode/:/-}" "$decode" --input 4096 --requests 40
    ring serve "serve-decode-on-${decode/:/-}" "$decode" --only decode,idle,mixed,serving
done
