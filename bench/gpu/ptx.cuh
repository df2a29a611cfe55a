// What the layout experiment uses beside the kernels' own instructions.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "../../kernels/cuda/ptx_hopper.cuh"

namespace ptx {

/// One 4 KiB chunk of the pool, swizzled on its way into shared memory.
__device__ __forceinline__ void load_chunk(uint32_t target, const CUtensorMap* map, int chunk,
                                           uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %3, %3, %4}], [%2];" ::"r"(target), "l"(map), "r"(barrier), "r"(0),
      "r"(chunk) : "memory");
}

}  // namespace ptx
