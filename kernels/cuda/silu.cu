// out = silu(gate) * up; a row of `gate_up` is gate, then up. A grid of (pieces of a row, rows).
#include "bf16.cuh"

extern "C" __global__ void silu_mul(const bf16* gate_up, bf16* out, unsigned width) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= width) return;
  const bf16* row = gate_up + size_t(blockIdx.y) * 2 * width;
  const float gate = to_float(row[i]), up = to_float(row[width + i]);
  out[size_t(blockIdx.y) * width + i] = to_bf16(gate / (1 + __expf(-gate)) * up);
}
