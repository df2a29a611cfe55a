// The process that gets killed: it maps its parent's device memory by CUDA IPC and writes into it
// without end, in one of several ways. Speaks over stdin (the handle) and stdout (one byte, ready).
#pragma once
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <string>

#include "pool.cuh"

constexpr size_t kRegionBytes = size_t(256) << 20;
constexpr size_t kRegionWords = kRegionBytes / 8;
constexpr unsigned kForkedChildSeconds = 4;

__device__ inline uint64_t device_time() {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

/// Writes the time of writing into every word of the region, over and over, for `duration` ns.
__global__ void write_times(volatile uint64_t* region, uint64_t duration) {
  const uint64_t end = device_time() + duration;
  const size_t step = size_t(gridDim.x) * blockDim.x;
  do {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < kRegionWords; i += step) {
      region[i] = device_time();
    }
  } while (device_time() < end);
}

__global__ void fill_words(uint64_t* region, uint64_t value) {
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < kRegionWords; i += step) {
    region[i] = value;
  }
}

inline void say_ready() {
  if (write(STDOUT_FILENO, "r", 1) != 1) _exit(3);
}

inline void write_kernels(uint64_t* region, uint64_t duration, cudaStream_t stream) {
  for (bool first = true;; first = false) {
    write_times<<<264, 256, 0, stream>>>(region, duration);
    CHECK(cudaGetLastError());
    if (first) say_ready();
  }
}

inline void write_graphs(uint64_t* region, cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < 500; ++i) write_times<<<264, 256, 0, stream>>>(region, 20'000);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  for (bool first = true;; first = false) {
    CHECK(cudaGraphLaunch(executable, stream));
    if (first) say_ready();
  }
}

inline void write_copies(uint64_t* region, bool from_host, cudaStream_t stream) {
  uint64_t* source[2];
  for (int i = 0; i < 2; ++i) {
    if (from_host) {
      CHECK(cudaMallocHost(&source[i], kRegionBytes));
      memset(source[i], 0x11 * (i + 1), kRegionBytes);
    } else {
      CHECK(cudaMalloc(&source[i], kRegionBytes));
      fill_words<<<264, 256, 0, stream>>>(source[i], i + 1);
    }
  }
  CHECK(cudaDeviceSynchronize());
  for (int i = 0;; i ^= 1) {
    CHECK(cudaMemcpyAsync(region, source[i], kRegionBytes,
                          from_host ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice, stream));
    if (i == 1) say_ready();
  }
}

/// Never returns; killed by the parent, or by the kernel if the parent dies.
[[noreturn]] inline void be_writer(const std::string& kind) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  cudaIpcMemHandle_t handle;
  if (read(STDIN_FILENO, &handle, sizeof handle) != ssize_t(sizeof handle)) _exit(3);
  void* mapped = nullptr;
  CHECK(cudaIpcOpenMemHandle(&mapped, handle, cudaIpcMemLazyEnablePeerAccess));
  uint64_t* region = static_cast<uint64_t*>(mapped);
  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  // A child that holds the driver's files open, as a careless daemon would leave one.
  if (kind == "forked" && fork() == 0) {
    close(STDOUT_FILENO);
    sleep(kForkedChildSeconds);
    _exit(0);
  }
  if (kind == "short") write_kernels(region, 20'000, stream);
  if (kind == "50ms" || kind == "forked") write_kernels(region, 50'000'000, stream);
  if (kind == "2s") write_kernels(region, 2'000'000'000, stream);
  if (kind == "20s") write_kernels(region, 20'000'000'000, stream);
  if (kind == "graph") write_graphs(region, stream);
  if (kind == "dtod" || kind == "htod") write_copies(region, kind == "htod", stream);
  fprintf(stderr, "unknown kind %s\n", kind.c_str());
  _exit(2);
}
