// The filters: which tokens stay. A term is e^((x - best) / temperature) in [0, 1], 0 once removed,
// and orders like its bits; equal terms order by lower id first.
#pragma once
#include "sample_device.cuh"

namespace sampling {

/// Keeps terms whose bits are larger, and those with equal bits up to this id.
struct Cut {
  unsigned bits, id_last;
};

struct alignas(16) Mass {
  double total;
  unsigned bound;  // at least top_k terms of the row are as large as the least of these
  unsigned count;
};

struct alignas(16) Found {
  unsigned id, reserved[3];
};

/// The part of a row that this block looks after: ids from `begin`, `len` of them.
struct Slice {
  float4* terms;
  unsigned begin, len;

  __device__ unsigned chunks() const { return (len + 127) / 128; }
  /// Calls `f(chunk, first id of this lane's four less begin, the four)` for this warp's chunks.
  template <class F>
  __device__ void each(F f) const {
    const unsigned n = chunks();
    for (unsigned c = warp(); c < n; c += kWarps) {
      f(c, c * 128 + lane() * 4, terms[c * 32 + lane()]);
    }
  }
};

/// One chunk's sum, kept for `locate`.
__device__ __forceinline__ void keep_chunk_sum(Block& block, unsigned chunk, float mine) {
  mine = reduce_warp(mine, Sum{});
  if (lane() == 0) block.shared.chunk_sums[chunk] = mine;
}

__device__ inline double sum_chunks(Block& block, const Slice& slice) {
  __syncthreads();
  double mine = 0;
  for (unsigned c = threadIdx.x; c < slice.chunks(); c += kThreads) {
    mine += block.shared.chunk_sums[c];
  }
  return block.reduce(mine, 0.0, Sum{});
}

/// Which block holds `goal` of the distribution whose parts are `masses`; the goal becomes its own.
__device__ inline unsigned rank_at(const Block& block, const Mass* masses, double& goal) {
  double before = 0, before_last = 0;
  unsigned last = 0;
  for (unsigned r = 0; r < block.ranks; ++r) {
    const double mass = masses[r].total;
    if (mass > 0) last = r, before_last = before;
    before += mass;
    if (before > goal) break;
  }
  goal -= before_last;
  return last;
}

/// The id at which the weights of this block, in the order of ids, pass `goal`; the last one of
/// weight if rounding keeps them below. `weight` must be what `chunk_sums` are the sums of.
template <class F>
__device__ unsigned locate(Block& block, const Slice& slice, double goal, F weight) {
  Shared& shared = block.shared;
  const unsigned chunks = slice.chunks(), each = (chunks + kThreads - 1) / kThreads;
  const unsigned first = threadIdx.x * each, end = min(first + each, chunks);
  double mine = 0;
  for (unsigned c = first; c < end; ++c) mine += shared.chunk_sums[c];
  double before = block.sum_before(mine), upto = before;
  unsigned passed = kAll, weighty = 0;
  for (unsigned c = first; c < end; ++c) {
    upto += shared.chunk_sums[c];
    if (upto > goal) passed = min(passed, c);
    if (shared.chunk_sums[c] > 0) weighty = c;
  }
  passed = block.reduce(passed, kAll, Least{});
  weighty = block.reduce(weighty, 0u, Most{});
  const unsigned chunk = min(passed, weighty);
  if (chunk >= first && chunk < end) {
    for (unsigned c = first; c < chunk; ++c) before += shared.chunk_sums[c];
    shared.before = before;
  }
  __syncthreads();
  if (warp() == 0) {
    const float4 t = slice.terms[chunk * 32 + lane()];
    const float w[4] = {weight(t.x), weight(t.y), weight(t.z), weight(t.w)};
    float sum = w[0] + w[1] + w[2] + w[3], in_order = sum;
#pragma unroll
    for (unsigned offset = 1; offset < 32; offset *= 2) {
      const float lower = __shfl_up_sync(kAll, in_order, offset);
      if (lane() >= offset) in_order += lower;
    }
    double at = shared.before + double(in_order - sum);
    unsigned here = kAll, any = 0;
#pragma unroll
    for (unsigned e = 0; e < 4; ++e) {
      at += double(w[e]);
      if (w[e] > 0) {
        if (at > goal) here = min(here, lane() * 4 + e);
        any = lane() * 4 + e;
      }
    }
    here = reduce_warp(here, Least{});
    any = reduce_warp(any, Most{});
    if (lane() == 0) shared.found = slice.begin + chunk * 128 + (here == kAll ? any : here);
  }
  __syncthreads();
  return shared.found;
}

/// Removes what the cut leaves out; returns the masses of what stays, by rank.
__device__ inline const Mass* apply(Block& block, const Slice& slice, Cut cut) {
  slice.each([&](unsigned chunk, unsigned i, float4 v) {
    float t[4] = {v.x, v.y, v.z, v.w}, sum = 0;
#pragma unroll
    for (unsigned e = 0; e < 4; ++e) {
      const unsigned bits = __float_as_uint(t[e]);
      if (bits < cut.bits || (bits == cut.bits && slice.begin + i + e > cut.id_last)) t[e] = 0;
      sum += t[e];
    }
    slice.terms[chunk * 32 + lane()] = {t[0], t[1], t[2], t[3]};
    keep_chunk_sum(block, chunk, sum);
  });
  return block.exchange(Mass{sum_chunks(block, slice), 0, 0});
}

__device__ inline double total_of(const Block& block, const Mass* masses) {
  double total = 0;
  for (unsigned r = 0; r < block.ranks; ++r) total += masses[r].total;
  return total;
}

enum class Goal { kCount, kMass };

/// The mass of a bin's terms: the radix search at `shift` knows all bits above it.
__device__ inline double bin_mass(unsigned bits, unsigned shift, unsigned count, unsigned rest) {
  const int exponent = int(bits >> 23);
  const double unit = __longlong_as_double((long long)(exponent - 150 + 1023) << 52);
  const double least = double(__uint_as_float(bits)) * count;
  // At shift 20 the rest is in units of 64, rounded down: on average half of that is missing.
  const double above = shift == 20 ? rest * 64.0 + count * 32.0 : shift == 10 ? double(rest) : 0.0;
  return least + above * unit;
}

/// One level, in the first block: the bin, from the largest down, in which the goal is reached.
__device__ inline void find_border(Block& block, Goal kind, double goal, unsigned prefix,
                                   unsigned shift) {
  Shared& shared = block.shared;
  constexpr unsigned kEach = 1024 / kThreads;
  const Border last = shared.border;
  const unsigned first = 1023 - threadIdx.x * kEach;  // of this thread's bins, the largest
  auto mass_of = [&](unsigned bin) {
    const unsigned n = shared.merged.counts[bin];
    return n ? bin_mass((prefix << 10 | bin) << shift, shift, n, shared.merged.rests[bin]) : 0.0;
  };
  double count = 0, mass = 0;
#pragma unroll 1
  for (unsigned e = 0; e < kEach; ++e) {
    count += shared.merged.counts[first - e], mass += mass_of(first - e);
  }
  count = last.count_above + block.sum_before(count);
  mass = last.mass_above + block.sum_before(mass);
  double counted = count, massed = mass;
  unsigned passed = kAll, filled = 0;
#pragma unroll 1
  for (unsigned e = 0; e < kEach; ++e) {
    const unsigned n = shared.merged.counts[first - e], at = threadIdx.x * kEach + e;
    counted += n, massed += mass_of(first - e);
    if (n == 0) continue;
    if ((kind == Goal::kCount ? counted : massed) >= goal) passed = min(passed, at);
    filled = at;
  }
  passed = block.reduce(passed, kAll, Least{});
  filled = block.reduce(filled, 0u, Most{});
  const unsigned at = min(passed, filled);
#pragma unroll 1
  for (unsigned e = 0; e < kEach; ++e) {
    const unsigned bin = first - e, n = shared.merged.counts[bin];
    const double here = mass_of(bin);
    if (bin == 1023 - at) shared.border = {mass, unsigned(count), bin, n, passed != kAll};
    count += n, mass += here;
    shared.merged.counts[bin] = shared.merged.rests[bin] = 0;
  }
  __syncthreads();
  const Border border = shared.border;
  if (threadIdx.x > 0 && threadIdx.x < block.ranks) {
    *of_rank(&shared.border, threadIdx.x) = border;
  }
}

/// Adds this block's terms that begin with `prefix` and are not below `floor` to the merged bins.
__device__ inline void fill_bins(Block& block, const Slice& slice, unsigned floor, unsigned prefix,
                                 unsigned shift) {
  Shared& shared = block.shared;
  Bins& bins = shared.bins;
  for (unsigned i = threadIdx.x; i < 1024; i += kThreads) bins.counts[i] = bins.rests[i] = 0;
  __syncthreads();
  slice.each([&](unsigned, unsigned, float4 v) {
    const float t[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (unsigned e = 0; e < 4; ++e) {
      const unsigned bits = __float_as_uint(t[e]);
      if (bits < floor || (shift < 20 && bits >> (shift + 10) != prefix)) continue;
      const unsigned bin = bits >> shift & 1023, rest = bits & ((1u << shift) - 1);
      atomicAdd(&bins.counts[bin], 1u);
      if (shift) atomicAdd(&bins.rests[bin], shift == 20 ? rest >> 6 : rest);
    }
  });
  __syncthreads();
  Bins* const merged = of_rank(&shared.merged, 0);
  for (unsigned i = threadIdx.x; i < 1024; i += kThreads) {
    if (!bins.counts[i]) continue;
    atomicAdd(&merged->counts[i], bins.counts[i]);
    if (bins.rests[i]) atomicAdd(&merged->rests[i], bins.rests[i]);
  }
}

/// The id of the `wanted`-th (from 1) of all terms with these bits. Called by the cluster.
__device__ inline unsigned nth_equal(Block& block, const Slice& slice, unsigned bits,
                                     double wanted) {
  auto equal = [bits](float t) { return __float_as_uint(t) == bits ? 1.f : 0.f; };
  slice.each([&](unsigned chunk, unsigned, float4 v) {
    keep_chunk_sum(block, chunk, equal(v.x) + equal(v.y) + equal(v.z) + equal(v.w));
  });
  const Mass* masses = block.exchange(Mass{sum_chunks(block, slice), 0, 0});
  double goal = wanted - 0.5;
  const unsigned holder = rank_at(block, masses, goal);
  Found mine{kAll, {}};
  if (holder == block.rank) mine.id = locate(block, slice, goal, equal);
  return block.exchange(mine)[holder].id;
}

/// The cut that keeps the best terms until their count or mass reaches `goal`, by a radix search
/// over the bits of terms from `floor` up. Called by the cluster.
__device__ inline Cut find_cut(Block& block, const Slice& slice, Goal kind, double goal,
                               unsigned floor) {
  Shared& shared = block.shared;
  floor = max(floor, 1u);
  for (unsigned i = threadIdx.x; i < 1024; i += kThreads) {
    shared.merged.counts[i] = shared.merged.rests[i] = 0;
  }
  if (threadIdx.x == 0) shared.border = Border{};
  cluster_sync();
  unsigned prefix = 0;
  for (unsigned shift = 20;; shift -= 10) {
    fill_bins(block, slice, floor, prefix, shift);
    cluster_sync();
    if (block.rank == 0) find_border(block, kind, goal, prefix, shift);
    cluster_sync();
    const Border border = shared.border;
    if (shift == 20 && !border.crossed) return {floor, kAll};
    prefix = prefix << 10 | border.bin;
    if (border.count == 1) return {max(floor, prefix << shift), kAll};
    if (shift) continue;
    double wanted = kind == Goal::kCount
                        ? goal - border.count_above
                        : ceil((goal - border.mass_above) / double(__uint_as_float(prefix)));
    wanted = wanted < 1 ? 1 : wanted;
    if (wanted >= border.count) return {prefix, kAll};
    return {prefix, nth_equal(block, slice, prefix, wanted)};
  }
}

/// Brings all terms from `floor` up to the first block's `gathered`, as keys, if they are few.
/// Returns how many there are, or more than kListMax. Called by the cluster.
__device__ inline unsigned gather(Block& block, const Slice& slice, unsigned floor) {
  Shared& shared = block.shared;
  floor = max(floor, 1u);
  slice.each([&](unsigned, unsigned i, float4 v) {
    const float t[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (unsigned e = 0; e < 4; ++e) {
      const unsigned bits = __float_as_uint(t[e]);
      if (bits < floor || *(volatile unsigned*)&shared.list_len > kListMax) continue;
      const unsigned at = atomicAdd(&shared.list_len, 1u);
      if (at < kListMax) shared.list[at] = u64(bits) << 32 | ~(slice.begin + i + e);
    }
  });
  __syncthreads();
  const unsigned mine = shared.list_len;
  if (mine && threadIdx.x == 0) shared.at = atomicAdd(of_rank(&shared.gathered_len, 0), mine);
  __syncthreads();
  if (mine && shared.at + mine <= kListMax) {
    u64* const target = of_rank(shared.gathered, 0) + shared.at;
    for (unsigned i = threadIdx.x; i < mine; i += kThreads) target[i] = shared.list[i];
  }
  const Mass* all = block.exchange(Mass{0, 0, mine});
  unsigned count = 0;
  for (unsigned r = 0; r < block.ranks; ++r) count += all[r].count;
  return count;
}

/// Of `n` sorted terms the first at which `passes(sum up to it)`, or `n`; `upto` is that sum.
template <class T, class F>
__device__ unsigned first_passing(Block& block, const u64* keys, unsigned n, T term, F passes,
                                  double& upto) {
  const unsigned each = (n + kThreads - 1) / kThreads;
  const unsigned first = threadIdx.x * each, end = min(first + each, n);
  double mine = 0;
  for (unsigned i = first; i < end; ++i) mine += double(term(keys[i]));
  const double before = block.sum_before(mine);
  double sum = before;
  unsigned found = n;
  for (unsigned i = first; i < end && found == n; ++i) {
    sum += double(term(keys[i]));
    if (passes(sum)) found = i;
  }
  const unsigned at = block.reduce(found, n, Least{});
  const unsigned holder = min(at, n - 1);
  if (holder >= first && holder < end) {
    sum = before;
    for (unsigned i = first; i <= holder; ++i) sum += double(term(keys[i]));
    block.shared.before = sum;
  }
  __syncthreads();
  upto = block.shared.before;
  __syncthreads();
  return at;
}

/// Philox 4x32-10: a number in [0, 1) with 53 random bits.
__device__ inline double uniform_of(u64 seed, unsigned index) {
  unsigned counter[4] = {index, 0, 0, 0}, key[2] = {unsigned(seed), unsigned(seed >> 32)};
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u64 a = u64(0xD2511F53u) * counter[0], b = u64(0xCD9E8D57u) * counter[2];
    const unsigned c1 = counter[1], c3 = counter[3];
    counter[0] = unsigned(b >> 32) ^ c1 ^ key[0], counter[1] = unsigned(b);
    counter[2] = unsigned(a >> 32) ^ c3 ^ key[1], counter[3] = unsigned(a);
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
  const u64 bits = (u64(counter[0]) << 32 | counter[1]) >> 11;
  return double(bits) * (1.0 / 9007199254740992.0);
}

/// Filters and draws from what `gather` brought; in the first block. `total` is the mass of the
/// whole row.
__device__ inline unsigned draw_gathered(Block& block, const SampleRow& row, unsigned n,
                                         double total) {
  u64* const keys = block.shared.gathered;
  sort_descending(keys, n);
  auto term = [](u64 key) { return __uint_as_float(unsigned(key >> 32)); };
  auto never = [](double) { return false; };
  double kept_mass = total;
  if (row.top_k && row.top_k < n) {
    n = row.top_k;
    first_passing(block, keys, n, term, never, kept_mass);
    total = kept_mass;
  }
  if (row.top_p < 1.f) {
    const double goal = double(row.top_p) * total;
    n = min(first_passing(block, keys, n, term, [&](double sum) { return sum >= goal; },
                          kept_mass) + 1, n);
  } else {
    first_passing(block, keys, n, term, never, kept_mass);
  }
  // The low half is ~id already: by id, lower first, is descending once the halves swap.
  for (unsigned i = threadIdx.x; i < n; i += kThreads) keys[i] = keys[i] << 32 | keys[i] >> 32;
  __syncthreads();
  sort_descending(keys, n);
  const double goal = uniform_of(row.seed, row.output_index) * kept_mass;
  const unsigned at = first_passing(
      block, keys, n, [](u64 key) { return __uint_as_float(unsigned(key)); },
      [&](double sum) { return sum > goal; }, kept_mass);
  return ~unsigned(keys[min(at, n - 1)] >> 32);
}

}  // namespace sampling
