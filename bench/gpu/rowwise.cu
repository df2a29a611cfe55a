// The row-wise kernels (kernels/cuda/{norm,rope,rows,silu,bias}.cu) against f64, then their times.
//
//   nvcc -O3 -std=c++17 --use_fast_math -gencode arch=compute_90a,code=sm_90a \
//     -o rowwise bench/gpu/rowwise.cu
//   ./rowwise check
//   ./rowwise time      CSV, one row a measurement
//
// `--use_fast_math`, because NVRTC gets it from kernels/src/cuda/compile.rs.
#include <math.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <random>
#include <tuple>
#include <vector>

#include "../../kernels/cuda/bf16.cuh"
#include "harness.cuh"

// Each kernel is a module of its own and has its own constants.
namespace norm_module {
#include "../../kernels/cuda/norm.cu"
}
namespace rope_module {
#include "../../kernels/cuda/rope.cu"
}
namespace rows_module {
#include "../../kernels/cuda/rows.cu"
}
namespace silu_module {
#include "../../kernels/cuda/silu.cu"
}
namespace bias_module {
#include "../../kernels/cuda/bias.cu"
}

using Bits = uint16_t;  // of a bf16, on the host
constexpr Bits kPoison = 0x7fff;
constexpr unsigned kRopePadding = 0xffffffff, kDrawnBit = 0x80000000;
constexpr float kEps = 1e-6f;

float value_of(Bits bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

/// Round to nearest even, from f64 at once.
float rounded(double x) {
  if (x == 0 || !std::isfinite(x)) return float(x);
  int exponent;
  frexp(x, &exponent);
  const double step = ldexp(1, std::max(exponent, -125) - 8);
  return float(nearbyint(x / step) * step);
}

template <class T>
struct Device {
  T* data = nullptr;
  size_t count;
  explicit Device(size_t count) : count(count) { CHECK(cudaMalloc(&data, count * sizeof(T) + 16)); }
  explicit Device(const std::vector<T>& from) : Device(from.size()) { copy_from(from); }
  ~Device() { cudaFree(data); }
  void copy_from(const std::vector<T>& from) {
    CHECK(cudaMemcpy(data, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    CHECK(cudaDeviceSynchronize());  // or the last piece may still be on its way
  }
  std::vector<T> read() const {
    std::vector<T> to(count);
    CHECK(cudaMemcpy(to.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
};

bf16* halves(const Device<Bits>& from, size_t offset = 0) {
  return reinterpret_cast<bf16*>(from.data + offset);
}

// === Launches ===

struct How {
  cudaStream_t stream;
  bool overlapped;
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, How how,
            Arguments... arguments) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = threads, config.stream = how.stream;
  config.attrs = &attribute, config.numAttrs = how.overlapped;
  CHECK(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

unsigned ceiling(unsigned x, unsigned of) { return (x + of - 1) / of; }
unsigned row_threads(unsigned width) { return std::min(512u, ceiling(ceiling(width, 8), 32) * 32); }
dim3 element_grid(unsigned width, unsigned rows) { return {ceiling(ceiling(width, 8), 256), rows}; }

struct Heads {
  unsigned heads, kv_heads, dim, page_tokens;
  unsigned all() const { return heads + 2 * kv_heads; }
  unsigned width() const { return all() * dim; }
};

struct Rope {
  bf16* qkv;
  const unsigned *position, *table_at, *tables;
  const float *angles, *q_gain, *k_gain;
  bf16* pool;
  size_t page_stride, layer_at;
};

void run_norm(How how, unsigned rows, unsigned threads, const bf16* x, const float* gain,
              bf16* out, unsigned width) {
  launch(norm_module::rms_norm, rows, threads, how, x, gain, out, width, kEps);
}
void run_rope(How how, unsigned tokens, unsigned y, const Rope& r, const Heads& h) {
  launch(rope_module::rope_write, {tokens, y}, 256, how, r.qkv, r.position, r.table_at, r.tables,
         r.angles, r.q_gain, r.k_gain, kEps, r.pool, r.page_stride, r.layer_at, h.heads, h.kv_heads,
         h.page_tokens, h.dim);
}
void run_rows(How how, unsigned count, const bf16* table, const unsigned* index,
              const unsigned* drawn, bf16* out, unsigned width) {
  launch(rows_module::rows, count, row_threads(width), how, table, index, drawn, out, width);
}
void run_silu(How how, unsigned rows, const bf16* gate_up, bf16* out, unsigned width) {
  launch(silu_module::silu_mul, element_grid(width, rows), 256, how, gate_up, out, width);
}
void run_bias(How how, unsigned rows, bf16* x, const float* bias, unsigned width) {
  launch(bias_module::add_bias, element_grid(width, rows), 256, how, x, bias, width);
}

// === Check ===

/// What a kernel should have left: a number with the room that f32 arithmetic has, or old bits.
struct Want {
  double value = 0, room = 0;
  bool untouched = true;
};

struct Checks {
  std::mt19937 random{20261124};
  unsigned cases = 0, failed = 0;
  size_t elements = 0;

  unsigned below(unsigned end) { return random() % end; }
  unsigned pick(std::initializer_list<unsigned> from) { return from.begin()[below(from.size())]; }
  std::vector<float> floats(size_t count, float scale, float centre = 0) {
    std::normal_distribution<float> normal(centre, scale);
    std::vector<float> all(count);
    for (float& x : all) x = normal(random);
    return all;
  }
  std::vector<Bits> bits(size_t count, float scale) {
    std::vector<Bits> all;
    for (float x : floats(count, scale)) {
      uint32_t wide;
      memcpy(&wide, &x, 4);
      all.push_back(Bits(wide >> 16));
    }
    return all;
  }

  /// One rounding: an element must be what a value within `room` of the exact one rounds to.
  void judge(const char* kernel, const std::vector<Bits>& got, const std::vector<Bits>& old,
             const std::vector<Want>& want, const std::vector<unsigned>& shape) {
    size_t wrong = 0, first = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const Want& w = want[i];
      const float value = value_of(got[i]);
      const bool good = w.untouched ? got[i] == old[i]
                                    : value >= rounded(w.value - w.room) &&
                                          value <= rounded(w.value + w.room);
      if (!good && wrong++ == 0) first = i;
    }
    ++cases, elements += got.size();
    if (wrong == 0) return;
    if (++failed > 20) return;
    printf("FAIL %s (", kernel);
    for (unsigned x : shape) printf(" %u", x);
    printf(" ): %zu of %zu wrong, first %zu: %g, want %g%s\n", wrong, got.size(), first,
           value_of(got[first]), want[first].value, want[first].untouched ? " (untouched)" : "");
  }
};

constexpr size_t kGuard = 40;  // elements before and after an output that must stay as they are

/// An output among guards, all poisoned; `skew` elements off 16 bytes.
struct Output {
  size_t begin;
  std::vector<Bits> old;
  Device<Bits> device;
  std::vector<Want> want;
  Output(size_t count, unsigned skew)
      : begin(kGuard + skew), old(begin + count + kGuard, kPoison), device(old), want(old.size()) {}
  bf16* data() const { return halves(device, begin); }
  void expect(size_t i, double value, double room) { want[begin + i] = {value, room, false}; }
};

unsigned any_width(Checks& c) {
  switch (c.below(3)) {
    case 0: return 1 + c.below(700);
    case 1: return 8 * (1 + c.below(1200));
    default: return c.pick({1, 8, 13, 577, 1024, 3072, 4096, 5120, 8192, 9600, 12288, 16392});
  }
}

void check_norm(Checks& c, How how) {
  const unsigned width = any_width(c), rows = 1 + c.below(20), skew = c.pick({0, 0, 0, 1});
  const auto x = c.bits(rows * width + skew, powf(10, float(c.below(5)) - 3));
  const auto gain = c.floats(width, 0.5f, 1);
  const unsigned threads = c.below(2) ? row_threads(width) : 32 * (1 + c.below(16));
  Output out(rows * width, skew);
  const Device<Bits> x_at(x);
  const Device<float> gain_at(gain);
  run_norm(how, rows, threads, halves(x_at, skew), gain_at.data, out.data(), width);
  CHECK(cudaDeviceSynchronize());
  for (unsigned row = 0; row < rows; ++row) {
    double squares = 0;
    const Bits* from = x.data() + skew + size_t(row) * width;
    for (unsigned i = 0; i < width; ++i) squares += pow(value_of(from[i]), 2);
    const double scale = 1 / sqrt(squares / width + kEps);
    for (unsigned i = 0; i < width; ++i) {
      const double y = value_of(from[i]) * scale * gain[i];
      out.expect(size_t(row) * width + i, y, fabs(y) * 3e-6);
    }
  }
  c.judge("rms_norm", out.device.read(), out.old, out.want,
          {rows, width, threads, skew, how.overlapped});
}

void check_silu(Checks& c, How how) {
  const unsigned width = any_width(c), rows = 1 + c.below(20), skew = c.pick({0, 0, 0, 1});
  const auto x = c.bits(2 * rows * width + skew, c.pick({1, 4, 30}));
  Output out(rows * width, skew);
  const Device<Bits> x_at(x);
  run_silu(how, rows, halves(x_at, skew), out.data(), width);
  CHECK(cudaDeviceSynchronize());
  for (unsigned i = 0; i < rows * width; ++i) {
    const size_t at = skew + size_t(i / width) * 2 * width + i % width;
    const double gate = value_of(x[at]), up = value_of(x[at + width]);
    const double y = gate / (1 + exp(-gate)) * up;
    // Past 2^126 a quotient of fast arithmetic is 0.
    out.expect(i, y, fabs(y) * 1e-5 + fabs(up) * 1e-35);
  }
  c.judge("silu_mul", out.device.read(), out.old, out.want, {rows, width, skew, how.overlapped});
}

void check_bias(Checks& c, How how) {
  const unsigned width = any_width(c), rows = 1 + c.below(20), skew = c.pick({0, 0, 0, 1});
  Output x(rows * width, skew);
  const auto values = c.bits(rows * width, 2);
  std::copy(values.begin(), values.end(), x.old.begin() + x.begin);
  x.device.copy_from(x.old);
  const auto bias = c.floats(width, 1);
  const Device<float> bias_at(bias);
  run_bias(how, rows, x.data(), bias_at.data, width);
  CHECK(cudaDeviceSynchronize());
  for (unsigned i = 0; i < rows * width; ++i) {
    const double value = value_of(values[i]), add = bias[i % width];
    x.expect(i, value + add, (fabs(value) + fabs(add)) * 1e-7);
  }
  c.judge("add_bias", x.device.read(), x.old, x.want, {rows, width, skew, how.overlapped});
}

void check_rows(Checks& c, How how) {
  const unsigned width = any_width(c), count = 1 + c.below(20), skew = c.pick({0, 0, 0, 1});
  const unsigned table_rows = 1 + c.below(60), drawn_count = 1 + c.below(8);
  const bool any_drawn = c.below(3) != 0;
  const auto table = c.bits(table_rows * width + skew, 2);
  std::vector<unsigned> index(count), drawn(drawn_count);
  for (unsigned& row : drawn) row = c.below(table_rows);
  for (unsigned& row : index) {
    row = any_drawn && c.below(2) ? kDrawnBit | c.below(drawn_count) : c.below(table_rows);
  }
  Output out(count * width, skew);
  const Device<Bits> table_at(table);
  const Device<unsigned> index_at(index), drawn_at(drawn);
  run_rows(how, count, halves(table_at, skew), index_at.data, any_drawn ? drawn_at.data : nullptr,
           out.data(), width);
  CHECK(cudaDeviceSynchronize());
  for (unsigned i = 0; i < count * width; ++i) {
    const unsigned named = index[i / width];
    const unsigned row = named & kDrawnBit ? drawn[named & ~kDrawnBit] : named;
    out.expect(i, value_of(table[skew + size_t(row) * width + i % width]), 0);
  }
  c.judge("rows", out.device.read(), out.old, out.want, {count, width, skew, how.overlapped});
}

void check_rope(Checks& c, How how) {
  const Heads h{1 + c.below(18), 1 + c.below(9),
                c.pick({2, 6, 16, 32, 48, 64, 80, 96, 112, 128, 128, 128, 256}),
                c.pick({1, 5, 16, 32})};
  const unsigned tokens = 1 + c.below(12), longest = 200, half = h.dim / 2;
  const unsigned skew = c.pick({0, 0, 0, 1}), y = 1 + c.below(ceiling(h.all(), 8) + 1);
  const bool normed = c.below(3) != 0;
  const size_t layer = size_t(2) * h.kv_heads * h.page_tokens * h.dim, layers = 3;
  const size_t layer_at = c.below(layers) * layer, page_stride = layers * layer + (skew ? 3 : 0);
  // Every token has pages of its own; of its page table only the entry that it needs is sane.
  const unsigned entries = ceiling(longest, h.page_tokens);
  std::vector<unsigned> position(tokens), table_at(tokens), tables(tokens * entries, 0x70000000);
  std::vector<unsigned> pages(tokens);
  for (unsigned t = 0; t < tokens; ++t) pages[t] = t;
  std::shuffle(pages.begin(), pages.end(), c.random);
  for (unsigned t = 0; t < tokens; ++t) {
    const bool padding = c.below(4) == 0;
    position[t] = padding ? kRopePadding : c.below(longest);
    table_at[t] = padding ? 0x70000000 : t * entries;
    if (!padding) tables[t * entries + position[t] / h.page_tokens] = pages[t];
  }
  const auto angles = c.floats(size_t(longest) * h.dim, 1);
  const auto q_gain = c.floats(h.dim, 0.5f, 1), k_gain = c.floats(h.dim, 0.5f, 1);
  Output qkv(size_t(tokens) * h.width(), skew), pool(tokens * page_stride, skew);
  const auto x = c.bits(size_t(tokens) * h.width(), 3);
  std::copy(x.begin(), x.end(), qkv.old.begin() + qkv.begin);
  qkv.device.copy_from(qkv.old);
  const Device<unsigned> position_at(position), table_at_at(table_at), tables_at(tables);
  const Device<float> angles_at(angles), q_at(q_gain), k_at(k_gain);
  const Rope r{qkv.data(), position_at.data, table_at_at.data, tables_at.data, angles_at.data,
               normed ? q_at.data : nullptr, normed ? k_at.data : nullptr, pool.data(),
               page_stride, layer_at};
  run_rope(how, tokens, y, r, h);
  CHECK(cudaDeviceSynchronize());
  for (unsigned t = 0; t < tokens; ++t) {
    if (position[t] == kRopePadding) continue;
    for (unsigned head = 0; head < h.all(); ++head) {
      const size_t at = (size_t(t) * h.all() + head) * h.dim;
      const size_t page = size_t(pages[t]) * page_stride + layer_at +
                          (size_t(head - h.heads) * h.page_tokens + position[t] % h.page_tokens) *
                              h.dim;
      auto expect = [&](unsigned i, double value, double room) {
        if (head < h.heads) {
          qkv.expect(at + i, value, room);
        } else {
          pool.expect(page + i, value, room);
        }
      };
      if (head >= h.heads + h.kv_heads) {
        for (unsigned i = 0; i < h.dim; ++i) expect(i, value_of(x[at + i]), 0);
        continue;
      }
      const auto& gain = head < h.heads ? q_gain : k_gain;
      double squares = 0;
      for (unsigned i = 0; i < h.dim; ++i) squares += pow(value_of(x[at + i]), 2);
      const double scale = normed ? 1 / sqrt(squares / h.dim + kEps) : 1;
      for (unsigned i = 0; i < half; ++i) {
        const double low = value_of(x[at + i]) * scale * (normed ? gain[i] : 1);
        const double high = value_of(x[at + i + half]) * scale * (normed ? gain[i + half] : 1);
        const float* angle = angles.data() + size_t(position[t]) * h.dim;
        const double cosine = angle[i], sine = angle[i + half];
        const double room = 3e-6 * (fabs(low) + fabs(high)) * (fabs(cosine) + fabs(sine));
        expect(i, low * cosine - high * sine, room);
        expect(i + half, high * cosine + low * sine, room);
      }
    }
  }
  const std::vector<unsigned> shape{tokens, h.heads, h.kv_heads, h.dim, h.page_tokens, y, normed,
                                    skew, how.overlapped};
  c.judge("rope_write, queries", qkv.device.read(), qkv.old, qkv.want, shape);
  c.judge("rope_write, pages", pool.device.read(), pool.old, pool.want, shape);
}

// === Time ===

__global__ void nothing() {
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
}

__global__ void fill(Bits* to, size_t count, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count;
       i += size_t(gridDim.x) * blockDim.x) {
    const float x = float(mix(seed << 40 ^ i) >> 8) * (4.f / (1 << 24)) - 2;
    to[i] = Bits(__float_as_uint(x) >> 16);
  }
}

constexpr unsigned kLayers = 28, kHidden = 1024, kInter = 3072, kVocab = 151936, kRowsMax = 32768;
constexpr Heads kHeads{16, 8, 128, 16};

/// The tensors of Qwen3-0.6B's step, several of each so that none is in L2 when it comes again.
struct Step {
  static constexpr size_t kArena = size_t(1) << 29;
  static constexpr size_t kLayer = size_t(2) * 8 * 16 * 128, kPage = kLayers * kLayer;
  Device<Bits> in{kArena}, out{kArena}, table{size_t(kVocab) * kHidden};
  Device<Bits> pool{kRowsMax / 16 * kPage};
  Device<float> vector{8192}, angles{size_t(kRowsMax) * 128};
  Device<unsigned> index{kRowsMax}, drawn{kRowsMax}, position{kRowsMax}, table_at{kRowsMax};
  Device<unsigned> tables{kRowsMax / 16};
  Step() {
    for (const auto* a : {&in, &out, &table}) fill<<<1024, 256>>>(a->data, a->count, 7);
    std::mt19937 random(5);
    std::vector<float> floats(angles.count, 0.7f);
    vector.copy_from(std::vector<float>(vector.count, 0.7f));
    angles.copy_from(floats);
    std::vector<unsigned> numbers(kRowsMax), pages(kRowsMax / 16);
    for (unsigned& row : numbers) row = random() % kVocab;
    index.copy_from(numbers), drawn.copy_from(numbers);
    for (unsigned i = 0; i < kRowsMax; ++i) numbers[i] = i;
    position.copy_from(numbers);  // of one prompt
    for (unsigned i = 0; i < pages.size(); ++i) pages[i] = i;
    std::shuffle(pages.begin(), pages.end(), random);
    tables.copy_from(pages);
    table_at.copy_from(std::vector<unsigned>(kRowsMax, 0));
    CHECK(cudaDeviceSynchronize());
  }
  Rope rope(bf16* qkv, unsigned layer) const {
    return {qkv, position.data, table_at.data, tables.data, angles.data, vector.data, vector.data,
            halves(pool), kPage, layer * kLayer};
  }
};

struct Kind {
  const char* kernel;
  const char* shape;
  unsigned in_width, out_width;  // elements a row
  double bytes;                  // a row, once in and once out
  std::function<void(How, unsigned rows, unsigned layer, bf16* in, bf16* out)> run;
};

std::vector<Kind> kinds(const Step& s) {
  const unsigned qkv = kHeads.width();
  auto rope = [&](unsigned y) {
    return [&s, y](How how, unsigned n, unsigned layer, bf16* in, bf16*) {
      run_rope(how, n, y, s.rope(in, layer), kHeads);
    };
  };
  return {
      {"nothing", "rows blocks of 128", 8, 8, 0,
       [](How how, unsigned n, unsigned, bf16*, bf16*) { launch(nothing, n, 128, how); }},
      {"rms_norm", "width / 8 threads", kHidden, kHidden, 4. * kHidden,
       [&](How how, unsigned n, unsigned, bf16* in, bf16* out) {
         run_norm(how, n, row_threads(kHidden), in, s.vector.data, out, kHidden);
       }},
      {"rms_norm", "width / 16 threads", kHidden, kHidden, 4. * kHidden,
       [&](How how, unsigned n, unsigned, bf16* in, bf16* out) {
         run_norm(how, n, row_threads(kHidden) / 2, in, s.vector.data, out, kHidden);
       }},
      {"rope_write", "y = 1", qkv, 8, 4. * qkv, rope(1)},
      {"rope_write", "y = 2", qkv, 8, 4. * qkv, rope(2)},
      {"rope_write", "y = 4", qkv, 8, 4. * qkv, rope(4)},
      {"rows", "width / 8 threads", kHidden, kHidden, 4. * kHidden,
       [&](How how, unsigned n, unsigned, bf16*, bf16* out) {
         run_rows(how, n, halves(s.table), s.index.data, s.drawn.data, out, kHidden);
       }},
      {"silu_mul", "2048 a block", 2 * kInter, kInter, 6. * kInter,
       [](How how, unsigned n, unsigned, bf16* in, bf16* out) {
         run_silu(how, n, in, out, kInter);
       }},
      {"add_bias", "2048 a block", qkv, 8, 4. * qkv,
       [&, qkv](How how, unsigned n, unsigned, bf16* in, bf16*) {
         run_bias(how, n, in, s.vector.data, qkv);
       }},
  };
}

void time_all() {
  const Step s;
  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const Recording copy(stream, [&] {
    CHECK(cudaMemcpyAsync(s.out.data, s.in.data, s.kArena * 2, cudaMemcpyDeviceToDevice, stream));
  });
  const double copy_us = copy.replay(stream, 9);
  printf("# copy of 1 GiB: %.0f GB/s read and written\n", s.kArena * 4e-3 / copy_us);
  printf("kernel,shape,rows,us,us_overlapped,gb_s,gb_s_overlapped\n");
  for (const Kind& kind : kinds(s)) {
    for (unsigned n : {1u, 8u, 64u, 256u, 8192u, kRowsMax}) {
      double us[2];
      for (int overlapped = 0; overlapped < 2; ++overlapped) {
        // Decode's rows are in L2, written by the kernel before; a prefill's are not.
        const size_t in_count = size_t(n) * kind.in_width, out_count = size_t(n) * kind.out_width;
        const size_t slots = n <= 256 ? 1 : std::min<size_t>(kLayers, s.kArena / in_count);
        const Recording graph(stream, [&] {
          for (unsigned layer = 0; layer < kLayers; ++layer) {
            kind.run({stream, overlapped != 0}, n, layer, halves(s.in, layer % slots * in_count),
                     halves(s.out, layer % slots * out_count));
          }
        });
        us[overlapped] = graph.replay(stream, 15) / kLayers;
      }
      printf("%s,%s,%u,%.2f,%.2f,%.0f,%.0f\n", kind.kernel, kind.shape, n, us[0], us[1],
             kind.bytes * n / us[0] * 1e-3, kind.bytes * n / us[1] * 1e-3);
    }
  }
}

/// Whether a chain in which every kernel needs the one before leaves, with overlap and in a graph,
/// the bits that launches one by one leave.
bool same_bits(Checks& c) {
  const unsigned n = c.pick({1, 7, 64, 150}), width = kHeads.width();
  const size_t count = size_t(n) * width, kPage = 2 * Step::kLayer;
  const auto start = c.bits(count, 1);
  Device<Bits> x(start), y(count), gated(count / 2), pool(n * kPage);
  std::vector<unsigned> index(n), drawn(n), position(n), table_at(n), tables(n);
  for (unsigned i = 0; i < n; ++i) {
    drawn[i] = c.below(n), index[i] = i % 2 ? kDrawnBit | c.below(n) : c.below(n);
    position[i] = i % 9 == 4 ? kRopePadding : c.below(16), table_at[i] = tables[i] = i;
  }
  const Device<unsigned> index_at(index), drawn_at(drawn), position_at(position);
  const Device<unsigned> table_at_at(table_at), tables_at(tables);
  const Device<float> gain(c.floats(width, 0.5f, 1)), angles(c.floats(16 * 128, 1));
  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  auto chain = [&](bool overlapped) {
    auto done = [&] {
      if (!overlapped) CHECK(cudaStreamSynchronize(stream));
    };
    const How how{stream, overlapped};
    for (unsigned layer = 0; layer < kLayers; ++layer) {
      run_norm(how, n, 256, halves(x), gain.data, halves(y), width), done();
      run_bias(how, n, halves(y), gain.data, width), done();
      const Rope r{halves(y), position_at.data, table_at_at.data, tables_at.data, angles.data,
                   gain.data, gain.data, halves(pool), kPage, layer % 2 * Step::kLayer};
      run_rope(how, n, 4, r, kHeads), done();
      run_silu(how, n, halves(y), halves(gated), width / 2), done();
      run_rows(how, n, halves(y), index_at.data, drawn_at.data, halves(x), width), done();
    }
  };
  auto reset = [&] {
    x.copy_from(start);
    CHECK(cudaMemset(pool.data, 0x7f, pool.count * 2));
    CHECK(cudaDeviceSynchronize());
  };
  reset(), chain(false);
  const auto want = std::make_tuple(x.read(), gated.read(), pool.read());
  bool same = true;
  {
    const Recording graph(stream, [&] { chain(true); });
    for (int i = 0; i < 10; ++i) {
      reset();
      CHECK(cudaGraphLaunch(graph.executable, stream));
      CHECK(cudaStreamSynchronize(stream));
      same &= want == std::make_tuple(x.read(), gated.read(), pool.read());
    }
  }
  CHECK(cudaStreamDestroy(stream));
  return same;
}

bool check_all() {
  Checks c;
  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (int i = 0; i < 160; ++i) {
    const How how{stream, i % 2 != 0};
    check_norm(c, how), check_silu(c, how), check_bias(c, how), check_rows(c, how);
    check_rope(c, how);
  }
  unsigned raced = 0;
  for (int i = 0; i < 8; ++i) raced += !same_bits(c);
  printf("# %u cases, %zu elements: %u failed; 8 chains, 10 times each: %u not the same bits\n",
         c.cases, c.elements, c.failed, raced);
  return c.failed == 0 && raced == 0;
}

int main(int argc, char** argv) {
  const char* what = argc == 2 ? argv[1] : "";
  if (!strcmp(what, "check")) return check_all() ? 0 : 1;
  if (!strcmp(what, "time")) return time_all(), 0;
  fprintf(stderr, "usage: rowwise check|time\n");
  return 2;
}
