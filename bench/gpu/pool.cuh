// The pool under test: random contents, poisoned tails, a plain reference, and the L2 flush.
#pragma once
#include <cuda_bf16.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "harness.cuh"
#include "layout.h"

/// Nearly normal, variance 1: the sum of four random bytes.
__device__ inline float random_value(uint64_t index, uint32_t seed) {
  const uint32_t r = mix(index * 2654435761ull + (uint64_t(seed) << 40) + 1);
  const int sum = int(r & 255) + int((r >> 8) & 255) + int((r >> 16) & 255) + int(r >> 24);
  return (sum - 510) * (1.f / 147.8f);
}

__global__ void fill_random(__nv_bfloat162* out, int64_t pairs, uint32_t seed) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < pairs; i += step) {
    out[i] = __floats2bfloat162_rn(random_value(2 * i, seed), random_value(2 * i + 1, seed));
  }
}

__global__ void fill_bits(uint16_t* out, int64_t count, uint16_t bits) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += step) {
    out[i] = bits;
  }
}

struct View {
  __nv_bfloat16* pool;
  const int* page_table;
  const int* lengths;
  int table_stride, kv_heads, group;
  int layer_chunk, page_stride, kv_stride, head_stride;

  __device__ __nv_bfloat16* token(int request, int head, int kv, int t) const {
    const int page = page_table[request * table_stride + t / kPageTokens];
    const int64_t chunk = int64_t(layer_chunk) + int64_t(page) * page_stride + kv * kv_stride +
                          head * head_stride;
    return pool + chunk * kChunkElements + (t % kPageTokens) * kHeadDim;
  }
};

/// NaN into every token past the end of a request in its last page. Grid (request, kv head).
__global__ void poison_tails(View v) {
  const int length = v.lengths[blockIdx.x];
  const int end = (length + kPageTokens - 1) / kPageTokens * kPageTokens;
  for (int t = length; t < end; ++t) {
    for (int kv = 0; kv < 2; ++kv) {
      uint16_t* at = reinterpret_cast<uint16_t*>(v.token(blockIdx.x, blockIdx.y, kv, t));
      at[threadIdx.x] = 0x7fff;
    }
  }
}

/// Attention as the maths has it, f32, one block of 128 threads a (request, q head); scores in
/// `scratch` [request][q head][table_stride × 16].
__global__ void reference_attention(View v, const __nv_bfloat16* query, float* scratch, float* out,
                                    float scale) {
  const int request = blockIdx.x, q_head = blockIdx.y, head = q_head / v.group;
  const int length = v.lengths[request], lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t row = int64_t(request) * gridDim.y + q_head;
  float* scores = scratch + row * v.table_stride * kPageTokens;
  __shared__ float top[4], total[4];
  float maximum = -INFINITY;
  for (int t = warp; t < length; t += 4) {
    const __nv_bfloat16* key = v.token(request, head, 0, t);
    float dot = 0.f;
    for (int d = lane; d < kHeadDim; d += 32) {
      dot += __bfloat162float(key[d]) * __bfloat162float(query[row * kHeadDim + d]);
    }
    for (int lanes = 16; lanes; lanes /= 2) dot += __shfl_xor_sync(~0u, dot, lanes);
    if (lane == 0) scores[t] = dot * scale;
    maximum = fmaxf(maximum, dot * scale);
  }
  if (lane == 0) top[warp] = maximum;
  __syncthreads();
  maximum = fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
  float sum = 0.f;
  for (int t = threadIdx.x; t < length; t += blockDim.x) {
    scores[t] = expf(scores[t] - maximum);
    sum += scores[t];
  }
  for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (lane == 0) total[warp] = sum;
  __syncthreads();
  sum = total[0] + total[1] + total[2] + total[3];
  float value = 0.f;
  for (int t = 0; t < length; ++t) {
    value += scores[t] * __bfloat162float(v.token(request, head, 1, t)[threadIdx.x]);
  }
  out[row * kHeadDim + threadIdx.x] = value / sum;
}

/// sums[0] += Σ (got − want)², sums[1] += Σ want².
__global__ void compare(const __nv_bfloat16* got, const float* want, int64_t count, double* sums) {
  double error = 0, norm = 0;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += step) {
    const double difference = double(__bfloat162float(got[i])) - want[i];
    error += difference * difference;
    norm += double(want[i]) * want[i];
  }
  atomicAdd(sums, error);
  atomicAdd(sums + 1, norm);
}

__global__ void nothing() {}

/// Reads `count` int4; used to flush L2 with clean lines and to measure the read ceiling.
__global__ void read_all(const int4* from, int64_t count, int* sink) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  int sum = 0;
  for (; i + 3 * step < count; i += 4 * step) {
    int4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = __ldcs(from + i + j * step);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345678) *sink = sum;
}
