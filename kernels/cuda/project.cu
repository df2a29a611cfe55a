// Decode-time projections: see project_body.cuh. One compilation is one cut; `project_rows` is its entry.
//
// Grid: Cut::blocks(n, gated) blocks of 32 * WARPS_N * WARPS_K threads, clusters of SPLIT blocks (a
// launch attribute; SPLIT is 1 before sm_90), Cut::shared_bytes(k) of dynamic shared memory.
#include "project_body.cuh"

#if !defined(COLUMNS) || !defined(TILES) || !defined(WARPS_N) || !defined(WARPS_K) || \
    !defined(SPLIT) || !defined(STAGES) || !defined(NORM)
#error "define COLUMNS, TILES, WARPS_N, WARPS_K, SPLIT, STAGES and NORM"
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900 && SPLIT > 1
#error "clusters need sm_90"
#endif
#ifndef BLOCKS_PER_SM
#define BLOCKS_PER_SM 1
#endif

extern "C" __global__ void __launch_bounds__(32 * (WARPS_N) * (WARPS_K), BLOCKS_PER_SM)
    project_rows(const unsigned short* x, const unsigned short* w, unsigned short* y,
                 const unsigned short* residual, const float* bias, const float* gain,
                 int m, int n, int k, float eps, unsigned layout, const void* next,
                 unsigned next_bytes) {
  extern __shared__ __align__(128) unsigned char shared[];
  using Cut = project::Cut<COLUMNS, TILES, WARPS_N, WARPS_K, SPLIT, STAGES, NORM>;
  const project::Arguments a{x, w, y, residual, bias, gain, m, n, k, eps, layout, next, next_bytes};
  project::project<Cut>(a, shared);
}
