// Decode-time projections: right at random shapes, and how far from the time of reading W once?
//
//   project check        random shapes and cuts against f64, NaN in every output
//   project time [CSV]   each projection alone, then layers of four in one graph, m = 1 to 64
//   project trace        when the blocks of each kernel of a chain start, wait and end (built with
//                        -DTRACE, which costs time: for the order of events, not for figures)
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#ifdef TRACE
constexpr int kTraced = 64, kTracedBlocks = 1024, kPoints = 5;
__device__ unsigned long long traced[kTraced][kTracedBlocks][kPoints];
// The launch's number is in bits of `layout` that mean nothing to the kernel.
#define PROJECT_TRACE(arguments, point)                                                        \
  if (threadIdx.x == 0 && (arguments).layout >> 8 < kTraced && blockIdx.x < kTracedBlocks) {   \
    asm volatile("mov.u64 %0, %%globaltimer;"                                                  \
                 : "=l"(traced[(arguments).layout >> 8][blockIdx.x][point]) :: "memory");      \
  }
#endif
#include "../../kernels/cuda/project_body.cuh"
#include "project_cuts.cuh"

using project::Half;

constexpr double kCopyBandwidth = 3.0e12;  // bytes/s, the device copy measured on this card

template <class T>
struct Device {
  T* data = nullptr;
  size_t count;
  explicit Device(size_t count) : count(count) { CHECK(cudaMalloc(&data, count * sizeof(T))); }
  ~Device() { cudaFree(data); }
  Device(const Device&) = delete;
};

// --- kernels of the harness

__device__ void store(Half* to, float x) { *to = project::to_half(x); }
__device__ void store(float* to, float x) { *to = x; }

template <class T>
__global__ void fill_random(T* data, int64_t count, float scale, float centre, uint64_t seed) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x) {
    uint64_t h = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1342543de82ef95ull;
    h ^= h >> 31, h *= 0xbf58476d1ce4e5b9ull, h ^= h >> 29, h *= 0x94d049bb133111ebull, h ^= h >> 32;
    store(data + i, centre + scale * (float(h & 0xffffff) / 8388608.f - 1.f));
  }
}

__global__ void fill_bits(Half* data, int64_t count, Half bits) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x) data[i] = bits;
}

__global__ void pack(const Half* w, Half* packed, int n, int k, bool gated) {
  const int64_t count = int64_t(n) * k * (gated ? 2 : 1);
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x) {
    const int row = int(i / k), column = int(i % k);
    const int tile = gated ? row % n / 8 : row / 16;
    const int inner = gated ? row % n % 8 + row / n * 8 : row % 16;
    packed[project::pack_offset(tile, inner, column, k)] = w[i];
  }
}

__device__ double dot(const Arguments& a, const Half* w, int row, int lane) {
  double sum = 0;
  for (int i = lane; i < a.k; i += 32) {
    double x = project::to_float(a.x[int64_t(row) * a.k + i]);
    if (a.gain) x *= project::to_float(project::to_half(a.gain[i]));
    sum += x * project::to_float(w[i]);
  }
  for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  return sum;
}

/// One warp an output; `a.gain` set means norm; W in rows.
__global__ void reference(Arguments a, bool gated, float* wanted) {
  const int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (index >= int64_t(a.m) * a.n) return;
  const int row = int(index / a.n), column = int(index % a.n);
  double factor = 1;
  if (a.gain) {
    double squares = 0;
    for (int i = lane; i < a.k; i += 32) {
      const double x = project::to_float(a.x[int64_t(row) * a.k + i]);
      squares += x * x;
    }
    for (int d = 16; d; d /= 2) squares += __shfl_xor_sync(~0u, squares, d);
    factor = 1 / sqrt(squares / a.k + a.eps);
  }
  double y = factor * dot(a, a.w + int64_t(column) * a.k, row, lane);
  if (gated) {
    const double up = factor * dot(a, a.w + (int64_t(a.n) + column) * a.k, row, lane);
    y = y / (1 + exp(-y)) * up;
  } else {
    if (a.bias) y += a.bias[column];
    if (a.residual) y += project::to_float(a.residual[index]);
  }
  if (lane == 0) wanted[index] = float(y);
}

struct Clock {
  cudaStream_t stream;
  Clock() { CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); }
  /// Median microseconds of a replay of what `enqueue` launches.
  template <class F>
  double replay(int count, F enqueue) {
    return Recording(stream, enqueue).replay(stream, count);
  }
};

// --- check

bool check(const std::vector<Variant>& variants) {
  std::mt19937 random(20261124);
  Clock clock;
  double worst = 0;
  int checks = 0, failures = 0, shapes = 0;
  for (int columns : {1, 2, 4, 8}) {
    for (int round = 0; round < 12; ++round, ++shapes) {
      const bool gated = round % 3 == 0;
      const int least = columns == 1 ? 1 : columns * 4 + 1;
      const int m = round == 0 ? columns * 8 : least + int(random() % (columns * 8 - least + 1));
      const int n = (gated ? 8 : 16) * (1 + random() % 90), k = 32 * (1 + random() % 130);
      const int rows = gated ? 2 * n : n;
      Device<Half> x(size_t(m) * k), w(size_t(rows) * k), packed(size_t(rows) * k), y(size_t(m) * n);
      Device<Half> residual(size_t(m) * n);
      Device<float> gain(k);
      Device<float> bias(n), wanted(size_t(m) * n);
      auto fill = [&](auto& d, float scale, float centre) {
        fill_random<<<256, 256>>>(d.data, d.count, scale, centre, random());
      };
      fill(x, 2, 0.1f), fill(w, 2 / sqrtf(float(k)), 0), fill(residual, 2, 0), fill(gain, .5f, 1);
      pack<<<256, 256>>>(w.data, packed.data, n, k, gated);
      std::vector<float> b(n);
      for (float& v : b) v = float(int(random() % 2000) - 1000) * 1e-3f;
      CHECK(cudaMemcpy(bias.data, b.data(), n * 4, cudaMemcpyHostToDevice));
      for (int norm = 0; norm < 2; ++norm) {
        const bool with_bias = !gated && random() % 2, with_residual = !gated && random() % 2;
        Arguments a{x.data, w.data, y.data, with_residual ? residual.data : nullptr,
                    with_bias ? bias.data : nullptr, norm ? gain.data : nullptr, m, n, k, 1e-6f, 0, w.data, 0};
        reference<<<(m * n * 32 + 255) / 256, 256>>>(a, gated, wanted.data);
        std::vector<float> want(size_t(m) * n);
        CHECK(cudaMemcpy(want.data(), wanted.data, want.size() * 4, cudaMemcpyDeviceToHost));
        for (const Variant& v : variants) {
          if (v.columns != columns || v.norm != bool(norm) || v.shared_bytes(k) > 227 * 1024) continue;
          for (int form = 0; form < 2; ++form) {
            a.w = form ? packed.data : w.data;
            a.layout = (gated ? 1 : 0) | (form ? 2 : 0);
            a.next_bytes = random() % 2 ? unsigned(rows) * k * 2 : 0;
            std::vector<Half> got[2];
            for (auto& g : got) {
              fill_bits<<<64, 256>>>(y.data, y.count, 0x7fff);
              CHECK(cudaDeviceSynchronize());
              launch(v, a, clock.stream, false);
              CHECK(cudaStreamSynchronize(clock.stream));
              g.resize(want.size());
              CHECK(cudaMemcpy(g.data(), y.data, g.size() * 2, cudaMemcpyDeviceToHost));
            }
            double error = 0, size = 0;
            for (size_t i = 0; i < want.size(); ++i) {
              const uint32_t wide = uint32_t(got[0][i]) << 16;
              float f;
              memcpy(&f, &wide, 4);
              error += pow(double(f) - want[i], 2), size += double(want[i]) * want[i];
            }
            error = sqrt(error / size);
            ++checks;
            if (!(error < 1e-2) || got[0] != got[1]) {
              if (++failures < 20) {
                printf("FAIL %s norm %d m %d n %d k %d layout %u: %g%s\n", v.name().c_str(), norm, m,
                       n, k, a.layout, error, got[0] != got[1] ? ", and not the same twice" : "");
              }
            }
            if (!(error <= worst)) worst = error;
          }
        }
      }
    }
  }
  printf("# %d checks at %d shapes, each run twice: %d failed, worst error %.2e\n", checks, shapes,
         failures, worst);
  return failures == 0;
}

// --- time

struct Model {
  const char* name;
  int hidden, attended, qkv, inter, layers;
};
const Model kModels[] = {{"qwen3-0.6b", 1024, 2048, 4096, 3072, 28},
                         {"qwen3-8b", 4096, 4096, 6144, 12288, 8}};
const char* const kProjections[] = {"qkv", "o", "gate_up", "down"};

struct Shape {
  int n, k;
  bool gated, norm;
  size_t elements() const { return size_t(n) * k * (gated ? 2 : 1); }
};

struct Weights {
  Model model;
  Shape shapes[4];
  size_t layer = 0;
  Device<Half> rows, packed;
  explicit Weights(const Model& m)
      : model(m), shapes{{m.qkv, m.hidden, false, true},
                         {m.hidden, m.attended, false, false},
                         {m.inter, m.hidden, true, true},
                         {m.hidden, m.inter, false, false}},
        layer(per_layer()), rows(layer * m.layers), packed(layer * m.layers) {
    fill_random<<<1024, 512>>>(rows.data, int64_t(rows.count), 0.02f, 0, 3);
    for (int l = 0; l < m.layers; ++l) {
      for (int p = 0; p < 4; ++p) {
        pack<<<1024, 256>>>(at(l, p, false), at(l, p, true), shapes[p].n, shapes[p].k, shapes[p].gated);
      }
    }
    CHECK(cudaDeviceSynchronize());
  }
  size_t per_layer() const {
    size_t sum = 0;
    for (const Shape& s : shapes) sum += s.elements();
    return sum;
  }
  Half* at(int l, int p, bool from_packed) const {
    size_t offset = layer * l;
    for (int i = 0; i < p; ++i) offset += shapes[i].elements();
    return (from_packed ? packed : rows).data + offset;
  }
  double floor_us() const { return double(rows.count) * 2 / kCopyBandwidth * 1e6; }
};

struct Activations {
  Device<Half> x, start, qkv, gated;
  Device<float> gain;
  Activations(const Model& m)
      : x(64 * size_t(m.hidden)), start(x.count), qkv(64 * size_t(m.qkv)), gated(64 * size_t(m.inter)),
        gain(m.inter + m.hidden) {
    fill_random<<<64, 256>>>(start.data, start.count, 1, 0, 11);
    fill_random<<<64, 256>>>(gain.data, gain.count, .5f, 1, 12);
    fill_random<<<64, 256>>>(qkv.data, qkv.count, 1, 0, 13);
    fill_random<<<64, 256>>>(gated.data, gated.count, 1, 0, 14);
    reset();
  }
  void reset() {
    CHECK(cudaMemcpy(x.data, start.data, x.count * 2, cudaMemcpyDeviceToDevice));
    CHECK(cudaDeviceSynchronize());
  }
};

/// What a kernel of a chain fetches for later ones: nothing, the next matrix, or (any other value)
/// its equal share of the whole stream of weights, so many MB ahead of what it reads itself.
enum Lead { kNothing = -1, kNext = 0 };

struct Choice {
  const Variant* variant[4];
  int lead = kNext;  // which memory a kernel fetches into L2
  bool packed = false, overlapped = true;
};

void chain(const Weights& w, Activations& b, const Choice& c, int m, cudaStream_t stream,
           bool serial = false) {
  Half* const in[] = {b.x.data, b.qkv.data, b.x.data, b.gated.data};
  Half* const out[] = {b.qkv.data, b.x.data, b.gated.data, b.x.data};
  const Half* const all = (c.packed ? w.packed : w.rows).data;
  const size_t count = size_t(w.model.layers) * 4, elements = w.rows.count;
  const size_t share = (elements + count - 1) / count / 64 * 64 + 64;
  for (int l = 0; l < w.model.layers; ++l) {
    for (int p = 0; p < 4; ++p) {
      const Shape& s = w.shapes[p];
      const Half* next = nullptr;
      size_t length = 0;
      if (c.lead == kNext && l * 4 + p + 1 < int(count)) {
        next = w.at(p == 3 ? l + 1 : l, (p + 1) % 4, c.packed);
        length = w.shapes[(p + 1) % 4].elements();
      } else if (c.lead > 0) {
        const size_t from = size_t(c.lead) * 500000 / 64 * 64 + share * (l * 4 + p);
        if (from < elements) next = all + from, length = std::min(share, elements - from);
      }
      const Arguments a{in[p], w.at(l, p, c.packed), out[p], s.norm ? nullptr : b.x.data, nullptr,
                        s.norm ? b.gain.data : nullptr, m, s.n, s.k, 1e-6f,
                        (s.gated ? 1u : 0) | (c.packed ? 2u : 0) | unsigned(l * 4 + p) << 8, next,
                        unsigned(length * 2)};
      launch(*c.variant[p], a, stream, c.overlapped && !serial);
      if (serial) CHECK(cudaStreamSynchronize(stream));
    }
  }
}

/// Of a chain in a graph with overlap, whether it leaves the bits that launches one by one leave.
bool same_bits(const Weights& w, Activations& b, const Choice& c, int m, Clock& clock) {
  std::vector<Half> wanted(size_t(m) * w.model.hidden), got(wanted.size());
  b.reset();
  chain(w, b, c, m, clock.stream, true);
  CHECK(cudaMemcpy(wanted.data(), b.x.data, wanted.size() * 2, cudaMemcpyDeviceToHost));
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamBeginCapture(clock.stream, cudaStreamCaptureModeThreadLocal));
  chain(w, b, c, m, clock.stream);
  CHECK(cudaStreamEndCapture(clock.stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  bool same = true;
  for (int i = 0; i < 10; ++i) {
    b.reset();
    CHECK(cudaGraphLaunch(executable, clock.stream));
    CHECK(cudaStreamSynchronize(clock.stream));
    CHECK(cudaMemcpy(got.data(), b.x.data, got.size() * 2, cudaMemcpyDeviceToHost));
    same &= got == wanted;
  }
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  for (Half h : wanted) same &= (h & 0x7f80) != 0x7f80;
  return same;
}

void time_model(const Model& model, const std::vector<Variant>& variants, FILE* csv) {
  const Weights w(model);
  Activations b(model);
  Clock clock;
  for (int m : {1, 8, 16, 32, 64}) {
    Choice choice;
    for (int p = 0; p < 4; ++p) {
      const Shape& s = w.shapes[p];
      const double floor = s.elements() * 2 / kCopyBandwidth * 1e6;
      double best[2] = {1e30, 1e30};
      const Variant* which[2] = {};
      for (const Variant& v : variants) {
        if (v.columns != columns_of(m) || v.norm != s.norm || !v.fits(s.k)) continue;
        for (int packed = 0; packed < 1; ++packed) {
          // Windows over all layers, so that nothing is in L2.
          const int count = int(std::min<size_t>(64, w.rows.count / s.elements()));
          const double us = clock.replay(7, [&] {
            for (int i = 0; i < count; ++i) {
              const Half* from = (packed ? w.packed : w.rows).data + s.elements() * i;
              const Arguments a{p == 3 ? b.gated.data : b.qkv.data, from, b.x.data, nullptr, nullptr,
                                s.norm ? b.gain.data : nullptr, m, s.n, s.k, 1e-6f,
                                (s.gated ? 1u : 0) | (packed ? 2u : 0), nullptr, 0};
              Arguments out = a;
              out.y = s.n == model.hidden ? b.x.data : p == 0 ? b.qkv.data : b.gated.data;
              if (p == 0) out.x = b.gated.data;
              launch(v, out, clock.stream, true);
            }
          }) / count;
          fprintf(csv, "%s,%s,%d,%s,%s,%d,%d,%.2f,%.0f,%.2f\n", model.name, kProjections[p], m,
                  v.name().c_str(), packed ? "packed" : "rows", v.blocks(s.n, s.gated),
                  v.shared_bytes(s.k), us, s.elements() * 2 / us * 1e-3, us / floor);
          if (us < best[packed]) best[packed] = us, which[packed] = &v;
        }
      }
      choice.variant[p] = which[0];
      const double hot = clock.replay(7, [&] {
        for (int i = 0; i < 64; ++i) {
          const Arguments a{p == 0 || p == 3 ? b.gated.data : b.qkv.data, w.at(0, p, false),
                            s.n == model.hidden ? b.x.data : p == 0 ? b.qkv.data : b.gated.data,
                            nullptr, nullptr, s.norm ? b.gain.data : nullptr, m, s.n, s.k, 1e-6f,
                            s.gated ? 1u : 0, nullptr, 0};
          launch(*which[0], a, clock.stream, true);
        }
      }) / 64;
      printf("%-10s %-7s m %2d  %-12s %7.2f us %5.0f GB/s %.2f  one matrix again and again %.2f us\n", model.name, kProjections[p], m,
             which[0]->name().c_str(), best[0], s.elements() * 2 / best[0] * 1e-3, best[0] / floor, hot);
    }
    auto time = [&](const Choice& c, int count) {
      b.reset();
      return clock.replay(count, [&] { chain(w, b, c, m, clock.stream); });
    };
    double best = time(choice, 9);
    for (int pass = 0; pass < 2; ++pass) {
      for (int p = 0; p < 4; ++p) {
        for (const Variant& v : variants) {
          if (v.columns != columns_of(m) || v.norm != w.shapes[p].norm || !v.fits(w.shapes[p].k)) continue;
          Choice next = choice;
          next.variant[p] = &v;
          const double us = time(next, 9);
          if (us < best * 0.997) best = us, choice = next;
        }
      }
    }
    Choice packed = choice, plain = choice;
    std::string leads;
    for (int lead : {int(kNothing), int(kNext), 10, 14, 20, 26}) {
      Choice next = choice;
      next.lead = lead;
      const double us = time(next, 21);
      char text[32];
      snprintf(text, sizeof text, " %d:%.1f", lead, us);
      leads += text;
      if (us < best) best = us, packed.lead = plain.lead = lead;
    }
    choice.lead = packed.lead;
    packed.packed = true;
    plain.overlapped = false;
    const double final = time(choice, 21), floor = w.floor_us();
    auto carve = [&](int percent) {
      for (const Variant* v : choice.variant) {
        CHECK(cudaFuncSetAttribute(v->kernel, cudaFuncAttributePreferredSharedMemoryCarveout, percent));
      }
    };
    carve(-1);
    printf("carve-out left to the driver: %.1f us\n", time(choice, 21));
    carve(100);
    printf("CHAIN %s m %2d: %.1f us = %.2f x floor %.1f (%.0f GB/s); packed %.1f; no overlap %.1f; "
           "leads%s; qkv %s o %s gate_up %s down %s; same bits %s\n",
           model.name, m, final, final / floor, floor, w.rows.count * 2 / final * 1e-3, time(packed, 21),
           time(plain, 21), leads.c_str(), choice.variant[0]->name().c_str(),
           choice.variant[1]->name().c_str(), choice.variant[2]->name().c_str(),
           choice.variant[3]->name().c_str(), same_bits(w, b, choice, m, clock) ? "yes" : "NO");
    fflush(stdout);
  }
}

__global__ void __launch_bounds__(256) only_waits() {
  project::let_next_kernel_start();
  project::wait_for_previous_kernel();
}

/// What dependent launches of kernels that do nothing cost in a graph, and how many clusters fit.
void time_launches(const std::vector<Variant>& variants) {
  Clock clock;
  CHECK(cudaFuncSetAttribute(only_waits, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
  for (int shared : {0, 65536, 100000}) {
    const double us = clock.replay(15, [&] {
      for (int i = 0; i < 112; ++i) {
        cudaLaunchAttribute attribute;
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config{};
        config.gridDim = 128, config.blockDim = 256, config.dynamicSmemBytes = shared;
        config.stream = clock.stream, config.attrs = &attribute, config.numAttrs = 1;
        CHECK(cudaLaunchKernelEx(&config, only_waits));
      }
    });
    printf("# empty dependent kernel, %d bytes shared: %.2f us\n", shared, us / 112);
  }
  for (const Variant& v : variants) {
    if (v.split == 1 || v.columns != 8 || !v.norm) continue;
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = v.split, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = 16 * v.split, config.blockDim = v.threads;
    config.dynamicSmemBytes = v.shared_bytes(1024), config.attrs = &attribute, config.numAttrs = 1;
    int clusters = 0;
    cudaOccupancyMaxActiveClusters(&clusters, v.kernel, &config);
    printf("# %s: %d clusters = %d blocks fit\n", v.name().c_str(), clusters, clusters * v.split);
  }
}

void time_head(const std::vector<Variant>& variants, FILE* csv) {
  const int n = 151936, k = 1024;
  Device<Half> w(size_t(n) * k), x(64 * k), y(size_t(64) * n);
  Device<float> gain(k);
  fill_random<<<1024, 512>>>(w.data, w.count, .03f, 0, 1);
  fill_random<<<64, 512>>>(x.data, x.count, 1, 0, 2);
  fill_random<<<64, 512>>>(gain.data, gain.count, .5f, 1, 2);
  CHECK(cudaDeviceSynchronize());
  Clock clock;
  const double floor = w.count * 2 / kCopyBandwidth * 1e6;
  for (int m : {1, 8, 32, 64}) {
    double best = 1e30;
    const Variant* which = nullptr;
    for (const Variant& v : variants) {
      if (v.columns != columns_of(m) || !v.norm || !v.fits(k)) continue;
      const Arguments a{x.data, w.data, y.data, nullptr, nullptr, gain.data, m, n, k, 1e-6f, 0, nullptr, 0};
      const double us = clock.replay(7, [&] {
        for (int i = 0; i < 4; ++i) launch(v, a, clock.stream, true);
      }) / 4;
      fprintf(csv, "lm_head,lm_head,%d,%s,rows,%d,%d,%.2f,%.0f,%.2f\n", m, v.name().c_str(),
              v.blocks(n, false), v.shared_bytes(k), us, w.count * 2 / us * 1e-3, us / floor);
      if (us < best) best = us, which = &v;
    }
    printf("lm_head    m %2d  %s %.1f us %.0f GB/s %.2f\n", m, which->name().c_str(), best,
           w.count * 2 / best * 1e-3, best / floor);
  }
}

#ifdef TRACE
void trace(const std::vector<Variant>& variants) {
  const Weights w(kModels[0]);
  Activations b(kModels[0]);
  Clock clock;
  auto find = [&](const char* name, bool norm) -> const Variant* {
    for (const Variant& v : variants) {
      if (v.name() == name && v.norm == norm) return &v;
    }
    fprintf(stderr, "no cut %s\n", name);
    exit(1);
  };
  const char* const cuts[][4] = {{"c1t2n1k8s1r4", "c1t1n1k8s1r8", "c1t3n1k8s1r4", "c1t1n1k8s2r6"},
                                 {"c8t2n2k4s2r2", "c8t2n1k4s4r4", "c8t3n2k4s2r2", "c8t2n1k4s4r4"}};
  static unsigned long long host[kTraced][kTracedBlocks][kPoints];
  for (int which = 0; which < 2; ++which) {
    for (int lead : {int(kNothing), 10}) {
      Choice c;
      for (int p = 0; p < 4; ++p) c.variant[p] = find(cuts[which][p], p % 2 == 0);
      c.lead = lead;
      clock.replay(5, [&] { chain(w, b, c, which ? 64 : 1, clock.stream); });
      CHECK(cudaMemcpyFromSymbol(host, traced, sizeof host));
      printf("m %d, lead %d; us, first and last block: started, copies of W issued, previous kernel "
             "ended, summed, stored\n", which ? 64 : 1, lead);
      for (int i = 40; i < 52; ++i) {
        const Shape& s = w.shapes[i % 4];
        const int blocks = std::min(kTracedBlocks, c.variant[i % 4]->blocks(s.n, s.gated));
        printf("%-8s", kProjections[i % 4]);
        for (int point = 0; point < kPoints; ++point) {
          unsigned long long low = ~0ull, high = 0;
          for (int k = 0; k < blocks; ++k) {
            low = std::min(low, host[i][k][point]), high = std::max(high, host[i][k][point]);
          }
          const double zero = double(host[40][0][0]);
          printf("  %6.2f %6.2f", (double(low) - zero) * 1e-3, (double(high) - zero) * 1e-3);
        }
        printf("\n");
      }
    }
  }
}
#endif

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
#ifdef TRACE
  if (what == "trace") return trace(all_variants()), 0;
#endif
  if (what != "check" && what != "time") {
    fprintf(stderr, "usage: project check | time [CSV]\n");
    return 2;
  }
  const std::vector<Variant> variants = all_variants();
  if (what == "check") return check(variants) ? 0 : 1;
  FILE* csv = fopen(argc > 2 ? argv[2] : "/dev/null", "w");
  if (!csv) return perror("csv"), 1;
  fprintf(csv, "model,projection,m,cut,layout,blocks,shared_bytes,us,gb_s,ratio\n");
  time_launches(variants);
  for (const Model& model : kModels) time_model(model, variants, csv);
  time_head(variants, csv);
  fclose(csv);
  return 0;
}
