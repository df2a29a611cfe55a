// The engine's decode attention (kernels/cuda/decode_attention.cu) as the engine uses it: loaded as
// a module for each (head dim, group, page), in a captured graph behind a kernel that writes the
// newest token, with the plan rewritten between replays.
//
//   decode_attention check DIR [BUCKETS]    ragged random batches against an f32 reference
//   decode_attention time DIR               CSV; shapes of decode_layout.cu and some between
//
// DIR holds decode_<dim>_<group>_<page>.cubin, each made by
//   nvcc -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a -cubin -DHEAD_DIM=… -DGROUP=…
//     -DPAGE_TOKENS=… -DSTAGES=<384 / HEAD_DIM> kernels/cuda/decode_attention.cu
// for dims 64 and 128, groups 1 to 8, pages of 16 and of 16 · (1 + group % 4), and 128, 4, 64.
#include <cuda.h>
#include <string.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>

#include "plan.h"
#include "pool.cuh"

#define CHECK_DRIVER(call)                                                          \
  do {                                                                              \
    CUresult result = (call);                                                       \
    if (result != CUDA_SUCCESS) {                                                   \
      fprintf(stderr, "%s:%d %s: error %d\n", __FILE__, __LINE__, #call, result);   \
      exit(1);                                                                      \
    }                                                                               \
  } while (0)

constexpr int kChunk = 16, kLengthMax = 5000;
constexpr uint16_t kPoison = 0x7fff;  // a NaN
const char* const kModes[] = {"h2w4", "h1w8", "h1w4x2"};
const int kModeHeads[] = {2, 1, 1}, kModeWays[] = {4, 8, 4}, kModeWorkers[] = {1, 1, 2};

template <class F>
F driver(const char* name) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  CHECK(cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &found));
  if (!entry) fprintf(stderr, "no %s\n", name), exit(1);
  return reinterpret_cast<F>(entry);
}

template <class T>
struct Device {
  T* data = nullptr;
  size_t count;
  explicit Device(size_t count) : count(std::max<size_t>(count, 1)) {
    CHECK(cudaMalloc(&data, this->count * sizeof(T)));
    CHECK(cudaMemset(data, 0, this->count * sizeof(T)));
  }
  ~Device() { cudaFree(data); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  void set(const std::vector<T>& from) {
    if (from.size() > count) fprintf(stderr, "buffer too small\n"), exit(1);
    CHECK(cudaMemcpy(data, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> get() const {
    std::vector<T> to(count);
    CHECK(cudaMemcpy(to.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }
};

struct Config {
  int dim, group, page;
};

/// One compiled kernel.
struct Kernel {
  Config c;
  int shared;
  CUfunction function;

  Kernel(const std::string& folder, Config c) : c(c) {
    const int stages = 384 / c.dim;
    shared = 8 * (stages * 64 * c.dim + c.group * (4 * c.dim + 8) + 4);
    const std::string path = folder + "/decode_" + std::to_string(c.dim) + "_" +
                             std::to_string(c.group) + "_" + std::to_string(c.page) + ".cubin";
    CUmodule module;
    CHECK_DRIVER(driver<decltype(&cuModuleLoad)>("cuModuleLoad")(&module, path.c_str()));
    CHECK_DRIVER(driver<decltype(&cuModuleGetFunction)>("cuModuleGetFunction")(
        &function, module, "decode_attention"));
    CHECK_DRIVER(driver<decltype(&cuFuncSetAttribute)>("cuFuncSetAttribute")(
        function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared));
  }
};

/// Where a token lies: [page][layer][K|V][kv head][token][dim].
struct Cache {
  __nv_bfloat16* pool;
  const int *table, *lengths;
  int table_stride, kv_heads, layers, dim, page, group;

  __device__ __nv_bfloat16* token(int layer, int row, int head, int kv, int t) const {
    const int id = table[row * table_stride + t / page];
    const int64_t at = ((int64_t(id) * layers + layer) * 2 + kv) * kv_heads + head;
    return pool + (at * page + t % page) * dim;
  }
  __device__ int width() const { return kv_heads * (group + 2) * dim; }
};

/// NaN into the newest token and everything past it in its page. Grid (row, kv head, layer).
__global__ void poison_from_newest(Cache c) {
  const int length = c.lengths[blockIdx.x];
  for (int t = length - 1; t >= 0 && t < (length + c.page - 1) / c.page * c.page; ++t) {
    for (int i = threadIdx.x; i < 2 * c.dim; i += blockDim.x) {
      __nv_bfloat16* at = c.token(blockIdx.z, blockIdx.x, blockIdx.y, i / c.dim, t);
      reinterpret_cast<uint16_t*>(at)[i % c.dim] = kPoison;
    }
  }
}

/// Stands for the engine's rope + write: the newest token's K and V from qkv, after `spin` clocks,
/// so that whoever reads them too early is caught. Grid (row, kv head).
__global__ void write_newest(Cache c, const __nv_bfloat16* qkv, int layer, int spin) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const int length = c.lengths[blockIdx.x];
  if (length == 0) return;
  for (const long long begin = clock64(); clock64() - begin < spin;) {
  }
  const __nv_bfloat16* from = qkv + int64_t(blockIdx.x) * c.width() +
                              (c.kv_heads * c.group + blockIdx.y) * c.dim;
  for (int i = threadIdx.x; i < 2 * c.dim; i += blockDim.x) {
    const int kv = i / c.dim, d = i % c.dim;
    c.token(layer, blockIdx.x, blockIdx.y, kv, length - 1)[d] = from[kv * c.kv_heads * c.dim + d];
  }
}

/// Attention as the maths has it, f32, a block of 128 threads a (row, q head).
__global__ void reference(Cache c, const __nv_bfloat16* qkv, int layer, float* scratch, float* out,
                          float scale) {
  const int row = blockIdx.x, q_head = blockIdx.y, head = q_head / c.group;
  const int length = c.lengths[row], lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (length == 0) return;
  const int64_t at = int64_t(row) * gridDim.y + q_head;
  const __nv_bfloat16* query = qkv + int64_t(row) * c.width() + q_head * c.dim;
  float* scores = scratch + at * c.table_stride * c.page;
  __shared__ float top[4], total[4], half[128];
  float maximum = -INFINITY;
  for (int t = warp; t < length; t += 4) {
    const __nv_bfloat16* key = c.token(layer, row, head, 0, t);
    float dot = 0.f;
    for (int d = lane; d < c.dim; d += 32) {
      dot += __bfloat162float(key[d]) * __bfloat162float(query[d]);
    }
    for (int lanes = 16; lanes; lanes /= 2) dot += __shfl_xor_sync(~0u, dot, lanes);
    if (lane == 0) scores[t] = dot * scale;
    maximum = fmaxf(maximum, dot * scale);
  }
  if (lane == 0) top[warp] = maximum;
  __syncthreads();
  maximum = fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
  float sum = 0.f;
  for (int t = threadIdx.x; t < length; t += blockDim.x) {
    scores[t] = expf(scores[t] - maximum);
    sum += scores[t];
  }
  for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (lane == 0) total[warp] = sum;
  __syncthreads();
  sum = total[0] + total[1] + total[2] + total[3];
  const int d = threadIdx.x % c.dim, parts = blockDim.x / c.dim, part = threadIdx.x / c.dim;
  float value = 0.f;
  for (int t = part; t < length; t += parts) {
    value += scores[t] * __bfloat162float(c.token(layer, row, head, 1, t)[d]);
  }
  half[threadIdx.x] = value;
  __syncthreads();
  if (part == 0) out[at * c.dim + d] = (value + (parts > 1 ? half[c.dim + d] : 0.f)) / sum;
}

struct Bench {
  cudaStream_t stream;
  cudaEvent_t begin, end;
  int sms;
  std::mt19937 random{20261124};
  Device<int4> flush{size_t(16) << 20};
  Device<int> sink{1};
  Device<double> sums{2};
  decltype(&cuLaunchKernelEx) launch_kernel;

  Bench() {
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    CHECK(cudaMemset(flush.data, 1, size_t(256) << 20));
    launch_kernel = driver<decltype(&cuLaunchKernelEx)>("cuLaunchKernelEx");
  }
  void fill(__nv_bfloat16* data, size_t count) {
    fill_random<<<sms * 8, 512>>>(reinterpret_cast<__nv_bfloat162*>(data), count / 2, random());
    CHECK(cudaDeviceSynchronize());
  }
};

/// The buffers that a captured graph of one bucket knows; contents change between replays.
struct Bucket {
  Bench& bench;
  const Kernel& kernel;
  const int kv_heads, layers, rows, stride;
  const float scale;
  __nv_bfloat16* pool;
  Device<__nv_bfloat16> qkv, out;
  Device<int> table, lengths, plan;
  Device<Item> items;
  Device<float> partials;
  Device<float2> partial_sums;
  Device<int> arrived;
  Device<float> scratch, wanted;

  Bucket(Bench& bench, const Kernel& k, __nv_bfloat16* pool, int kv_heads, int layers, int rows,
         int tokens)
      : bench(bench), kernel(k), kv_heads(kv_heads), layers(layers), rows(rows),
        stride(ceil_div(tokens, k.c.page)), scale(1.f / sqrtf(float(k.c.dim))), pool(pool),
        qkv(size_t(rows) * kv_heads * (k.c.group + 2) * k.c.dim),
        out(size_t(rows) * kv_heads * k.c.group * k.c.dim), table(size_t(rows) * stride),
        lengths(rows), plan(2 * bench.sms + 2), items(size_t(rows) * kv_heads + 2 * bench.sms),
        partials(size_t(4) * bench.sms * k.c.group * k.c.dim),
        partial_sums(size_t(4) * bench.sms * k.c.group), arrived(size_t(rows) * kv_heads),
        scratch(size_t(rows) * kv_heads * k.c.group * stride * k.c.page),
        wanted(size_t(rows) * kv_heads * k.c.group * k.c.dim) {
    bench.fill(qkv.data, qkv.count);
    std::vector<int> pages(size_t(rows) * stride);
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), bench.random);
    table.set(pages);
  }
  size_t pool_elements() const {
    return size_t(rows) * stride * layers * 2 * kv_heads * kernel.c.page * kernel.c.dim;
  }
  Cache cache() const {
    return {pool, table.data, lengths.data, stride, kv_heads, layers, kernel.c.dim, kernel.c.page,
            kernel.c.group};
  }
  int set(int mode, const std::vector<int>& tokens) {
    const int heads = kModeHeads[mode];
    Plan p = make_plan(tokens, kChunk, kv_heads / heads, heads, kModeWays[mode],
                             bench.sms * kModeWorkers[mode], 1);
    std::vector<int> words{mode};
    words.insert(words.end(), p.first_item.begin(), p.first_item.end());
    words.resize(plan.count, int(p.items.size()));
    if (p.slots * heads > 4 * bench.sms) fprintf(stderr, "too many slots\n"), exit(1);
    plan.set(words);
    for (Item& item : p.items) {  // as the engine's kernel reads them: table, first slot, pieces
      const int piece = item.slot - item.first_slot;
      item.slot = item.request * stride;
      item.pieces |= piece << 16;
    }
    items.set(p.items);
    lengths.set(tokens);
    return p.blocks;
  }
  void write(int layer, int spin, bool overlapped) {
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(rows, kv_heads);
    config.blockDim = dim3(128);
    config.stream = bench.stream;
    config.attrs = &attribute;
    config.numAttrs = overlapped ? 1 : 0;
    CHECK(cudaLaunchKernelEx(&config, write_newest, cache(),
                             static_cast<const __nv_bfloat16*>(qkv.data), layer, spin));
  }
  void attend(int layer, bool overlapped) {
    CUlaunchAttribute attribute;
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    CUlaunchConfig config = {};
    config.gridDimX = bench.sms;
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
    config.blockDimX = 256;
    config.sharedMemBytes = kernel.shared;
    config.hStream = bench.stream;
    config.attrs = &attribute;
    config.numAttrs = overlapped ? 1 : 0;
    int heads = kv_heads, of = layers;
    float scale_log2 = scale * 1.4426950408889634f;
    void* arguments[] = {&pool, &qkv.data, &out.data, &table.data, &plan.data, &items.data,
                         &partials.data, &partial_sums.data, &arrived.data, &heads, &layer, &of,
                         &scale_log2};
    CHECK_DRIVER(bench.launch_kernel(&config, kernel.function, arguments, nullptr));
  }
  void poison() {
    fill_bits<<<64, 256, 0, bench.stream>>>(reinterpret_cast<uint16_t*>(out.data), out.count,
                                            kPoison);
    CHECK(cudaMemsetAsync(bench.sums.data, 0, 16, bench.stream));
  }
  void make_reference() {
    reference<<<dim3(rows, kv_heads * kernel.c.group), 128, 0, bench.stream>>>(
        cache(), qkv.data, layers - 1, scratch.data, wanted.data, scale);
  }
  /// Of the first `live` rows.
  double error(int live) {
    compare<<<64, 256, 0, bench.stream>>>(
        out.data, wanted.data, int64_t(live) * kv_heads * kernel.c.group * kernel.c.dim,
        bench.sums.data);
    CHECK(cudaStreamSynchronize(bench.stream));
    const auto sums = bench.sums.get();
    return sqrt(sums[0] / sums[1]);
  }
  /// Padded rows untouched, counters back at 0.
  bool clean(int live) {
    const auto outs = out.get();
    const uint16_t* bits = reinterpret_cast<const uint16_t*>(outs.data());
    const auto counters = arrived.get();
    return std::all_of(bits + out.count / rows * live, bits + out.count,
                       [](uint16_t b) { return b == kPoison; }) &&
           std::all_of(counters.begin(), counters.end(), [](int n) { return n == 0; });
  }
};

template <class F>
cudaGraphExec_t capture(Bench& bench, F launches) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamBeginCapture(bench.stream, cudaStreamCaptureModeThreadLocal));
  launches();
  CHECK(cudaStreamEndCapture(bench.stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  CHECK(cudaGraphDestroy(graph));
  return executable;
}

std::vector<int> random_lengths(std::mt19937& random, int live, int rows) {
  std::vector<int> lengths(rows, 0);
  const int top = random() % 3 ? kLengthMax : 80;
  for (int i = 0; i < live; ++i) {
    lengths[i] = 1 + random() % top;
    if (random() % 6 == 0) lengths[i] = std::max(16, lengths[i] / 16 * 16);
    if (random() % 12 == 0) lengths[i] = 1;
  }
  return lengths;
}

struct Tally {
  int checks = 0, bad = 0;
  double worst = 0;
  void add(const Kernel& k, int kv_heads, int mode, const char* how, double error, bool clean) {
    ++checks;
    worst = std::max(worst, error);
    if (error < 1e-2 && clean) return;
    ++bad;
    printf("FAIL dim %d group %d page %d kv_heads %d %s %s: %g%s\n", k.c.dim, k.c.group, k.c.page,
           kv_heads, kModes[mode], how, error, clean ? "" : " not clean");
  }
};

/// One bucket, one captured graph; every mode, lengths changed between replays.
void check_bucket(Bench& bench, const Kernel& kernel, int kv_heads, Tally& tally) {
  const int live = 1 + bench.random() % 16, rows = live + bench.random() % 4, layers = 2;
  const size_t tokens = size_t(rows) * (kLengthMax + kernel.c.page);
  Device<__nv_bfloat16> pool(tokens * layers * 2 * kv_heads * kernel.c.dim);
  Bucket b(bench, kernel, pool.data, kv_heads, layers, rows, kLengthMax);
  const cudaGraphExec_t graph = capture(bench, [&] {
    for (int layer = 0; layer < layers; ++layer) {
      b.write(layer, 30000, true);
      b.attend(layer, true);
    }
  });
  for (int mode = kv_heads % 2; mode < 3; ++mode) {
    for (int step = 0; step < 2; ++step) {
      bench.fill(pool.data, b.pool_elements());
      b.set(mode, random_lengths(bench.random, live, rows));
      for (int replay = 0; replay < 2; ++replay) {
        poison_from_newest<<<dim3(rows, kv_heads, layers), 128>>>(b.cache());
        CHECK(cudaDeviceSynchronize());
        b.poison();
        CHECK(cudaGraphLaunch(graph, bench.stream));
        if (replay == 0) b.make_reference();
        const double error = b.error(live);
        tally.add(kernel, kv_heads, mode, "graph", error, b.clean(live));
      }
      b.poison();
      b.attend(layers - 1, false);
      const double error = b.error(live);
      tally.add(kernel, kv_heads, mode, "alone", error, b.clean(live));
    }
  }
  CHECK(cudaGraphExecDestroy(graph));
}

bool check_all(Bench& bench, const std::string& folder, int buckets) {
  Tally tally;
  const int heads[] = {8, 4, 2, 3, 1};
  int batch = 0;
  for (int dim : {64, 128}) {
    for (int group = 1; group <= 8; ++group) {
      for (int page : {16, 16 * (1 + group % 4)}) {
        if (batch == buckets) break;
        const Kernel kernel(folder, {dim, group, page});
        check_bucket(bench, kernel, heads[batch++ % 5], tally);
      }
    }
  }
  printf("# %d buckets, %d checks, %d failed, worst error %.2e\n", batch, tally.checks, tally.bad,
         tally.worst);
  return tally.bad == 0;
}

/// Median microseconds of a replay, L2 flushed before each by clean reads.
double replay_time(Bench& bench, cudaGraphExec_t graph) {
  std::vector<double> times;
  for (int i = -2; i < 15; ++i) {
    read_all<<<bench.sms * 4, 512, 0, bench.stream>>>(bench.flush.data, int64_t(16) << 20,
                                                     bench.sink.data);
    CHECK(cudaEventRecord(bench.begin, bench.stream));
    CHECK(cudaGraphLaunch(graph, bench.stream));
    CHECK(cudaEventRecord(bench.end, bench.stream));
    CHECK(cudaStreamSynchronize(bench.stream));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, bench.begin, bench.end));
    if (i >= 0) times.push_back(ms * 1e3);
  }
  CHECK(cudaGraphExecDestroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void time_shape(Bench& bench, const Kernel& kernel, __nv_bfloat16* pool, int layers, int batch,
                int context) {
  const int kv_heads = 8, pool_tokens = 16384 * 16;
  Bucket b(bench, kernel, pool, kv_heads, layers, batch, context);
  // Pages from all over the pool, not from its front alone.
  std::vector<int> pages(pool_tokens / kernel.c.page);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), bench.random);
  pages.resize(b.table.count);
  b.table.set(pages);
  const std::vector<int> lengths(batch, context);
  b.set(0, lengths);
  for (int layer = 0; layer < layers; ++layer) b.write(layer, 0, false);
  b.make_reference();
  for (int mode = 0; mode < 3; ++mode) {
    const int workers = b.set(mode, lengths);
    auto attention = [&](int count, bool overlapped) {
      return replay_time(bench, capture(bench, [&] {
               for (int layer = 0; layer < count; ++layer) b.attend(layer, overlapped);
             })) / count;
    };
    auto behind_writer = [&](bool attends, bool overlapped) {
      return replay_time(bench, capture(bench, [&] {
               for (int layer = 0; layer < layers; ++layer) {
                 b.write(layer, 0, overlapped);
                 if (attends) b.attend(layer, overlapped);
               }
             })) / layers;
    };
    b.poison();
    const double plain = attention(layers, false);
    const double error = b.error(batch);
    const double overlapped = attention(layers, true), single = attention(1, false);
    const double writer = behind_writer(false, false), both = behind_writer(true, false);
    const double both_overlapped = behind_writer(true, true);
    const double bytes = double(batch) * context * kv_heads * kernel.c.dim * 4;
    printf("%d,%d,%d,%d,%s,%d,%d,%d,%.2f,%.2f,%.2f,%.2f,%.2f,%.2f,%.0f,%.2f,%.1e\n", layers,
           kernel.c.dim, kernel.c.group, kernel.c.page, kModes[mode], workers, batch, context,
           plain, overlapped, single, writer, both, both_overlapped, bytes / plain * 1e-3,
           bytes / 3.0e12 * 1e6, error);
    fflush(stdout);
  }
}

void time_all(Bench& bench, const std::string& folder) {
  const int shapes[][2] = {{1, 512},   {8, 512},   {64, 512},  {64, 4096}, {8, 4096}, {1, 1024},
                           {1, 2048},  {1, 4096},  {1, 32768}, {2, 512},   {2, 4096}, {4, 512},
                           {4, 4096},  {16, 512},  {16, 2048}, {32, 512},  {32, 2048}, {256, 512}};
  struct Geometry {
    Config config;
    int layers;
  };
  const Geometry geometries[] = {
      {{128, 2, 16}, 28}, {{128, 4, 16}, 36}, {{128, 4, 64}, 36}, {{64, 4, 16}, 36}};
  Device<__nv_bfloat16> pool(size_t(36) * 2 * 8 * 16384 * 16 * 128);
  bench.fill(pool.data, pool.count);
  // A third of a second of work, so that the first shapes do not meet idle clocks.
  for (int i = 0; i < 3000; ++i) {
    read_all<<<bench.sms * 4, 512, 0, bench.stream>>>(bench.flush.data, int64_t(16) << 20,
                                                     bench.sink.data);
  }
  CHECK(cudaStreamSynchronize(bench.stream));
  printf("layers,dim,group,page,mode,workers,batch,context,us_layer,us_layer_pdl,us_single,"
         "us_writer,us_writer_attention,us_writer_attention_pdl,gb_s,floor_us,error\n");
  for (const Geometry& g : geometries) {
    const Kernel kernel(folder, g.config);
    for (const auto& shape : shapes) {
      time_shape(bench, kernel, pool.data, g.layers, shape[0], shape[1]);
    }
  }
}

int main(int argc, char** argv) {
  const std::string what = argc >= 3 ? argv[1] : "";
  if (what != "check" && what != "time") {
    fprintf(stderr, "usage: decode_attention check|time DIR [BUCKETS]\n");
    return 2;
  }
  CHECK(cudaFree(nullptr));
  Bench bench;
  if (what == "check") return check_all(bench, argv[2], argc > 3 ? atoi(argv[3]) : 1000) ? 0 : 1;
  time_all(bench, argv[2]);
  return 0;
}
