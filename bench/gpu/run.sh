#!/usr/bin/env bash
# Builds and runs the two measurements of this folder on the first GPU.
#   bench/gpu/run.sh build | decode [FILTER] | killed | mps | all      results go to $OUT (default: target/gpu-bench)
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
  head -1 "$out/decode.csv"
}

header=kind,parent,trial,kill_to_pidfd_us,clock_us,first_scan_us,last_write_us,last_change_us
header=$header,changed_words,scans_changed,scans

killed() {
  local file=$out/${1:-killed.csv} trials=${2:-10}
  echo "$header" >"$file"
  for kind in short 50ms 2s 20s graph dtod htod; do
    timeout 90 "$bin/killed_writer" $kind "$trials" >>"$file" || echo "# $kind: exit $?" >>"$file"
  done
  for kind in short 50ms 2s htod; do
    timeout 60 "$bin/killed_writer" $kind $((trials / 2)) busy >>"$file" ||
      echo "# $kind busy: exit $?" >>"$file"
  done
  timeout 60 "$bin/killed_writer" forked 3 >>"$file" || echo "# forked: exit $?" >>"$file"
}

# The same under MPS, where both processes run at once. Starts a daemon of its own, in a folder of its
# own, and stops it again; the GPU's settings are not touched.
mps() {
  export CUDA_MPS_PIPE_DIRECTORY=$out/mps CUDA_MPS_LOG_DIRECTORY=$out/mps
  mkdir -p "$out/mps"
  timeout 20 nvidia-cuda-mps-control -d
  killed killed-mps.csv 6
  timeout 20 nvidia-cuda-mps-control <<<quit || true
  cp "$out"/mps/*.log "$out" 2>/dev/null || true
  rm -rf "$out/mps"
}

case ${1:-all} in
  build | decode | killed | mps) "$@" ;;
  all) build; decode; killed ;;
  *) sed -n 2,3p "$0"; exit 2 ;;
esac
