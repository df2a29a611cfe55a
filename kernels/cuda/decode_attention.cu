// Paged decode attention, split over the KV length. One query token a row, bf16 in and out, GQA
// packed: the q heads of one kv head are the columns of one matrix product.
//
// 1. The host plans (src/cuda/plan.rs) once a step, for all layers: each worker gets a list of
//    items, each a chunk range of one row and one group of kv heads. A block of 8 warps is, by the
//    plan's mode, one worker of 2 heads × 4 warps (0), one of 1 × 8 (1), or two of 1 × 4 (2).
// 2. The warps of a head take every kWays-th chunk. Each owns a ring of STAGES slots and is both
//    its producer and its consumer; teams of different heads never wait for each other.
// 3. The ring is filled before the previous kernel ends, up to the first chunk that holds the
//    newest token of its row: that kernel writes it. All older tokens, the plan and the page table
//    must have been there before the chain of overlapping kernels began.
// 4. At the end of an item the team merges (decode_merge.cuh).
//
// A row without items is left as it is, and a worker without items does nothing, so one captured
// grid serves any batch of its bucket. Tokens past the end of a row may hold any bits, NaN too: K
// is masked after the product, V is zeroed in shared memory.
//
// Launch: grid = multiprocessors (a smaller one must match the plan), block = 256; dynamic shared
// memory = 8 · (STAGES · 64 · HEAD_DIM + GROUP · (4 · HEAD_DIM + 8) + 4) bytes.
#include "decode_merge.cuh"

template <int kHeads, int kWays>
__device__ __forceinline__ void work(const Decode& d, char* raw, int item_begin, int item_end) {
  const Shared shared(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Team<kHeads, kWays> team{warp / kWays, warp / kWays % kHeads, warp % kWays, lane};
  char* ring = shared.ring + warp * kStages * kSlotBytes;
  const unsigned ring_address = ptx::shared_address(ring);
  Feed<kWays> feed(d, item_begin, item_end, team.head, team.way, lane);
  int filled = 0;
#pragma unroll 1
  for (; filled < kStages && !feed.fresh(); ++filled) {
    feed.issue(ring_address + filled * kSlotBytes);
  }
  ptx::wait_for_previous_kernel();
#pragma unroll 1
  for (; filled < kStages; ++filled) feed.issue(ring_address + filled * kSlotBytes);

  int stage = 0;
  for (int i = item_begin; i < item_end; ++i) {
    const Item item = d.items[i];
    const Query query(d, item.row, item.head + team.head, lane);
    State state;
    for (int c = item.chunk_begin + team.way; c < item.chunk_end; c += kWays) {
      ptx::wait_copies<kStages - 1>();
      __syncwarp();
      const unsigned slot = ring_address + stage * kSlotBytes;
      const int valid = item.length - c * kChunkTokens;
      if (valid < kChunkTokens) clear_tail(ring + stage * kSlotBytes, valid, lane);
      attend(state, query, slot, valid, d.scale_log2, lane);
      __syncwarp();
      feed.issue(slot);
      if (++stage == kStages) stage = 0;
    }
    team.finish(state, d, shared, item);
  }
}

/// `plan`: mode, then the first item of each worker, then the number of items up to 2 × grid + 2
/// ints in all. In mode 2 worker w is half w / grid of block w % grid, so few workers spread over
/// many multiprocessors.
extern "C" __global__ void __launch_bounds__(kWarps * 32, 1)
    decode_attention(const void* pool, const unsigned short* qkv, unsigned short* out,
                     const int* page_tables, const int* plan, const void* items, float* partials,
                     float2* partial_sums, int* arrived, int kv_heads, int layer, int layers,
                     float scale_log2) {
  extern __shared__ __align__(1024) char raw[];
  ptx::let_next_kernel_start();
  const int second = threadIdx.x / (kWarps * 16);
  // All are read at once: the mode says only which count.
  const int mode = __ldg(plan);
  const int* first = plan + 1;
  const int whole_begin = __ldg(first + blockIdx.x), whole_end = __ldg(first + blockIdx.x + 1);
  const int half = second * gridDim.x + blockIdx.x;
  const int half_begin = __ldg(first + half), half_end = __ldg(first + half + 1);
  const int begin = mode == 2 ? half_begin : whole_begin;
  const int end = mode == 2 ? half_end : whole_end;
  if (begin == end) {
    // One block always waits, so this kernel never ends before the one before it.
    if (blockIdx.x == 0) ptx::wait_for_previous_kernel();
    return;
  }
  const int kv_stride = kv_heads * kPageChunks;
  const Decode d{static_cast<const char*>(pool), qkv, out, page_tables,
                 static_cast<const Item*>(items), partials, partial_sums, arrived,
                 kv_heads, layer * 2 * kv_stride, layers * 2 * kv_stride,
                 kv_stride, scale_log2};
  if (mode == 0) {
    work<2, 4>(d, raw, begin, end);
  } else if (mode == 1) {
    work<1, 8>(d, raw, begin, end);
  } else {
    work<1, 4>(d, raw, begin, end);
  }
}
