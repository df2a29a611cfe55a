// Head norm (if any), rotation, and the write of keys and values to their pages.
//
// The warps of all blocks of a token share its heads of queries, keys and values, one at a time:
// grid (tokens, any number), blocks of 256. Queries stay in `qkv`. Positions, page tables, angles
// and gains are there before the chain of kernels begins: they are fetched while the kernel before
// still runs.
#include "bf16.cuh"

constexpr unsigned kWarps = 8, kDimMax = 256;
constexpr unsigned kPadding = 0xffffffff;  // position of a token that is none

/// One head of a token: where it comes from, where it goes, and what is done to it on the way.
struct Head {
  const bf16* in;
  bf16* out;
  const float* gain;    // null: not normed
  const float* angles;  // cosines of all pairs, then sines; null: copied as it is
  unsigned dim;
  float eps;
};

/// A lane owns eight neighbours, and their partners are another lane's.
__device__ __forceinline__ void turn_eights(const Head& head) {
  const unsigned lane = threadIdx.x % 32, half = head.dim / 2, i = 8 * lane;
  const bool mine = i < head.dim, low = i < half;
  const unsigned pair = low ? i : i - half;
  float cosine[8] = {}, sine[8] = {}, gain[8] = {}, value[8];
  if (mine && head.angles) {
    load_eight(cosine, head.angles + pair);
    load_eight(sine, head.angles + half + pair);
  }
  if (mine && head.gain) load_eight(gain, head.gain + i);
  ptx::wait_for_previous_kernel();
  uint4 piece = {};
  if (mine) piece = load_eight(head.in + i);
  if (!head.angles) {
    if (mine) store_eight(head.out + i, piece);
    return;
  }
  widen(value, piece);
  if (head.gain) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += value[j] * value[j];
    const float scale = rsqrtf(warp_sum(squares) / head.dim + head.eps);
#pragma unroll
    for (int j = 0; j < 8; ++j) value[j] = value[j] * scale * gain[j];
  }
  const unsigned partner = low ? lane + half / 8 : lane - half / 8;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float other = __shfl_sync(~0u, value[j], partner);
    value[j] = value[j] * cosine[j] + (low ? -other : other) * sine[j];
  }
  if (mine) store_eight(head.out + i, narrow(value));
}

/// For heads that do not begin on 16 bytes: a lane owns pairs.
__device__ __forceinline__ void turn_pairs(const Head& head) {
  const unsigned lane = threadIdx.x % 32, half = head.dim / 2;
  ptx::wait_for_previous_kernel();
  if (!head.angles) {
    for (unsigned i = lane; i < head.dim; i += 32) head.out[i] = head.in[i];
    return;
  }
  float scale = 1;
  if (head.gain) {
    float squares = 0;
    for (unsigned i = lane; i < head.dim; i += 32) {
      squares += to_float(head.in[i]) * to_float(head.in[i]);
    }
    scale = rsqrtf(warp_sum(squares) / head.dim + head.eps);
  }
  for (unsigned i = lane; i < half; i += 32) {
    float low = to_float(head.in[i]) * scale, high = to_float(head.in[i + half]) * scale;
    if (head.gain) low *= head.gain[i], high *= head.gain[i + half];
    const float cosine = head.angles[i], sine = head.angles[i + half];
    head.out[i] = to_bf16(low * cosine - high * sine);
    head.out[i + half] = to_bf16(high * cosine + low * sine);
  }
}

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    rope_write(bf16* qkv, const unsigned* position, const unsigned* table_at,
               const unsigned* tables, const float* rope, const float* q_gain, const float* k_gain,
               float eps, bf16* pool, size_t page_stride, size_t layer_at, unsigned heads,
               unsigned kv_heads, unsigned page_tokens, unsigned head_dim) {
  ptx::let_next_kernel_start();
  const unsigned token = blockIdx.x, at = position[token], table = table_at[token];
  if (at == kPadding) {
    ptx::wait_for_previous_kernel();
    return;
  }
  const unsigned keys_end = heads + kv_heads, all = keys_end + kv_heads;
  bf16* row = qkv + size_t(token) * all * head_dim;
  // Keys of all heads, then values of all heads: the order of `qkv` and of a page's layer.
  bf16* page = pool + tables[table + at / page_tokens] * page_stride + layer_at +
               size_t(at % page_tokens) * head_dim;
  const bool eights = head_dim <= kDimMax && head_dim % 16 == 0 && page_stride % 8 == 0 &&
                      layer_at % 8 == 0 && in_eights(head_dim, qkv, pool, rope, q_gain, k_gain);
  for (unsigned i = blockIdx.y * kWarps + threadIdx.x / 32; i < all; i += gridDim.y * kWarps) {
    Head head{row + size_t(i) * head_dim, nullptr, nullptr, nullptr, head_dim, eps};
    head.out = i < heads ? row + size_t(i) * head_dim
                         : page + size_t(i - heads) * page_tokens * head_dim;
    if (i < keys_end) {
      head.gain = i < heads ? q_gain : k_gain;
      head.angles = rope + size_t(at) * head_dim;
    }
    if (eights) {
      turn_eights(head);
    } else {
      turn_pairs(head);
    }
  }
}
