// The cuts of the projection kernel that are tried, and their launch.
#pragma once
#include <stdio.h>

#include <string>
#include <vector>

#include "../../kernels/cuda/project_body.cuh"
#include "harness.cuh"

using project::Arguments;

template <class C>
constexpr int blocks_per_sm() {
  const int sums = C::kTiles * C::kColumns;
  const int threads = sums <= 1 ? 768 : sums < 16 ? 512 : sums == 16 ? (C::kThreads == 128 ? 384 : 512) : 256;
  return threads / C::kThreads < 1 ? 1 : threads / C::kThreads;
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, blocks_per_sm<C>()) project_kernel(Arguments a) {
  extern __shared__ __align__(128) unsigned char shared[];
  project::project<C>(a, shared);
}

struct Variant {
  void (*kernel)(Arguments);
  int columns, tiles, warps_n, warps_k, split, stages, shared, threads;
  bool norm;
  std::string name() const {
    char text[64];
    snprintf(text, sizeof text, "c%dt%dn%dk%ds%dr%d", columns, tiles, warps_n, warps_k, split, stages);
    return text;
  }
  int shared_bytes(int k) const { return shared + (norm ? 2 * k : 0); }
  int blocks(int n, bool gated) const {
    const int per = tiles * warps_n, all = n / (gated ? 8 : 16);
    return (all + per - 1) / per * split;
  }
  bool fits(int k) const {
    return shared_bytes(k) <= 227 * 1024 && split * warps_k <= k / 32;
  }
};

template <int kColumns, int kTiles, int kWarpsN, int kWarpsK, int kSplit, int kStages, bool kNorm>
Variant variant() {
  using C = project::Cut<kColumns, kTiles, kWarpsN, kWarpsK, kSplit, kStages, kNorm>;
  const auto kernel = project_kernel<C>;
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
  return {kernel, kColumns, kTiles, kWarpsN, kWarpsK, kSplit, kStages, C::shared_bytes(0), C::kThreads, kNorm};
}

// columns, tiles a warp, warps side by side, warps over k, blocks over k, stages
#define CUTS(V) \
  V(1, 1, 1, 8, 1, 4) V(1, 1, 1, 8, 1, 8) V(1, 1, 1, 8, 2, 4) V(1, 1, 1, 8, 2, 6) \
  V(1, 1, 1, 8, 4, 4) V(1, 2, 1, 8, 1, 4) V(1, 2, 1, 8, 2, 4) V(1, 2, 1, 8, 4, 3) \
  V(1, 3, 1, 8, 1, 4) V(1, 4, 1, 8, 1, 4) V(1, 2, 2, 4, 1, 8) V(1, 1, 1, 4, 1, 8) \
  V(1, 1, 1, 4, 4, 4) V(1, 2, 1, 8, 1, 2) V(1, 3, 1, 8, 1, 2) V(1, 1, 1, 8, 2, 2) \
  V(1, 2, 1, 4, 1, 4) V(1, 3, 1, 4, 1, 4) V(2, 1, 1, 8, 2, 4) V(2, 1, 1, 8, 2, 6) \
  V(2, 1, 1, 8, 4, 4) V(2, 1, 1, 8, 1, 4) V(2, 2, 1, 8, 1, 4) V(2, 2, 1, 8, 4, 3) \
  V(2, 2, 1, 8, 1, 2) V(2, 2, 1, 4, 1, 4) V(2, 3, 1, 8, 1, 4) V(2, 3, 1, 8, 1, 2) \
  V(2, 3, 1, 4, 1, 4) V(2, 1, 1, 8, 2, 2) V(2, 2, 2, 4, 2, 2) V(2, 1, 2, 4, 4, 4) \
  V(4, 1, 1, 8, 2, 4) V(4, 1, 1, 8, 2, 2) V(4, 1, 1, 8, 4, 4) V(4, 1, 2, 4, 4, 4) \
  V(4, 2, 1, 4, 4, 4) V(4, 2, 1, 8, 4, 2) V(4, 2, 1, 8, 1, 2) V(4, 2, 1, 8, 1, 3) \
  V(4, 2, 1, 8, 1, 4) V(4, 2, 1, 4, 1, 4) V(4, 2, 2, 4, 2, 2) V(4, 2, 2, 2, 2, 4) \
  V(4, 2, 2, 4, 2, 4) V(4, 3, 1, 8, 1, 2) V(4, 3, 1, 4, 1, 4) V(4, 3, 2, 2, 2, 4) \
  V(4, 3, 2, 4, 2, 2) V(4, 2, 4, 1, 4, 4) V(4, 1, 4, 1, 4, 4) V(4, 1, 4, 1, 8, 4) \
  V(8, 2, 4, 1, 4, 2) V(8, 1, 8, 1, 4, 2) V(8, 1, 4, 2, 4, 2) V(8, 2, 4, 1, 2, 4) \
  V(4, 2, 4, 1, 2, 4) V(4, 1, 8, 1, 4, 4) V(4, 1, 8, 1, 8, 4) V(4, 1, 4, 2, 4, 4) \
  V(8, 2, 1, 8, 1, 4) V(8, 2, 1, 4, 1, 4) V(8, 2, 1, 4, 1, 2) V(8, 2, 2, 2, 2, 4) \
  V(8, 2, 2, 2, 2, 2) V(8, 2, 2, 4, 2, 2) V(8, 2, 4, 1, 4, 4) V(8, 2, 4, 2, 4, 2) \
  V(8, 1, 8, 1, 4, 4) V(8, 1, 4, 1, 2, 4) V(8, 1, 4, 1, 2, 8) V(8, 3, 2, 2, 2, 4) \
  V(8, 3, 2, 4, 2, 2) V(8, 3, 4, 1, 4, 2) V(8, 1, 4, 1, 8, 4) V(8, 2, 2, 2, 8, 4) \
  V(8, 1, 4, 2, 8, 4) V(8, 1, 2, 2, 4, 4) V(8, 2, 1, 4, 4, 4) V(8, 1, 2, 4, 4, 2) \
  V(8, 1, 1, 4, 2, 4) V(8, 1, 1, 8, 2, 2) V(8, 1, 2, 4, 4, 4) V(8, 1, 8, 1, 8, 4)

std::vector<Variant> all_variants() {
  std::vector<Variant> all;
#define ADD(c, t, n, k, s, r) \
  all.push_back(variant<c, t, n, k, s, r, false>()), all.push_back(variant<c, t, n, k, s, r, true>());
  CUTS(ADD)
  return all;
}

int columns_of(int m) { return m <= 8 ? 1 : m <= 16 ? 2 : m <= 32 ? 4 : 8; }

void launch(const Variant& v, const Arguments& a, cudaStream_t stream, bool overlapped) {
  cudaLaunchAttribute attributes[2];
  int count = 0;
  if (overlapped) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (v.split > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = v.split;
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = v.blocks(a.n, a.layout & project::kGated);
  config.blockDim = v.threads;
  config.dynamicSmemBytes = v.shared_bytes(a.k);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  CHECK(cudaLaunchKernelEx(&config, v.kernel, a));
}
