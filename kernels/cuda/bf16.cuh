// bfloat16 without a toolkit's headers, so that run-time compilation needs no include path.
#pragma once
#include "ptx.cuh"

struct bf16 {
  unsigned short bits;
};

__device__ __forceinline__ float to_float(bf16 x) {
  return __uint_as_float(unsigned(x.bits) << 16);
}

/// Round to nearest even; NaN stays NaN.
__device__ __forceinline__ bf16 to_bf16(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

/// Sum over a warp, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}

/// Whether rows of `width` elements that lie one after the other at each of these addresses can be
/// taken eight elements at a time: 16 bytes of bf16, twice 16 bytes of f32.
template <class... Pointers>
__device__ __forceinline__ bool in_eights(unsigned width, Pointers... at) {
  return width % 8 == 0 && ((size_t(at) | ...) % 16) == 0;
}

/// Eight bf16 as one access moves them; `at` is on 16 bytes.
__device__ __forceinline__ uint4 load_eight(const bf16* at) {
  return *reinterpret_cast<const uint4*>(at);
}

__device__ __forceinline__ void store_eight(bf16* at, uint4 values) {
  *reinterpret_cast<uint4*>(at) = values;
}

__device__ __forceinline__ void load_eight(float (&to)[8], const float* at) {
  const float4 low = reinterpret_cast<const float4*>(at)[0];
  const float4 high = reinterpret_cast<const float4*>(at)[1];
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

__device__ __forceinline__ void widen(float (&to)[8], uint4 from) {
  const unsigned pairs[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(pairs[i] << 16);
    to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
}

/// Rounded as `to_bf16` does.
__device__ __forceinline__ uint4 narrow(const float (&from)[8]) {
  return {ptx::pack_bf16(from[0], from[1]), ptx::pack_bf16(from[2], from[3]),
          ptx::pack_bf16(from[4], from[5]), ptx::pack_bf16(from[6], from[7])};
}
