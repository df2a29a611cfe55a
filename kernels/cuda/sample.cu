// Draws a token from each row of logits, in one launch: what `model::sample` does on the CPU, up to
// rounding.
//
// A cluster of blocks shares a row. 1. Each reads its slice once, for the best logit and the sum of
// exponentials (log-probabilities are of the logits as they came); greedy rows end there. 2. Other
// rows keep the slice in shared memory: biases, penalties and mask change it there, then it becomes
// terms e^((x - best) / temperature). 3. `min_p` removes terms as they are made. For `top_k` and `top_p`
// a bound is known below which no term can stay; if few are above it, the first block sorts those
// and draws. Otherwise a radix search over the bits of the terms finds the border. 4. One uniform
// number, of (seed, output index), picks from the survivors in the order of their ids.
//
// All sums have a fixed order or are integers: equal inputs give equal tokens.
//
// Launch: grid rows * ranks, cluster (ranks, 1, 1), SAMPLE_THREADS threads, dynamic shared memory
// kSampleSharedBytes + 4 * sample_slice(vocab, ranks). Before sm_90: ranks 1, kSampleSharedBytes,
// and a workspace of rows * sample_slice(vocab, 1) floats.
// Measured on an H100 (vocabulary 151,936), 512 threads: 16 ranks for one row, 8 from 64 rows up.
#include "sample_cut.cuh"

namespace sampling {

constexpr unsigned kBatch = 5;  // vectors of four that a thread loads before it uses the first

struct alignas(16) Summary {
  u64 key;  // of the best; 0: none
  float max, sum;
};

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(unsigned short x) {
  return __uint_as_float(unsigned(x) << 16);
}

__device__ __forceinline__ void load_four(const float* p, float (&v)[4]) {
  const uint4 raw = load_once(reinterpret_cast<const uint4*>(p));
  v[0] = __uint_as_float(raw.x), v[1] = __uint_as_float(raw.y);
  v[2] = __uint_as_float(raw.z), v[3] = __uint_as_float(raw.w);
}
__device__ __forceinline__ void load_four(const unsigned short* p, float (&v)[4]) {
  const uint2 raw = load_once(reinterpret_cast<const uint2*>(p));
  v[0] = __uint_as_float(raw.x << 16), v[1] = __uint_as_float(raw.x & 0xffff0000u);
  v[2] = __uint_as_float(raw.y << 16), v[3] = __uint_as_float(raw.y & 0xffff0000u);
}

/// e^((from - to) * scale / log2(e)); 1 where both are minus infinity.
__device__ __forceinline__ float decay(float from, float to, float scale) {
  return from == to ? 1.f : ptx::exp2((from - to) * scale);
}

/// A thread's share of the first pass.
struct Scan {
  float max = negative_infinity(), sum = 0;
  unsigned best = 0;
};

/// Best and sum of exponentials of the slice; its logits to shared memory if they are `kept`.
template <bool kBest, class T>
__device__ Scan scan(const T* logits, const Slice& slice, bool kept) {
  Scan mine;
  const T* const from = logits + slice.begin;
  const bool aligned = reinterpret_cast<u64>(from) % (4 * sizeof(T)) == 0;
  const unsigned chunks = slice.chunks();
  for (unsigned first = warp(); first < chunks; first += kWarps * kBatch) {
    float v[kBatch][4];
#pragma unroll
    for (unsigned b = 0; b < kBatch; ++b) {
      const unsigned i = (first + b * kWarps) * 128 + lane() * 4;
      if (aligned && i + 4 <= slice.len) {
        load_four(from + i, v[b]);
      } else {
#pragma unroll
        for (unsigned e = 0; e < 4; ++e) {
          v[b][e] = i + e < slice.len ? wide(from[i + e]) : negative_infinity();
        }
      }
    }
    float top = negative_infinity();
#pragma unroll
    for (unsigned b = 0; b < kBatch; ++b) {
      const unsigned i = (first + b * kWarps) * 128 + lane() * 4;
#pragma unroll
      for (unsigned e = 0; e < 4; ++e) {
        v[b][e] = i + e < slice.len ? clean(v[b][e]) : negative_infinity();
        top = fmaxf(top, v[b][e]);
      }
      if (kept && first + b * kWarps < chunks) {
        slice.terms[i / 4] = {v[b][0], v[b][1], v[b][2], v[b][3]};
      }
    }
    if (top > mine.max) {
      mine.sum *= decay(mine.max, top, kLog2e);
      mine.max = top;
      if (kBest) {
#pragma unroll
        for (int i = 4 * kBatch - 1; i >= 0; --i) {
          const unsigned at = (first + i / 4 * kWarps) * 128 + lane() * 4 + i % 4;
          if (v[i / 4][i % 4] == top) mine.best = slice.begin + at;
        }
      }
    }
    if (mine.max > negative_infinity()) {
#pragma unroll
      for (unsigned i = 0; i < 4 * kBatch; ++i) {
        mine.sum += ptx::exp2((v[i / 4][i % 4] - mine.max) * kLog2e);
      }
    }
  }
  return mine;
}

/// The `wanted`-th largest of 64 groups' maxima of `mine`: so many of the block are at least that.
/// All threads must pass a barrier before they read `shared.bound`.
__device__ void bound_by_groups(Shared& shared, float mine, unsigned wanted) {
  constexpr unsigned kLanes = kThreads / 64;
  mine = reduce_warp<kLanes>(mine, Most{});
  if (threadIdx.x % kLanes == 0) shared.groups[threadIdx.x / kLanes] = mine;
  __syncthreads();
  if (threadIdx.x < 64) {
    const float own = shared.groups[threadIdx.x];
    unsigned place = 0;
    for (unsigned i = 0; i < 64; ++i) {
      const float other = shared.groups[i];
      place += other > own || (other == own && i < threadIdx.x);
    }
    if (place + 1 == wanted) shared.bound = __float_as_uint(own);
  }
}

/// Sends this block's `n` best logits to the first block. `mine` is the thread's largest.
__device__ void send_tops(Block& block, const Slice& slice, float mine, unsigned n) {
  Shared& shared = block.shared;
  bound_by_groups(shared, mine, n);
  if (threadIdx.x < kTopMax) shared.best[threadIdx.x] = 0;
  __syncthreads();
  const float bound = fmaxf(__uint_as_float(shared.bound), -kMax);
  slice.each([&](unsigned, unsigned i, float4 v) {
    const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (unsigned e = 0; e < 4; ++e) {
      if (x[e] < bound || *(volatile unsigned*)&shared.list_len > kListMax) continue;
      const unsigned at = atomicAdd(&shared.list_len, 1u);
      if (at < kListMax) shared.list[at] = key_of(x[e], slice.begin + i + e);
    }
  });
  __syncthreads();
  const unsigned count = shared.list_len;
  if (count <= kListMax) {
    for (unsigned i = threadIdx.x; i < count; i += kThreads) {
      unsigned place = 0;
      for (unsigned j = 0; j < count; ++j) place += shared.list[j] > shared.list[i];
      if (place < n) shared.best[place] = shared.list[i];
    }
    __syncthreads();
  } else {  // many equal logits
    u64 last = ~u64(0);
    for (unsigned place = 0; place < n; ++place) {
      u64 next = 0;
      slice.each([&](unsigned, unsigned i, float4 v) {
        const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (unsigned e = 0; e < 4; ++e) {
          const u64 key = x[e] < -kMax ? 0 : key_of(x[e], slice.begin + i + e);
          if (key < last && key > next) next = key;
        }
      });
      last = block.reduce(next, u64(0), Most{});
      if (threadIdx.x == 0) shared.best[place] = last;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) shared.list_len = 0;
  if (threadIdx.x < n) {
    *of_rank(&shared.tops[block.rank][threadIdx.x], 0) = shared.best[threadIdx.x];
  }
}

/// In the first block: the best of all blocks' best.
__device__ void merge_tops(const Block& block, unsigned n, SampleResult* result) {
  const auto& tops = block.shared.tops;
  for (unsigned i = threadIdx.x; i < block.ranks * n; i += kThreads) {
    const u64 mine = tops[i / n][i % n];
    if (!mine) continue;
    unsigned place = i % n;  // of its own block those before it are larger
    for (unsigned r = 0; r < block.ranks; ++r) {
      if (r == i / n) continue;
      for (unsigned j = 0; j < n && tops[r][j] > mine; ++j) ++place;
    }
    if (place >= n) continue;
    result->top_ids[place] = id_of(mine);
    result->top_logprobs[place] = value_of(mine) - block.shared.max - block.shared.log_sum;
  }
}

/// Biases, penalties and mask, in place; what remains of the best is returned.
__device__ Summary adjust(Block& block, const Slice& slice, const SampleRow& row) {
  float* const x = reinterpret_cast<float*>(slice.terms);
  __syncthreads();
  for (unsigned i = threadIdx.x; i < row.adjusted_len; i += kThreads) {
    const SampleAdjusted token = row.adjusted[i];
    const unsigned at = token.id - slice.begin;  // wraps if below
    if (at >= slice.len) continue;
    float y = x[at] + token.bias;
    if (token.seen) {
      y = y > 0 ? y / row.repetition : y * row.repetition;
      y -= row.frequency * float(token.seen - 1);
      if (token.seen > 1) y -= row.presence;
    }
    x[at] = token.bias < -kMax ? negative_infinity() : clean(y);
  }
  __syncthreads();
  u64 key = 0;
  slice.each([&](unsigned chunk, unsigned i, float4 v) {
    float y[4] = {v.x, v.y, v.z, v.w};
    if (row.mask && i < slice.len) {
      const unsigned allowed = row.mask[(slice.begin + i) / 32] >> ((slice.begin + i) % 32);
#pragma unroll
      for (unsigned e = 0; e < 4; ++e) {
        if (!(allowed >> e & 1)) y[e] = negative_infinity();
      }
      slice.terms[chunk * 32 + lane()] = {y[0], y[1], y[2], y[3]};
    }
#pragma unroll
    for (unsigned e = 0; e < 4; ++e) {
      const u64 mine = y[e] < -kMax ? 0 : key_of(y[e], slice.begin + i + e);
      key = key < mine ? mine : key;
    }
  });
  key = block.reduce(key, u64(0), Most{});
  return {key, key ? value_of(key) : negative_infinity(), 0};
}

/// No term below this stays. The best has 1 up to rounding, and min_p may be 1.
__device__ __forceinline__ float min_p_border(const SampleRow& row) {
  return fminf(row.min_p, 1.f - 1.1920929e-7f);
}

/// Turns the slice's logits into terms, `min_p` applied.
__device__ Mass make_terms(Block& block, const Slice& slice, const SampleRow& row, float max) {
  const float scale = fminf(kLog2e / row.temperature, kMax);
  const float border = min_p_border(row);
  float largest = 0;
  slice.each([&](unsigned chunk, unsigned, float4 v) {
    float t[4] = {v.x, v.y, v.z, v.w}, sum = 0;
#pragma unroll
    for (unsigned e = 0; e < 4; ++e) {
      t[e] = t[e] < -kMax ? 0.f : fmaxf(ptx::exp2((t[e] - max) * scale), kTiny);
      if (t[e] < border) t[e] = 0;
      sum += t[e];
      largest = fmaxf(largest, t[e]);
    }
    slice.terms[chunk * 32 + lane()] = {t[0], t[1], t[2], t[3]};
    keep_chunk_sum(block, chunk, sum);
  });
  const unsigned wanted = (row.top_k + block.ranks - 1) / block.ranks;  // of every block
  if (threadIdx.x == 0) block.shared.bound = 0;
  if (row.top_k && wanted <= 64) {
    __syncthreads();
    bound_by_groups(block.shared, largest, wanted);
  }
  const double total = sum_chunks(block, slice);
  return {total, block.shared.bound, 0};
}

struct Drawn {
  bool here;  // this block has it
  unsigned id;
};

/// Draws from the slice's logits, whose largest in the whole row is `best`. Called by the cluster.
__device__ Drawn draw(Block& block, const Slice& slice, const SampleRow& row, float best,
                      unsigned vocab) {
  const Mass* masses = block.exchange(make_terms(block, slice, row, best));
  const bool by_count = row.top_k && row.top_k < vocab, by_mass = row.top_p < 1.f;
  double total = total_of(block, masses);
  if (by_count || by_mass) {
    unsigned bound = kAll;
    for (unsigned r = 0; r < block.ranks; ++r) bound = min(bound, masses[r].bound);
    auto negligible = [&] {  // together these have less than what top_p leaves out
      return __float_as_uint(float((1.0 - double(row.top_p)) * total / vocab * 0.999));
    };
    const unsigned floor = max(by_count ? bound : negligible(), __float_as_uint(min_p_border(row)));
#ifndef SAMPLE_ALWAYS_SEARCH
    const unsigned few = floor || vocab <= kListMax ? gather(block, slice, floor) : kAll;
    if (few <= kListMax) {
      if (block.rank || !few) return {block.rank == 0, 0};
      return {true, draw_gathered(block, row, few, total)};
    }
#endif
    if (by_count) {
      masses = apply(block, slice, find_cut(block, slice, Goal::kCount, row.top_k, floor));
      total = total_of(block, masses);
    }
    if (by_mass) {
      const double goal = double(row.top_p) * total;
      masses = apply(block, slice, find_cut(block, slice, Goal::kMass, goal, negligible()));
      total = total_of(block, masses);
    }
  }
  double goal = uniform_of(row.seed, row.output_index) * total;
  const unsigned holder = rank_at(block, masses, goal);
  if (holder != block.rank) return {false, 0};
  if (!(total > 0)) return {true, 0};  // the mask allows nothing
  return {true, locate(block, slice, goal, [](float t) { return t; })};
}

template <class T>
__device__ void sample_row(const T* logits, const SampleRow& source, unsigned vocab,
                           float* workspace, unsigned* next_token, SampleResult* result) {
  char* const memory = dynamic_shared();
  Block block(*reinterpret_cast<Shared*>(memory));
  Shared& shared = block.shared;
  const unsigned most = sample_slice(vocab, block.ranks), begin = min(block.rank * most, vocab);
#if SAMPLE_CLUSTERS
  float4* const terms = reinterpret_cast<float4*>(memory + kSampleSharedBytes);
#else
  float4* const terms = reinterpret_cast<float4*>(workspace);
#endif
  const Slice slice{terms, begin, min(vocab - begin, most)};
  const SampleRow& row = shared.row;
  if (threadIdx.x < sizeof(SampleRow) / sizeof(uint4)) {
    reinterpret_cast<uint4*>(&shared.row)[threadIdx.x] =
        reinterpret_cast<const uint4*>(&source)[threadIdx.x];
  }
  if (threadIdx.x == 0) shared.list_len = shared.gathered_len = 0;
  __syncthreads();
  cluster_arrive();  // once all have, memory of other blocks may be written

  const bool greedy = row.temperature == 0.f, adjusted = row.adjusted_len || row.mask;
  const unsigned top_n = min(row.top_n, kTopMax);
  const bool kept = !greedy || adjusted || top_n;
  const Scan mine = greedy ? scan<true>(logits, slice, kept) : scan<false>(logits, slice, kept);
  Summary summary{0, 0, 0};
  if (greedy) summary.key = mine.max < -kMax ? 0 : key_of(mine.max, mine.best);
  if (greedy) summary.key = block.reduce(summary.key, u64(0), Most{});
  summary.max = block.reduce(mine.max, negative_infinity(), Most{});
  summary.sum = block.reduce(mine.sum * decay(mine.max, summary.max, kLog2e), 0.f, Sum{});
  cluster_wait();
  if (top_n) send_tops(block, slice, mine.max, top_n);

  const Summary* all = block.exchange(summary);
  Summary row_summary = all[0];
  for (unsigned r = 1; r < block.ranks; ++r) {
    row_summary.key = Most{}(row_summary.key, all[r].key);
    row_summary.max = fmaxf(row_summary.max, all[r].max);
  }
  row_summary.sum = 0;
  for (unsigned r = 0; r < block.ranks; ++r) {
    row_summary.sum += all[r].sum * decay(all[r].max, row_summary.max, kLog2e);
  }
  if (threadIdx.x == 0) shared.max = row_summary.max, shared.log_sum = logf(row_summary.sum);
  if (top_n && block.rank == 0) {
    __syncthreads();
    merge_tops(block, top_n, result);
  }

  if (adjusted) {
    all = block.exchange(adjust(block, slice, row));
    row_summary = all[0];
    for (unsigned r = 1; r < block.ranks; ++r) {
      row_summary.key = Most{}(row_summary.key, all[r].key);
      row_summary.max = fmaxf(row_summary.max, all[r].max);
    }
  }
  Drawn drawn{block.rank == 0, row_summary.key ? id_of(row_summary.key) : 0};
  if (!greedy) drawn = draw(block, slice, row, row_summary.max, vocab);
  if (drawn.here && threadIdx.x == 0) {
    *next_token = drawn.id;
    result->token = drawn.id;
    result->logprob = clean(wide(logits[drawn.id])) - shared.max - shared.log_sum;
  }
}

template <class T>
__device__ __forceinline__ void sample(const T* logits, long long stride, unsigned vocab,
                                       const SampleRow* rows, float* workspace,
                                       unsigned* next_tokens, SampleResult* results) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const unsigned index = blockIdx.x / cluster_ranks();
  sample_row(logits + index * stride, rows[index], vocab,
             workspace + (unsigned long long)index * sample_slice(vocab, 1), next_tokens + index,
             results + index);
}

}  // namespace sampling

/// `logits` `[rows][stride]`, the first `vocab` of each row; reading is fastest where rows begin at
/// multiples of 16 bytes. One entry a row in `rows`, `next_tokens` and `results`.
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 1024 / SAMPLE_THREADS)
sample_f32(const float* logits, long long stride, unsigned vocab, const SampleRow* rows,
           float* workspace, unsigned* next_tokens, SampleResult* results) {
  sampling::sample(logits, stride, vocab, rows, workspace, next_tokens, results);
}

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 1024 / SAMPLE_THREADS)
sample_bf16(const unsigned short* logits, long long stride, unsigned vocab, const SampleRow* rows,
            float* workspace, unsigned* next_tokens, SampleResult* results) {
  sampling::sample(logits, stride, vocab, rows, workspace, next_tokens, results);
}
