// y[m][n] = x[m][k] · W[n][k]ᵀ for a few rows, where the time is that of reading W once.
//
// W is the 16-row operand of the tensor cores, the batch their 8 columns. The order of k within an
// instruction is free as long as both operands agree, so a lane takes 16 contiguous bytes of a row
// of W and of a row of x for every 32 elements of k: no matrix is transposed or repacked, and what a
// lane copies into shared memory of W only that lane reads, so W needs no barrier.
//
//   1. Copies of W start before the kernel before this one has ended; then this kernel asks for a
//      run of memory that a later kernel will read, to be fetched into L2, so that the memory is
//      not idle while kernels end and start; then the kernel before is waited for.
//   2. Each warp sums its tiles over its share of k (split over the block's warps and over the
//      cluster's blocks).
//   3. Partial sums meet in shared memory, then in the block of the cluster that owns them, in a
//      fixed order: the same input gives the same bits.
//   4. The owner scales, adds and stores.
#pragma once
#include "project_parts.cuh"

#ifndef PROJECT_TRACE
#define PROJECT_TRACE(arguments, point)  // the harness notes the time here
#endif

namespace project {

enum Layout : unsigned {
  kRows = 0,         // W as checkpoints have it, [n][k]
  kGated = 1,        // rows [0, n) are gates and [n, 2n) ups; y = silu(gate) * up
  kPacked = 2,       // tiles in fragment order, see `pack_offset`
  kPackedGated = 3,  // both
};

struct Arguments {
  const Half* x;         // [m][k]
  const Half* w;         // [n][k], or [2n][k] gated
  Half* y;               // [m][n]
  const Half* residual;  // [m][n], added last; may be y; or null
  const float* bias;     // [n], not with gated; or null
  const float* gain;     // [k]; read by kernels with kNorm alone, which round it to bf16
  int m, n, k;           // m <= 8 kColumns; n % 16 == 0 (gated: n % 8 == 0); k % 32 == 0
  float eps;             // of the norm
  unsigned layout;
  const void* next;      // a run to be fetched into L2 for later kernels; never written by them
  unsigned next_bytes;   // of it, a multiple of 16
};

/// Where element (row of the tile, k) lies in the packed form: [tile][k / 32][row / 8][lane][8].
/// A gated tile has 8 gates as rows 0 to 7 and the ups of the same columns as rows 8 to 15.
__host__ __device__ constexpr long long pack_offset(int tile, int row, int k, int width) {
  return (((long long)tile * (width / 32) + k / 32) * 2 + row / 8) * 256 +
         ((row % 8) * 4 + k % 32 / 8) * 8 + k % 8;
}

/// How a projection is cut. The grid is kSplit times tiles / (kTiles kWarpsN), rounded up, in
/// clusters of kSplit blocks.
template <int kColumns_, int kTiles_, int kWarpsN_, int kWarpsK_, int kSplit_, int kStages_,
          bool kNorm_>
struct Cut {
  static constexpr int kColumns = kColumns_;  // 8 rows of x each
  static constexpr int kTiles = kTiles_;      // tiles of 16 rows of W a warp
  static constexpr int kWarpsN = kWarpsN_;    // warps side by side
  static constexpr int kWarpsK = kWarpsK_;    // warps that share k
  static constexpr int kSplit = kSplit_;      // blocks of the cluster, which share k too
  static constexpr int kStages = kStages_;    // blocks of 32 elements of k in flight, a warp
  static constexpr bool kNorm = kNorm_;       // y = (x * gain / rms(x)) · Wᵀ

  static constexpr int kWarps = kWarpsN * kWarpsK, kThreads = 32 * kWarps;
  static constexpr int kBlockTiles = kTiles * kWarpsN;
  static constexpr int kUnits = kBlockTiles * kColumns;  // of 16 × 8 sums
  static constexpr int kOwned = (kUnits + kSplit - 1) / kSplit;
  static constexpr int kRows = 8 * kColumns;
  static constexpr int kOwnColumns = (kColumns + kWarpsN - 1) / kWarpsN;
  // Shared memory, in bytes.
  static constexpr int kStageBytes = kTiles * 1024;
  static constexpr int kXStageBytes = kColumns * 512;
  static constexpr bool kLeaves = kWarpsK > 1 || kSplit == 1;  // sums meet in the block first
  static constexpr int kSumBytes = kLeaves ? kTiles * kColumns * 512 : 0;
  static constexpr int kWarpBytes =  // stages of W, and in their place the sums at the end
      kStages * kStageBytes > kSumBytes ? kStages * kStageBytes : kSumBytes;
  static constexpr int kX = kWarps * kWarpBytes;
  static constexpr int kMeet = kX + kWarpsK * kStages * kXStageBytes;
  static constexpr int kSquares = kMeet + (kSplit > 1 ? kOwned * kSplit * 512 : 0);
  static constexpr int kSquaresMeet = kSquares + (kNorm ? kWarpsK * kRows * 4 : 0);
  static constexpr int kGain = kSquaresMeet + (kNorm ? kSplit * kRows * 4 : 0);

  __host__ __device__ static constexpr int shared_bytes(int k) { return kGain + (kNorm ? k * 2 : 0); }
  __host__ __device__ static constexpr int blocks(int n, bool gated) {
    return (n / (gated ? 8 : 16) + kBlockTiles - 1) / kBlockTiles * kSplit;
  }
};

/// What a lane copies of W: two pieces a tile and block of k.
struct Source {
  const Half* start;
  long long tile;  // to the next tile, in elements
  long long high;  // from row g to row g + 8
  int step;        // to the next block of k
  int tiles;
};

__device__ __forceinline__ Source source_of(const Arguments& a, int lane) {
  const bool gated = a.layout & kGated, packed = a.layout & kPacked;
  const int row = lane / 4, rows = gated ? 8 : 16;
  Source s;
  s.start = a.w + (packed ? lane * 8LL : (long long)row * a.k + lane % 4 * 8);
  s.tile = (long long)(packed ? 16 : rows) * a.k;
  s.high = packed ? 256 : (long long)(gated ? a.n : 8) * a.k;
  s.step = packed ? 512 : 32;
  s.tiles = a.n / rows;
  return s;
}

/// This block's part of the run that later kernels read.
__device__ __forceinline__ void prefetch_next(const Arguments& a) {
  constexpr unsigned kRun = 2048;
  const unsigned runs = (a.next_bytes + kRun - 1) / kRun;
  const unsigned share = (runs + gridDim.x - 1) / gridDim.x;
  const unsigned last = min(runs, (blockIdx.x + 1) * share);
  for (unsigned i = blockIdx.x * share + threadIdx.x; i < last; i += blockDim.x) {
    prefetch_run(static_cast<const unsigned char*>(a.next) + (unsigned long long)i * kRun,
                 min(kRun, a.next_bytes - i * kRun));
  }
}

template <class C>
struct Sum {
  const Arguments& a;
  unsigned char* const shared;
  const int lane, warp_n, warp_k;
  const int first, count;  // blocks of k
  const Half* w;           // of this lane in the warp's first tile
  Source source;
  int tile;
  unsigned ring, x_ring;   // shared addresses
  Sums sums[C::kTiles][C::kColumns];
  float squares[C::kOwnColumns];

  __device__ __forceinline__ void copy_w(int index) {
    const unsigned slot = ring + index % C::kStages * C::kStageBytes + lane * 16;
#pragma unroll
    for (int j = 0; j < C::kTiles; ++j) {
      // Tiles behind the last are computed of the last and not stored.
      const Half* low = source.start + min(tile + j, source.tiles - 1) * source.tile +
                        (long long)(first + index) * source.step;
      copy_16(slot + j * 1024, low);
      copy_16(slot + j * 1024 + 512, low + source.high);
    }
  }

  __device__ __forceinline__ void copy_x(int index) {
    const unsigned slot = x_ring + index % C::kStages * C::kXStageBytes + lane * 16;
    const Half* from = a.x + (first + index) * 32 + lane % 4 * 8;
    int row = warp_n * 8 + lane / 4, offset = row * a.k;
    constexpr int kUnroll = C::kColumns / C::kWarpsN > 2 ? 2 : 1;
#pragma unroll kUnroll
    for (int c = warp_n; c < C::kColumns; c += C::kWarpsN) {
      copy_16_if(slot + c * 512, from + (row < a.m ? offset : 0), row < a.m);
      row += 8 * C::kWarpsN, offset += 8 * C::kWarpsN * a.k;
    }
  }

  /// Of the columns that this warp copied. Apart from the products, so that no branch cuts those.
  __device__ __forceinline__ void add_squares(const Piece* x) {
#pragma unroll
    for (int i = 0; i < C::kOwnColumns; ++i) {
      const int c = warp_n + i * C::kWarpsN;
      if (C::kColumns % C::kWarpsN && c >= C::kColumns) break;
      const Piece b = x[c * 32 + lane];
      squares[i] += (low(b.x) * low(b.x) + high(b.x) * high(b.x) + low(b.y) * low(b.y) +
                     high(b.y) * high(b.y)) +
                    (low(b.z) * low(b.z) + high(b.z) * high(b.z) + low(b.w) * low(b.w) +
                     high(b.w) * high(b.w));
    }
  }

  __device__ __forceinline__ void multiply_stage(int index) {
    const int slot = index % C::kStages;
    const unsigned char* w_slot = shared + (ring - shared_address(shared)) + slot * C::kStageBytes;
    const Piece* x = reinterpret_cast<const Piece*>(shared + (x_ring - shared_address(shared)) +
                                                    slot * C::kXStageBytes);
    const Piece* pieces = reinterpret_cast<const Piece*>(w_slot) + lane;
    Piece gain;
    if constexpr (C::kNorm) {
      gain = *reinterpret_cast<const Piece*>(shared + C::kGain + (first + index) * 64 +
                                             lane % 4 * 16);
      add_squares(x);
    }
    Piece low[C::kTiles], high[C::kTiles];
#pragma unroll
    for (int j = 0; j < C::kTiles; ++j) low[j] = pieces[j * 64], high[j] = pieces[j * 64 + 32];
#pragma unroll
    for (int c = 0; c < C::kColumns; ++c) {
      Piece b = x[c * 32 + lane];
      if constexpr (C::kNorm) {
        b = {multiply(b.x, gain.x), multiply(b.y, gain.y), multiply(b.z, gain.z),
             multiply(b.w, gain.w)};
      }
#pragma unroll
      for (int j = 0; j < C::kTiles; ++j) {
        mma(sums[j][c], low[j].x, high[j].x, low[j].y, high[j].y, b.x, b.y);
      }
#pragma unroll
      for (int j = 0; j < C::kTiles; ++j) {
        mma(sums[j][c], low[j].z, high[j].z, low[j].w, high[j].w, b.z, b.w);
      }
    }
  }

  __device__ __forceinline__ void meet_side() {
    if constexpr (C::kWarpsN > 1) named_barrier(1 + warp_k, C::kWarpsN * 32);
  }

  /// Before the kernel before this one has ended: nothing that it wrote may be read here.
  __device__ __forceinline__ void start() {
    for (int i = 0; i < C::kStages; ++i) {
      if (i < count) copy_w(i);
    }
  }

  __device__ __forceinline__ void run() {
    for (int i = 0; i < C::kStages; ++i) {
      if (i < count) copy_x(i);
      commit_copies();
    }
    // Few rows come at once; of many, the first are worked on while the others come.
    if (C::kColumns <= 2 && count <= C::kStages) {
      wait_copies<0>();
      meet_side();
      constexpr int kUnroll = C::kTiles * C::kColumns > 8 ? 1 : 4;
#pragma unroll kUnroll
      for (int i = 0; i < count; ++i) multiply_stage(i);
    } else {
      for (int i = 0; i < count; ++i) {
        wait_copies<C::kStages - 1>();
        meet_side();
        multiply_stage(i);
        if (i + C::kStages < count) {
          meet_side();
          copy_w(i + C::kStages);
          copy_x(i + C::kStages);
        }
        commit_copies();
      }
      wait_copies<0>();
    }
  }

  /// Partial sums to where the warp's stages were.
  __device__ __forceinline__ void leave() {
    if constexpr (C::kLeaves) {
      __syncwarp();
      Sums* out = reinterpret_cast<Sums*>(shared + (ring - shared_address(shared))) + lane;
#pragma unroll
      for (int j = 0; j < C::kTiles; ++j) {
#pragma unroll
        for (int c = 0; c < C::kColumns; ++c) out[(j * C::kColumns + c) * 32] = sums[j][c];
      }
    }
    if constexpr (C::kNorm) {
      float* all = reinterpret_cast<float*>(shared + C::kSquares) + warp_k * C::kRows;
#pragma unroll
      for (int i = 0; i < C::kOwnColumns; ++i) {
        const int c = warp_n + i * C::kWarpsN;
        if (C::kColumns % C::kWarpsN && c >= C::kColumns) break;
        float s = squares[i];
        s += __shfl_xor_sync(~0u, s, 1);
        s += __shfl_xor_sync(~0u, s, 2);
        if (lane % 4 == 0) all[c * 8 + lane / 4] = s;
      }
    }
  }
};

__device__ __forceinline__ void add(Sums& a, const Sums& b) {
  a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w;
}

/// What is added to a unit's sums, fetched early.
__device__ __forceinline__ Sums addend(const Arguments& a, int tile, int column, int lane) {
  Sums r = {0, 0, 0, 0};
  const int row = tile * 16 + lane / 4, c = column * 8 + lane % 4 * 2;
  if ((a.layout & kGated) || row >= a.n) return r;
  if (a.bias) r.x = r.y = a.bias[row], r.z = r.w = a.bias[row + 8];
  if (a.residual) {
    const Half* p = a.residual + (long long)c * a.n + row;
    if (c < a.m) r.x += to_float(p[0]), r.z += to_float(p[8]);
    if (c + 1 < a.m) r.y += to_float(p[a.n]), r.w += to_float(p[a.n + 8]);
  }
  return r;
}

__device__ __forceinline__ float silu_mul(float gate, float up) {
  return gate / (1 + __expf(-gate)) * up;
}

__device__ __forceinline__ void store(const Arguments& a, int tile, int column, int lane,
                                      const Sums& s) {
  const bool gated = a.layout & kGated;
  const int row = tile * (gated ? 8 : 16) + lane / 4, c = column * 8 + lane % 4 * 2;
  if (row >= a.n) return;
  Half* p = a.y + (long long)c * a.n + row;
  if (gated) {
    if (c < a.m) p[0] = to_half(silu_mul(s.x, s.z));
    if (c + 1 < a.m) p[a.n] = to_half(silu_mul(s.y, s.w));
  } else {
    if (c < a.m) p[0] = to_half(s.x), p[8] = to_half(s.z);
    if (c + 1 < a.m) p[a.n] = to_half(s.y), p[a.n + 8] = to_half(s.w);
  }
}

/// The sums of all warps that shared k in this block.
template <class C>
__device__ __forceinline__ Sums gather(const unsigned char* shared, int unit, int lane) {
  constexpr int kWarpUnits = C::kTiles * C::kColumns;
  Sums total = {0, 0, 0, 0};
#pragma unroll
  for (int k = 0; k < C::kWarpsK; ++k) {
    const int warp = k * C::kWarpsN + unit / kWarpUnits;
    add(total, *reinterpret_cast<const Sums*>(shared + warp * C::kWarpBytes +
                                              unit % kWarpUnits * 512 + lane * 16));
  }
  return total;
}

template <class C>
__device__ __forceinline__ float rms_factor(const Arguments& a, const unsigned char* shared,
                                            int row) {
  constexpr int kParts = C::kSplit > 1 ? C::kSplit : C::kWarpsK;
  const float* parts =
      reinterpret_cast<const float*>(shared + (C::kSplit > 1 ? C::kSquaresMeet : C::kSquares));
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kParts; ++i) squares += parts[i * C::kRows + row];
  return rsqrtf(squares / a.k + a.eps);
}

/// Sends this block's sums to the blocks that own them; returns when its own have come.
template <class C>
__device__ __forceinline__ void exchange(const Sum<C>& sum, unsigned char* shared, int rank,
                                         int lane, int warp) {
  const unsigned base = shared_address(shared);
  auto send = [&](int unit, const Sums& sums) {
    const int slot = unit / C::kSplit * C::kSplit + rank;
    store_remote(remote_address(base + C::kMeet + slot * 512 + lane * 16, unit % C::kSplit), sums);
  };
  cluster_wait();  // all blocks of the cluster have started
  if constexpr (C::kWarpsK == 1) {
#pragma unroll
    for (int i = 0; i < C::kTiles * C::kColumns; ++i) {
      send(warp * C::kTiles * C::kColumns + i, sum.sums[i / C::kColumns][i % C::kColumns]);
    }
  } else {
    for (int unit = warp; unit < C::kUnits; unit += C::kWarps) {
      send(unit, gather<C>(shared, unit, lane));
    }
  }
  if constexpr (C::kNorm) {
    const float* parts = reinterpret_cast<const float*>(shared + C::kSquares);
    for (int i = threadIdx.x; i < C::kRows; i += C::kThreads) {
      float sum = 0;
#pragma unroll
      for (int k = 0; k < C::kWarpsK; ++k) sum += parts[k * C::kRows + i];
#pragma unroll
      for (int to = 0; to < C::kSplit; ++to) {
        store_remote(remote_address(base + C::kSquaresMeet + (rank * C::kRows + i) * 4, to), sum);
      }
    }
  }
  cluster_arrive();
  cluster_wait();
}

template <class C>
__device__ __forceinline__ void project(const Arguments& a, unsigned char* shared) {
  let_next_kernel_start();
  PROJECT_TRACE(a, 0);
  if constexpr (C::kSplit > 1) cluster_arrive();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int rank = blockIdx.x % C::kSplit, group = blockIdx.x / C::kSplit;
  const int warp_n = warp % C::kWarpsN, warp_k = warp / C::kWarpsN;
  const int blocks = a.k / 32, share = rank * C::kWarpsK + warp_k;
  constexpr int kShares = C::kSplit * C::kWarpsK;
  const int first = blocks * share / kShares, last = blocks * (share + 1) / kShares;
  const int first_tile = group * C::kBlockTiles;
  const unsigned base = shared_address(shared);

  Sum<C> sum{a, shared, lane, warp_n, warp_k, first, last - first};
  sum.source = source_of(a, lane);
  sum.tile = first_tile + warp_n * C::kTiles;
  sum.ring = base + warp * C::kWarpBytes;
  sum.x_ring = base + C::kX + warp_k * C::kStages * C::kXStageBytes;
#pragma unroll
  for (int c = 0; c < C::kColumns; ++c) {
    if (c < C::kOwnColumns) sum.squares[c] = 0;
#pragma unroll
    for (int j = 0; j < C::kTiles; ++j) sum.sums[j][c] = {0, 0, 0, 0};
  }
  sum.start();
  prefetch_next(a);
  if constexpr (C::kNorm) {
    Piece* gains = reinterpret_cast<Piece*>(shared + C::kGain);
    for (int i = threadIdx.x; i < a.k / 8; i += C::kThreads) {
      gains[i] = to_piece(reinterpret_cast<const Sums*>(a.gain) + 2 * i);
    }
    __syncthreads();
  }
  PROJECT_TRACE(a, 1);
  wait_for_previous_kernel();
  PROJECT_TRACE(a, 2);

  // What is added to the units that this thread finishes comes while the sums are made.
  constexpr int kFinishes = (C::kOwned + C::kWarps - 1) / C::kWarps;
  constexpr bool kEarly = kFinishes <= 2 && !C::kNorm;
  const auto unit_of = [&](int i) { return (warp + i * C::kWarps) * C::kSplit + rank; };
  Sums early[kFinishes];
  if constexpr (kEarly) {
#pragma unroll
    for (int i = 0; i < kFinishes; ++i) {
      if (unit_of(i) >= C::kUnits) break;
      early[i] =
          addend(a, first_tile + unit_of(i) / C::kColumns, unit_of(i) % C::kColumns, lane);
    }
  }
  sum.run();
  PROJECT_TRACE(a, 3);
  sum.leave();
  __syncthreads();
  if constexpr (C::kSplit > 1) exchange<C>(sum, shared, rank, lane, warp);

#pragma unroll
  for (int i = 0; i < kFinishes; ++i) {
    const int own = warp + i * C::kWarps, unit = unit_of(i);
    if (own >= C::kOwned || unit >= C::kUnits) break;
    Sums total;
    if constexpr (C::kSplit > 1) {
      total = {0, 0, 0, 0};
#pragma unroll
      for (int from = 0; from < C::kSplit; ++from) {
        add(total, *reinterpret_cast<const Sums*>(shared + C::kMeet +
                                                  (own * C::kSplit + from) * 512 + lane * 16));
      }
    } else {
      total = gather<C>(shared, unit, lane);
    }
    const int tile = first_tile + unit / C::kColumns, column = unit % C::kColumns;
    if constexpr (C::kNorm) {
      const int row = column * 8 + lane % 4 * 2;
      const float f0 = rms_factor<C>(a, shared, row), f1 = rms_factor<C>(a, shared, row + 1);
      total.x *= f0, total.z *= f0, total.y *= f1, total.w *= f1;
    }
    if constexpr (kEarly) {
      add(total, early[i]);
    } else {
      add(total, addend(a, tile, column, lane));
    }
    store(a, tile, column, lane, total);
  }
  PROJECT_TRACE(a, 4);
}

}  // namespace project
