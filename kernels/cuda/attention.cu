// Causal attention over pages, for any shape: the reference on the device, and what runs where no
// faster kernel takes the shape.
//
// One block a (token, query head). Its warps take every fourth key, each with an online softmax; a
// lane owns elements lane, lane + 32, … of the head. The warps' sums are merged in shared memory.
#include "bf16.cuh"

constexpr unsigned kWarps = 4, kPerLane = 8, kDimMax = 32 * kPerLane;

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    attention(const bf16* qkv, const unsigned* position, const unsigned* table_at,
              const unsigned* tables, const bf16* pool, size_t page_stride, size_t layer_at,
              bf16* out, float scale, unsigned heads, unsigned kv_heads, unsigned page_tokens,
              unsigned head_dim) {
  __shared__ float merged[kWarps][kDimMax], maxima[kWarps], sums[kWarps];
  const unsigned token = blockIdx.x, head = blockIdx.y, kv_head = head / (heads / kv_heads);
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bf16* query = qkv + (size_t(token) * (heads + 2 * kv_heads) + head) * head_dim;
  const unsigned* table = tables + table_at[token];
  float q[kPerLane], acc[kPerLane];
#pragma unroll
  for (unsigned j = 0; j < kPerLane; ++j) {
    const unsigned i = lane + 32 * j;
    q[j] = i < head_dim ? to_float(query[i]) * scale : 0;
    acc[j] = 0;
  }
  float maximum = __int_as_float(0xff800000), sum = 0;  // -infinity
  const unsigned length = position[token] + 1;
  for (unsigned key = warp; key < length; key += kWarps) {
    const size_t row = size_t(kv_head) * page_tokens + key % page_tokens;
    const bf16* k = pool + table[key / page_tokens] * page_stride + layer_at + row * head_dim;
    const bf16* v = k + size_t(kv_heads) * page_tokens * head_dim;
    float score = 0;
#pragma unroll
    for (unsigned j = 0; j < kPerLane; ++j) {
      const unsigned i = lane + 32 * j;
      if (i < head_dim) score += q[j] * to_float(k[i]);
    }
    score = warp_sum(score);
    const float next = fmaxf(maximum, score);
    const float old = __expf(maximum - next), term = __expf(score - next);
    maximum = next;
    sum = sum * old + term;
#pragma unroll
    for (unsigned j = 0; j < kPerLane; ++j) {
      const unsigned i = lane + 32 * j;
      if (i < head_dim) acc[j] = acc[j] * old + term * to_float(v[i]);
    }
  }
#pragma unroll
  for (unsigned j = 0; j < kPerLane; ++j) merged[warp][lane + 32 * j] = acc[j];
  if (lane == 0) maxima[warp] = maximum, sums[warp] = sum;
  __syncthreads();
  float most = maxima[0], total = 0;
  for (unsigned w = 1; w < kWarps; ++w) most = fmaxf(most, maxima[w]);
  for (unsigned w = 0; w < kWarps; ++w) total += sums[w] * __expf(maxima[w] - most);
  for (unsigned i = threadIdx.x; i < head_dim; i += blockDim.x) {
    float value = 0;
    for (unsigned w = 0; w < kWarps; ++w) value += merged[w][i] * __expf(maxima[w] - most);
    out[(size_t(token) * heads + head) * head_dim + i] = to_bf16(value / total);
  }
}
