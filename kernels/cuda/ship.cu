// Copies the same bytes of listed pages of one pool to listed pages of another, which may be a
// mapping of another process' pool, on this GPU or on a peer.
//
// A grid as large as the caller likes: few blocks leave multiprocessors to a forward pass that runs
// beside it. Work is cut into tiles of one page each, 64 KiB, of which a block has all loads under
// way before its first store. The list comes as an argument, so that no memory needs to be kept for
// it until the kernel has run.
//
// Both pools and their pages are aligned to 16 bytes, so that a byte has the same place within its
// 16 at either end; what a range has before and behind whole ones goes byte by byte.

constexpr unsigned kPairs = 480;  // as PAIRS in src/cuda/ship.rs: arguments take 4 KiB at most
constexpr unsigned kThreads = 512;
constexpr unsigned kHeld = 8;  // pieces of 16 bytes a thread that are under way at once
constexpr unsigned kTile = kThreads * kHeld;

typedef unsigned long long u64;

struct Pairs {
  unsigned source[kPairs];
  unsigned target[kPairs];
};

__device__ __forceinline__ void copy_tile(const uint4* from, uint4* to, unsigned pieces) {
  uint4 held[kHeld];
  if (pieces == kTile) {
#pragma unroll
    for (unsigned j = 0; j < kHeld; ++j) held[j] = __ldcs(from + j * kThreads + threadIdx.x);
#pragma unroll
    for (unsigned j = 0; j < kHeld; ++j) __stcs(to + j * kThreads + threadIdx.x, held[j]);
    return;
  }
#pragma unroll
  for (unsigned j = 0; j < kHeld; ++j) {
    const unsigned i = j * kThreads + threadIdx.x;
    if (i < pieces) held[j] = __ldcs(from + i);
  }
#pragma unroll
  for (unsigned j = 0; j < kHeld; ++j) {
    const unsigned i = j * kThreads + threadIdx.x;
    if (i < pieces) __stcs(to + i, held[j]);
  }
}

/// Fewer than 16 bytes, by the first threads of a block.
__device__ __forceinline__ void copy_rest(const char* from, char* to, u64 bytes) {
  if (threadIdx.x < bytes) to[threadIdx.x] = from[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(kThreads)
    ship(const char* source, char* target, u64 page_bytes, u64 start, u64 end, unsigned count,
         const __grid_constant__ Pairs pairs) {
  const u64 whole = min((start + 15) & ~15ull, end);
  const u64 whole_end = max(end & ~15ull, whole);
  const unsigned pieces = unsigned((whole_end - whole) / 16);
  const unsigned tiles = max((pieces + kTile - 1) / kTile, 1u);
  for (unsigned at = blockIdx.x; at < count * tiles; at += gridDim.x) {
    const unsigned pair = at / tiles, tile = at % tiles;
    const char* from = source + pairs.source[pair] * page_bytes;
    char* to = target + pairs.target[pair] * page_bytes;
    if (tile == 0) {
      copy_rest(from + start, to + start, whole - start);
      copy_rest(from + whole_end, to + whole_end, end - whole_end);
    }
    const u64 offset = whole + u64(tile) * kTile * 16;
    copy_tile(reinterpret_cast<const uint4*>(from + offset), reinterpret_cast<uint4*>(to + offset),
              min(pieces - tile * kTile, kTile));
  }
}
