// Decode attention over a pool of about 30 GB with pages in random order: which layout of the pool
// is faster? One kernel, the strides are arguments (layout.h). Prints CSV, one row a measurement.
//
//   decode_layout check            ragged random shapes against the reference, NaN in every tail
//   decode_layout time [FILTER]    the table; FILTER: only variants whose name contains it
#include <math.h>
#include <string.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>

#include "pool.cuh"
#include "variants.cuh"

constexpr int kKvHeads = 8, kPages = 16384, kLayersMax = 36;
constexpr double kCopyBandwidth = 3.0e12;  // bytes/s, the device copy measured on this card

struct Shape {
  int batch, context;
};
const Shape kShapes[] = {{1, 512},  {1, 4096},  {1, 32768}, {8, 512},   {8, 4096},
                         {64, 512}, {64, 1024}, {64, 4096}, {256, 512}, {256, 1024}};

template <class T>
struct Device {
  T* data = nullptr;
  explicit Device(size_t count) { CHECK(cudaMalloc(&data, count * sizeof(T))); }
  explicit Device(const std::vector<T>& from) : Device(std::max<size_t>(from.size(), 1)) {
    CHECK(cudaMemcpy(data, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(data); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
};

/// What lives for the whole run.
struct Bench {
  Device<__nv_bfloat16> pool{size_t(kLayersMax) * 2 * kKvHeads * kPages * kChunkElements};
  Device<int4> flush{size_t(16) << 20};
  Device<int> sink{1};
  Device<double> sums{2};
  cudaStream_t stream;
  cudaEvent_t begin, end;
  CUtensorMap map;
  int sms;
  std::mt19937 random{20261124};

  Bench() {
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    CHECK(cudaMemset(flush.data, 1, size_t(256) << 20));
    encode_map();
    fill();
  }
  void fill() {
    fill_random<<<sms * 8, 512>>>(reinterpret_cast<__nv_bfloat162*>(pool.data),
                                  int64_t(kLayersMax) * 2 * kKvHeads * kPages * kChunkElements / 2,
                                  7);
    CHECK(cudaDeviceSynchronize());
  }
  /// One box is a chunk: 16 tokens × 128 dims, as two halves of 64 dims with the 128 B swizzle.
  void encode_map() {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                           cudaEnableDefault, &found));
    const cuuint64_t sizes[4] = {64, 16, 2, cuuint64_t(kLayersMax) * 2 * kKvHeads * kPages};
    const cuuint64_t strides[3] = {256, 128, kChunkBytes};
    const cuuint32_t box[4] = {64, 16, 2, 1}, steps[4] = {1, 1, 1, 1};
    const CUresult status = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
        &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, pool.data, sizes, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) fprintf(stderr, "cuTensorMapEncodeTiled: %d\n", status), exit(1);
  }
  void flush_l2() {
    read_all<<<sms * 4, 512, 0, stream>>>(flush.data, int64_t(16) << 20, sink.data);
  }
};

std::vector<int> page_table(std::mt19937& random, const std::vector<int>& lengths, int stride,
                            bool shuffled) {
  std::vector<int> order(kPages);
  std::iota(order.begin(), order.end(), 0);
  if (shuffled) std::shuffle(order.begin(), order.end(), random);
  std::vector<int> table(lengths.size() * stride, 0);
  size_t next = 0;
  for (size_t request = 0; request < lengths.size(); ++request) {
    for (int i = 0; i < ceil_div(lengths[request], kPageTokens); ++i) {
      table[request * stride + i] = order.at(next++);
    }
  }
  return table;
}

/// One batch of requests on one layout: tables, queries, and the reference of the last layer.
struct Batch {
  const PoolShape shape;
  const Layout layout;
  const int group, requests, stride;
  const std::vector<int> lengths;
  const float scale = 1.f / sqrtf(float(kHeadDim));
  const size_t rows;
  Device<int> table, device_lengths;
  Device<__nv_bfloat16> query, output;
  Device<float> wanted;

  Batch(Bench& bench, PoolShape shape, Layout layout, int group, std::vector<int> lengths_,
        bool shuffled)
      : shape(shape), layout(layout), group(group), requests(int(lengths_.size())),
        stride(ceil_div(*std::max_element(lengths_.begin(), lengths_.end()), kPageTokens)),
        lengths(std::move(lengths_)), rows(size_t(requests) * kKvHeads * group),
        table(page_table(bench.random, lengths, stride, shuffled)), device_lengths(lengths),
        query(rows * kHeadDim), output(rows * kHeadDim), wanted(rows * kHeadDim) {
    fill_random<<<256, 256>>>(reinterpret_cast<__nv_bfloat162*>(query.data), rows * kHeadDim / 2,
                              bench.random());
    CHECK(cudaDeviceSynchronize());
  }
  View view(Bench& bench) const {
    return {bench.pool.data, table.data, device_lengths.data, stride, kKvHeads, group,
            (shape.layers - 1) * layout.layer, layout.page, layout.kv, layout.head};
  }
  void make_reference(Bench& bench) {
    Device<float> scratch(rows * stride * kPageTokens);
    reference_attention<<<dim3(requests, kKvHeads * group), kHeadDim>>>(
        view(bench), query.data, scratch.data, wanted.data, scale);
    CHECK(cudaDeviceSynchronize());
  }
};

/// A batch, a variant and its plan, ready to launch.
struct Run {
  Bench& bench;
  Batch& batch;
  const Variant& variant;
  const Plan plan;
  Device<Item> items;
  Device<int> first_item;
  Device<float> partials;
  Device<float2> partial_sums;
  Device<int> arrived;
  bool overlapped = false;  // programmatic dependent launch

  Run(Bench& bench, Batch& batch, const Variant& variant, int rows_min)
      : bench(bench), batch(batch), variant(variant),
        plan(make_plan(batch.lengths, kPageTokens, kKvHeads / variant.heads(), variant.heads(),
                       variant.ways, bench.sms * variant.blocks_per_sm, rows_min)),
        items(plan.items), first_item(plan.first_item),
        partials(size_t(plan.slots + 1) * variant.heads() * batch.group * kHeadDim),
        partial_sums(size_t(plan.slots + 1) * variant.heads() * batch.group),
        arrived(std::vector<int>(batch.requests * kKvHeads, 0)) {
    CHECK(cudaFuncSetAttribute(variant.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               variant.shared_bytes));
  }
  void launch(int layer) {
    const Layout& l = batch.layout;
    const DecodeArguments arguments{
        bench.pool.data, batch.query.data, batch.output.data, batch.table.data, items.data,
        first_item.data, partials.data, partial_sums.data, arrived.data, batch.stride, kKvHeads,
        layer * l.layer, l.page, l.kv, l.head, batch.scale * 1.44269504f};
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = plan.blocks;
    config.blockDim = variant.warps * 32;
    config.dynamicSmemBytes = variant.shared_bytes;
    config.stream = bench.stream;
    config.attrs = &attribute;
    config.numAttrs = overlapped ? 1 : 0;
    CHECK(cudaLaunchKernelEx(&config, variant.kernel, bench.map, arguments));
  }
  void poison() {
    fill_bits<<<256, 256, 0, bench.stream>>>(reinterpret_cast<uint16_t*>(batch.output.data),
                                             batch.rows * kHeadDim, 0x7fff);
    CHECK(cudaMemsetAsync(bench.sums.data, 0, 16, bench.stream));
  }
  /// Of what the last layer's launch left in the output.
  double relative_error() {
    compare<<<64, 256, 0, bench.stream>>>(batch.output.data, batch.wanted.data,
                                          batch.rows * kHeadDim, bench.sums.data);
    double sums[2];
    CHECK(cudaMemcpyAsync(sums, bench.sums.data, 16, cudaMemcpyDeviceToHost, bench.stream));
    CHECK(cudaStreamSynchronize(bench.stream));
    return sqrt(sums[0] / sums[1]);
  }
  /// Microseconds of each replay of a graph of `layers` launches, L2 flushed before each.
  std::vector<double> replays(int layers, int count) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CHECK(cudaStreamBeginCapture(bench.stream, cudaStreamCaptureModeThreadLocal));
    for (int layer = 0; layer < layers; ++layer) launch(layer);
    CHECK(cudaStreamEndCapture(bench.stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<double> times;
    for (int i = -2; i < count; ++i) {
      bench.flush_l2();
      CHECK(cudaEventRecord(bench.begin, bench.stream));
      CHECK(cudaGraphLaunch(executable, bench.stream));
      CHECK(cudaEventRecord(bench.end, bench.stream));
      CHECK(cudaStreamSynchronize(bench.stream));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, bench.begin, bench.end));
      if (i >= 0) times.push_back(ms * 1e3);
    }
    CHECK(cudaGraphExecDestroy(executable));
    CHECK(cudaGraphDestroy(graph));
    std::sort(times.begin(), times.end());
    return times;
  }
};

std::vector<Variant> variants_of(int group) { return group == 2 ? variants<2>() : variants<4>(); }

std::vector<Layout> layouts_of(PoolShape s) {
  return {page_major(s), layer_major(s), page_major_head_kv(s), layer_major_split(s)};
}

void time_one(Run& run, const char* order, int context) {
  const Batch& b = run.batch;
  run.poison();
  const auto times = run.replays(b.shape.layers, 15);
  const double error = run.relative_error();
  const double median = times[times.size() / 2] / b.shape.layers;
  const auto single = run.replays(1, 15);
  const double bytes = double(b.requests) * context * kKvHeads * kHeadDim * 2 * 2;
  printf("%d,%d,%s,%s,%s,%d,%d,%d,%.2f,%.2f,%.2f,%.0f,%.2f,%.1e\n", b.shape.layers, b.group,
         b.layout.name, order, run.variant.name, run.plan.blocks, b.requests, context, median,
         times[0] / b.shape.layers, single[single.size() / 2], bytes / median * 1e-3,
         bytes / kCopyBandwidth * 1e6, error);
  fflush(stdout);
}

void time_geometry(Bench& bench, int layers, int group, const char* filter) {
  const PoolShape pool{layers, kKvHeads, kPages};
  for (const Layout& layout : layouts_of(pool)) {
    const bool first = !strcmp(layout.name, page_major(pool).name);
    for (const Shape& shape : kShapes) {
      for (int order = 0; order < (first ? 2 : 1); ++order) {
        Batch batch(bench, pool, layout, group, std::vector<int>(shape.batch, shape.context),
                    order == 0);
        batch.make_reference(bench);
        for (const Variant& variant : variants_of(group)) {
          if (!strstr(variant.name, filter)) continue;
          Run run(bench, batch, variant, 1);
          time_one(run, order == 0 ? "random" : "in-order", shape.context);
          if (!first || order == 1) continue;
          run.overlapped = true;
          time_one(run, "random+pdl", shape.context);
        }
      }
    }
  }
}

/// The plain reference against f64 on the host, for one q head of each request.
double reference_error(Bench& bench, Batch& b) {
  std::vector<float> device(b.rows * kHeadDim);
  std::vector<uint16_t> query(b.rows * kHeadDim), page(kChunkElements);
  std::vector<int> table(b.requests * b.stride);
  CHECK(cudaMemcpy(device.data(), b.wanted.data, device.size() * 4, cudaMemcpyDeviceToHost));
  CHECK(cudaMemcpy(query.data(), b.query.data, query.size() * 2, cudaMemcpyDeviceToHost));
  CHECK(cudaMemcpy(table.data(), b.table.data, table.size() * 4, cudaMemcpyDeviceToHost));
  auto value = [](uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float f;
    memcpy(&f, &wide, 4);
    return double(f);
  };
  double error = 0, norm = 0;
  for (int request = 0; request < b.requests; ++request) {
    const int q_head = (request * 5 + 3) % (kKvHeads * b.group), length = b.lengths[request];
    const size_t row = (size_t(request) * kKvHeads * b.group + q_head) * kHeadDim;
    std::vector<double> keys_values[2];
    for (int kv = 0; kv < 2; ++kv) {
      for (int i = 0; i < ceil_div(length, kPageTokens); ++i) {
        const int64_t chunk = int64_t(b.shape.layers - 1) * b.layout.layer +
                              int64_t(table[request * b.stride + i]) * b.layout.page +
                              kv * b.layout.kv + q_head / b.group * b.layout.head;
        CHECK(cudaMemcpy(page.data(), bench.pool.data + chunk * kChunkElements, kChunkBytes,
                         cudaMemcpyDeviceToHost));
        for (uint16_t bits : page) keys_values[kv].push_back(value(bits));
      }
    }
    std::vector<double> scores(length), out(kHeadDim, 0.0);
    double top = -INFINITY, sum = 0;
    for (int t = 0; t < length; ++t) {
      double dot = 0;
      for (int d = 0; d < kHeadDim; ++d) {
        dot += value(query[row + d]) * keys_values[0][t * kHeadDim + d];
      }
      scores[t] = dot * b.scale;
      top = std::max(top, scores[t]);
    }
    for (double& score : scores) score = exp(score - top), sum += score;
    for (int t = 0; t < length; ++t) {
      for (int d = 0; d < kHeadDim; ++d) {
        out[d] += scores[t] / sum * keys_values[1][t * kHeadDim + d];
      }
    }
    for (int d = 0; d < kHeadDim; ++d) {
      error += pow(device[row + d] - out[d], 2), norm += out[d] * out[d];
    }
  }
  return sqrt(error / norm);
}

/// True when every variant on every layout is within 1e-2 of the reference.
bool check_all(Bench& bench) {
  double worst = 0, worst_reference = 0;
  int checks = 0;
  for (int round = 0; round < 24; ++round) {
    const int group = round % 2 ? 4 : 2;
    const PoolShape pool{round % 3 ? 28 : 36, kKvHeads, kPages};
    const Layout layout = layouts_of(pool)[round % 4];
    std::vector<int> lengths(1 + bench.random() % 17);
    for (int& length : lengths) length = 1 + bench.random() % (round % 5 ? 700 : 9000);
    Batch batch(bench, pool, layout, group, lengths, true);
    poison_tails<<<dim3(batch.requests, kKvHeads), kHeadDim>>>(batch.view(bench));
    batch.make_reference(bench);
    worst_reference = std::max(worst_reference, reference_error(bench, batch));
    for (const Variant& variant : variants_of(group)) {
      for (int rows_min = 1; rows_min <= 4; rows_min += 3) {
        Run run(bench, batch, variant, rows_min);
        for (int again = 0; again < 3; ++again, ++checks) {
          run.poison();
          run.launch(pool.layers - 1);
          const double error = run.relative_error();
          if (!(error < 1e-2)) {
            printf("FAIL %s %s round %d: %g\n", variant.name, layout.name, round, error);
          }
          worst = error > worst || error != error ? error : worst;
        }
      }
    }
    bench.fill();
  }
  printf("# %d checks, worst error %.2e; reference against f64 %.2e\n", checks, worst,
         worst_reference);
  return worst < 1e-2 && worst_reference < 1e-5;
}

void read_ceiling(Bench& bench) {
  const int64_t bytes = int64_t(16) << 30;
  std::vector<float> times;
  for (int i = 0; i < 7; ++i) {
    CHECK(cudaEventRecord(bench.begin, bench.stream));
    read_all<<<bench.sms * 4, 512, 0, bench.stream>>>(reinterpret_cast<int4*>(bench.pool.data),
                                                       bytes / 16, bench.sink.data);
    CHECK(cudaEventRecord(bench.end, bench.stream));
    CHECK(cudaStreamSynchronize(bench.stream));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, bench.begin, bench.end));
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  printf("# plain sequential read of 16 GiB: %.0f GB/s\n", bytes / times[3] * 1e-6);
}

/// What a launch in a graph costs when the kernel does nothing.
void launch_floor(Bench& bench) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamBeginCapture(bench.stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < 28; ++i) nothing<<<bench.sms, 256, 0, bench.stream>>>();
  CHECK(cudaStreamEndCapture(bench.stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  std::vector<float> times;
  for (int i = 0; i < 15; ++i) {
    bench.flush_l2();
    CHECK(cudaEventRecord(bench.begin, bench.stream));
    CHECK(cudaGraphLaunch(executable, bench.stream));
    CHECK(cudaEventRecord(bench.end, bench.stream));
    CHECK(cudaStreamSynchronize(bench.stream));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, bench.begin, bench.end));
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  printf("# an empty kernel in a graph of 28: %.2f us each\n", times[7] * 1e3 / 28);
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
}

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what != "check" && what != "time") {
    fprintf(stderr, "usage: decode_layout check | time [FILTER]\n");
    return 2;
  }
  Bench bench;
  if (what == "check") return check_all(bench) ? 0 : 1;
  read_ceiling(bench);
  launch_floor(bench);
  printf("layers,group,layout,order,variant,blocks,batch,context,us_layer_median,us_layer_min,"
         "us_single,gb_s,floor_us,error\n");
  time_geometry(bench, 28, 2, argc > 2 ? argv[2] : "");
  time_geometry(bench, 36, 4, argc > 2 ? argv[2] : "");
  return 0;
}
