// What decode attention reads and in which order: the constants of a model, the plan's items, and
// the walk over chunks that fills a warp's ring.
#pragma once
#include "ptx.cuh"

#ifndef HEAD_DIM
#error "HEAD_DIM: elements of a head, 64 or 128"
#endif
#ifndef GROUP
#error "GROUP: query heads a kv head, 1 to 8"
#endif
#ifndef PAGE_TOKENS
#error "PAGE_TOKENS: tokens of a page, 16, 32, 48 or 64"
#endif
#ifndef STAGES
#error "STAGES: slots of a warp's ring, 3 (HEAD_DIM 128) or 6 (64) where shared memory allows"
#endif

constexpr int kHeadDim = HEAD_DIM, kGroup = GROUP, kPageTokens = PAGE_TOKENS, kStages = STAGES;
constexpr int kChunkTokens = 16;  // the tokens of one matrix product; a page is whole chunks
constexpr int kPageChunks = kPageTokens / kChunkTokens;
constexpr int kHalves = kHeadDim / 64;  // a row in shared memory is 64 dims, 128 bytes
constexpr int kHalfBytes = kChunkTokens * 128;
constexpr int kChunkBytes = kHalves * kHalfBytes;
constexpr int kSlotBytes = 2 * kChunkBytes;  // K and V of one chunk and head
constexpr int kWarps = 8;
static_assert(kHeadDim == 64 || kHeadDim == 128, "HEAD_DIM");
static_assert(kGroup >= 1 && kGroup <= 8, "GROUP: they are the 8 columns of a matrix product");
static_assert(kPageTokens % kChunkTokens == 0 && kPageTokens <= 64, "PAGE_TOKENS");
static_assert(kStages >= 1 && kStages <= 16, "STAGES");

/// One worker's part of one row and head group; plan.rs writes them.
struct Item {
  int row, head;               // head: first kv head of the group
  int chunk_begin, chunk_end;  // half-open, of the row's tokens cut into chunks of 16
  int length;                  // tokens of the row, the newest included
  int table;                   // where the row's page table begins in `page_tables`
  int first_slot;              // partial results of this row and head group; unused for one piece
  unsigned short pieces, piece;  // of this row and head group, and which this is
};
static_assert(sizeof(Item) == 32, "two int4");

/// The arguments that all parts of the kernel share.
struct Decode {
  const char* pool;          // bf16 [page][layer][K|V][kv head][token][dim]
  const unsigned short* qkv;  // bf16 [row][heads + 2 kv_heads][dim]
  unsigned short* out;        // bf16 [row][heads][dim]
  const int* page_tables;     // one after another
  const Item* items;
  float* partials;       // [slot][head of group][q head of kv head][dim], not normalised
  float2* partial_sums;  // [slot][head of group][q head of kv head]: maximum (log2), sum
  int* arrived;          // [row][kv head], 0 between launches
  int kv_heads;
  int layer_chunk, page_stride, kv_stride;  // in chunks
  float scale_log2;                         // softmax scale × log2(e)
};

/// Walks the chunks of one warp over all items of its worker, kStages ahead of the arithmetic.
template <int kWays>
struct Feed {
  const Decode& d;
  int item, item_end, head, way, lane;
  int chunk = 0, chunk_end = 0, newest = -1, ids_first = 0, ids = 0, head_chunk = 0;
  const int* table = nullptr;

  __device__ Feed(const Decode& d, int item, int item_end, int head, int way, int lane)
      : d(d), item(item), item_end(item_end), head(head), way(way), lane(lane) {}

  __device__ __forceinline__ void load_ids() {
    ids_first = chunk;
    const int mine = chunk + lane * kWays;
    ids = mine < chunk_end ? __ldg(table + unsigned(mine) / kPageChunks) : 0;
  }

  /// Moves on to an item with chunks left; false when there is none.
  __device__ __forceinline__ bool seek() {
    while (chunk >= chunk_end) {
      if (item == item_end) return false;
      const int4* from = reinterpret_cast<const int4*>(d.items + item);
      const int4 part = __ldg(from);
      const int4 rest = __ldg(from + 1);
      newest = (rest.x - 1) / kChunkTokens;
      ++item;
      chunk = part.z + way;
      chunk_end = part.w;
      table = d.page_tables + rest.y;
      head_chunk = d.layer_chunk + (part.y + head) * kPageChunks;
      load_ids();
    }
    return true;
  }

  /// Whether the next chunk holds the newest token of its row, which the kernel before writes.
  __device__ __forceinline__ bool fresh() { return seek() && chunk == newest; }

  /// Starts the copy of the next chunk into `slot`; an empty copy when there is none.
  __device__ __forceinline__ void issue(unsigned slot) {
    if (seek()) {
      if (chunk - ids_first >= 32 * kWays) load_ids();
      const int id = __shfl_sync(~0u, ids, (chunk - ids_first) / kWays);
      copy(slot, head_chunk + id * d.page_stride + int(unsigned(chunk) % kPageChunks));
      chunk += kWays;
    }
    ptx::commit_copies();
  }

  /// 16-byte column c of row r lies at column c ^ (r % 8), so that ldmatrix meets no bank twice.
  __device__ __forceinline__ void copy(unsigned slot, int from_chunk) {
    constexpr int kColumns = kHeadDim / 8, kRows = 32 / kColumns;
    const int row = lane / kColumns, column = lane % kColumns;
    const char* key = d.pool + static_cast<long long>(from_chunk) * kChunkBytes + lane * 16;
    const char* value = key + static_cast<long long>(d.kv_stride) * kChunkBytes;
    const unsigned target = slot + (column >> 3) * kHalfBytes + row * 128;
    const unsigned swizzled = (column & 7) ^ row;
#pragma unroll
    for (int i = 0; i < kChunkTokens / kRows; ++i) {
      const unsigned at = target + i * kRows * 128 + ((swizzled ^ (i * kRows & 7)) << 4);
      ptx::copy_16(at, key + i * 512);
      ptx::copy_16(at + kChunkBytes, value + i * 512);
    }
  }
};
