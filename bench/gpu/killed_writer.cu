// Have the GPU writes of a killed process ended when its pidfd fires?
//
//   killed_writer KIND TRIALS [busy]
//
// KIND  short (kernels of 0.13 ms), <n>ms (kernels of n ms), graph<n> (graphs of n short kernels),
//       dtod, htod (copies of 256 MiB), stopped, forked, forkedlast, execed (kernels of 50 ms).
//
// 1. The parent exports 256 MiB by CUDA IPC, starts a writer (writer.cuh), opens its pidfd.
// 2. It sees the region change, then kills the writer at a random moment, mid-kernel, queue full.
// 3. When the pidfd polls readable it scans the region: again and again for 30 ms, then every few
//    ms with the GPU idle between, so that whatever is left of the writer gets the GPU. A word that
//    differs from the scan before was written after the pidfd fired.
// 4. Kernels write the GPU's clock, so the newest word also dates the last write; that clock is
//    tied to the host's to within `clock_us` before each trial.
// 5. Two other signs of death are watched beside the pidfd: the end of a pipe that the writer
//    holds, and the writer's pid in NVML's list of compute processes.
//
// `stopped`: SIGSTOP 5 ms before SIGKILL. `forked`, `execed`: the writer leaves a child behind,
// which sleeps 4 s (writer.cuh). `busy`: a second thread of the parent keeps the GPU busy with
// kernels of about 1 ms throughout, so the writer is often switched out when it is killed;
// `stall_us` is the longest of them after the kill.
#include <dlfcn.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "writer.cuh"

int64_t host_time() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

void sleep_us(long us) {
  const timespec t{us / 1'000'000, us % 1'000'000 * 1000};
  nanosleep(&t, nullptr);
}

struct Scan {
  unsigned long long changed;  // words that differ from the scan before
  unsigned long long newest;   // largest word: device time of the last write, for kernel writers
  unsigned long long start;    // device time at which the scan began
};

/// Compares the region with `seen` and makes `seen` equal to it.
__global__ void scan_region(const volatile uint64_t* region, uint64_t* seen, Scan* scan) {
  if (blockIdx.x == 0 && threadIdx.x == 0) scan->start = device_time();
  unsigned long long changed = 0, newest = 0;
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < kRegionWords; i += step) {
    const uint64_t word = region[i];
    changed += word != seen[i];
    newest = newest > word ? newest : word;
    seen[i] = word;
  }
  atomicAdd(&scan->changed, changed);
  atomicMax(&scan->newest, newest);
}

__global__ void read_clock(uint64_t* out) { *out = device_time(); }

__global__ void burn(uint64_t duration) {
  const uint64_t end = device_time() + duration;
  while (device_time() < end) {
  }
}

/// device time − host time, known to ± half the width.
struct Clock {
  int64_t offset, width;
};

Clock tie_clocks(uint64_t* pinned, cudaStream_t stream) {
  int64_t low = INT64_MIN, high = INT64_MAX;
  for (int i = 0; i < 300; ++i) {
    const int64_t before = host_time();
    read_clock<<<1, 1, 0, stream>>>(pinned);
    CHECK(cudaStreamSynchronize(stream));
    const int64_t after = host_time(), device = int64_t(*pinned);
    low = std::max(low, device - after), high = std::min(high, device - before);
  }
  return {low + (high - low) / 2, high - low};
}

/// NVML's list of processes with a compute context on the first GPU.
struct Processes {
  struct Entry {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
  };
  int (*list)(void*, unsigned*, Entry*) = nullptr;
  void* device = nullptr;

  Processes() {
    void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!library) return;
    auto init = reinterpret_cast<int (*)()>(dlsym(library, "nvmlInit_v2"));
    auto get = reinterpret_cast<int (*)(unsigned, void**)>(
        dlsym(library, "nvmlDeviceGetHandleByIndex_v2"));
    if (!init || !get || init() || get(0, &device)) return;
    list = reinterpret_cast<int (*)(void*, unsigned*, Entry*)>(
        dlsym(library, "nvmlDeviceGetComputeRunningProcesses_v3"));
  }
  /// -1 where NVML cannot say.
  int lists(pid_t pid) const {
    Entry entries[64];
    unsigned count = 64;
    if (!list || list(device, &count, entries)) return -1;
    for (unsigned i = 0; i < count; ++i) {
      if (entries[i].pid == unsigned(pid)) return 1;
    }
    return 0;
  }
};

struct Parent {
  uint64_t *region, *seen, *pinned;
  Scan* scan;  // pinned
  Scan* device_scan;
  cudaStream_t stream, busy_stream;
  cudaIpcMemHandle_t handle;
  std::mt19937 random{1124};
  Processes processes;
  std::atomic<int64_t> longest_burn{0};

  Parent() {
    CHECK(cudaMalloc(&region, kRegionBytes));
    CHECK(cudaMalloc(&seen, kRegionBytes));
    CHECK(cudaMallocHost(&pinned, 8));
    CHECK(cudaMallocHost(&scan, sizeof(Scan)));
    CHECK(cudaMalloc(&device_scan, sizeof(Scan)));
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&busy_stream, cudaStreamNonBlocking));
    CHECK(cudaIpcGetMemHandle(&handle, region));
  }
  Scan look() {
    CHECK(cudaMemsetAsync(device_scan, 0, sizeof(Scan), stream));
    scan_region<<<528, 256, 0, stream>>>(region, seen, device_scan);
    CHECK(cudaMemcpyAsync(scan, device_scan, sizeof(Scan), cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    return *scan;
  }
};

struct Writer {
  pid_t pid = -1;
  int pidfd = -1, from = -1;

  Writer(const char* self, const std::string& kind, const cudaIpcMemHandle_t& handle) {
    int in[2], out[2];
    if (pipe(in) || pipe(out)) perror("pipe"), exit(1);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    for (int fd : {in[0], in[1], out[0], out[1]}) posix_spawn_file_actions_addclose(&actions, fd);
    const char* arguments[] = {self, "--writer", kind.c_str(), nullptr};
    if (posix_spawn(&pid, "/proc/self/exe", &actions, nullptr,
                    const_cast<char**>(arguments), environ)) {
      perror("posix_spawn"), exit(1);
    }
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]), close(out[1]);
    from = out[0];
    pidfd = int(syscall(SYS_pidfd_open, pid, 0));
    if (pidfd < 0) perror("pidfd_open"), exit(1);
    if (write(in[1], &handle, sizeof handle) != ssize_t(sizeof handle)) perror("write"), exit(1);
    close(in[1]);
  }
  /// Nobody holds the other end of the pipe any more.
  bool hung_up() const {
    pollfd p{from, POLLIN, 0};
    return poll(&p, 1, 0) == 1 && (p.revents & POLLHUP);
  }
  void wait_ready() {
    pollfd p{from, POLLIN, 0};
    char byte;
    if (poll(&p, 1, 30'000) != 1 || read(from, &byte, 1) != 1) {
      fprintf(stderr, "the writer did not become ready\n"), exit(1);
    }
  }
  ~Writer() {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    close(pidfd), close(from);
  }
};

/// What was seen after the pidfd fired; times in µs after it.
struct Aftermath {
  double kill_to_pidfd = 0, clock = 0, first_scan = 0, stall = 0;
  double last_write = NAN, last_change = NAN, hang_up = NAN, unlisted = NAN;
  unsigned long long changed_words = 0;
  int scans = 0, scans_changed = 0, listed_alive = 0;
};

/// Scans for `watch_s` after the pidfd fired; the first scan only says what was there.
void watch(Parent& parent, const Writer& writer, const Clock& clock, int64_t fired, double watch_s,
           Aftermath& seen) {
  auto since = [&] { return (host_time() - fired) * 1e-3; };
  if (writer.hung_up()) seen.hang_up = since();
  Scan scan = parent.look();
  seen.first_scan = (int64_t(scan.start) - clock.offset - fired) * 1e-3;
  while (since() < watch_s * 1e6) {
    scan = parent.look();
    ++seen.scans;
    if (scan.changed) {
      ++seen.scans_changed;
      seen.changed_words += scan.changed;
      seen.last_change = since();
    }
    if (isnan(seen.hang_up) && writer.hung_up()) seen.hang_up = since();
    if (isnan(seen.unlisted) && parent.processes.lists(writer.pid) == 0) seen.unlisted = since();
    if (since() > 30'000) sleep_us(4'000);
  }
  seen.last_write = (int64_t(scan.newest) - clock.offset - fired) * 1e-3;
}

Aftermath trial(Parent& parent, const char* self, const std::string& kind, double watch_s) {
  CHECK(cudaMemset(parent.region, 0, kRegionBytes));
  CHECK(cudaDeviceSynchronize());
  const Clock clock = tie_clocks(parent.pinned, parent.stream);
  Writer writer(self, kind, parent.handle);
  writer.wait_ready();
  sleep_us(20'000 + parent.random() % 60'000);
  parent.look();
  sleep_us(5'000 + parent.random() % 10'000);
  if (parent.look().changed == 0) fprintf(stderr, "# the writer does not write\n"), exit(1);

  Aftermath seen;
  seen.listed_alive = parent.processes.lists(writer.pid);
  sleep_us(parent.random() % 8'000);
  if (kind == "stopped") {
    kill(writer.pid, SIGSTOP);
    sleep_us(5'000);
  }
  parent.longest_burn = 0;
  pollfd p{writer.pidfd, POLLIN, 0};
  const int64_t killed = host_time();
  kill(writer.pid, SIGKILL);
  if (poll(&p, 1, 60'000) != 1) fprintf(stderr, "# pidfd did not fire in 60 s\n"), exit(1);
  const int64_t fired = host_time();
  seen.kill_to_pidfd = (fired - killed) * 1e-3;
  seen.clock = clock.width * 0.5e-3;
  watch(parent, writer, clock, fired, watch_s, seen);
  seen.stall = parent.longest_burn * 1e-3;
  const bool dated = kind != "dtod" && kind != "htod";
  if (!dated) seen.last_write = NAN;
  return seen;
}

void keep_busy(Parent& parent, const std::atomic<bool>& stop) {
  while (!stop) {
    const int64_t before = host_time();
    burn<<<132, 128, 0, parent.busy_stream>>>(1'000'000);
    CHECK(cudaStreamSynchronize(parent.busy_stream));
    parent.longest_burn = std::max<int64_t>(parent.longest_burn, host_time() - before);
  }
}

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "--writer") be_writer(argv[2]);
  if (argc < 3) {
    fprintf(stderr, "usage: killed_writer KIND TRIALS [busy]\n");
    return 2;
  }
  const std::string kind = argv[1];
  const bool busy = argc > 3;
  Parent parent;
  std::atomic<bool> stop{!busy};
  std::thread load([&] { keep_busy(parent, stop); });
  const bool leaves_child = kind.rfind("forked", 0) == 0 || kind == "execed";
  const double watch_s = leaves_child ? kChildSeconds + 1.5 : 0.6;
  for (int i = 0; i < atoi(argv[2]); ++i) {
    const Aftermath a = trial(parent, argv[0], kind, watch_s);
    printf("%s,%s,%d,%.0f,%.1f,%.1f,%.1f,%.0f,%llu,%d,%d,%.1f,%d,%.0f,%.0f\n", kind.c_str(),
           busy ? "busy" : "idle", i, a.kill_to_pidfd, a.clock, a.first_scan, a.last_write,
           a.last_change, a.changed_words, a.scans_changed, a.scans, a.hang_up, a.listed_alive,
           a.unlisted, a.stall);
    fflush(stdout);
  }
  stop = true;
  load.join();
  return 0;
}
