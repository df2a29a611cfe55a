// What projections use beside ptx.cuh: numbers, copies that may be left out, clusters.
#pragma once
#include "ptx.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define PROJECT_HOPPER 0
#else
#define PROJECT_HOPPER 1
#endif

namespace project {

using ptx::commit_copies;
using ptx::copy_16;
using ptx::let_next_kernel_start;
using ptx::named_barrier;
using ptx::shared_address;
using ptx::wait_copies;
using ptx::wait_for_previous_kernel;

/// The bits of a bfloat16.
using Half = unsigned short;

struct alignas(16) Piece {  // 16 bytes: 8 elements
  unsigned x, y, z, w;
};
struct alignas(16) Sums {
  float x, y, z, w;
};

__device__ __forceinline__ float to_float(Half x) { return __uint_as_float(unsigned(x) << 16); }
__device__ __forceinline__ float low(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

/// Round to nearest even.
__device__ __forceinline__ Half to_half(float x) {
  Half y;
  asm("{\n.reg .b32 pair;\ncvt.rn.bf16x2.f32 pair, %1, %1;\ncvt.u16.u32 %0, pair;\n}"
      : "=h"(y) : "f"(x));
  return y;
}

/// Eight elements, rounded.
__device__ __forceinline__ Piece to_piece(const Sums* from) {
  const Sums a = from[0], b = from[1];
  return {ptx::pack_bf16(a.x, a.y), ptx::pack_bf16(a.z, a.w), ptx::pack_bf16(b.x, b.y),
          ptx::pack_bf16(b.z, b.w)};
}

/// Products of pairs, each rounded once.
__device__ __forceinline__ unsigned multiply(unsigned a, unsigned b) {
  unsigned y;
  const unsigned minus_zero = 0x80008000u;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(minus_zero));
  return y;
}

/// c[16×8] += a[16×16] · b[16×8], bf16 in, f32 out.
__device__ __forceinline__ void mma(Sums& c, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                    unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Zeros where not `wanted`; `source` must be an address of its array all the same.
__device__ __forceinline__ void copy_16_if(unsigned target, const void* source, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(wanted ? 16 : 0) : "memory");
}

__device__ __forceinline__ void prefetch_line(const void* source) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(source));
}

/// Starts to fetch `bytes`, a multiple of 16, into L2.
__device__ __forceinline__ void prefetch_run(const unsigned char* source, unsigned bytes) {
#if PROJECT_HOPPER
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(bytes) : "memory");
#else
  for (unsigned i = 0; i < bytes; i += 128) prefetch_line(source + i);
#endif
}

// Clusters: sm_90 and later.

__device__ __forceinline__ void cluster_arrive() {
#if PROJECT_HOPPER
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if PROJECT_HOPPER
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/// What `local` is in the shared memory of the cluster's block `rank`.
__device__ __forceinline__ unsigned remote_address(unsigned local, unsigned rank) {
  unsigned remote = local;
#if PROJECT_HOPPER
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
#endif
  return remote;
}

__device__ __forceinline__ void store_remote(unsigned address, const Sums& c) {
#if PROJECT_HOPPER
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address), "f"(c.x), "f"(c.y),
               "f"(c.z), "f"(c.w) : "memory");
#endif
}

__device__ __forceinline__ void store_remote(unsigned address, float x) {
#if PROJECT_HOPPER
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(x) : "memory");
#endif
}

}  // namespace project
