// x += delta; out = x / rms(x) * gain. One block a row. The sum is rounded to bf16 before it is
// normed, so that the residual stream holds what was normed.
#include "bf16.cuh"

extern "C" __global__ void rms_norm(bf16* x, const bf16* delta, const float* gain, bf16* out,
                                    unsigned width, float eps) {
  __shared__ float partials[32];
  x += size_t(blockIdx.x) * width;
  out += size_t(blockIdx.x) * width;
  if (delta) delta += size_t(blockIdx.x) * width;
  float squares = 0;
  for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
    if (delta) x[i] = to_bf16(to_float(x[i]) + to_float(delta[i]));
    squares += to_float(x[i]) * to_float(x[i]);
  }
  const float scale = rsqrtf(block_sum(squares, partials) / width + eps);
  for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
    out[i] = to_bf16(to_float(x[i]) * scale * gain[i]);
  }
}
