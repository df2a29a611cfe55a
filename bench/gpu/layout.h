// Where a 4 KiB chunk (16 tokens × 128 dims of bf16: one page, one layer, K or V, one kv head)
// lies in the pool. Every layout under test is four strides, counted in chunks; the kernel knows no
// more.
#pragma once
#include <stdint.h>

constexpr int kHeadDim = 128;
constexpr int kPageTokens = 16;
constexpr int kChunkElements = kPageTokens * kHeadDim;
constexpr int kChunkBytes = kChunkElements * 2;

struct Layout {
  const char* name;
  int page, layer, kv, head;  // strides in chunks
};

struct PoolShape {
  int layers, kv_heads, pages;
  int64_t chunks() const { return int64_t(layers) * 2 * kv_heads * pages; }
};

/// `[page][layer][K|V][head]`: all layers of a page adjacent.
inline Layout page_major(PoolShape s) {
  return {"page-major", s.layers * 2 * s.kv_heads, 2 * s.kv_heads, s.kv_heads, 1};
}
/// `[page][layer][head][K|V]`: K and V of a head adjacent.
inline Layout page_major_head_kv(PoolShape s) {
  return {"page-major-head-kv", s.layers * 2 * s.kv_heads, 2 * s.kv_heads, 1, 2};
}
/// `[layer][page][K|V][head]`.
inline Layout layer_major(PoolShape s) {
  return {"layer-major", 2 * s.kv_heads, s.pages * 2 * s.kv_heads, s.kv_heads, 1};
}
/// `[layer][K|V][page][head]`: a pool of keys and one of values for each layer.
inline Layout layer_major_split(PoolShape s) {
  return {"layer-major-split", s.kv_heads, s.pages * 2 * s.kv_heads, s.pages * s.kv_heads, 1};
}
