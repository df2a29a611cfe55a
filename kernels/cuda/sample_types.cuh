// What the sampler reads and writes. The launcher mirrors these as `#[repr(C, align(16))]`.
#pragma once

#ifdef __CUDACC__
#define SAMPLE_BOTH __host__ __device__
#else
#define SAMPLE_BOTH
#endif

constexpr unsigned kTopMax = 20;                // most alternatives reported beside a token
constexpr unsigned kSampleSharedBytes = 18432;  // of the sampler itself; the slice follows

/// A token that is penalised or biased.
struct SampleAdjusted {
  unsigned id;    // below the vocabulary; no id twice in a row's list
  unsigned seen;  // 0: nowhere, no penalty applies; else 1 + times in the output
  float bias;     // added first; minus infinity: not allowed
};
static_assert(sizeof(SampleAdjusted) == 12, "mirrored by the launcher");

/// How one row is drawn.
struct alignas(16) SampleRow {
  float temperature;  // 0 takes the best
  float top_p;        // in (0, 1]
  unsigned top_k;     // 0 keeps all
  float min_p;        // in [0, 1]
  unsigned long long seed;
  unsigned output_index;    // the random counter
  unsigned top_n;           // alternatives to report, at most kTopMax
  float repetition;         // 1: none. Of every token seen: x > 0 ? x / r : x * r
  float frequency;          // then less this times those in the output
  float presence;           // then less this if there are any
  unsigned adjusted_len;
  const SampleAdjusted* adjusted;
  const unsigned* mask;     // bit `id % 32` of word `id / 32` set: allowed. Null: all are
};
static_assert(sizeof(SampleRow) == 64, "mirrored by the launcher");

/// What was drawn. Log-probabilities are those of the logits as they came: no temperature, filter,
/// penalty, bias or mask.
struct alignas(16) SampleResult {
  unsigned token;
  float logprob;
  unsigned reserved[2];
  unsigned top_ids[kTopMax];       // best first, lower ids first among equals
  float top_logprobs[kTopMax];     // those past `top_n` (or the vocabulary) are left alone
};
static_assert(sizeof(SampleResult) == 176, "mirrored by the launcher");

/// Logits that one block of a cluster of `ranks` looks after.
SAMPLE_BOTH constexpr unsigned sample_slice(unsigned vocab, unsigned ranks) {
  return ((vocab + ranks - 1) / ranks + 127) / 128 * 128;
}
