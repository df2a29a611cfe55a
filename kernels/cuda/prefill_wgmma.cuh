// The version for Hopper: tensor copies, wgmma, softmax of one tile under the products of the next.
//
// 1. A block is a producer warpgroup (one warp of it works) and two consumer warpgroups of 64 query
//    rows each. Blocks stay: the producer draws work items from `next`, longest first, and the last
//    draw of a launch sets it back to 0, so a captured graph can be replayed.
// 2. Keys and values come in tiles of 128 tokens, last tile first, so that only the first tiles of
//    an item need a mask. Each has two stages. A tile lies in shared memory as
//    [8 tokens][half of 64 dims][token][128 bytes, 128-byte swizzle]: K-major for Q·Kᵀ, and for P·V
//    the same bytes read with the dims adjacent. This order lets one box of the tensor map fetch
//    kBox tokens whole: the number of boxes is what bounds small pages.
// 3. A consumer launches S' = Q·Kᵀ of the next tile and O += P·V of this one, waits for S', and
//    does its softmax while P·V runs. Two named barriers let the consumers take turns at launching,
//    so one's softmax lies under the other's products.
// 4. Boxes past a sequence's end lie outside the tensor and arrive as zeros; the rest of its last
//    page is zeroed by the consumers (each writes the same zeros; neither waits for the other).
//
// Launch: grid min(SMs, tile_count · heads) or less, block 384, dynamic shared memory
// prefill::kWgmmaShared bytes; `next` one int, 0 before the first launch and not shared between
// launches that may overlap. Tensor maps, both of bf16, 128-byte swizzle, element strides 1:
// `query_map` sizes {(heads + 2 · kv_heads) · HEAD_DIM, rows of qkv}, box {64, 128};
// `pool_map` sizes {64, 8, kHalves, pages · layers · 2 · kv_heads · PAGE_TOKENS / 8}, strides in
// bytes {HEAD_DIM · 2, 128, HEAD_DIM · 16}, box {64, 8, kHalves, kBox / 8}.
#pragma once

namespace prefill {

constexpr int kKeys = 128;
constexpr int kStages = 2;
constexpr int kWgmmaThreads = 384;
constexpr int kBox = PAGE_TOKENS & -PAGE_TOKENS;  // the largest power of two that divides a page
constexpr int kBoxes = kKeys / kBox;
constexpr int kHalves = HEAD_DIM / 64;
constexpr int kHalfBytes = 8 * 128;
constexpr int kGroupBytes = kHalves * kHalfBytes;  // of 8 tokens
constexpr int kTileBytes = kKeys / 8 * kGroupBytes;
constexpr int kQueryHalfBytes = kQueryTile * 128;
constexpr int kQueryBytes = kHalves * kQueryHalfBytes;

/// Offsets in shared memory.
constexpr int kKeyAt = kQueryBytes;
constexpr int kValueAt = kKeyAt + kStages * kTileBytes;
constexpr int kOutAt = kValueAt + kStages * kTileBytes;
constexpr int kBarrierAt = kOutAt + kQueryBytes;
constexpr int kItemAt = kBarrierAt + 8 * (2 + 4 * kStages);
constexpr int kWgmmaShared = kItemAt + 64 + 1024;  // 1,024: to align the start

struct __align__(64) TensorMap {
  unsigned char bytes[128];
};

/// A work item as the producer hands it to the consumers.
struct Item {
  int first_row;   // of the segment
  int rows;        // in use, up to 128
  int position;    // of the first row
  int tokens;      // of the sequence
  int out_row;     // of the first row
  int head;        // −1: no more work
};

struct Barriers {
  unsigned base;
  __device__ unsigned query_full() const { return base; }
  __device__ unsigned query_empty() const { return base + 8; }
  __device__ unsigned key_full(int s) const { return base + 16 + s * 8; }
  __device__ unsigned key_empty(int s) const { return base + 16 + (kStages + s) * 8; }
  __device__ unsigned value_full(int s) const { return base + 16 + (2 * kStages + s) * 8; }
  __device__ unsigned value_empty(int s) const { return base + 16 + (3 * kStages + s) * 8; }
};

/// Counts tiles through a ring of kStages.
struct Ring {
  int stage = 0;
  unsigned phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

/// An operand whose groups of 8 rows of 128 bytes lie `kGroup` bytes apart. The distance of the
/// halves counts only where the operand is read with the dims adjacent.
template <int kGroup>
__device__ __forceinline__ unsigned long long descriptor(unsigned address) {
  return (1ull << 62) | ((unsigned long long)(kGroup >> 4) << 32) |
         ((unsigned long long)(kHalfBytes >> 4) << 16) | ((address & 0x3ffff) >> 4);
}

struct WgmmaArguments {
  const int* page_table;
  const PrefillSegment* segments;
  const PrefillTile* tiles;
  unsigned short* out;
  int* next;
  int tile_count, heads, kv_heads, layer, layers;
  float scale;
};

// === producer ===

struct Producer {
  const void *query_map, *pool_map;
  const WgmmaArguments& a;
  unsigned shared;
  Barriers barriers;
  Item* item;
  int lane;
  Ring key, value;
  unsigned query_phase = 0;

  /// Rows of the boxes of key tile `tile`, one a lane; far outside the pool past the end.
  __device__ __forceinline__ int box_row(const PageRows& rows, const int* table, int tile,
                                         int tokens) const {
    const int token = tile * kKeys + lane * kBox;
    if (lane >= kBoxes || tile < 0 || token >= tokens) return -(1 << 20);
    return rows.at(__ldg(table + token / PAGE_TOKENS), token);
  }

  __device__ __forceinline__ void load(unsigned target, unsigned barrier, int row) const {
    int at[kBoxes];
#pragma unroll
    for (int b = 0; b < kBoxes; ++b) at[b] = __shfl_sync(~0u, row, b);
    if (lane == 0) {
      ptx::barrier_expect(barrier, kTileBytes);
#pragma unroll
      for (int b = 0; b < kBoxes; ++b) {
        ptx::load_tokens(target + b * (kBox / 8) * kGroupBytes, pool_map, at[b] >> 3,
                                 barrier);
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void load_keys(int row) {
    ptx::barrier_wait(barriers.key_empty(key.stage), key.phase ^ 1);
    load(shared + kKeyAt + key.stage * kTileBytes, barriers.key_full(key.stage), row);
    key.advance();
  }

  __device__ __forceinline__ void load_values(int row) {
    ptx::barrier_wait(barriers.value_empty(value.stage), value.phase ^ 1);
    load(shared + kValueAt + value.stage * kTileBytes, barriers.value_full(value.stage), row);
    value.advance();
  }

  __device__ __forceinline__ void load_query(const Item& next) {
    ptx::barrier_wait(barriers.query_empty(), query_phase ^ 1);
    if (lane == 0) {
      *item = next;
      if (next.head < 0) {
        ptx::barrier_arrive(barriers.query_full());
      } else {
        ptx::barrier_expect(barriers.query_full(), kQueryBytes);
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          ptx::load_box(shared + h * kQueryHalfBytes, query_map,
                                next.head * HEAD_DIM + h * 64, next.out_row,
                                barriers.query_full());
        }
      }
    }
    __syncwarp();
    query_phase ^= 1;
  }

  __device__ __forceinline__ int draw() const {
    return lane == 0 ? atomicAdd(a.next, 1) : 0;
  }

  __device__ void run() {
    const int total = a.tile_count * a.heads;
    int work = __shfl_sync(~0u, draw(), 0);
    while (work < total) {
      const PrefillTile tile = a.tiles[work / a.heads];
      const PrefillSegment segment = a.segments[tile.segment];
      Item next;
      next.head = work % a.heads;
      next.first_row = tile.q_tile * kQueryTile;
      next.rows = min(kQueryTile, segment.len - next.first_row);
      next.position = segment.start + next.first_row;
      next.tokens = segment.start + segment.len;
      next.out_row = segment.first + next.first_row;
      const PageRows rows(a.layer, a.layers, a.kv_heads, next.head / (a.heads / a.kv_heads));
      const int* table = a.page_table + segment.table;
      const int value_rows = a.kv_heads * PAGE_TOKENS;
      int t = (next.position + next.rows + kKeys - 1) / kKeys - 1;
      int row = box_row(rows, table, t, next.tokens);
      load_query(next);
      load_keys(row);
      int drawn = 0;
      for (; t >= 0; --t) {
        const int before = box_row(rows, table, t - 1, next.tokens);
        if (t > 0) load_keys(before);
        if (t == 0) drawn = draw();
        load_values(row < 0 ? row : row + value_rows);
        row = before;
      }
      work = __shfl_sync(~0u, drawn, 0);
    }
    if (lane == 0 && work == total + int(gridDim.x) - 1) *a.next = 0;
    Item none = {};
    none.head = -1;
    load_query(none);
  }
};

// === consumer ===

struct Consumer {
  unsigned shared;
  Barriers barriers;
  const WgmmaArguments& a;
  int group, warp, lane;  // warpgroup 0 or 1, warp of it
  Ring key, value;
  float scale;
  float maximum[2], sum[2], factor[2];
  float out[HEAD_DIM / 2];
  float score[kKeys / 2];
  unsigned weight[kKeys / 4];  // P, bf16x2

  __device__ __forceinline__ void release(unsigned barrier) const {
    if (lane == 0) ptx::barrier_arrive(barrier);
  }

  __device__ __forceinline__ void launch_scores() {
    const unsigned query = shared + group * 64 * 128;
    const unsigned keys = shared + kKeyAt + key.stage * kTileBytes;
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 16; ++d) {
      const int half = d / 4, step = d % 4 * 32;
      ptx::wgmma_scores(
          score, descriptor<1024>(query + half * kQueryHalfBytes + step),
          descriptor<kGroupBytes>(keys + half * kHalfBytes + step), d > 0);
    }
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void launch_values() {
    const unsigned values = shared + kValueAt + value.stage * kTileBytes;
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      ptx::wgmma_values(out, weight + k * 4,
                                descriptor<kGroupBytes>(values + k * 2 * kGroupBytes));
    }
    ptx::wgmma_commit();
  }

  /// `last`: the last key of the tile that the lane's first row may see, less the lane's column.
  __device__ __forceinline__ void mask(int last) {
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int key_at = (i >> 2) * 8 + (i & 1) - ((i >> 1) & 1) * 8;
      if (key_at > last) score[i] = -infinity();
    }
  }

  template <bool kFirst>
  __device__ __forceinline__ void softmax() {
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = fmaxf(score[2 * r], score[2 * r + 1]);
#pragma unroll
      for (int i = 4; i < kKeys / 2; i += 4) {
        top = fmaxf(top, fmaxf(score[i + 2 * r], score[i + 2 * r + 1]));
      }
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      if (!kFirst) top = fmaxf(top, maximum[r]);
      base[r] = top == -infinity() ? 0.f : top * scale;
      factor[r] = kFirst ? 0.f : ptx::exp2(maximum[r] * scale - base[r]);
      maximum[r] = top;
    }
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      score[i] = ptx::exp2(fmaf(score[i], scale, -base[(i >> 1) & 1]));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float even = 0.f, odd = 0.f;
#pragma unroll
      for (int i = 0; i < kKeys / 2; i += 4) {
        even += score[i + 2 * r];
        odd += score[i + 2 * r + 1];
      }
      sum[r] = kFirst ? even + odd : fmaf(sum[r], factor[r], even + odd);
    }
  }

  __device__ __forceinline__ void round_weights() {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      weight[i] = ptx::pack_bf16(score[2 * i], score[2 * i + 1]);
    }
  }

  /// The scores of tile t beside the values of tile t + 1.
  template <bool kMasked>
  __device__ __forceinline__ void step(int last) {
    ptx::barrier_wait(barriers.key_full(key.stage), key.phase);
    ptx::named_barrier(1 + group, 256);
    ptx::hold(score);
    ptx::hold(out);
    ptx::hold(weight);
    ptx::wgmma_fence();
    launch_scores();
    ptx::barrier_wait(barriers.value_full(value.stage), value.phase);
    launch_values();
    ptx::named_barrier_arrive(2 - group, 256);
    ptx::wgmma_wait<1>();
    ptx::hold(score);
    release(barriers.key_empty(key.stage));
    key.advance();
    if (kMasked) mask(last);
    softmax<false>();
    ptx::wgmma_wait<0>();
    ptx::hold(out);
    ptx::hold(weight);
    release(barriers.value_empty(value.stage));
    value.advance();
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; ++i) out[i] *= factor[(i >> 1) & 1];
    round_weights();
  }

  /// Zeroes the values from `valid` to the end of their box.
  __device__ __forceinline__ void clear_tail(int valid) {
    ptx::barrier_wait(barriers.value_full(value.stage), value.phase);
    const unsigned values = shared + kValueAt + value.stage * kTileBytes;
    const int rows = (valid + kBox - 1) / kBox * kBox - valid;
    for (int i = warp * 32 + lane; i < rows * 8 * kHalves; i += 128) {
      const int row = valid + i / 8 % rows, half = i / 8 / rows;
      const unsigned at = values + row / 8 * kGroupBytes + half * kHalfBytes + row % 8 * 128 +
                          i % 8 * 16;
      asm volatile("st.shared.v4.b32 [%0], {%1,%1,%1,%1};" ::"r"(at), "r"(0) : "memory");
    }
    ptx::async_proxy_fence();
    ptx::named_barrier(3 + group, 128);
  }

  __device__ __forceinline__ void attend(const Item& item) {
    const int position = item.position + group * 64 + warp * 16 + lane / 4;  // of the first row
    int t = (item.position + item.rows + kKeys - 1) / kKeys - 1;
    const int valid = item.tokens - t * kKeys;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; ++i) out[i] = 0.f;
    int last = position - t * kKeys - 2 * (lane % 4);
    ptx::barrier_wait(barriers.key_full(key.stage), key.phase);
    ptx::hold(score);
    ptx::wgmma_fence();
    launch_scores();
    ptx::wgmma_wait<0>();
    ptx::hold(score);
    release(barriers.key_empty(key.stage));
    if (t == 0) release(barriers.query_empty());
    key.advance();
    mask(last);
    softmax<true>();
    round_weights();
    if (valid < kKeys && valid % kBox != 0) clear_tail(valid);
    // Tiles that reach past this warpgroup's first row need the mask.
    const int first_position = item.position + group * 64;
    for (--t; t >= 0 && (t + 1) * kKeys > first_position + 1; --t) {
      last += kKeys;
      step<true>(last);
      if (t == 0) release(barriers.query_empty());
    }
    for (; t >= 0; --t) {
      step<false>(0);
      if (t == 0) release(barriers.query_empty());
    }
    ptx::barrier_wait(barriers.value_full(value.stage), value.phase);
    ptx::hold(out);
    ptx::hold(weight);
    ptx::wgmma_fence();
    launch_values();
    ptx::wgmma_wait<0>();
    ptx::hold(out);
    ptx::hold(weight);
    release(barriers.value_empty(value.stage));
    value.advance();
  }

  /// Through shared memory, a warp for itself, so that rows leave in 16-byte pieces.
  __device__ __forceinline__ void store(const Item& item) {
    constexpr int kRowBytes = HEAD_DIM * 2, kColumns = HEAD_DIM / 8;
    const unsigned staging = shared + kOutAt + (group * 4 + warp) * 16 * kRowBytes;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = sum[r];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const float inverse = 1.f / total;
      const int row = lane / 4 + 8 * r;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const unsigned packed = ptx::pack_bf16(out[i * 4 + 2 * r] * inverse,
                                                       out[i * 4 + 2 * r + 1] * inverse);
        const unsigned at = staging + row * kRowBytes + ((i ^ (row & 7)) << 4) + lane % 4 * 4;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(packed) : "memory");
      }
    }
    __syncwarp();
    const int first = group * 64 + warp * 16;
#pragma unroll
    for (int i = 0; i < 16 * kColumns / 32; ++i) {
      const int row = (i * 32 + lane) / kColumns, column = lane % kColumns;
      uint4 v;
      asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                   : "r"(staging + row * kRowBytes + ((column ^ (row & 7)) << 4)) : "memory");
      if (first + row < item.rows) {
        *reinterpret_cast<uint4*>(
            a.out + ((long long)(item.out_row + first + row) * a.heads + item.head) * HEAD_DIM +
            column * 8) = v;
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void run(const Item* from) {
    if (group == 1) ptx::named_barrier_arrive(1, 256);
    unsigned phase = 0;
    while (true) {
      ptx::barrier_wait(barriers.query_full(), phase);
      phase ^= 1;
      const Item item = *from;
      if (item.head < 0) return;
      attend(item);
      store(item);
    }
  }
};

}  // namespace prefill

extern "C" __global__ void __launch_bounds__(prefill::kWgmmaThreads, 1)
    prefill_attention_wgmma(const __grid_constant__ prefill::TensorMap query_map,
                            const __grid_constant__ prefill::TensorMap pool_map,
                            const int* __restrict__ page_table,
                            const PrefillSegment* __restrict__ segments,
                            const PrefillTile* __restrict__ tiles,
                            unsigned short* __restrict__ out, int* __restrict__ next,
                            int tile_count, int heads, int kv_heads, int layer, int layers,
                            float scale) {
  using namespace prefill;
  extern __shared__ unsigned char prefill_raw[];
  const unsigned raw = ptx::shared_address(prefill_raw);
  const unsigned shared = (raw + 1023) & ~1023u;
  Item* item = reinterpret_cast<Item*>(prefill_raw + (shared - raw) + kItemAt);
  const Barriers barriers = {shared + kBarrierAt};
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    ptx::prefetch_map(&query_map);
    ptx::prefetch_map(&pool_map);
    ptx::barrier_init(barriers.query_full(), 1);
    ptx::barrier_init(barriers.query_empty(), 8);
    for (int s = 0; s < kStages; ++s) {
      ptx::barrier_init(barriers.key_full(s), 1);
      ptx::barrier_init(barriers.key_empty(s), 8);
      ptx::barrier_init(barriers.value_full(s), 1);
      ptx::barrier_init(barriers.value_empty(s), 8);
    }
    ptx::async_proxy_fence();
  }
  __syncthreads();
  ptx::let_next_kernel_start();
  const WgmmaArguments arguments = {page_table, segments, tiles,  out,   next, tile_count,
                                    heads,      kv_heads, layer, layers, scale};
  const int group = __shfl_sync(~0u, int(threadIdx.x / 128), 0);
  if (group == 0) {
    ptx::shrink_registers<24>();
    if (threadIdx.x < 32) {
      ptx::wait_for_previous_kernel();
      Producer producer{&query_map, &pool_map, arguments, shared, barriers, item, lane};
      producer.run();
    }
  } else {
    ptx::grow_registers<240>();
    ptx::wait_for_previous_kernel();
    Consumer consumer{shared, barriers, arguments, group - 1, int(threadIdx.x / 32 % 4), lane};
    consumer.scale = scale * kLog2e;
    consumer.run(item);
  }
}
