#!/usr/bin/env bash
# Builds and runs the two measurements of this folder on the first GPU.
#   bench/gpu/run.sh build | decode [FILTER] | killed | mps | all
# Results go to $OUT (default: target/gpu-bench).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here/../../target/gpu-bench}
bin=${BIN:-$here/../../target/gpu-bench/bin}
mkdir -p "$out" "$bin"
arch=${ARCH:-90a}

build() {
  for name in decode_layout killed_writer; do
    nvcc -std=c++17 -O3 -lineinfo -gencode="arch=compute_$arch,code=sm_$arch" -Xptxas -v \
      -o "$bin/$name" "$here/$name.cu" -lpthread 2>"$out/$name.ptxas" &
  done
  wait
  for name in decode_layout killed_writer; do
    [ -x "$bin/$name" ] || { cat "$out/$name.ptxas"; exit 1; }
  done
  if grep -E '[1-9][0-9]* bytes spill' "$out"/*.ptxas; then echo "# spills"; fi
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader
  nvcc --version | tail -2 | head -1
}

decode() {
  "$bin/decode_layout" check
  "$bin/decode_layout" time "${1:-}" >"$out/decode.csv"
  head -2 "$out/decode.csv"
}

header=kind,parent,trial,kill_to_pidfd_us,clock_us,first_scan_us,last_write_us,last_change_us
header=$header,changed_words,scans_changed,scans,hang_up_us,listed_alive,unlisted_us,stall_us

# FILE TRIALS KIND…: a kind that ends badly leaves a comment, and the rest run.
trials() {
  local file=$out/$1 count=$2 kind
  shift 2
  [ -s "$file" ] || echo "$header" >"$file"
  for kind in "$@"; do
    # shellcheck disable=SC2086  # "50ms busy" is two words
    timeout 90 "$bin/killed_writer" ${kind%% *} "$count" ${kind#"${kind%% *}"} >>"$file" ||
      echo "# $kind: exit $?" >>"$file"
  done
}

killed() {
  rm -f "$out/killed.csv"
  trials killed.csv "${1:-8}" short 50ms 2000ms 20000ms graph500 dtod htod stopped
  trials killed.csv "${2:-4}" 'short busy' '50ms busy' '2000ms busy' 'htod busy'
  trials killed.csv 3 forked forkedlast execed
}

# The same under MPS, where both processes run at once. Starts a daemon of its own, in a folder of
# its own, and stops it again; the GPU's settings are not touched. Each trial is a process of its own,
# because a fault ends the parent.
mps() {
  export CUDA_MPS_PIPE_DIRECTORY=$out/mps CUDA_MPS_LOG_DIRECTORY=$out/mps
  mkdir -p "$out/mps"
  rm -f "$out/killed-mps.csv"
  timeout 20 nvidia-cuda-mps-control -d
  for _ in 1 2 3 4; do
    trials killed-mps.csv 1 short 1ms 2ms 5ms 10ms 20ms 50ms graph8 graph40 graph80 dtod htod
  done
  timeout 20 nvidia-cuda-mps-control <<<quit || true
  cp "$out"/mps/*.log "$out" 2>/dev/null || true
  rm -rf "$out/mps"
}

case ${1:-all} in
  build | decode | killed | mps) "$@" ;;
  all) build; decode; killed ;;
  *) sed -n 2,4p "$0"; exit 2 ;;
esac
