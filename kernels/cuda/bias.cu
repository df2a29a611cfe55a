// x += bias, on every row.
//
// A grid of (pieces of a row, rows); a block of 256 takes 2,048 elements, eight a thread. Biases
// are weights, so they are fetched while the kernel before still runs.
#include "bf16.cuh"

extern "C" __global__ void __launch_bounds__(256)
    add_bias(bf16* x, const float* bias, unsigned width) {
  ptx::let_next_kernel_start();
  x += size_t(blockIdx.y) * width;
  const unsigned piece = 8 * blockDim.x * blockIdx.x;
  if (in_eights(width, x, bias)) {
    const unsigned i = piece + 8 * threadIdx.x;
    float biases[8] = {}, values[8];
    if (i < width) load_eight(biases, bias + i);
    ptx::wait_for_previous_kernel();
    if (i >= width) return;
    widen(values, load_eight(x + i));
#pragma unroll
    for (int j = 0; j < 8; ++j) values[j] += biases[j];
    store_eight(x + i, narrow(values));
  } else {
    ptx::wait_for_previous_kernel();
    const unsigned end = min(width, piece + 8 * blockDim.x);
    for (unsigned i = piece + threadIdx.x; i < end; i += blockDim.x) {
      x[i] = to_bf16(to_float(x[i]) + bias[i]);
    }
  }
}
