// Paged decode attention, split over the KV length. One query token a request, bf16, head_dim 128,
// pages of 16 tokens, GQA packed: the q heads of one kv head are the columns of one matrix product.
//
// 1. The host plans (plan.h): each block gets a list of items, each a page range of one request and
//    one group of kv heads. The plan is the same for all layers of a step.
// 2. A block has `kWarps` warps. `kWays` warps share a kv head, each taking every kWays-th page, so
//    a block works on kWarps / kWays heads at once. Warps of different heads never wait for each
//    other.
// 3. Each warp owns a ring of `kStages` page slots (8 KiB: K and V of its head) and is both the
//    producer and the consumer of it. The producer runs kStages pages ahead, across items.
// 4. Scores are computed transposed, S^T = K · Q^T (16 tokens × 8 heads), so that K and V are the
//    16-row operands and at most 8 q heads a kv head pad to 8 columns and not to 16. P^T reaches
//    the B operand of O^T += V^T · P^T by one `movmatrix` for 8 tokens.
// 5. The softmax maximum moves only when a score exceeds it by kSlack (log2); most pages need no
//    shuffle.
// 6. At the end of an item the warps of a head merge in shared memory. A whole request is written;
//    a piece goes to `partials`, and whoever arrives last at `arrived` merges the request's pieces
//    and sets the counter back to 0, so a captured graph can be replayed.
//
// Tokens past the end of a request may hold any bits, NaN too: K is masked after the product, V is
// zeroed in shared memory.
#pragma once
#include <cuda_bf16.h>

#include "layout.h"
#include "plan.h"
#include "ptx.cuh"

constexpr float kSlack = 8.0f;
enum class Load { kTma, kCpAsync };

struct DecodeArguments {
  const __nv_bfloat16* pool;
  const __nv_bfloat16* query;  // [request][q head][dim]
  __nv_bfloat16* output;       // [request][q head][dim]
  const int* page_table;       // [request][table_stride]
  const Item* items;
  const int* first_item;
  float* partials;       // [slot][head of group][q head of kv head][dim], not normalised
  float2* partial_sums;  // [slot][head of group][q head of kv head]: maximum (log2), sum
  int* arrived;          // [request][kv head], 0 between launches
  int table_stride, kv_heads;
  int layer_chunk, page_stride, kv_stride, head_stride;  // in chunks, layout.h
  float scale_log2;                                      // softmax scale × log2(e)
};

template <int kGroup, int kWarps, int kWays, int kStages, Load kLoad>
struct Decode {
  static constexpr int kHeads = kWarps / kWays;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kWayThreads = kWays * 32;
  static constexpr int kPageBytes = 2 * kChunkBytes;
  static constexpr int kRingBytes = kWarps * kStages * kPageBytes;
  static constexpr int kMergeFloats = kGroup * kHeadDim;
  static constexpr int kSharedBytes =
      1024 + kRingBytes + kWarps * (kMergeFloats * 4 + kGroup * 8) + kWarps * kStages * 8 + 128;

  struct Shared {
    uint8_t* ring;
    float* merge;       // [warp][q head][dim]
    float2* sums;       // [warp][q head]
    uint64_t* barriers;  // [warp][stage]
    int* last;          // [head]
    __device__ explicit Shared(uint8_t* raw) {
      const uintptr_t aligned = (reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t(1023);
      ring = reinterpret_cast<uint8_t*>(aligned);
      merge = reinterpret_cast<float*>(ring + kRingBytes);
      sums = reinterpret_cast<float2*>(merge + kWarps * kMergeFloats);
      barriers = reinterpret_cast<uint64_t*>(sums + kWarps * kGroup);
      last = reinterpret_cast<int*>(barriers + kWarps * kStages);
    }
  };

  /// Walks the pages of this warp over all items of the block, kStages ahead of the arithmetic.
  struct Feed {
    const DecodeArguments& a;
    int item, item_end, page = 0, page_end = 0, ids_first = 0, ids = 0, head_chunk = 0;
    const int* row = nullptr;
    int group, way, lane;

    __device__ Feed(const DecodeArguments& a, int item, int item_end, int group, int way, int lane)
        : a(a), item(item), item_end(item_end), group(group), way(way), lane(lane) {}

    __device__ __forceinline__ void load_ids() {
      ids_first = page;
      const int mine = page + lane * kWays;
      ids = mine < page_end ? __ldg(row + mine) : 0;
    }

    /// The chunk of K of the next page, or -1 when there is none.
    __device__ __forceinline__ int next() {
      while (page >= page_end) {
        if (item == item_end) return -1;
        const int4 head_part = __ldg(reinterpret_cast<const int4*>(a.items + item));
        ++item;
        page = head_part.z + way;
        page_end = head_part.w;
        row = a.page_table + int64_t(head_part.x) * a.table_stride;
        head_chunk = a.layer_chunk + (head_part.y + group) * a.head_stride;
        load_ids();
      }
      if (page - ids_first >= 32 * kWays) load_ids();
      const int id = __shfl_sync(~0u, ids, (page - ids_first) / kWays);
      page += kWays;
      return head_chunk + id * a.page_stride;
    }
  };

  __device__ static __forceinline__ void issue(Feed& feed, const CUtensorMap* map, uint32_t slot,
                                               uint32_t barrier) {
    const int chunk = feed.next();
    if constexpr (kLoad == Load::kTma) {
      if (chunk >= 0 && feed.lane == 0) {
        ptx::barrier_expect(barrier, kPageBytes);
        ptx::load_chunk(slot, map, chunk, barrier);
        ptx::load_chunk(slot + kChunkBytes, map, chunk + feed.a.kv_stride, barrier);
      }
    } else {
      if (chunk >= 0) {
        const int high = feed.lane >> 4, column = feed.lane & 15;
        const char* key = reinterpret_cast<const char*>(feed.a.pool) +
                          int64_t(chunk) * kChunkBytes + feed.lane * 16;
        const char* value = key + int64_t(feed.a.kv_stride) * kChunkBytes;
        const uint32_t target = slot + (column >> 3) * 2048 + high * 128;
        const uint32_t swizzled = (column & 7) ^ high;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const uint32_t at = target + i * 256 + ((swizzled ^ (2 * i & 7)) << 4);
          ptx::copy_16(at, key + i * 512);
          ptx::copy_16(at + kChunkBytes, value + i * 512);
        }
      }
      ptx::commit_copies();
    }
  }

  /// Running softmax of one warp for the q heads 2t and 2t+1, t = lane % 4.
  struct State {
    float maximum[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.f, 0.f};  // this lane's tokens only
    float out[8][4] = {};       // O^T: dims 16·i + lane/4 (+8), columns 2t, 2t+1
  };

  __device__ static __forceinline__ void load_query(uint32_t (&q)[8][2], const DecodeArguments& a,
                                                    int request, int kv_head, int lane) {
    const int head = lane >> 2;
    const bool real = head < kGroup;
    const uint32_t* row = reinterpret_cast<const uint32_t*>(
        a.query + (int64_t(request) * a.kv_heads * kGroup + kv_head * kGroup + (real ? head : 0)) *
                      kHeadDim) + (lane & 3);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      q[k][0] = real ? row[k * 8] : 0u;
      q[k][1] = real ? row[k * 8 + 4] : 0u;
    }
  }

  /// One page: `valid` of its 16 tokens count.
  __device__ static __forceinline__ void page(State& s, const uint32_t (&q)[8][2], uint32_t slot,
                                              int valid, float scale, int lane) {
    const uint32_t k_row = slot + ((lane & 7) + ((lane >> 3) & 1) * 8) * 128;
    const uint32_t k_column = ((lane >> 4) ^ (lane & 7)) << 4;
    float even[4] = {}, odd[4] = {};
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      uint32_t tile[4];
      ptx::load_matrices<false>(tile, k_row + (k >> 2) * 2048 + (k_column ^ ((k & 3) << 5)));
      ptx::mma(k & 1 ? odd : even, tile, q[k][0], q[k][1]);
    }
    float score[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) score[i] = (even[i] + odd[i]) * scale;
    if (valid < kPageTokens) {
      if ((lane >> 2) >= valid) score[0] = score[1] = -INFINITY;
      if ((lane >> 2) + 8 >= valid) score[2] = score[3] = -INFINITY;
    }
    rescale(s, fmaxf(score[0], score[2]), fmaxf(score[1], score[3]));
#pragma unroll
    for (int i = 0; i < 4; ++i) score[i] = ptx::exp2(score[i] - s.maximum[i & 1]);
    s.sum[0] += score[0] + score[2];
    s.sum[1] += score[1] + score[3];
    const uint32_t p0 = ptx::transpose(ptx::pack_bf16(score[0], score[1]));
    const uint32_t p1 = ptx::transpose(ptx::pack_bf16(score[2], score[3]));
    const uint32_t v_row = slot + kChunkBytes + ((lane & 7) + (lane >> 4) * 8) * 128;
    const uint32_t v_column = (((lane >> 3) & 1) ^ (lane & 7)) << 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint32_t tile[4];
      ptx::load_matrices<true>(tile, v_row + (i >> 2) * 2048 + (v_column ^ ((i & 3) << 5)));
      ptx::mma(s.out[i], tile, p0, p1);
    }
  }

  __device__ static __forceinline__ void rescale(State& s, float top0, float top1) {
    const bool rises = top0 > s.maximum[0] + kSlack || top1 > s.maximum[1] + kSlack;
    if (!__any_sync(~0u, rises)) return;
    float top[2] = {top0, top1};
    float factor[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        top[c] = fmaxf(top[c], __shfl_xor_sync(~0u, top[c], lanes));
      }
      const float next = fmaxf(s.maximum[c], top[c]);
      factor[c] = ptx::exp2(s.maximum[c] - next);
      s.maximum[c] = next;
      s.sum[c] *= factor[c];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) s.out[i][j] *= factor[j & 1];
    }
  }

  /// The tail of a part-filled page may hold NaN, and 0 × NaN is NaN.
  __device__ static void clear_tail(uint8_t* slot, int valid, int lane) {
    const int row = lane >> 1;
    if (row >= valid) {
      int4* half = reinterpret_cast<int4*>(slot + kChunkBytes + (lane & 1) * 2048 + row * 128);
      for (int i = 0; i < 8; ++i) half[i] = make_int4(0, 0, 0, 0);
    }
    if constexpr (kLoad == Load::kTma) ptx::async_proxy_fence();
    __syncwarp();
  }

  __device__ static __forceinline__ void head_barrier(int group) {
    if constexpr (kWays == 1) {
      __syncwarp();
    } else {
      ptx::named_barrier(1 + group, kWayThreads);
    }
  }

  __device__ static void store_state(State& s, float* merge, float2* sums, int lane) {
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
        for (int i = 0; i < 8; ++i) {
          merge[(column + c) * kHeadDim + 16 * i + row] = s.out[i][c];
          merge[(column + c) * kHeadDim + 16 * i + row + 8] = s.out[i][2 + c];
        }
      }
    }
  }

  /// Merges `count` partial results, `step` floats apart, in one pass: no load waits for another.
  template <bool kGlobal>
  __device__ static __forceinline__ float4 merge_at(const float* values, const float2* sums,
                                                    int count, int step, int sum_step,
                                                    float& maximum, float& sum) {
    maximum = -INFINITY;
    sum = 0.f;
    float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      const float2 part = kGlobal ? __ldcg(sums + i * sum_step) : sums[i * sum_step];
      const float4* from = reinterpret_cast<const float4*>(values + int64_t(i) * step);
      const float4 v = kGlobal ? __ldcg(from) : *from;
      // The first result of a merge holds a token, so its maximum is finite.
      const float next = fmaxf(maximum, part.x);
      const float old = ptx::exp2(maximum - next), weight = ptx::exp2(part.x - next);
      maximum = next;
      sum = sum * old + part.y * weight;
      total.x = total.x * old + v.x * weight, total.y = total.y * old + v.y * weight;
      total.z = total.z * old + v.z * weight, total.w = total.w * old + v.w * weight;
    }
    return total;
  }

  __device__ static __forceinline__ void write_output(const DecodeArguments& a, int request,
                                                      int kv_head, int at, float4 v, float sum) {
    const float inverse = 1.f / sum;
    uint2 packed = make_uint2(ptx::pack_bf16(v.x * inverse, v.y * inverse),
                              ptx::pack_bf16(v.z * inverse, v.w * inverse));
    const int64_t row = (int64_t(request) * a.kv_heads + kv_head) * kMergeFloats;
    *reinterpret_cast<uint2*>(a.output + row + at) = packed;
  }

  __device__ static void finish(State& s, const DecodeArguments& a, Shared& shared,
                                const Item& item, int group, int way, int lane) {
    const int warp = group * kWays + way, thread = way * 32 + lane;
    store_state(s, shared.merge + warp * kMergeFloats, shared.sums + warp * kGroup, lane);
    head_barrier(group);
    const int kv_head = item.head + group;
    const int64_t piece = int64_t(item.slot) * kHeads + group;
    for (int at = thread * 4; at < kMergeFloats; at += kWayThreads * 4) {
      const int head = at / kHeadDim;
      float maximum, sum;
      const float4 v = merge_at<false>(shared.merge + group * kWays * kMergeFloats + at,
                                       shared.sums + group * kWays * kGroup + head, kWays,
                                       kMergeFloats, kGroup, maximum, sum);
      if (item.pieces == 1) {
        write_output(a, item.request, kv_head, at, v, sum);
      } else {
        *reinterpret_cast<float4*>(a.partials + piece * kMergeFloats + at) = v;
        if (at % kHeadDim == 0) a.partial_sums[piece * kGroup + head] = make_float2(maximum, sum);
      }
    }
    if (item.pieces > 1) merge_pieces(a, shared, item, group, thread);
    head_barrier(group);
  }

  __device__ static void merge_pieces(const DecodeArguments& a, Shared& shared, const Item& item,
                                      int group, int thread) {
    const int kv_head = item.head + group;
    int* counter = a.arrived + item.request * a.kv_heads + kv_head;
    head_barrier(group);
    if (thread == 0) {
      // One fence for all: the barrier before it and the one after it order the others' accesses.
      __threadfence();
      shared.last[group] = atomicAdd(counter, 1) == item.pieces - 1;
      __threadfence();
    }
    head_barrier(group);
    if (!shared.last[group]) return;
    const int64_t first = int64_t(item.first_slot) * kHeads + group;
    for (int at = thread * 4; at < kMergeFloats; at += kWayThreads * 4) {
      const int head = at / kHeadDim;
      float maximum, sum;
      const float4 v = merge_at<true>(a.partials + first * kMergeFloats + at,
                                      a.partial_sums + first * kGroup + head, item.pieces,
                                      kHeads * kMergeFloats, kHeads * kGroup, maximum, sum);
      write_output(a, item.request, kv_head, at, v, sum);
    }
    if (thread == 0) *counter = 0;
  }

  __device__ static void run(const CUtensorMap* map, const DecodeArguments& a, uint8_t* raw) {
    Shared shared(raw);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int group = warp / kWays, way = warp % kWays;
    uint8_t* ring = shared.ring + warp * kStages * kPageBytes;
    const uint32_t ring_address = ptx::shared_address(ring);
    const uint32_t barriers = ptx::shared_address(shared.barriers + warp * kStages);
    if constexpr (kLoad == Load::kTma) {
      if (lane < kStages) ptx::barrier_init(barriers + lane * 8, 1);
      ptx::async_proxy_fence();
      __syncwarp();
    }
    const int item_begin = __ldg(a.first_item + blockIdx.x);
    const int item_end = __ldg(a.first_item + blockIdx.x + 1);
    Feed feed(a, item_begin, item_end, group, way, lane);
    for (int i = 0; i < kStages; ++i) {
      issue(feed, map, ring_address + i * kPageBytes, barriers + i * 8);
    }
    // Pages are older than the previous kernel; queries, partials and counters are not.
    ptx::wait_for_previous_kernel();
    ptx::let_next_kernel_start();

    int stage = 0;
    uint32_t parity = 0;
    for (int i = item_begin; i < item_end; ++i) {
      const Item item = a.items[i];
      uint32_t q[8][2];
      load_query(q, a, item.request, item.head + group, lane);
      State state;
      for (int p = item.page_begin + way; p < item.page_end; p += kWays) {
        if constexpr (kLoad == Load::kTma) {
          ptx::barrier_wait(barriers + stage * 8, parity);
        } else {
          ptx::wait_copies<kStages - 1>();
          __syncwarp();
        }
        const uint32_t slot = ring_address + stage * kPageBytes;
        const int valid = item.length - p * kPageTokens;
        if (valid < kPageTokens) clear_tail(ring + stage * kPageBytes, valid, lane);
        page(state, q, slot, valid, a.scale_log2, lane);
        __syncwarp();
        issue(feed, map, slot, barriers + stage * 8);
        if (++stage == kStages) stage = 0, parity ^= 1;
      }
      finish(state, a, shared, item, group, way, lane);
    }
  }
};

template <int kGroup, int kWarps, int kWays, int kStages, Load kLoad>
__global__ void __launch_bounds__(kWarps * 32, 8 / kWarps)
    paged_decode(const __grid_constant__ CUtensorMap map, const DecodeArguments arguments) {
  extern __shared__ uint8_t raw[];
  Decode<kGroup, kWarps, kWays, kStages, kLoad>::run(&map, arguments, raw);
}
