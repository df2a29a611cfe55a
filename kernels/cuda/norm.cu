// out = x / rms(x) * gain. One block a row, of whole warps and at most 512 threads.
//
// A thread holds its part of a row in registers from the sum to the product; gains are weights, so
// they are fetched while the kernel before still runs.
#include "bf16.cuh"

constexpr unsigned kHeld = 2;  // pieces of 8 a thread: 8,192 elements a block of 512

/// Sum over the block, in every thread. Once a kernel: nothing guards `partials` for a second sum.
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float partials[16];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += partials[warp];
  return sum;
}

__device__ __forceinline__ float sum_of_squares(uint4 piece) {
  float values[8], sum = 0;
  widen(values, piece);
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += values[i] * values[i];
  return sum;
}

__device__ __forceinline__ uint4 scaled(uint4 piece, float scale, const float (&gain)[8]) {
  float values[8];
  widen(values, piece);
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = values[i] * scale * gain[i];
  return narrow(values);
}

__device__ __forceinline__ void norm_eights(const bf16* x, const float* gain, bf16* out,
                                            unsigned width, float eps) {
  const unsigned first = 8 * threadIdx.x, stride = 8 * blockDim.x, rest = first + kHeld * stride;
  float gains[kHeld][8] = {};
  uint4 pieces[kHeld] = {};
#pragma unroll
  for (unsigned j = 0; j < kHeld; ++j) {
    if (first + j * stride < width) load_eight(gains[j], gain + first + j * stride);
  }
  ptx::wait_for_previous_kernel();
#pragma unroll
  for (unsigned j = 0; j < kHeld; ++j) {
    if (first + j * stride < width) pieces[j] = load_eight(x + first + j * stride);
  }
  float squares = 0;
#pragma unroll
  for (unsigned j = 0; j < kHeld; ++j) squares += sum_of_squares(pieces[j]);
  for (unsigned i = rest; i < width; i += stride) squares += sum_of_squares(load_eight(x + i));
  const float scale = rsqrtf(block_sum(squares) / width + eps);
#pragma unroll
  for (unsigned j = 0; j < kHeld; ++j) {
    const unsigned i = first + j * stride;
    if (i < width) store_eight(out + i, scaled(pieces[j], scale, gains[j]));
  }
  for (unsigned i = rest; i < width; i += stride) {
    float gains_here[8];
    load_eight(gains_here, gain + i);
    store_eight(out + i, scaled(load_eight(x + i), scale, gains_here));
  }
}

/// For rows that do not begin on 16 bytes.
__device__ __forceinline__ void norm_singly(const bf16* x, const float* gain, bf16* out,
                                            unsigned width, float eps) {
  ptx::wait_for_previous_kernel();
  float squares = 0;
  for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
    squares += to_float(x[i]) * to_float(x[i]);
  }
  const float scale = rsqrtf(block_sum(squares) / width + eps);
  for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
    out[i] = to_bf16(to_float(x[i]) * scale * gain[i]);
  }
}

extern "C" __global__ void __launch_bounds__(512)
    rms_norm(const bf16* x, const float* gain, bf16* out, unsigned width, float eps) {
  ptx::let_next_kernel_start();
  x += size_t(blockIdx.x) * width;
  out += size_t(blockIdx.x) * width;
  if (in_eights(width, x, gain, out)) {
    norm_eights(x, gain, out, width, eps);
  } else {
    norm_singly(x, gain, out, width, eps);
  }
}
