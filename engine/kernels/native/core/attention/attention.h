// Attention of new tokens over a KV cache. No weights or threads; callers divide the work.
//
// Axes: T new tokens, K kv heads, G query heads for each kv head, d head width.
#pragma once

#include <cstdint>

namespace conifer::attention {

enum class CacheType : int32_t { F16 = 0, F32 = 1, Q8 = 2 };

// One layer's keys or values: (K, capacity, d), in F16, F32, or int8 with float16 `scales`
// (K, capacity, d / group), where group = gcd(d, 32).
struct CacheBuffer {
  void* values;
  uint16_t* scales;  // null unless Q8
};

struct KVCache {
  CacheType type;
  int64_t capacity;  // tokens
  int64_t base;      // the first token in the buffers
  CacheBuffer keys, values;
};

// One kv head of a cache. Keys are contiguous from token to token. Values are `value_stride` apart,
// which equals `value_dim` unless each value is the start of a longer row.
struct HeadView {
  CacheType type;
  int64_t key_dim, value_dim, value_stride;
  const void* keys;
  const void* values;
  const uint16_t* key_scales;
  const uint16_t* value_scales;
  int64_t base;            // position of the first token
  float score_cap = 0.0f;  // scores become cap * tanh(score / cap); 0: they do not
};

// A range of tokens' contribution to attention for G query heads. Ranges can be merged.
struct Partial {
  float* top;    // (G,) largest score
  float* total;  // (G,) sum of e^(score - top)
  float* mixed;  // (G, padded(dv)) sum of e^(score - top) * value
};

// The number of values per scale in Q8: gcd(dims, 32).
static constexpr int64_t q8_group(int64_t dims) {
  int64_t group = 32;
  while (dims % group != 0) group /= 2;
  return group;
}

// A multiple of every instruction set's vector length, in floats.
static constexpr int64_t LONGEST = 16;

// The padded length of query and result rows, in whole vectors.
static constexpr int64_t padded(int64_t dims) { return (dims + LONGEST - 1) / LONGEST * LONGEST; }

HeadView head_view(const KVCache& cache, int64_t head, int64_t key_dim, int64_t value_dim);

// Append one token's key or value (d,) for one head.
void append(const KVCache& cache, const CacheBuffer& buffer, int64_t head, int64_t token,
            const float* x, int64_t dims);

// How many floats of scratch memory the two functions below need.
int64_t attention_scratch(int64_t key_dim, int64_t value_dim);

// One token: attend with G queries (G, padded(d)), scaled and zero beyond d, to tokens begin..end.
void attend_one(const HeadView& head, const float* queries, int64_t group, int64_t begin,
                int64_t end, Partial partial, float* scratch);

// Merge n partial results for G heads into the attention, (G, dv) packed. sinks (G,): scores that
// take part in the softmax but have no value; may be null.
void merge(const Partial* partials, int64_t n, int64_t group, int64_t value_dim, const float* sinks,
           float* out);

// The tokens begin..end that a query row attends to. sink: a score that takes part in the softmax
// but has no value; NO_SINK for none.
struct Sight {
  int64_t begin, end;
  float sink;
};
static constexpr float NO_SINK = -3.0e38f;

// Many tokens: row r of the scaled queries (rows, padded(d)) attends to sights[r]. Begins and ends
// must not decrease from row to row. At most MAX_ROWS rows; out is (rows, padded(dv)).
static constexpr int64_t MAX_ROWS = 128;
void attend_many(const HeadView& head, const float* queries, int64_t rows, const Sight* sights,
                 float* out, float* scratch);

// How many floats of scratch memory `score_rows` needs.
int64_t score_scratch(int64_t dims, int64_t heads);

// The sum over G queries of weight * max(query . key, 0) for the keys begin..end of a head, for any
// G. queries (G, padded(d)): zero beyond d, with room for a multiple of 4 rows; weights (G,).
void score_rows(const HeadView& keys, const float* queries, const float* weights, int64_t group,
                int64_t begin, int64_t end, float* scores, float* scratch);

}  // namespace conifer::attention
