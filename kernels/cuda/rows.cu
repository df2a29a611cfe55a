// out[i] = table[index[i]]: the embedding, and the rows whose logits are wanted. One block a row.
//
// An index with its top bit set names a place in `drawn`, where the row is: the token that the step
// before drew and that no host has seen yet. Such a table may be the output of the kernel before,
// so only indices are fetched early.
#include "bf16.cuh"

constexpr unsigned kDrawn = 0x80000000;
constexpr unsigned kHeld = 4;  // pieces of 8 a thread that are under way at once

__device__ __forceinline__ void copy_eights(const bf16* from, bf16* to, unsigned width) {
  const unsigned stride = 8 * blockDim.x;
  for (unsigned first = 8 * threadIdx.x; first < width; first += kHeld * stride) {
    uint4 pieces[kHeld];
#pragma unroll
    for (unsigned j = 0; j < kHeld; ++j) {
      if (first + j * stride < width) pieces[j] = load_eight(from + first + j * stride);
    }
#pragma unroll
    for (unsigned j = 0; j < kHeld; ++j) {
      if (first + j * stride < width) store_eight(to + first + j * stride, pieces[j]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(512)
    rows(const bf16* table, const unsigned* index, const unsigned* drawn, bf16* out,
         unsigned width) {
  ptx::let_next_kernel_start();
  unsigned row = index[blockIdx.x];
  ptx::wait_for_previous_kernel();
  if (row & kDrawn) row = drawn[row & ~kDrawn];
  const bf16* from = table + size_t(row) * width;
  bf16* to = out + size_t(blockIdx.x) * width;
  if (in_eights(width, from, to)) {
    copy_eights(from, to, width);
  } else {
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
  }
}
