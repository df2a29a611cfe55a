// x += bias, on every row. A grid of (pieces of a row, rows).
#include "bf16.cuh"

extern "C" __global__ void add_bias(bf16* x, const float* bias, unsigned width) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= width) return;
  x += size_t(blockIdx.y) * width;
  x[i] = to_bf16(to_float(x[i]) + bias[i]);
}
