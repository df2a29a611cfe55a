// Head norm (if any), rotation, and the write of keys and values to their pages.
//
// One block a (token, head) of queries, keys and values; a thread owns the pair (i, i + half), and
// there may be more pairs than threads. Queries stay in `qkv`.
#include "bf16.cuh"

extern "C" __global__ void rope_write(bf16* qkv, const unsigned* position, const unsigned* table_at,
                                      const unsigned* tables, const float* rope, const float* q_gain, const float* k_gain,
                                      float eps, bf16* pool, size_t page_stride, size_t layer_at,
                                      unsigned heads, unsigned kv_heads, unsigned page_tokens,
                                      unsigned head_dim) {
  __shared__ float partials[32];
  const unsigned token = blockIdx.x, head = blockIdx.y, half = head_dim / 2;
  bf16* in = qkv + (size_t(token) * (heads + 2 * kv_heads) + head) * head_dim;
  const bool is_query = head < heads, is_value = head >= heads + kv_heads;
  const unsigned at = position[token];
  bf16* out = in;
  if (!is_query) {
    // Keys of all heads, then values of all heads: the order of `qkv` and of a page's layer.
    const size_t row = size_t(head - heads) * page_tokens + at % page_tokens;
    out = pool + tables[table_at[token] + at / page_tokens] * page_stride + layer_at + row * head_dim;
  }
  if (is_value) {
    for (unsigned i = threadIdx.x; i < head_dim; i += blockDim.x) out[i] = in[i];
    return;
  }
  const float* gain = is_query ? q_gain : k_gain;
  float scale = 1;
  if (gain) {
    float squares = 0;
    for (unsigned i = threadIdx.x; i < head_dim; i += blockDim.x) {
      squares += to_float(in[i]) * to_float(in[i]);
    }
    scale = rsqrtf(block_sum(squares, partials) / head_dim + eps);
  }
  const float* angles = rope + size_t(at) * head_dim;
  for (unsigned i = threadIdx.x; i < half; i += blockDim.x) {
    float low = to_float(in[i]) * scale, high = to_float(in[i + half]) * scale;
    if (gain) low *= gain[i], high *= gain[i + half];
    const float cosine = angles[i], sine = angles[i + half];
    out[i] = to_bf16(low * cosine - high * sine);
    out[i + half] = to_bf16(high * cosine + low * sine);
  }
}
