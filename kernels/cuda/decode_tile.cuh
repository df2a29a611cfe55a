// The arithmetic of one chunk: scores, running softmax, and the weighted sum of values, all in one
// warp's registers. Scores are computed transposed, S^T = K · Q^T (16 tokens × 8 heads), so that K
// and V are the 16-row operands and at most 8 q heads pad to 8 columns and not to 16. P^T reaches
// the B operand of O^T += V^T · P^T by one `movmatrix` for 8 tokens.
#pragma once
#include "decode_feed.cuh"

constexpr int kSteps = kHeadDim / 16;
constexpr float kSlack = 8.0f;  // the maximum moves only when a score exceeds it by this (log2)

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

/// Running softmax of one warp for the q heads 2t and 2t+1, t = lane % 4.
struct State {
  float maximum[2], sum[2];  // sum: this lane's tokens only
  float out[kSteps][4];      // O^T: dims 16·i + lane/4 (+8), columns 2t, 2t+1

  __device__ __forceinline__ State() {
    maximum[0] = maximum[1] = minus_infinity();
    sum[0] = sum[1] = 0.f;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) out[i][j] = 0.f;
    }
  }

  /// Takes a larger maximum where one of the lanes' `top` rises too far above the present one.
  __device__ __forceinline__ void rescale(float top0, float top1) {
    const bool rises = top0 > maximum[0] + kSlack || top1 > maximum[1] + kSlack;
    if (!__any_sync(~0u, rises)) return;
    float top[2] = {top0, top1};
    float factor[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        top[c] = fmaxf(top[c], __shfl_xor_sync(~0u, top[c], lanes));
      }
      const float next = fmaxf(maximum[c], top[c]);
      factor[c] = ptx::exp2(maximum[c] - next);
      maximum[c] = next;
      sum[c] *= factor[c];
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) out[i][j] *= factor[j & 1];
    }
  }
};

/// Q^T of the heads of one kv head; columns past the last head are 0.
struct Query {
  unsigned tile[kSteps][2];

  __device__ __forceinline__ Query(const Decode& d, int row, int kv_head, int lane) {
    const int head = lane >> 2;
    const bool real = head < kGroup;
    const long long width = static_cast<long long>(d.kv_heads) * (kGroup + 2) * kHeadDim;
    const unsigned* from =
        reinterpret_cast<const unsigned*>(d.qkv + row * width +
                                          (kv_head * kGroup + (real ? head : 0)) * kHeadDim) +
        (lane & 3);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      tile[k][0] = real ? from[k * 8] : 0u;
      tile[k][1] = real ? from[k * 8 + 4] : 0u;
    }
  }
};

/// One chunk: `valid` of its 16 tokens count.
__device__ __forceinline__ void attend(State& s, const Query& q, unsigned slot, int valid,
                                       float scale, int lane) {
  const unsigned k_row = slot + (lane & 15) * 128;
  const unsigned k_column = ((lane >> 4) ^ (lane & 7)) << 4;
  float even[4] = {0.f, 0.f, 0.f, 0.f}, odd[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    unsigned tile[4];
    ptx::load_matrices<false>(tile, k_row + (k >> 2) * kHalfBytes + (k_column ^ ((k & 3) << 5)));
    ptx::mma(k & 1 ? odd : even, tile, q.tile[k][0], q.tile[k][1]);
  }
  float score[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) score[i] = (even[i] + odd[i]) * scale;
  if (valid < kChunkTokens) {
    if ((lane >> 2) >= valid) score[0] = score[1] = minus_infinity();
    if ((lane >> 2) + 8 >= valid) score[2] = score[3] = minus_infinity();
  }
  s.rescale(fmaxf(score[0], score[2]), fmaxf(score[1], score[3]));
#pragma unroll
  for (int i = 0; i < 4; ++i) score[i] = ptx::exp2(score[i] - s.maximum[i & 1]);
  s.sum[0] += score[0] + score[2];
  s.sum[1] += score[1] + score[3];
  const unsigned p0 = ptx::transpose(ptx::pack_bf16(score[0], score[1]));
  const unsigned p1 = ptx::transpose(ptx::pack_bf16(score[2], score[3]));
  const unsigned v_row = slot + kChunkBytes + ((lane & 7) + (lane >> 4) * 8) * 128;
  const unsigned v_column = (((lane >> 3) & 1) ^ (lane & 7)) << 4;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    unsigned tile[4];
    ptx::load_matrices<true>(tile, v_row + (i >> 2) * kHalfBytes + (v_column ^ ((i & 3) << 5)));
    ptx::mma(s.out[i], tile, p0, p1);
  }
}

/// The tail of a part-filled chunk may hold NaN, and 0 × NaN is NaN: V's rows become 0 there.
__device__ __forceinline__ void clear_tail(char* slot, int valid, int lane) {
  const int row = lane >> 1, part = lane & 1;
  if (row >= valid) {
    int4* from = reinterpret_cast<int4*>(slot + kChunkBytes + row * 128 +
                                         part * (kHalves == 2 ? kHalfBytes : 64));
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) from[i] = make_int4(0, 0, 0, 0);
  }
  __syncwarp();
}
