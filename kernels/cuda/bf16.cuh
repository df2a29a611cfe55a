// bfloat16 without a toolkit's headers, so that run-time compilation needs no include path.
#pragma once

struct bf16 {
  unsigned short bits;
};

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

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

/// Sum over a block of whole warps, in every thread; `partials` has a place a warp.
__device__ __forceinline__ float block_sum(float x, float* partials) {
  x = warp_sum(x);
  const unsigned warps = blockDim.x / 32;
  if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < warps; ++warp) sum += partials[warp];
  __syncthreads();
  return sum;
}
