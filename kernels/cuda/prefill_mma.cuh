// The version for every device from sm_80 on: 8 warps, 16 query rows each, tiles of 64 keys and
// values in two shared-memory stages.
//
// A row of a tile is HEAD_DIM · 2 bytes; its 16-byte columns are exchanged by (column ^ row % 8), so
// ldmatrix meets no bank conflict.
#pragma once

namespace prefill {

constexpr int kMmaKeys = 64;
constexpr int kMmaThreads = 256;

struct MmaTile {
  static constexpr int kRowBytes = HEAD_DIM * 2;
  static constexpr int kColumns = HEAD_DIM / 8;
  static constexpr int kBytes = kMmaKeys * kRowBytes;

  __device__ static __forceinline__ unsigned at(int row, int column) {
    return row * kRowBytes + ((column ^ (row & 7)) << 4);
  }
};

/// Starts the copy of tile `tile` of keys and values; tokens from `tokens` on become zeros.
__device__ __forceinline__ void copy_tile(unsigned target, const unsigned short* pool,
                                          const int* table, PageRows rows, int value_rows, int tile,
                                          int tokens) {
#pragma unroll
  for (int i = 0; i < kMmaKeys * MmaTile::kColumns / kMmaThreads; ++i) {
    const int piece = i * kMmaThreads + threadIdx.x;
    const int row = piece / MmaTile::kColumns, column = piece % MmaTile::kColumns;
    const int token = tile * kMmaKeys + row;
    const bool real = token < tokens;
    const int page = real ? table[token / PAGE_TOKENS] : 0;
    const unsigned short* key = pool + (long long)rows.at(page, token) * HEAD_DIM + column * 8;
    const unsigned to = target + MmaTile::at(row, column);
    ptx::copy_16(to, key, real ? 16 : 0);
    ptx::copy_16(to + MmaTile::kBytes, key + (long long)value_rows * HEAD_DIM,
                         real ? 16 : 0);
  }
}

/// Running softmax of one warp for 16 rows: a lane holds columns 2·(lane % 4) and the next of rows
/// lane / 4 and lane / 4 + 8.
struct MmaState {
  float maximum[2], sum[2];
  float out[HEAD_DIM / 2];

  /// `last[r]`: the last key of the tile that row r may see, less this lane's column.
  __device__ __forceinline__ void step(const unsigned (&query)[HEAD_DIM / 16][4], unsigned keys,
                                       bool masked, const int (&last)[2], float scale, int lane) {
    float score[kMmaKeys / 2] = {};
    const int key_row = (lane & 7) + (lane >> 4) * 8, key_column = (lane >> 3) & 1;
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 16; ++d) {
#pragma unroll
      for (int n = 0; n < kMmaKeys / 16; ++n) {
        unsigned b[4];
        ptx::load_matrices<false>(
            b, keys + MmaTile::at(n * 16 + key_row, d * 2 + key_column));
        ptx::mma(score + n * 8, query[d], b[0], b[1]);
        ptx::mma(score + n * 8 + 4, query[d], b[2], b[3]);
      }
    }
    if (masked) {
#pragma unroll
      for (int i = 0; i < kMmaKeys / 2; ++i) {
        if ((i >> 2) * 8 + (i & 1) > last[(i >> 1) & 1]) score[i] = -infinity();
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) softmax(score, r, scale);
    const unsigned values = keys + MmaTile::kBytes;
    const int value_row = lane & 15, value_column = lane >> 4;
#pragma unroll
    for (int k = 0; k < kMmaKeys / 16; ++k) {
      const float* s = score + k * 8;
      const unsigned p[4] = {
          ptx::pack_bf16(s[0], s[1]), ptx::pack_bf16(s[2], s[3]),
          ptx::pack_bf16(s[4], s[5]), ptx::pack_bf16(s[6], s[7])};
#pragma unroll
      for (int d = 0; d < HEAD_DIM / 16; ++d) {
        unsigned b[4];
        ptx::load_matrices<true>(
            b, values + MmaTile::at(k * 16 + value_row, d * 2 + value_column));
        ptx::mma(out + d * 8, p, b[0], b[1]);
        ptx::mma(out + d * 8 + 4, p, b[2], b[3]);
      }
    }
  }

  __device__ __forceinline__ void softmax(float (&score)[kMmaKeys / 2], int r, float scale) {
    float top = maximum[r];
#pragma unroll
    for (int i = 0; i < kMmaKeys / 2; i += 4) {
      top = fmaxf(top, fmaxf(score[i + 2 * r], score[i + 2 * r + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    const float base = top == -infinity() ? 0.f : top * scale;
    const float factor = ptx::exp2(maximum[r] * scale - base);
    maximum[r] = top;
    sum[r] *= factor;
#pragma unroll
    for (int i = 0; i < kMmaKeys / 2; i += 4) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& s = score[i + 2 * r + c];
        s = ptx::exp2(fmaf(s, scale, -base));
        sum[r] += s;
      }
    }
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i += 4) {
      out[i + 2 * r] *= factor;
      out[i + 2 * r + 1] *= factor;
    }
  }
};

}  // namespace prefill

extern "C" __global__ void __launch_bounds__(prefill::kMmaThreads, 1)
    prefill_attention(const unsigned short* __restrict__ qkv,
                      const unsigned short* __restrict__ pool,
                      const int* __restrict__ page_table,
                      const PrefillSegment* __restrict__ segments,
                      const PrefillTile* __restrict__ tiles, unsigned short* __restrict__ out,
                      int tile_count, int heads, int kv_heads, int layer, int layers,
                      float scale) {
  using namespace prefill;
  extern __shared__ __align__(128) unsigned char prefill_shared[];
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  const int work = blockIdx.x;
  if (work >= tile_count * heads) return;
  const PrefillTile tile = tiles[work / heads];
  const PrefillSegment segment = segments[tile.segment];
  const int head = work % heads, first_row = tile.q_tile * kQueryTile;
  const int tokens = segment.start + segment.len;
  const int end = segment.start + min(first_row + kQueryTile, segment.len);
  const int key_tiles = (end + kMmaKeys - 1) / kMmaKeys;
  const PageRows rows(layer, layers, kv_heads, head / (heads / kv_heads));
  const int* table = page_table + segment.table;
  const unsigned shared = ptx::shared_address(prefill_shared);
  copy_tile(shared, pool, table, rows, kv_heads * PAGE_TOKENS, 0, tokens);
  ptx::commit_copies();

  const int lane = threadIdx.x % 32;
  const int warp_row = first_row + threadIdx.x / 32 * 16;
  const int row[2] = {warp_row + lane / 4, warp_row + lane / 4 + 8};
  const int width = (heads + 2 * kv_heads) * HEAD_DIM;
  unsigned query[HEAD_DIM / 16][4];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const unsigned* from = reinterpret_cast<const unsigned*>(
        qkv + (long long)(segment.first + min(row[r], segment.len - 1)) * width +
        head * HEAD_DIM + 2 * (lane % 4));
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 16; ++d) {
      query[d][r] = from[d * 8];
      query[d][2 + r] = from[d * 8 + 4];
    }
  }
  MmaState state = {{-infinity(), -infinity()}, {0.f, 0.f}, {}};
  const float scale_log2 = scale * kLog2e;
  for (int t = 0; t < key_tiles; ++t) {
    const unsigned stage = shared + (t & 1) * 2 * MmaTile::kBytes;
    if (t + 1 < key_tiles) {
      copy_tile(shared + (~t & 1) * 2 * MmaTile::kBytes, pool, table, rows,
                kv_heads * PAGE_TOKENS, t + 1, tokens);
    }
    ptx::commit_copies();
    ptx::wait_copies<1>();
    __syncthreads();
    const int first_key = t * kMmaKeys;
    if (warp_row < segment.len && first_key <= segment.start + warp_row + 15) {
      const int shift = segment.start - first_key - 2 * (lane % 4);
      const int last[2] = {row[0] + shift, row[1] + shift};
      const bool masked = first_key + kMmaKeys > segment.start + warp_row + 1;
      state.step(query, stage, masked, last, scale_log2, lane);
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = state.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const float inverse = 1.f / sum;
    if (row[r] >= segment.len) continue;
    unsigned* to = reinterpret_cast<unsigned*>(
        out + ((long long)(segment.first + row[r]) * heads + head) * HEAD_DIM + 2 * (lane % 4));
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; ++i) {
      to[i * 4] = ptx::pack_bf16(state.out[i * 4 + 2 * r] * inverse,
                                         state.out[i * 4 + 2 * r + 1] * inverse);
    }
  }
}
