// Causal attention of new tokens over everything of their sequence in the pages; bf16.
//
// A ragged batch is cut into work items: 128 query rows of one segment × one query head. The host
// lists the (segment, query tile) pairs, longest first; item w is tile w / heads, head w % heads.
//
// `prefill_attention`, any device from sm_80: mma.sync, a block a work item.
//   grid tile_count · heads, block 256, dynamic shared memory 512 · HEAD_DIM bytes.
// `prefill_attention_wgmma`, sm_90a: see prefill_wgmma.cuh.
//
// Tokens past a sequence's end in its last page may hold any bits, NaN too: their scores are masked
// (they lie beyond the diagonal) and their values are zeroed on the way into shared memory.
#include "ptx_hopper.cuh"

#ifndef HEAD_DIM
#error "HEAD_DIM: 64 or 128"
#endif
#ifndef PAGE_TOKENS
#error "PAGE_TOKENS: 16, 32, 48 or 64"
#endif
static_assert(HEAD_DIM == 64 || HEAD_DIM == 128, "HEAD_DIM: 64 or 128");
static_assert(PAGE_TOKENS % 16 == 0 && PAGE_TOKENS <= 64, "PAGE_TOKENS: 16, 32, 48 or 64");

struct PrefillSegment {
  int first;  // row of its first new token
  int len;    // new tokens
  int start;  // tokens before them
  int table;  // index of its page table in `page_table`
};

struct PrefillTile {
  int segment, q_tile;
};

namespace prefill {

constexpr int kQueryTile = 128;
constexpr float kLog2e = 1.44269504088896f;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

/// Row (of HEAD_DIM elements) of a token's key in the pool; its value lies kv_heads · PAGE_TOKENS
/// rows further.
struct PageRows {
  int per_page, head;
  __device__ PageRows(int layer, int layers, int kv_heads, int kv_head)
      : per_page(layers * 2 * kv_heads * PAGE_TOKENS),
        head((layer * 2 * kv_heads + kv_head) * PAGE_TOKENS) {}
  __device__ __forceinline__ int at(int page, int token) const {
    return page * per_page + head + token % PAGE_TOKENS;
  }
};

}  // namespace prefill

#include "prefill_mma.cuh"
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "prefill_wgmma.cuh"
#endif
