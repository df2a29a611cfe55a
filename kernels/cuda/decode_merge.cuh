// The end of an item: the warps of a head merge in shared memory; a whole row's result is written,
// a piece's goes to `partials`, and whoever arrives last merges the row's pieces and sets the
// counter back to 0, so that a captured graph can be replayed.
#pragma once
#include "decode_tile.cuh"

constexpr int kMergeFloats = kGroup * kHeadDim;

struct Shared {
  char* ring;    // [warp][stage] slots
  float* merge;  // [warp][q head][dim]
  float2* sums;  // [warp][q head]
  int* last;     // [warp]: whether the team that begins here arrived last

  __device__ __forceinline__ explicit Shared(char* raw) {
    ring = raw;
    merge = reinterpret_cast<float*>(raw + kWarps * kStages * kSlotBytes);
    sums = reinterpret_cast<float2*>(merge + kWarps * kMergeFloats);
    last = reinterpret_cast<int*>(sums + kWarps * kGroup);
  }
};

/// Partial results that lie `step` floats apart, of one thread's four dims, merged.
struct Merged {
  float4 total;
  float maximum, sum;

  /// In one pass: no load waits for another.
  template <bool kGlobal>
  __device__ __forceinline__ void take(const float* values, const float2* sums, int count, int step,
                                       int sum_step) {
    maximum = minus_infinity();
    sum = 0.f;
    total = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      const float2 part = kGlobal ? __ldcg(sums + i * sum_step) : sums[i * sum_step];
      const float4* from =
          reinterpret_cast<const float4*>(values + static_cast<long long>(i) * step);
      const float4 v = kGlobal ? __ldcg(from) : *from;
      // The first result of a merge holds a token, so its maximum is finite.
      const float next = fmaxf(maximum, part.x);
      const float old = ptx::exp2(maximum - next), weight = ptx::exp2(part.x - next);
      maximum = next;
      sum = sum * old + part.y * weight;
      total.x = total.x * old + v.x * weight, total.y = total.y * old + v.y * weight;
      total.z = total.z * old + v.z * weight, total.w = total.w * old + v.w * weight;
    }
  }

  __device__ __forceinline__ void write(const Decode& d, int row, int kv_head, int at) const {
    const float inverse = 1.f / sum;
    const uint2 packed = make_uint2(ptx::pack_bf16(total.x * inverse, total.y * inverse),
                                    ptx::pack_bf16(total.z * inverse, total.w * inverse));
    const long long from = (static_cast<long long>(row) * d.kv_heads + kv_head) * kMergeFloats;
    *reinterpret_cast<uint2*>(d.out + from + at) = packed;
  }
};

/// The `kWays` warps that share a head; `kHeads` such teams work on the heads of one item.
template <int kHeads, int kWays>
struct Team {
  static constexpr int kThreads = kWays * 32;
  int index, head, way, lane;  // index: of the block's teams; head: of the item's

  __device__ __forceinline__ void barrier() const { ptx::named_barrier(1 + index, kThreads); }

  __device__ __forceinline__ void finish(State& s, const Decode& d, const Shared& shared,
                                         const Item& item) const {
    const int warp = index * kWays + way, thread = way * 32 + lane;
    store(s, shared.merge + warp * kMergeFloats, shared.sums + warp * kGroup);
    barrier();
    const int kv_head = item.head + head;
    const long long piece = static_cast<long long>(item.first_slot + item.piece) * kHeads + head;
    for (int at = thread * 4; at < kMergeFloats; at += kThreads * 4) {
      const int q_head = at / kHeadDim;
      Merged m;
      m.template take<false>(shared.merge + index * kWays * kMergeFloats + at,
                             shared.sums + index * kWays * kGroup + q_head, kWays, kMergeFloats,
                             kGroup);
      if (item.pieces == 1) {
        m.write(d, item.row, kv_head, at);
      } else {
        *reinterpret_cast<float4*>(d.partials + piece * kMergeFloats + at) = m.total;
        if (at % kHeadDim == 0) {
          d.partial_sums[piece * kGroup + q_head] = make_float2(m.maximum, m.sum);
        }
      }
    }
    if (item.pieces > 1) merge_pieces(d, shared, item, thread);
    barrier();
  }

  __device__ __forceinline__ void store(State& s, float* merge, float2* sums) const {
    const int column = 2 * (lane & 3), row = lane >> 2;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        s.sum[c] += __shfl_xor_sync(~0u, s.sum[c], lanes);
      }
      if (column + c < kGroup) {
        if (row == 0) sums[column + c] = make_float2(s.maximum[c], s.sum[c]);
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          merge[(column + c) * kHeadDim + 16 * i + row] = s.out[i][c];
          merge[(column + c) * kHeadDim + 16 * i + row + 8] = s.out[i][2 + c];
        }
      }
    }
  }

  __device__ __forceinline__ void merge_pieces(const Decode& d, const Shared& shared,
                                               const Item& item, int thread) const {
    const int kv_head = item.head + head;
    int* counter = d.arrived + item.row * d.kv_heads + kv_head;
    barrier();
    if (thread == 0) {
      // One fence for all: the barrier before it and the one after it order the others' accesses.
      __threadfence();
      shared.last[index] = atomicAdd(counter, 1) == item.pieces - 1;
      __threadfence();
    }
    barrier();
    if (!shared.last[index]) return;
    const long long first = static_cast<long long>(item.first_slot) * kHeads + head;
    for (int at = thread * 4; at < kMergeFloats; at += kThreads * 4) {
      Merged m;
      m.template take<true>(d.partials + first * kMergeFloats + at,
                            d.partial_sums + first * kGroup + at / kHeadDim, item.pieces,
                            kHeads * kMergeFloats, kHeads * kGroup);
      m.write(d, item.row, kv_head, at);
    }
    if (thread == 0) *counter = 0;
  }
};
