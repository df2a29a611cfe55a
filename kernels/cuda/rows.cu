// out[i] = table[index[i]]: the embedding, and the rows whose logits are wanted. One block a row.
#include "bf16.cuh"

extern "C" __global__ void rows(const bf16* table, const unsigned* index, bf16* out,
                                unsigned width) {
  const bf16* from = table + size_t(index[blockIdx.x]) * width;
  bf16* to = out + size_t(blockIdx.x) * width;
  for (unsigned i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}
