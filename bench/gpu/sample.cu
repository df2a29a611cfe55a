// The sampler (kernels/cuda/sample.cu) against the CPU sampler's rules in f64, then its times.
//
//   for t in 256 512; do
//     nvcc -cubin -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -DSAMPLE_THREADS=$t \
//       -o sample-$t.cubin kernels/cuda/sample.cu
//   done
//   nvcc -O3 -std=c++17 -o sample bench/gpu/sample.cu -lcuda
//   ./sample check 256 sample-256.cubin 512 sample-512.cubin
//   ./sample time 256 sample-256.cubin 512 sample-512.cubin    CSV, one row a measurement
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

#include "../../kernels/cuda/sample_types.cuh"

// === The rules, in f64 ===

float clean_logit(float x) {
  constexpr float kMax = 3.402823466e38f;
  return x != x ? -kMax : std::clamp(x, -kMax, kMax);
}

double reference_uniform(uint64_t seed, uint32_t index) {
  uint32_t c[4] = {index, 0, 0, 0}, k[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ k[0], uint32_t(b),
                              uint32_t(a >> 32) ^ c[3] ^ k[1], uint32_t(a)};
    memcpy(c, next, 16);
    k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u;
  }
  return double((uint64_t(c[0]) << 32 | c[1]) >> 11) / double(1ull << 53);
}

/// One row's question, on the host.
struct Case {
  std::vector<float> logits;
  SampleRow row{};
  std::vector<SampleAdjusted> adjusted;
  std::vector<uint32_t> mask;
};

/// What the rules make of a case.
struct Expected {
  std::vector<double> adjusted, terms;  // terms: 0 once removed
  std::vector<unsigned> order;          // ids of the best logits as they came
  double log_total = 0, max = 0, total = 0, uniform = 0, least = 0;
  unsigned token = 0;
};

Expected expect(const Case& c) {
  Expected e;
  const size_t n = c.logits.size();
  std::vector<double> raw(c.logits.begin(), c.logits.end());
  e.max = *std::max_element(raw.begin(), raw.end());
  double sum = 0;
  for (double x : raw) sum += exp(x - e.max);
  e.log_total = log(sum);
  e.order.resize(n);
  std::iota(e.order.begin(), e.order.end(), 0u);
  const size_t top = std::min<size_t>(n, c.row.top_n);
  std::partial_sort(e.order.begin(), e.order.begin() + top, e.order.end(),
                    [&](unsigned a, unsigned b) {
                      return raw[a] != raw[b] ? raw[a] > raw[b] : a < b;
                    });
  e.adjusted = raw;
  for (const SampleAdjusted& a : c.adjusted) {
    double& x = e.adjusted[a.id];
    x += a.bias;
    if (x == -INFINITY) continue;
    if (a.seen) {
      x = x > 0 ? x / c.row.repetition : x * c.row.repetition;
      x -= double(c.row.frequency) * (a.seen - 1) + (a.seen > 1 ? c.row.presence : 0.f);
    }
    x = std::clamp(x, -3.402823466e38, 3.402823466e38);
  }
  for (size_t i = 0; i < n && !c.mask.empty(); ++i) {
    if (!(c.mask[i / 32] >> (i % 32) & 1)) e.adjusted[i] = -INFINITY;
  }
  const size_t best = std::max_element(e.adjusted.begin(), e.adjusted.end()) - e.adjusted.begin();
  e.token = unsigned(best);
  if (c.row.temperature == 0) return e;
  e.terms.resize(n);
  std::vector<unsigned> left;
  for (size_t i = 0; i < n; ++i) {
    if (e.adjusted[i] == -INFINITY) continue;
    const double t = std::max(1.2e-38, exp((e.adjusted[i] - e.adjusted[best]) / c.row.temperature));
    if (t >= std::min(double(c.row.min_p), 1 - 1.2e-7)) e.terms[i] = t, left.push_back(unsigned(i));
  }
  std::sort(left.begin(), left.end(), [&](unsigned a, unsigned b) {
    return e.terms[a] != e.terms[b] ? e.terms[a] > e.terms[b] : a < b;
  });
  if (c.row.top_k && c.row.top_k < left.size()) left.resize(c.row.top_k);
  for (unsigned id : left) e.total += e.terms[id];
  if (c.row.top_p < 1) {
    const double goal = double(c.row.top_p) * e.total;
    double upto = 0;
    size_t kept = 0;
    while (kept < left.size() && upto < goal) upto += e.terms[left[kept++]];
    left.resize(kept), e.total = upto;
  }
  std::vector<double> survivors(n, 0.0);
  for (unsigned id : left) survivors[id] = e.terms[id];
  e.least = left.empty() ? 0 : e.terms[left.back()];
  e.uniform = reference_uniform(c.row.seed, c.row.output_index);
  double upto = 0;
  for (size_t i = 0; i < n; ++i) {
    if (survivors[i] == 0) continue;
    upto += survivors[i], e.token = unsigned(i);
    if (upto > e.uniform * e.total) break;
  }
  survivors.swap(e.terms);     // `terms` holds survivors, `adjusted` the unfiltered terms
  survivors.swap(e.adjusted);
  return e;
}

/// Why an answer is wrong, or "". `gap`: how far off a near-tie it was decided.
std::string judge(const Case& c, const Expected& e, const SampleResult& r, unsigned next,
                  double& gap, double& logprob_error) {
  char text[200] = "";
  gap = 0;
  auto logprob = [&](unsigned id) { return double(c.logits[id]) - e.max - e.log_total; };
  auto error_of = [&](double want, float got) {
    if (want < -1e30 && got < -1e30) return 0.0;
    return fabs(want - double(got)) / std::max(1.0, fabs(want) * 1e-4);
  };
  if (r.token >= c.logits.size() || next != r.token) {
    snprintf(text, sizeof text, "token %u, next %u", r.token, next);
    return text;
  }
  logprob_error = error_of(logprob(r.token), r.logprob);
  for (unsigned i = 0; i < c.row.top_n && i < c.logits.size(); ++i) {
    if (r.top_ids[i] != e.order[i]) {
      snprintf(text, sizeof text, "top %u is %u, want %u", i, r.top_ids[i], e.order[i]);
      return text;
    }
    logprob_error = std::max(logprob_error, error_of(logprob(r.top_ids[i]), r.top_logprobs[i]));
  }
  if (!(logprob_error <= 1e-3)) {
    snprintf(text, sizeof text, "logprob off by %g (got %g want %g)", logprob_error, r.logprob,
             logprob(r.token));
    return text;
  }
  if (r.token == e.token) return "";
  if (c.row.temperature == 0) {
    gap = e.adjusted[e.token] - e.adjusted[r.token];
    if (gap < 1e-5 * std::max(1.0, fabs(e.adjusted[e.token]))) return "";
  } else {
    double before = 0;
    for (unsigned i = 0; i < r.token; ++i) before += e.terms[i];
    const double goal = e.uniform * e.total, after = before + e.terms[r.token];
    gap = (goal < before ? before - goal : goal > after ? goal - after : 0) / e.total;
    const bool survives = e.terms[r.token] > 0 || e.adjusted[r.token] > e.least * (1 - 1e-3);
    if (survives && gap < 1e-3) return "";
    if (!survives) gap = 1;
  }
  snprintf(text, sizeof text, "token %u, want %u, gap %g", r.token, e.token, gap);
  return text;
}

/// Random rows of all kinds. `bf16`: logits that are bf16 numbers, so that many are equal.
Case make_case(std::mt19937& random, unsigned vocab, bool bf16) {
  Case c;
  auto chance = [&](double p) { return std::uniform_real_distribution<>(0, 1)(random) < p; };
  auto between = [&](double a, double b) {
    return float(std::uniform_real_distribution<>(a, b)(random));
  };
  const int kind = random() % 8;
  const float deviations[8] = {1, 2.5f, 0.1f, 6, 2, 2, 1, 3};
  std::normal_distribution<float> normal(kind == 4 ? 300.f : -2.f, deviations[kind]);
  c.logits.resize(vocab);
  for (float& x : c.logits) x = normal(random);
  if (kind == 1 || kind == 7) {
    for (int i = 0; i < 30; ++i) c.logits[random() % vocab] += between(5, 14);
  }
  if (kind == 5) for (float& x : c.logits) x = roundf(x);
  if (kind == 6) std::fill(c.logits.begin(), c.logits.end(), 0.5f);
  if (kind == 3) {
    for (float special : {NAN, -INFINITY, -3.4e38f}) c.logits[random() % vocab] = special;
  }
  if (kind == 7 && chance(0.2)) c.logits[random() % vocab] = INFINITY;
  for (float& x : c.logits) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (bf16 && x == x) bits &= 0xffff0000u, memcpy(&x, &bits, 4);
  }
  SampleRow& r = c.row;
  r.temperature = chance(0.2) ? 0 : chance(0.3) ? 1 : between(0.1, 2);
  r.top_p = chance(0.5) ? 1 : chance(0.1) ? 0.9999f : between(0.05, 0.99);
  r.top_k = chance(0.5) ? 0 : chance(0.3) ? random() % (2 * vocab) : 1 + random() % 100;
  r.min_p = chance(0.7) ? 0 : chance(0.1) ? 1 : between(0, 0.3);
  r.seed = uint64_t(random()) << 32 | random();
  r.output_index = random() % 5000;
  r.top_n = chance(0.5) ? 0 : random() % (kTopMax + 1);
  r.repetition = 1;
  if (chance(0.3)) {
    r.repetition = between(0.8, 1.5), r.frequency = between(-0.5, 1), r.presence = between(-0.5, 1);
    std::vector<unsigned> ids(std::min(vocab, 1 + unsigned(random() % 3000)));
    for (unsigned& id : ids) id = random() % vocab;
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    std::shuffle(ids.begin(), ids.end(), random);
    for (unsigned id : ids) {
      const float bias = chance(0.7) ? 0 : chance(0.2) ? -INFINITY : between(-5, 5);
      c.adjusted.push_back({id, unsigned(random() % 5), bias});
    }
  }
  r.adjusted_len = unsigned(c.adjusted.size());
  if (chance(0.2)) {
    c.mask.resize((vocab + 31) / 32);
    const bool narrow = chance(0.5);
    for (uint32_t& word : c.mask) {
      word = !narrow ? random() : chance(0.01) ? 1u << random() % 32 : 0;
    }
    const unsigned id = random() % vocab;
    c.mask[id / 32] |= 1u << id % 32;
  }
  return c;
}

// === The device ===

#include <cuda.h>
#include <cuda_runtime.h>

#define CHECK(call)                                                                    \
  do {                                                                                 \
    const int status_ = int(call);                                                     \
    if (status_) fprintf(stderr, "%d: %d %s\n", __LINE__, status_, #call), exit(1);   \
  } while (0)

template <class T>
struct Device {
  T* data = nullptr;
  size_t count;
  explicit Device(size_t count) : count(count) { CHECK(cudaMalloc(&data, count * sizeof(T) + 16)); }
  explicit Device(const std::vector<T>& from) : Device(from.size()) {
    CHECK(cudaMemcpy(data, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(data); }
  void copy_to(std::vector<T>& to) const {
    CHECK(cudaMemcpy(to.data(), data, to.size() * sizeof(T), cudaMemcpyDeviceToHost));
  }
  void copy_from(const std::vector<T>& from, size_t at = 0) {
    CHECK(cudaMemcpy(data + at, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
};

struct Kernel {
  unsigned threads;
  std::string name;
  CUfunction f32, bf16;
  Kernel(unsigned threads, const char* path) : threads(threads), name(path) {
    CUmodule module;
    CHECK(cuModuleLoad(&module, path));
    CHECK(cuModuleGetFunction(&f32, module, "sample_f32"));
    CHECK(cuModuleGetFunction(&bf16, module, "sample_bf16"));
    for (CUfunction f : {f32, bf16}) {
      CHECK(cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1));
      CHECK(cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 227 * 1024));
    }
  }
};

unsigned shared_bytes(unsigned vocab, unsigned ranks) {
  return kSampleSharedBytes + 4 * sample_slice(vocab, ranks);
}

struct Arguments {
  const void* logits;
  long long stride;
  unsigned vocab;
  const SampleRow* rows;
  float* workspace;
  unsigned* next_tokens;
  SampleResult* results;
};

void launch(CUfunction kernel, unsigned threads, unsigned ranks, unsigned rows, Arguments a,
            cudaStream_t stream, bool overlapped) {
  CUlaunchAttribute attributes[2];
  attributes[0].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  attributes[0].value.clusterDim.x = ranks;
  attributes[0].value.clusterDim.y = attributes[0].value.clusterDim.z = 1;
  attributes[1].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  attributes[1].value.programmaticStreamSerializationAllowed = 1;
  CUlaunchConfig config{};
  config.gridDimX = rows * ranks, config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = threads, config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = shared_bytes(a.vocab, ranks);
  config.hStream = stream;
  config.attrs = attributes, config.numAttrs = overlapped ? 2 : 1;
  void* arguments[] = {&a.logits, &a.stride, &a.vocab, &a.rows, &a.workspace, &a.next_tokens,
                       &a.results};
  CHECK(cuLaunchKernelEx(&config, kernel, arguments, nullptr));
}

/// One batch of random cases on the device.
struct Group {
  unsigned vocab, stride;
  bool bf16;
  std::vector<Case> cases;  // logits cleaned
  std::vector<std::vector<float>> raw;
  std::vector<Expected> expected;
};

bool check_group(const Group& g, const std::vector<Kernel>& kernels) {
  const size_t n = g.cases.size();
  std::vector<float> wide(n * g.stride, 1e30f);  // past the vocabulary: must not be looked at
  std::vector<uint16_t> narrow(wide.size());
  std::vector<SampleRow> rows(n);
  std::vector<Device<SampleAdjusted>*> lists;
  std::vector<Device<uint32_t>*> masks;
  for (size_t i = 0; i < n; ++i) {
    const Case& c = g.cases[i];
    std::copy(g.raw[i].begin(), g.raw[i].end(), wide.begin() + i * g.stride);
    rows[i] = c.row;
    lists.push_back(new Device<SampleAdjusted>(c.adjusted));
    masks.push_back(new Device<uint32_t>(c.mask));
    rows[i].adjusted = lists[i]->data;
    rows[i].mask = c.mask.empty() ? nullptr : masks[i]->data;
  }
  for (size_t i = 0; i < wide.size(); ++i) {
    uint32_t bits;
    memcpy(&bits, &wide[i], 4);
    narrow[i] = uint16_t(bits >> 16);
  }
  Device<float> logits(wide);
  Device<uint16_t> logits_bf16(narrow);
  Device<SampleRow> device_rows(rows);
  Device<unsigned> next(n);
  Device<SampleResult> results(n);
  bool good = true;
  for (const Kernel& kernel : kernels) {
    for (unsigned ranks : {1u, 2u, 4u, 8u, 16u}) {
      if (shared_bytes(g.vocab, ranks) > 227 * 1024) continue;
      std::vector<SampleResult> first;
      unsigned wrong = 0, close = 0, changed = 0;
      double gap_max = 0, error_max = 0;
      for (int again = 0; again < 3; ++again) {
        CHECK(cudaMemset(next.data, 0xee, n * 4));
        CHECK(cudaMemset(results.data, 0xee, n * sizeof(SampleResult)));
        launch(g.bf16 ? kernel.bf16 : kernel.f32, kernel.threads, ranks, unsigned(n),
               {g.bf16 ? (const void*)logits_bf16.data : logits.data, g.stride, g.vocab,
                device_rows.data, nullptr, next.data, results.data}, nullptr, false);
        CHECK(cudaDeviceSynchronize());
        std::vector<SampleResult> got(n);
        std::vector<unsigned> tokens(n);
        results.copy_to(got);
        next.copy_to(tokens);
        if (again) {
          changed += memcmp(got.data(), first.data(), n * sizeof(SampleResult)) != 0;
          continue;
        }
        first = got;
        for (size_t i = 0; i < n; ++i) {
          double gap = 0, error = 0;
          const std::string why = judge(g.cases[i], g.expected[i], got[i], tokens[i], gap, error);
          close += gap > 0;
          gap_max = std::max(gap_max, gap), error_max = std::max(error_max, error);
          if (why.empty()) continue;
          const SampleRow& r = g.cases[i].row;
          if (wrong++ < 3) {
            printf("FAIL %s: T %g p %g k %u min %g top %u adjusted %u mask %d\n", why.c_str(),
                   r.temperature, r.top_p, r.top_k, r.min_p, r.top_n, r.adjusted_len,
                   int(!g.cases[i].mask.empty()));
          }
        }
      }
      good = good && !wrong && !changed;
      printf("%s,%u,%u,%s,%zu,%u,%u,%u,%.1e,%.1e\n", kernel.name.c_str(), ranks, g.vocab,
             g.bf16 ? "bf16" : "f32", n, wrong, changed, close, gap_max, error_max);
      fflush(stdout);
    }
  }
  for (auto* list : lists) delete list;
  for (auto* mask : masks) delete mask;
  return good;
}

bool check(const std::vector<Kernel>& kernels) {
  std::mt19937 random(20261124);
  bool good = true;
  size_t rows = 0;
  printf("module,ranks,vocab,dtype,rows,wrong,changed_between_runs,other_token_at_a_near_tie,"
         "gap_max,logprob_error_max\n");
  const unsigned shapes[][3] = {{151936, 151936, 48}, {151936, 151936, 48}, {151937, 151937, 16},
                                {50257, 50264, 48}, {128256, 128256, 16}, {32003, 32003, 32},
                                {1000, 1000, 64}, {130, 136, 32}, {7, 8, 32}, {1, 1, 8}};
  for (const auto& shape : shapes) {
    for (bool bf16 : {false, true}) {
      Group g{shape[0], shape[1], bf16, {}, {}, {}};
      for (unsigned i = 0; i < shape[2]; ++i) {
        Case c = make_case(random, g.vocab, bf16);
        g.raw.push_back(c.logits);
        for (float& x : c.logits) x = clean_logit(x);
        g.expected.push_back(expect(c));
        g.cases.push_back(std::move(c));
      }
      rows += g.cases.size();
      good &= check_group(g, kernels);
    }
  }
  printf("# %zu rows: %s\n", rows, good ? "all good" : "FAILED");
  return good;
}

__global__ void read_all(const int4* data, long long count, int* sink) {
  int sum = 0;
  const long long step = gridDim.x * blockDim.x;
  for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
    const int4 v = data[i];
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345) *sink = sum;
}

struct Timing {
  static constexpr unsigned kVocab = 151936, kRows = 512;
  cudaStream_t stream;
  cudaEvent_t begin, end;
  Device<float> peaked{size_t(kRows) * kVocab}, flat{size_t(kRows) * kVocab};
  Device<int4> scrub{size_t(16) << 20};
  Device<int> sink{1};
  Device<SampleRow> rows{256};
  Device<unsigned> next{256};
  Device<SampleResult> results{256};
  Device<SampleAdjusted> adjusted{1000};
  Device<uint32_t> mask{kVocab / 32};

  Timing() {
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> a(size_t(16) * kVocab), b(a.size());
    for (size_t i = 0; i < a.size(); ++i) b[i] = normal(random), a[i] = 2.5f * b[i];
    for (int i = 0; i < 16 * 30; ++i) {
      a[size_t(i % 16) * kVocab + random() % kVocab] += 8 + i / 16 * 0.2f;
    }
    for (unsigned r = 0; r < kRows; r += 16) {
      peaked.copy_from(a, size_t(r) * kVocab);
      flat.copy_from(b, size_t(r) * kVocab);
    }
    std::vector<SampleAdjusted> list(1000);
    for (unsigned i = 0; i < 1000; ++i) list[i] = {i * 151, 1 + i % 3, 0};
    adjusted.copy_from(list);
    std::vector<uint32_t> words(kVocab / 32);
    for (uint32_t& w : words) w = random();
    mask.copy_from(words);
    CHECK(cudaMemset(scrub.data, 1, scrub.count * 16));
  }

  /// Microseconds a launch: median over replays of a graph that walks over all rows, L2 scrubbed
  /// before each; `warm`: launches over the same rows, which stay in L2.
  double measure(const Kernel& k, unsigned ranks, unsigned n, const float* logits, bool pdl,
                 bool warm, unsigned launches) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (unsigned i = 0; i < launches; ++i) {
      const size_t first = warm ? 0 : size_t(i) * n % kRows;
      launch(k.f32, k.threads, ranks, n,
             {logits + first * kVocab, kVocab, kVocab, rows.data, nullptr, next.data, results.data},
             stream, pdl);
    }
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<float> times;
    for (int i = -2; i < 11; ++i) {
      if (!warm) read_all<<<528, 512, 0, stream>>>(scrub.data, scrub.count, sink.data);
      CHECK(cudaEventRecord(begin, stream));
      CHECK(cudaGraphLaunch(executable, stream));
      CHECK(cudaEventRecord(end, stream));
      CHECK(cudaStreamSynchronize(stream));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 0) times.push_back(ms);
    }
    CHECK(cudaGraphExecDestroy(executable));
    CHECK(cudaGraphDestroy(graph));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2] * 1e3 / launches;
  }
};

void time_all(const std::vector<Kernel>& kernels) {
  Timing t;
  struct Kind {
    const char* name;
    bool flat, adjusted;
    SampleRow row;
  };
  auto row = [](float temperature, float top_p, unsigned top_k, unsigned top_n) {
    SampleRow r{};
    r.temperature = temperature, r.top_p = top_p, r.top_k = top_k, r.top_n = top_n;
    r.repetition = 1, r.seed = 77;
    return r;
  };
  const Kind kinds[] = {{"greedy", false, false, row(0, 1, 0, 0)},
                        {"greedy+logprobs5", false, false, row(0, 1, 0, 5)},
                        {"temperature", false, false, row(0.8f, 1, 0, 0)},
                        {"top_p", false, false, row(0.8f, 0.95f, 0, 0)},
                        {"top_k", false, false, row(0.8f, 1, 50, 0)},
                        {"top_k+top_p", false, false, row(0.8f, 0.95f, 50, 0)},
                        {"top_p+logprobs5", false, false, row(0.8f, 0.95f, 0, 5)},
                        {"top_p+penalties+mask", false, true, row(0.8f, 0.95f, 0, 0)},
                        {"top_p flat", true, false, row(1, 0.95f, 0, 0)},
                        {"top_k flat", true, false, row(1, 1, 50, 0)}};
  printf("kind,rows,threads,ranks,us,us_pdl,us_single,us_warm_pdl,floor_us\n");
  for (const Kind& kind : kinds) {
    for (unsigned n : {1u, 8u, 64u, 256u}) {
      std::vector<SampleRow> rows(n, kind.row);
      for (unsigned i = 0; i < n; ++i) {
        rows[i].output_index = i;
        if (!kind.adjusted) continue;
        rows[i].repetition = 1.1f, rows[i].frequency = 0.1f;
        rows[i].adjusted = t.adjusted.data, rows[i].adjusted_len = 1000;
        rows[i].mask = t.mask.data;
      }
      t.rows.copy_from(rows);
      for (const Kernel& k : kernels) {
        for (unsigned ranks : {4u, 8u, 16u}) {
          if (shared_bytes(t.kVocab, ranks) > 227 * 1024) continue;
          const float* logits = kind.flat ? t.flat.data : t.peaked.data;
          const unsigned launches = std::min(64u, t.kRows / n);
          const double us = t.measure(k, ranks, n, logits, false, false, launches);
          const double pdl = t.measure(k, ranks, n, logits, true, false, launches);
          const double single = t.measure(k, ranks, n, logits, false, false, 1);
          const double warm = t.measure(k, ranks, n, logits, true, true, 16);
          printf("%s,%u,%u,%u,%.2f,%.2f,%.2f,%.2f,%.2f\n", kind.name, n, k.threads, ranks, us, pdl,
                 single, warm, double(n) * t.kVocab * 4 / 3.0e6 + 3);
          fflush(stdout);
        }
      }
    }
  }
}

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if ((what != "check" && what != "time") || argc < 4 || argc % 2) {
    fprintf(stderr, "usage: sample check|time THREADS CUBIN [THREADS CUBIN]…\n");
    return 2;
  }
  CHECK(cudaFree(nullptr));
  std::vector<Kernel> kernels;
  for (int i = 2; i + 1 < argc; i += 2) kernels.emplace_back(unsigned(atoi(argv[i])), argv[i + 1]);
  if (what == "check") return check(kernels) ? 0 : 1;
  time_all(kernels);
  return 0;
}
