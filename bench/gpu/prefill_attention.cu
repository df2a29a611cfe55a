// Checks and times the engine's prefill attention (kernels/cuda/prefill_attention.cu).
//   nvcc -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a -DHEAD_DIM=128 -DPAGE_TOKENS=16
//   prefill_attention check [SEED] | time
// `check`: random ragged batches with NaN in everything that is not a token's own, against an f32
// reference. `time`: one CSV row a shape and kernel.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/cuda/prefill_attention.cu"
#include "harness.cuh"

typedef unsigned short Bits;  // of a bf16

/// Nearly normal, variance 1: the sum of four random bytes.
__device__ inline Bits random_value(uint64_t index, uint32_t seed, float factor) {
  const uint32_t r = mix(index * 2654435761ull + (uint64_t(seed) << 40) + 1);
  const int sum = int(r & 255) + int((r >> 8) & 255) + int((r >> 16) & 255) + int(r >> 24);
  return __bfloat16_as_ushort(__float2bfloat16((sum - 510) * (factor / 147.8f)));
}

__device__ inline float value_of(Bits bits) { return __uint_as_float(uint32_t(bits) << 16); }

template <class T>
struct Device {
  T* data = nullptr;
  explicit Device(size_t count) { CHECK(cudaMalloc(&data, std::max<size_t>(count, 1) * sizeof(T))); }
  explicit Device(const std::vector<T>& host) : Device(host.size()) {
    CHECK(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data); }
};

struct Shape {
  int heads, kv_heads, layers, layer;
  int pages;  // of the pool
};

struct View {
  Shape shape;
  Bits* pool;
  const int* page_table;
  __device__ Bits* token(const PrefillSegment& s, int kv, int kv_head, int t) const {
    const int64_t page = page_table[s.table + t / PAGE_TOKENS];
    const int64_t chunk =
        ((page * shape.layers + shape.layer) * 2 + kv) * shape.kv_heads + kv_head;
    return pool + (chunk * PAGE_TOKENS + t % PAGE_TOKENS) * HEAD_DIM;
  }
};

/// Grid (segment, kv head): random keys and values for the tokens of a sequence, nothing else.
__global__ void fill_pages(View v, const PrefillSegment* segments, uint32_t seed) {
  const PrefillSegment s = segments[blockIdx.x];
  const int64_t count = int64_t(s.start + s.len) * HEAD_DIM;
  for (int64_t i = threadIdx.x; i < count * 2; i += blockDim.x) {
    const int kv = i >= count, t = int(i % count / HEAD_DIM), d = int(i % HEAD_DIM);
    v.token(s, kv, blockIdx.y, t)[d] =
        random_value(i * 4096 + blockIdx.x * 64 + blockIdx.y, seed, 1.f);
  }
}

/// Random queries; NaN in the columns of keys and values.
__global__ void fill_queries(Bits* qkv, int64_t count, int width, int used, uint32_t seed,
                             float factor) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += step) {
    qkv[i] = i % width < used ? random_value(i, seed, factor) : 0x7fff;
  }
}

/// Grid (row / step, head), 128 threads: attention as the maths has it, scores in shared memory.
__global__ void reference(View v, const Bits* qkv, const PrefillSegment* segments, int segment_count,
                          float scale, int tokens, int step, float* want) {
  extern __shared__ float scores[];
  __shared__ float reduced[4];
  const int row = blockIdx.x * step, head = blockIdx.y;
  if (row >= tokens) return;
  PrefillSegment s = segments[0];
  for (int i = 1; i < segment_count && segments[i].first <= row; ++i) s = segments[i];
  const int visible = s.start + row - s.first + 1;
  const int kv_head = head / (v.shape.heads / v.shape.kv_heads);
  const Bits* query =
      qkv + int64_t(row) * (v.shape.heads + 2 * v.shape.kv_heads) * HEAD_DIM + head * HEAD_DIM;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float top = -INFINITY;
  for (int t = warp; t < visible; t += 4) {
    const Bits* key = v.token(s, 0, kv_head, t);
    float dot = 0.f;
    for (int d = lane; d < HEAD_DIM; d += 32) dot += value_of(key[d]) * value_of(query[d]);
    for (int lanes = 16; lanes; lanes /= 2) dot += __shfl_xor_sync(~0u, dot, lanes);
    if (lane == 0) scores[t] = dot * scale;
    top = fmaxf(top, dot * scale);
  }
  if (lane == 0) reduced[warp] = top;
  __syncthreads();
  top = fmaxf(fmaxf(reduced[0], reduced[1]), fmaxf(reduced[2], reduced[3]));
  __syncthreads();
  float sum = 0.f;
  for (int t = threadIdx.x; t < visible; t += 128) {
    scores[t] = expf(scores[t] - top);
    sum += scores[t];
  }
  for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (lane == 0) reduced[warp] = sum;
  __syncthreads();
  sum = reduced[0] + reduced[1] + reduced[2] + reduced[3];
  if (threadIdx.x >= HEAD_DIM) return;
  float value = 0.f;
  for (int t = 0; t < visible; ++t) {
    value += scores[t] * value_of(v.token(s, 1, kv_head, t)[threadIdx.x]);
  }
  want[(int64_t(blockIdx.x) * v.shape.heads + head) * HEAD_DIM + threadIdx.x] = value / sum;
}

/// Grid (row / step, head): sums[0] += Σ (got − want)², sums[1] += Σ want².
__global__ void compare(const Bits* got, const float* want, int heads, int tokens, int step,
                        double* sums) {
  const int row = blockIdx.x * step;
  if (row >= tokens) return;
  const float w =
      want[(int64_t(blockIdx.x) * heads + blockIdx.y) * HEAD_DIM + threadIdx.x];
  const double error =
      double(value_of(got[(int64_t(row) * heads + blockIdx.y) * HEAD_DIM + threadIdx.x])) - w;
  atomicAdd(sums, error * error);
  atomicAdd(sums + 1, double(w) * w);
}

int sms() {
  int count;
  CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

bool hopper() {
  int major;
  CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  return major == 9;
}

/// bf16 in shared memory with the 128-byte swizzle; `strides` in bytes, of all dimensions but the
/// first.
prefill::TensorMap encode(const void* data, std::vector<cuuint64_t> sizes,
                          std::vector<cuuint64_t> strides, std::vector<cuuint32_t> box) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                         cudaEnableDefault, &found));
  alignas(64) CUtensorMap map;
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUresult status = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, cuuint32_t(sizes.size()), const_cast<void*>(data),
      sizes.data(), strides.data(), box.data(), steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) fprintf(stderr, "cuTensorMapEncodeTiled: %d\n", status), exit(1);
  prefill::TensorMap bytes;
  memcpy(&bytes, &map, sizeof(bytes));
  return bytes;
}

/// (new tokens, tokens before) of each segment.
typedef std::vector<std::pair<int, int>> Lengths;
enum Kernel { kMma, kWgmma };
const char* const kKernelNames[] = {"mma", "wgmma"};

struct Plan {
  std::vector<PrefillSegment> segments;
  std::vector<PrefillTile> tiles;
  std::vector<int> table;
  int tokens = 0, longest = 0;
  double pairs = 0;

  Plan(const Lengths& lengths, int pages, std::mt19937& random) {
    std::vector<int> order(pages);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (auto [len, start] : lengths) {
      segments.push_back({tokens, len, start, int(table.size())});
      for (int p = 0; p * PAGE_TOKENS < start + len; ++p) table.push_back(order.at(table.size()));
      for (int q = 0; q * prefill::kQueryTile < len; ++q) {
        tiles.push_back({int(segments.size()) - 1, q});
      }
      tokens += len;
      longest = std::max(longest, start + len);
      pairs += double(len) * start + double(len) * (len + 1) / 2;
    }
    auto keys = [&](const PrefillTile& t) {
      const PrefillSegment& s = segments[t.segment];
      return s.start + std::min(s.len, (t.q_tile + 1) * prefill::kQueryTile);
    };
    std::stable_sort(tiles.begin(), tiles.end(),
                     [&](const PrefillTile& x, const PrefillTile& y) { return keys(x) > keys(y); });
  }
};

struct Batch {
  static constexpr int kSpareRows = 3;  // of the output, never written
  const Shape shape;
  const Plan plan;
  const float scale = 1.f / sqrtf(float(HEAD_DIM));
  int width;
  Device<Bits> pool, qkv, out;
  Device<int> table, next;
  Device<PrefillSegment> segments;
  Device<PrefillTile> tiles;
  prefill::TensorMap query_map, pool_map;

  Batch(Shape shape, const Lengths& lengths, std::mt19937& random, float sharpness)
      : shape(shape), plan(lengths, shape.pages, random),
        width((shape.heads + 2 * shape.kv_heads) * HEAD_DIM),
        pool(pool_len()), qkv(size_t(plan.tokens) * width),
        out(size_t(plan.tokens + kSpareRows) * shape.heads * HEAD_DIM), table(plan.table), next(1),
        segments(plan.segments), tiles(plan.tiles) {
    const uint32_t seed = random();
    CHECK(cudaMemset(next.data, 0, 4));
    CHECK(cudaMemset(pool.data, 0x7f, pool_len() * 2));
    fill_pages<<<dim3(plan.segments.size(), shape.kv_heads), 1024>>>(view(), segments.data, seed);
    fill_queries<<<1024, 256>>>(qkv.data, int64_t(plan.tokens) * width, width,
                                shape.heads * HEAD_DIM, seed + 1, sharpness);
    CHECK(cudaDeviceSynchronize());
    const cuuint64_t columns = width, rows = plan.tokens;
    query_map = encode(qkv.data, {columns, rows}, {columns * 2}, {64, prefill::kQueryTile});
    pool_map = encode(pool.data, {64, 8, prefill::kHalves, pool_len() / HEAD_DIM / 8},
                      {HEAD_DIM * 2, 128, HEAD_DIM * 16},
                      {64, 8, prefill::kHalves, prefill::kBox / 8});
  }
  size_t pool_len() const {
    return size_t(shape.pages) * shape.layers * 2 * shape.kv_heads * PAGE_TOKENS * HEAD_DIM;
  }
  View view() { return {shape, pool.data, table.data}; }
  double flops() const { return 4.0 * HEAD_DIM * shape.heads * plan.pairs; }

  void launch(Kernel kernel, bool dependent) {
    const int work = int(plan.tiles.size()) * shape.heads;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.attrs = &attribute;
    config.numAttrs = dependent && hopper();
    if (kernel == kMma) {
      config.gridDim = work;
      config.blockDim = prefill::kMmaThreads;
      config.dynamicSmemBytes = 512 * HEAD_DIM;
      CHECK(cudaFuncSetAttribute(prefill_attention, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(config.dynamicSmemBytes)));
      CHECK(cudaLaunchKernelEx(&config, prefill_attention, (const Bits*)qkv.data,
                               (const Bits*)pool.data, (const int*)table.data,
                               (const PrefillSegment*)segments.data,
                               (const PrefillTile*)tiles.data, out.data, int(plan.tiles.size()),
                               shape.heads, shape.kv_heads, shape.layer, shape.layers, scale));
    } else {
      config.gridDim = std::min(sms(), work);
      config.blockDim = prefill::kWgmmaThreads;
      config.dynamicSmemBytes = prefill::kWgmmaShared;
      CHECK(cudaFuncSetAttribute(prefill_attention_wgmma,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(config.dynamicSmemBytes)));
      CHECK(cudaLaunchKernelEx(&config, prefill_attention_wgmma, query_map, pool_map,
                               (const int*)table.data, (const PrefillSegment*)segments.data,
                               (const PrefillTile*)tiles.data, out.data, next.data,
                               int(plan.tiles.size()), shape.heads, shape.kv_heads, shape.layer,
                               shape.layers, scale));
    }
    CHECK(cudaGetLastError());
  }

  /// ‖got − want‖ / ‖want‖ over every `step`-th row; infinity if a spare row was written.
  double error(const std::vector<Kernel>& kernels, int step, std::vector<double>& errors) {
    const int rows = (plan.tokens + step - 1) / step;
    Device<float> want(size_t(rows) * shape.heads * HEAD_DIM);
    const int shared = plan.longest * 4;
    CHECK(cudaFuncSetAttribute(reference, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    reference<<<dim3(rows, shape.heads), 128, shared>>>(view(), qkv.data, segments.data,
                                                        int(plan.segments.size()), scale,
                                                        plan.tokens, step, want.data);
    CHECK(cudaDeviceSynchronize());
    double worst = 0;
    for (Kernel kernel : kernels) {
      const size_t bytes = size_t(plan.tokens + kSpareRows) * shape.heads * HEAD_DIM * 2;
      CHECK(cudaMemset(out.data, 0xff, bytes));
      launch(kernel, true);  // twice: the second must find `next` as the first did
      launch(kernel, true);
      Device<double> sums(2);
      CHECK(cudaMemset(sums.data, 0, 16));
      compare<<<dim3(rows, shape.heads), HEAD_DIM>>>(out.data, want.data, shape.heads, plan.tokens,
                                                     step, sums.data);
      CHECK(cudaDeviceSynchronize());
      double host[2];
      CHECK(cudaMemcpy(host, sums.data, 16, cudaMemcpyDeviceToHost));
      double e = sqrt(host[0] / host[1]);
      const size_t spare = size_t(kSpareRows) * shape.heads * HEAD_DIM;
      std::vector<Bits> tail(spare);
      CHECK(cudaMemcpy(tail.data(), out.data + size_t(plan.tokens) * shape.heads * HEAD_DIM,
                       spare * 2, cudaMemcpyDeviceToHost));
      for (Bits b : tail) if (b != 0xffff) e = INFINITY;
      errors.push_back(e);
      worst = e <= worst ? worst : e;  // NaN stays
    }
    return worst;
  }
};

std::vector<Kernel> kernels() {
  if (hopper()) return {kMma, kWgmma};
  return {kMma};
}

std::string describe(const Lengths& lengths) {
  std::string text;
  for (auto [len, start] : lengths) {
    text += (text.empty() ? "" : " ") + std::to_string(len) + "+" + std::to_string(start);
  }
  return text;
}

int check(uint32_t seed) {
  std::mt19937 random(seed);
  auto draw = [&](int low, int high) { return low + int(random() % (high - low + 1)); };
  int failed = 0;
  double worst[2] = {0, 0};
  const int trials = 48;
  for (int trial = 0; trial < trials; ++trial) {
    const int group = 1 + trial % 8, kv_heads = draw(1, 4);
    Lengths lengths;
    int pages = 8;
    const int count = trial % 6 == 0 ? 1 : draw(1, 7);
    for (int i = 0; i < count; ++i) {
      const int kind = draw(0, 4);
      const int len = kind == 0 ? 1 : kind == 1 ? draw(1, 40) : kind == 2 ? 128 * draw(1, 3)
                                                                          : draw(1, 700);
      const int before = draw(0, 3);
      const int start = before == 0 ? 0 : before == 1 ? PAGE_TOKENS * draw(1, 40) : draw(1, 1500);
      lengths.push_back({len, start});
      pages += (len + start + PAGE_TOKENS - 1) / PAGE_TOKENS;
    }
    const int layers = draw(1, 3);
    Batch batch({group * kv_heads, kv_heads, layers, draw(0, layers - 1), pages}, lengths, random,
                float(1 << draw(0, 2)));
    std::vector<double> errors;
    batch.error(kernels(), 1, errors);
    for (size_t k = 0; k < errors.size(); ++k) {
      worst[k] = errors[k] <= worst[k] ? worst[k] : errors[k];
      if (!(errors[k] <= 1e-2)) {
        ++failed;
        printf("FAIL %s head_dim %d page %d heads %d/%d error %.3e: %s\n", kKernelNames[k],
               HEAD_DIM, PAGE_TOKENS, group * kv_heads, kv_heads, errors[k],
               describe(lengths).c_str());
      }
    }
  }
  printf("check head_dim %d page %d: %d batches, %d failed, worst mma %.2e wgmma %.2e\n", HEAD_DIM,
         PAGE_TOKENS, trials, failed, worst[0], worst[1]);
  return failed != 0;
}

void time_all(const char* filter) {
  std::mt19937 random(7);
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  struct Case {
    const char* name;
    Lengths lengths;
  };
  const std::vector<Case> cases = {
      {"1x512", {{512, 0}}},
      {"1x2048", {{2048, 0}}},
      {"8x2048", Lengths(8, {2048, 0})},
      {"1x8192", {{8192, 0}}},
      {"1x16384", {{16384, 0}}},
      {"4096+28672", {{4096, 28672}}},
      {"64x256", Lengths(64, {256, 0})},
      {"8x100+3000", Lengths(8, {100, 3000})},
  };
  for (const Case& c : cases) {
    if (*filter && !strstr(c.name, filter)) continue;
    for (int heads : {16, 32}) {
      int pages = 64;
      for (auto [len, start] : c.lengths) pages += (len + start) / PAGE_TOKENS + 1;
      Batch batch({heads, 8, 2, 1, pages}, c.lengths, random, 1.f);
      std::vector<double> errors;
      const std::vector<Kernel> all = kernels();
      batch.error(all, std::max(1, batch.plan.tokens / 97), errors);
      for (size_t k = 0; k < all.size(); ++k) {
        if (all[k] == kMma && heads == 32) continue;
        const int launches = std::max(2, int(2e11 / batch.flops()));
        std::vector<float> samples;
        for (int i = 0; i < 18; ++i) {
          CHECK(cudaEventRecord(begin));
          for (int j = 0; j < launches; ++j) batch.launch(all[k], false);
          CHECK(cudaEventRecord(end));
          CHECK(cudaEventSynchronize(end));
          float ms;
          CHECK(cudaEventElapsedTime(&ms, begin, end));
          if (i >= 3) samples.push_back(ms * 1e3f / launches);
        }
        std::sort(samples.begin(), samples.end());
        const double us = samples[samples.size() / 2];
        printf("%s,%d,%d,%d,%s,%.1f,%.1f,%.1f,%.2e\n", kKernelNames[all[k]], HEAD_DIM, PAGE_TOKENS,
               heads, c.name, us, samples[0], batch.flops() / us / 1e6, errors[k]);
        fflush(stdout);
      }
    }
  }
}

int main(int count, char** words) {
  const std::string verb = count > 1 ? words[1] : "check";
  if (verb == "check") return check(count > 2 ? atoi(words[2]) : 1);
  printf("kernel,head_dim,page_tokens,q_heads,shape,us,us_min,tflops,error\n");
  time_all(count > 2 ? words[2] : "");
  return 0;
}
