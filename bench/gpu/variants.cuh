// The kernel's instantiations under test, by name.
#pragma once
#include "paged_decode.cuh"

using DecodeKernel = void (*)(const CUtensorMap, const DecodeArguments);

struct Variant {
  const char* name;
  int group, warps, ways, blocks_per_sm, shared_bytes;
  DecodeKernel kernel;
  int heads() const { return warps / ways; }
};

template <int kGroup, int kWarps, int kWays, int kStages, Load kLoad>
Variant variant(const char* name, int blocks_per_sm) {
  return {name, kGroup, kWarps, kWays, blocks_per_sm,
          Decode<kGroup, kWarps, kWays, kStages, kLoad>::kSharedBytes,
          paged_decode<kGroup, kWarps, kWays, kStages, kLoad>};
}

/// hN: kv heads a block works on at once; wN: warps a head; bN: blocks an SM.
template <int kGroup>
std::vector<Variant> variants() {
  return {
      variant<kGroup, 8, 1, 3, Load::kTma>("tma-h8w1b1", 1),
      variant<kGroup, 8, 2, 3, Load::kTma>("tma-h4w2b1", 1),
      variant<kGroup, 8, 4, 3, Load::kTma>("tma-h2w4b1", 1),
      variant<kGroup, 8, 8, 3, Load::kTma>("tma-h1w8b1", 1),
      variant<kGroup, 4, 4, 3, Load::kTma>("tma-h1w4b2", 2),
      variant<kGroup, 8, 4, 3, Load::kCpAsync>("cpasync-h2w4b1", 1),
      variant<kGroup, 8, 8, 3, Load::kCpAsync>("cpasync-h1w8b1", 1),
      variant<kGroup, 4, 4, 3, Load::kCpAsync>("cpasync-h1w4b2", 2),
  };
}
