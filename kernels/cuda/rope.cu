// Head norm (if any), rotation, and the write of keys and values to their pages.
//
// The warps of all blocks of a token share its heads of queries, keys and values: grid (tokens, any
// number), blocks of 256. Queries stay in `qkv`. Positions, page tables, angles and gains are there
// before the chain of kernels begins: they are fetched while the kernel before still runs.
//
// With many tokens it is the number of blocks on an SM that hides the way from a position to what
// lies there: 5 blocks beat more loads a lane.
#include "bf16.cuh"

constexpr unsigned kWarps = 8, kDimMax = 256;
constexpr unsigned kPadding = 0xffffffff;  // position of a token that is none

/// Heads of one token: queries, then keys, then values, in `qkv` and in a page's layer.
struct Token {
  bf16* row;                     // of `qkv`
  const float* angles;           // cosines of all pairs, then sines
  const float *q_gain, *k_gain;  // null, both: not normed
  float eps;
  bf16* layer;                   // of the pool's first page
  size_t page_stride;
  unsigned page, slot;           // in the pool, and in the page
  unsigned heads, keys_end, heads_end, page_tokens, dim;

  __device__ const bf16* in(unsigned head) const { return row + size_t(head) * dim; }
  __device__ const float* gain(unsigned head) const { return head < heads ? q_gain : k_gain; }
  __device__ bf16* out(unsigned head) const {
    if (head < heads) return row + size_t(head) * dim;
    const unsigned entry = (head - heads) * page_tokens + slot;
    return layer + page * page_stride + size_t(entry) * dim;
  }
};

/// Sum over groups of `lanes` lanes, a power of two.
__device__ __forceinline__ float group_sum(float x, unsigned lanes) {
#pragma unroll
  for (unsigned lane = 16; lane > 0; lane /= 2) {
    const float other = __shfl_xor_sync(~0u, x, lane);
    if (lane < lanes) x += other;
  }
  return x;
}

/// A lane owns eight neighbours of a head, and their partners are another lane's; a warp takes as
/// many heads as it has lanes for.
__device__ __forceinline__ void turn_eights(const Token& token) {
  const unsigned lanes = 1u << (32 - __clz(token.dim / 8 - 1)), per_warp = 32 / lanes;
  const unsigned lane = threadIdx.x % 32, i = lane % lanes * 8, half = token.dim / 2;
  const bool inside = i < token.dim, low = i < half, normed = token.q_gain;
  const unsigned pair = low ? i : i - half, partner = low ? lane + half / 8 : lane - half / 8;
  float cosine[8] = {}, sine[8] = {};
  if (inside) {
    load_eight(cosine, token.angles + pair);
    load_eight(sine, token.angles + half + pair);
  }
  const unsigned stride = gridDim.y * kWarps * per_warp;
  unsigned warp_head = (blockIdx.y * kWarps + threadIdx.x / 32) * per_warp;
  for (; warp_head < token.heads_end; warp_head += stride) {
    const unsigned head = warp_head + lane / lanes;
    const bool turned = inside && head < token.keys_end;
    float gain[8] = {};
    uint4 piece = {};
    if (normed && turned) load_eight(gain, token.gain(head) + i);
    ptx::wait_for_previous_kernel();
    if (inside && head < token.heads_end) piece = load_eight(token.in(head) + i);
    if (warp_head < token.keys_end) {  // the same for all lanes
      float value[8];
      widen(value, piece);
      if (normed) {
        float squares = 0;
#pragma unroll
        for (int e = 0; e < 8; ++e) squares += value[e] * value[e];
        const float scale = rsqrtf(group_sum(squares, lanes) / token.dim + token.eps);
#pragma unroll
        for (int e = 0; e < 8; ++e) value[e] = value[e] * scale * gain[e];
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float other = __shfl_sync(~0u, value[e], partner);
        value[e] = value[e] * cosine[e] + (low ? -other : other) * sine[e];
      }
      if (turned) piece = narrow(value);
    }
    if (inside && head < token.heads_end) store_eight(token.out(head) + i, piece);
  }
}

/// For heads that do not begin on 16 bytes: a warp takes a head, a lane owns pairs.
__device__ __forceinline__ void turn_pairs(const Token& token) {
  const unsigned lane = threadIdx.x % 32, half = token.dim / 2;
  unsigned head = blockIdx.y * kWarps + threadIdx.x / 32;
  ptx::wait_for_previous_kernel();
  for (; head < token.heads_end; head += gridDim.y * kWarps) {
    const bf16* in = token.in(head);
    const float* gain = token.gain(head);
    bf16* out = token.out(head);
    if (head >= token.keys_end) {
      for (unsigned i = lane; i < token.dim; i += 32) out[i] = in[i];
      continue;
    }
    float scale = 1;
    if (gain) {
      float squares = 0;
      for (unsigned i = lane; i < token.dim; i += 32) squares += to_float(in[i]) * to_float(in[i]);
      scale = rsqrtf(warp_sum(squares) / token.dim + token.eps);
    }
    for (unsigned i = lane; i < half; i += 32) {
      float low = to_float(in[i]) * scale, high = to_float(in[i + half]) * scale;
      if (gain) low *= gain[i], high *= gain[i + half];
      const float cosine = token.angles[i], sine = token.angles[i + half];
      out[i] = to_bf16(low * cosine - high * sine);
      out[i + half] = to_bf16(high * cosine + low * sine);
    }
  }
}

extern "C" __global__ void __launch_bounds__(32 * kWarps, 5)
    rope_write(bf16* qkv, const unsigned* position, const unsigned* table_at,
               const unsigned* tables, const float* rope, const float* q_gain, const float* k_gain,
               float eps, bf16* pool, size_t page_stride, size_t layer_at, unsigned heads,
               unsigned kv_heads, unsigned page_tokens, unsigned head_dim) {
  ptx::let_next_kernel_start();
  const unsigned at = position[blockIdx.x], table = table_at[blockIdx.x];
  if (at == kPadding) {
    ptx::wait_for_previous_kernel();
    return;
  }
  const unsigned keys_end = heads + kv_heads, heads_end = keys_end + kv_heads;
  const Token token{qkv + size_t(blockIdx.x) * heads_end * head_dim,
                    rope + size_t(at) * head_dim,
                    q_gain, k_gain, eps,
                    pool + layer_at, page_stride,
                    tables[table + at / page_tokens], at % page_tokens,
                    heads, keys_end, heads_end, page_tokens, head_dim};
  if (head_dim <= kDimMax && head_dim % 16 == 0 && page_stride % 8 == 0 && layer_at % 8 == 0 &&
      in_eights(head_dim, qkv, pool, rope, q_gain, k_gain)) {
    turn_eights(token);
  } else {
    turn_pairs(token);
  }
}
