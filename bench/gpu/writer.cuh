// The process that gets killed: it maps its parent's device memory by CUDA IPC and writes into it
// without end, in one of several ways. Speaks over stdin (the handle) and stdout (one byte, ready).
#pragma once
#include <ctype.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <string>

extern char** environ;

#include "pool.cuh"

constexpr size_t kRegionBytes = size_t(256) << 20;
constexpr size_t kRegionWords = kRegionBytes / 8;
constexpr unsigned kChildSeconds = 4;

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

inline int ready_fd = STDOUT_FILENO;

inline void say_ready() {
  if (write(ready_fd, "r", 1) != 1) _exit(3);
}

inline void write_kernels(uint64_t* region, uint64_t duration, cudaStream_t stream) {
  for (bool first = true;; first = false) {
    write_times<<<264, 256, 0, stream>>>(region, duration);
    CHECK(cudaGetLastError());
    if (first) say_ready();
  }
}

/// Graphs of `kernels` kernels, each one pass over the region (about 0.13 ms).
inline void write_graphs(uint64_t* region, int kernels, cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kernels; ++i) write_times<<<264, 256, 0, stream>>>(region, 0);
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

/// A child that outlives the writer, as a careless daemon would leave one. `forked` shares every
/// file that is open, `execed` those without close-on-exec. `forkedlast`: the pipe has the highest
/// number of all files, so that it is not the first that a dying process closes.
inline void leave_child(const std::string& kind) {
  if (kind == "forkedlast") {
    ready_fd = dup2(STDOUT_FILENO, 900);
    close(STDOUT_FILENO);
  }
  if (kind.rfind("forked", 0) == 0 && fork() == 0) {
    sleep(kChildSeconds);
    _exit(0);
  }
  if (kind == "execed") {
    fcntl(STDOUT_FILENO, F_SETFD, FD_CLOEXEC);
    const std::string seconds = std::to_string(kChildSeconds);
    const char* arguments[] = {"sleep", seconds.c_str(), nullptr};
    pid_t pid;
    if (posix_spawnp(&pid, "sleep", nullptr, nullptr, const_cast<char**>(arguments), environ)) {
      _exit(3);
    }
  }
}

/// Milliseconds a kernel: "50ms" has 50; one pass where the kind names none.
inline uint64_t kernel_ns(const std::string& kind) {
  if (kind == "short") return 0;
  return isdigit(kind[0]) ? strtoull(kind.c_str(), nullptr, 10) * 1'000'000 : 50'000'000;
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
  leave_child(kind);
  if (kind == "dtod" || kind == "htod") write_copies(region, kind == "htod", stream);
  if (kind.rfind("graph", 0) == 0) write_graphs(region, atoi(kind.c_str() + 5), stream);
  write_kernels(region, kernel_ns(kind), stream);
  _exit(2);
}
