// out = silu(gate) * up; a row of `gate_up` is gate, then up.
//
// A grid of (pieces of a row, rows); a block of 256 takes 2,048 elements, eight a thread.
#include "bf16.cuh"

__device__ __forceinline__ float gated(float gate, float up) {
  return gate / (1 + __expf(-gate)) * up;
}

extern "C" __global__ void __launch_bounds__(256)
    silu_mul(const bf16* gate_up, bf16* out, unsigned width) {
  ptx::let_next_kernel_start();
  const bf16* gate = gate_up + size_t(blockIdx.y) * 2 * width;
  const bf16* up = gate + width;
  out += size_t(blockIdx.y) * width;
  const unsigned piece = 8 * blockDim.x * blockIdx.x;
  ptx::wait_for_previous_kernel();
  if (in_eights(width, gate_up, out)) {
    const unsigned i = piece + 8 * threadIdx.x;
    if (i >= width) return;
    const uint4 gate_piece = load_eight(gate + i), up_piece = load_eight(up + i);
    float gates[8], ups[8];
    widen(gates, gate_piece);
    widen(ups, up_piece);
#pragma unroll
    for (int j = 0; j < 8; ++j) gates[j] = gated(gates[j], ups[j]);
    store_eight(out + i, narrow(gates));
  } else {
    const unsigned end = min(width, piece + 8 * blockDim.x);
    for (unsigned i = piece + threadIdx.x; i < end; i += blockDim.x) {
      out[i] = to_bf16(gated(to_float(gate[i]), to_float(up[i])));
    }
  }
}
