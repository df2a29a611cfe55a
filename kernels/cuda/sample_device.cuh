// The instructions that the sampler is made of, and sums over a block.
#pragma once
#include "ptx.cuh"
#include "sample_types.cuh"

#ifndef SAMPLE_THREADS
#error "SAMPLE_THREADS: threads of a block, a power of two from 64 to 1024"
#endif

namespace sampling {

using ptx::let_next_kernel_start;
using ptx::wait_for_previous_kernel;
using u64 = unsigned long long;

constexpr unsigned kThreads = SAMPLE_THREADS;
constexpr unsigned kWarps = kThreads / 32;
constexpr unsigned kRanksMax = 16;
constexpr float kMax = 3.402823466e38f;
constexpr float kTiny = 1.17549435e-38f;
constexpr float kLog2e = 1.44269504f;
constexpr unsigned kAll = 0xffffffffu;

#define SAMPLE_CLUSTERS (__CUDA_ARCH__ >= 900)

__device__ __forceinline__ float negative_infinity() { return __uint_as_float(0xff800000u); }

__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ uint4 sample_memory[];
  return reinterpret_cast<char*>(sample_memory);
}

/// Read once: not worth a place in L1.
__device__ __forceinline__ uint4 load_once(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

__device__ __forceinline__ uint2 load_once(const uint2* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
               : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

__device__ __forceinline__ unsigned cluster_ranks() {
  unsigned n = 1;
#if SAMPLE_CLUSTERS
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
#endif
  return n;
}

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned n = 0;
#if SAMPLE_CLUSTERS
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(n));
#endif
  return n;
}

/// The same variable in the shared memory of the block `rank` of the cluster.
template <class T>
__device__ __forceinline__ T* of_rank(T* own, unsigned rank) {
#if SAMPLE_CLUSTERS
  u64 there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<u64>(own)), "r"(rank));
  return reinterpret_cast<T*>(there);
#else
  return own;
#endif
}

/// What this thread wrote before is seen by those who waited. A thread may end after it.
__device__ __forceinline__ void cluster_arrive() {
#if SAMPLE_CLUSTERS
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if SAMPLE_CLUSTERS
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

__device__ __forceinline__ unsigned lane() { return threadIdx.x % 32; }
__device__ __forceinline__ unsigned warp() { return threadIdx.x / 32; }

/// NaN is the least, infinities are finite, zero has one sign.
__device__ __forceinline__ float clean(float x) { return fminf(fmaxf(x, -kMax), kMax) + 0.f; }

/// Orders like (x, lower id first); never 0.
__device__ __forceinline__ u64 key_of(float x, unsigned id) {
  const unsigned bits = __float_as_uint(x);
  const unsigned ordered = bits ^ (bits >> 31 ? kAll : 0x80000000u);
  return u64(ordered) << 32 | ~id;
}
__device__ __forceinline__ unsigned id_of(u64 key) { return ~unsigned(key); }
__device__ __forceinline__ float value_of(u64 key) {
  const unsigned ordered = unsigned(key >> 32);
  return __uint_as_float(ordered ^ (ordered >> 31 ? 0x80000000u : kAll));
}

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const { return a + b; }
};
struct Most {
  template <class T>
  __device__ T operator()(T a, T b) const { return a < b ? b : a; }
};
struct Least {
  template <class T>
  __device__ T operator()(T a, T b) const { return b < a ? b : a; }
};

template <unsigned kLanes = 32, class T, class Op>
__device__ __forceinline__ T reduce_warp(T x, Op op) {
#pragma unroll
  for (unsigned offset = kLanes / 2; offset; offset /= 2) {
    x = op(x, __shfl_xor_sync(kAll, x, offset));
  }
  return x;
}

/// A float in [0, 1] and finer parts of its bits by radix: how many, and what they are above the
/// least of their bin, in units that let a whole vocabulary's sum fit 32 bits.
struct Bins {
  unsigned counts[1024];
  unsigned rests[1024];
};

/// Where a filter's border lies at one level of the radix search.
struct alignas(16) Border {
  double mass_above;
  unsigned count_above;
  unsigned bin, count;  // the bin that it lies in, and how many are there
  unsigned crossed;     // 0: all together do not reach the goal
};

constexpr unsigned kListMax = 1024;

struct alignas(16) Shared {
  union {
    Bins bins;
    u64 list[kListMax];
    float chunk_sums[2 * kListMax];
  };
  union {  // written by all blocks, in the first one's memory
    Bins merged;
    u64 gathered[kListMax];
    u64 tops[kRanksMax][kTopMax];
  };
  uint4 slots[2][kRanksMax];  // one of each block of the cluster
  u64 scratch[2][32];         // one of each warp
  u64 best[kTopMax];
  SampleRow row;
  float groups[64];
  Border border;
  double before;
  float max, log_sum;  // of the row's logits as they came
  unsigned list_len, gathered_len, at, found, bound;
};
static_assert(sizeof(Shared) <= kSampleSharedBytes, "the slice follows there");

/// This thread's view of its block and cluster. Every method is called by the whole block, those
/// that say so by the whole cluster.
struct Block {
  Shared& shared;
  const unsigned rank, ranks;
  unsigned scratch_turn = 0, slots_turn = 0;

  __device__ Block(Shared& shared) : shared(shared), rank(cluster_rank()), ranks(cluster_ranks()) {}

  template <class T>
  __device__ T* next_scratch() {
    static_assert(sizeof(T) <= 8, "a scratch word");
    return reinterpret_cast<T*>(shared.scratch[scratch_turn ^= 1]);
  }

  /// Also a barrier. Two buffers take turns, so that one barrier is enough.
  template <class T, class Op>
  __device__ T reduce(T x, T identity, Op op) {
    T* const words = next_scratch<T>();
    x = reduce_warp(x, op);
    if (lane() == 0) words[warp()] = x;
    __syncthreads();
    return reduce_warp(lane() < kWarps ? words[lane()] : identity, op);
  }

  /// The sum of all threads before this one.
  __device__ double sum_before(double x) {
    double* const words = next_scratch<double>();
    double upto = x;
#pragma unroll
    for (unsigned offset = 1; offset < 32; offset *= 2) {
      const double lower = __shfl_up_sync(kAll, upto, offset);
      if (lane() >= offset) upto += lower;
    }
    if (lane() == 31) words[warp()] = upto;
    __syncthreads();
    double before = 0;
    for (unsigned w = 0; w < warp(); ++w) before += words[w];
    return before + (upto - x);
  }

  /// Each block's `mine`, by rank. Called by the cluster, and a barrier of it.
  template <class T>
  __device__ const T* exchange(const T& mine) {
    static_assert(sizeof(T) == sizeof(uint4), "a slot");
    uint4* const slots = shared.slots[slots_turn ^= 1];
    if (threadIdx.x < ranks) *of_rank(reinterpret_cast<T*>(slots) + rank, threadIdx.x) = mine;
    cluster_sync();
    return reinterpret_cast<const T*>(slots);
  }
};

/// Sorts the `n` keys at `a`, at most kListMax (there is room to the next power of two).
__device__ inline void sort_descending(u64* a, unsigned n) {
  unsigned size = 2;
  while (size < n) size *= 2;
  const unsigned workers = size <= 64 ? 32 : kThreads;  // one warp needs no barriers of the block
  for (unsigned i = n + threadIdx.x; i < size; i += kThreads) a[i] = 0;
  __syncthreads();
  if (threadIdx.x < workers) {
    for (unsigned run = 2; run <= size; run *= 2) {
      for (unsigned step = run / 2; step; step /= 2) {
        for (unsigned pair = threadIdx.x; pair < size / 2; pair += workers) {
          const unsigned i = 2 * pair - (pair & (step - 1)), j = i + step;
          const u64 x = a[i], y = a[j];
          if ((x < y) == ((i & run) == 0)) a[i] = y, a[j] = x;
        }
        if (workers == 32) __syncwarp();
        else __syncthreads();
      }
    }
  }
  __syncthreads();
}

}  // namespace sampling
