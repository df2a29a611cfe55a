// What every harness needs: a check of each call, and numbers that look random.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

#define CHECK(call)                                                                   \
  do {                                                                                \
    cudaError_t status = (call);                                                      \
    if (status != cudaSuccess) {                                                      \
      fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #call,                    \
              cudaGetErrorString(status));                                            \
      exit(1);                                                                        \
    }                                                                                 \
  } while (0)

__host__ __device__ inline uint32_t mix(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9ull;
  return uint32_t(x >> 32);
}

/// What a stream captured while `enqueue` ran.
struct Recording {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  template <class F>
  Recording(cudaStream_t stream, F enqueue) {
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enqueue();
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
  }
  Recording(const Recording&) = delete;
  ~Recording() { cudaGraphExecDestroy(executable), cudaGraphDestroy(graph); }
  /// Median microseconds of `count` replays, after two.
  double replay(cudaStream_t stream, int count) const {
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    std::vector<double> times;
    for (int i = -2; i < count; ++i) {
      CHECK(cudaEventRecord(begin, stream));
      CHECK(cudaGraphLaunch(executable, stream));
      CHECK(cudaEventRecord(end, stream));
      CHECK(cudaStreamSynchronize(stream));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 0) times.push_back(ms * 1e3);
    }
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};
