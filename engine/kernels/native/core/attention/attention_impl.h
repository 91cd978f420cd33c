// Attention for one kv head, for one instruction set. See attention.h for definitions.
//
// Both versions stream over the tokens in blocks with a running maximum, so only one block's scores
// exist at a time. One token: each key and value is read once for all query heads. Many tokens:
// each block of keys is converted and transposed once, followed by two small matrix products.
#pragma once

#include <type_traits>

#include "attention/attention.h"
#include "isa/simd.h"

namespace conifer::attention {
namespace {

using namespace isa;  // vectors

constexpr int64_t BLOCK = 64;  // tokens
constexpr int64_t SHORT_BLOCK =
    32;  // for one token: three blocks of keys or values fit the L1 cache
constexpr float LOWEST = -3.0e38f;  // below every score; the difference of two does not overflow

// Cache rows, `stride` apart, read as float vectors.
template <CacheType C>
struct Rows {
  const void* data;
  const uint16_t* scales;
  int64_t dims, stride, group;

  CONIFER_INLINE VF at(int64_t token, int64_t i) const {
    const int64_t n = token * stride + i;
    if constexpr (C == CacheType::F32) return load(static_cast<const float*>(data) + n);
    if constexpr (C == CacheType::F16) return load_half(static_cast<const uint16_t*>(data) + n);
    return load_int8(static_cast<const int8_t*>(data) + n) * quant::f16_to_float(scales[n / group]);
  }
  CONIFER_INLINE const char* address(int64_t token) const {
    constexpr int64_t SIZE = C == CacheType::F32 ? 4 : C == CacheType::F16 ? 2 : 1;
    return static_cast<const char*>(data) + token * stride * SIZE;
  }
};

// Convert n tokens to floats and pad the rows with zeros.
template <CacheType C>
void unpack(const void* data, const uint16_t* scales, int64_t dims, int64_t stride, int64_t begin,
            int64_t n, float* out) {
  const int64_t group = q8_group(stride), width = padded(dims);
  const Rows<C> rows{data, scales, dims, stride, group};
  const bool whole = C != CacheType::Q8 || group % W == 0;
  for (int64_t t = 0; t < n; ++t, out += width) {
    int64_t i = 0;
    if (whole)
      for (; i + W <= dims; i += W) store(out + i, rows.at(begin + t, i));
    for (; i < dims; ++i) {
      const int64_t k = (begin + t) * stride + i;
      if constexpr (C == CacheType::F32) out[i] = static_cast<const float*>(data)[k];
      if constexpr (C == CacheType::F16)
        out[i] = quant::f16_to_float(static_cast<const uint16_t*>(data)[k]);
      if constexpr (C == CacheType::Q8)
        out[i] = static_cast<const int8_t*>(data)[k] * quant::f16_to_float(scales[k / group]);
    }
    for (; i < width; ++i) out[i] = 0.0f;
  }
}

void unpack(CacheType type, const void* data, const uint16_t* scales, int64_t dims, int64_t stride,
            int64_t begin, int64_t n, float* out) {
  const auto typed = type == CacheType::F32   ? unpack<CacheType::F32>
                     : type == CacheType::F16 ? unpack<CacheType::F16>
                                              : unpack<CacheType::Q8>;
  typed(data, scales, dims, stride, begin, n, out);
}

// Cap n scores smoothly; n is a multiple of W.
CONIFER_INLINE void soften(float* scores, int64_t n, float cap) {
  for (int64_t i = 0; i < n; i += W) {
    const VF power = exponential(load(scores + i) * (2.0f / cap));
    store(scores + i, cap - 2.0f * cap / (power + 1.0f));
  }
}

// --- one token ------------------------------------------------------------------------------

// The running state for G query heads. Lane t * G + g of a vector belongs to head g.
template <int G>
struct Running {
  VF top, total;
};

template <int G>
CONIFER_INLINE VF across_tokens(VF v, bool maximum) {
  float lanes[W], folded[W];
  store(lanes, v);
  for (int g = 0; g < G; ++g) {
    float x = lanes[g];
    for (int t = 1; t < W / G; ++t) {
      const float y = lanes[t * G + g];
      x = maximum ? (y > x ? y : x) : x + y;
    }
    for (int t = 0; t < W / G; ++t) folded[t * G + g] = x;
  }
  return load(folded);
}

// Prefetch the next rows during the arithmetic. Keys and values jump between addresses, which the
// hardware prefetcher cannot follow.
CONIFER_INLINE void fetch(const char* begin, const char* end) {
  for (; begin < end; begin += 64) __builtin_prefetch(begin);
}

// Compute scores for n tokens in lane order: out[t * G + g]. Prefetches the same tokens in `next`.
template <int G, CacheType C>
CONIFER_INLINE void score(const Rows<C>& keys, const Rows<C>& next, const float* queries,
                          int64_t stride, int64_t begin, int64_t n, float* out) {
  constexpr int TOKENS = W / G;
  for (int64_t t = 0; t < n; t += TOKENS) {
    VF sums[W];  // zeroed one by one to stay in registers; `= {}` becomes a memset
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) sums[j] = fill(0.0f);
    const int64_t first = begin + t, last = begin + n - 1;
    fetch(next.address(first), next.address(first + TOKENS));
    for (int64_t i = 0; i < keys.dims; i += W) {
#pragma GCC unroll 16
      for (int j = 0; j < TOKENS; ++j) {
        const VF key = keys.at(first + j < last ? first + j : last, i);
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) {
          const VF query = load(queries + g * stride + i);
          sums[j * G + g] = sums[j * G + g] + key * query;
        }
      }
    }
    store(out + t * G, sum_each(sums));
  }
}

// Rows to prefetch during the computation: `step` bytes per token.
struct Ahead {
  const char* begin;
  int64_t step;
};

// mixed[g] += weights[t * G + g] * value[t], for N vectors of each row at a time.
template <int G, int N, CacheType C>
CONIFER_INLINE void mix(const Rows<C>& values, Ahead ahead, const float* weights, int64_t stride,
                        int64_t begin, int64_t n, int64_t i, float* mixed) {
  VF sums[G][N];
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) sums[g][j] = load(mixed + g * stride + i + j * W);
  for (int64_t t = 0; t < n; ++t) {
    VF v[N];
    fetch(ahead.begin + t * ahead.step, ahead.begin + (t + 1) * ahead.step);
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) v[j] = values.at(begin + t, i + j * W);
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) sums[g][j] = sums[g][j] + v[j] * weights[t * G + g];
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) store(mixed + g * stride + i + j * W, sums[g][j]);
}

// Add one block of tokens to the running state. `weights` is scratch for G * SHORT_BLOCK floats.
// Reading the keys prefetches the values. Each pass over the values prefetches part of the next
// block's keys.
template <int G, CacheType C>
CONIFER_INLINE void one_block(const Rows<C>& keys, const Rows<C>& values, const float* queries,
                              int64_t query_stride, int64_t begin, int64_t n, Running<G>& state,
                              float* mixed, int64_t mixed_stride, float* weights, float score_cap) {
  score<G, C>(keys, values, queries, query_stride, begin, n, weights);
  const int64_t count = n * G;
  if (score_cap != 0.0f) soften(weights, (count + W - 1) / W * W, score_cap);
  for (int64_t i = count; i % W != 0; ++i) weights[i] = LOWEST;
  VF top = state.top;
  for (int64_t i = 0; i < count; i += W) top = larger(top, load(weights + i));
  top = across_tokens<G>(top, true);
  const VF factor = exponential(state.top - top);
  float factors[W];
  store(factors, factor);
  bool same = true;
  for (int g = 0; g < G; ++g) same = same && factors[g] == 1.0f;
  if (!same)
    for (int g = 0; g < G; ++g)
      for (int64_t i = 0; i < mixed_stride; i += W)
        store(mixed + g * mixed_stride + i, load(mixed + g * mixed_stride + i) * factors[g]);
  VF total = state.total * factor;
  for (int64_t i = 0; i < count; i += W) {
    const VF weight = exponential(load(weights + i) - top);
    total = total + weight;
    store(weights + i, weight);
  }
  state.top = top;
  state.total = total;
  constexpr int N = G == 8 && W <= 8 ? 1 : 2;
  const char* next = keys.address(begin + n);
  const int64_t passes = (values.dims / W + N - 1) / N;
  Ahead ahead{next, (keys.address(begin + 2 * n) - next) / (passes * n)};
  const auto pass = [&](auto vectors, int64_t i) {
    constexpr int V = decltype(vectors)::value;
    mix<G, V, C>(values, ahead, weights, mixed_stride, begin, n, i, mixed);
    ahead.begin += n * ahead.step;
  };
  int64_t i = 0;
  for (; i + N * W <= values.dims; i += N * W) pass(std::integral_constant<int, N>{}, i);
  for (; i < values.dims; i += W) pass(std::integral_constant<int, 1>{}, i);
}

// Process `heads` <= G query heads over tokens begin..end. If rows are not whole vectors, each
// block is converted first.
template <int G, CacheType C>
void one_group(const HeadView& head, const float* queries, int64_t heads, int64_t begin,
               int64_t end, Partial partial, float* scratch) {
  const int64_t query_stride = padded(head.key_dim), mixed_stride = padded(head.value_dim);
  float* weights = scratch;
  float* own_queries = weights + 8 * SHORT_BLOCK + LONGEST;
  float* mixed = own_queries + 8 * query_stride;
  float* key_block = mixed + 8 * mixed_stride;
  float* value_block = key_block + SHORT_BLOCK * query_stride;
  for (int64_t i = 0; i < G * query_stride; ++i)
    own_queries[i] = i < heads * query_stride ? queries[i] : 0.0f;
  for (int64_t i = 0; i < G * mixed_stride; ++i) mixed[i] = 0.0f;

  const Rows<C> keys{head.keys, head.key_scales, head.key_dim, head.key_dim,
                     q8_group(head.key_dim)};
  const Rows<C> values{head.values, head.value_scales, head.value_dim, head.value_stride,
                       q8_group(head.value_stride)};
  const bool direct = head.key_dim % W == 0 && head.value_dim % W == 0 &&
                      (C != CacheType::Q8 || (keys.group % W == 0 && values.group % W == 0));
  Running<G> state{fill(LOWEST), fill(0.0f)};
  for (int64_t t = begin; t < end; t += SHORT_BLOCK) {
    const int64_t n = end - t < SHORT_BLOCK ? end - t : SHORT_BLOCK;
    if (direct) {
      one_block<G, C>(keys, values, own_queries, query_stride, t, n, state, mixed, mixed_stride,
                      weights, head.score_cap);
      continue;
    }
    unpack<C>(head.keys, head.key_scales, head.key_dim, head.key_dim, t, n, key_block);
    unpack<C>(head.values, head.value_scales, head.value_dim, head.value_stride, t, n, value_block);
    one_block<G, CacheType::F32>({key_block, nullptr, query_stride, query_stride, 1},
                                 {value_block, nullptr, mixed_stride, mixed_stride, 1}, own_queries,
                                 query_stride, 0, n, state, mixed, mixed_stride, weights,
                                 head.score_cap);
  }
  float tops[W], totals[W];
  store(tops, state.top);
  store(totals, across_tokens<G>(state.total, false));
  for (int64_t g = 0; g < heads; ++g) {
    partial.top[g] = tops[g];
    partial.total[g] = totals[g];
    memcpy(partial.mixed + g * mixed_stride, mixed + g * mixed_stride, size_t(mixed_stride) * 4);
  }
}

template <CacheType C>
void attend_one_typed(const HeadView& head, const float* queries, int64_t group, int64_t begin,
                      int64_t end, Partial partial, float* scratch) {
  constexpr int MOST = W < 8 ? W : 8;
  for (int64_t g = 0; g < group;) {
    const int64_t left = group - g, heads = left < MOST ? left : MOST;
    const float* q = queries + g * padded(head.key_dim);
    const Partial p{partial.top + g, partial.total + g, partial.mixed + g * padded(head.value_dim)};
    if (heads > 4) one_group<MOST, C>(head, q, heads, begin, end, p, scratch);
    else if (heads > 2) one_group<4, C>(head, q, heads, begin, end, p, scratch);
    else if (heads > 1) one_group<2, C>(head, q, heads, begin, end, p, scratch);
    else one_group<1, C>(head, q, heads, begin, end, p, scratch);
    g += heads;
  }
}

void attend_one_isa(const HeadView& head, const float* queries, int64_t group, int64_t begin,
                    int64_t end, Partial partial, float* scratch) {
  if (head.type == CacheType::F32)
    attend_one_typed<CacheType::F32>(head, queries, group, begin, end, partial, scratch);
  else if (head.type == CacheType::F16)
    attend_one_typed<CacheType::F16>(head, queries, group, begin, end, partial, scratch);
  else attend_one_typed<CacheType::Q8>(head, queries, group, begin, end, partial, scratch);
}

// --- many tokens ----------------------------------------------------------------------------

// Compute a block of c (M, N vectors) = or += a (M, depth) b (depth, N vectors).
template <int M, int N>
CONIFER_INLINE void product_block(const float* a, int64_t a_stride, const float* b,
                                  int64_t b_stride, int64_t depth, bool add, float* c,
                                  int64_t c_stride) {
  VF sums[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[m][n] = add ? load(c + m * c_stride + n * W) : fill(0.0f);
  for (int64_t k = 0; k < depth; ++k) {
    VF row[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) row[n] = load(b + k * b_stride + n * W);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const VF factor = fill(a[m * a_stride + k]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[m][n] = sums[m][n] + row[n] * factor;
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(c + m * c_stride + n * W, sums[m][n]);
}

// The number of rows is a multiple of 4; the number of columns, of LONGEST.
void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t rows,
              int64_t depth, int64_t columns, bool add, float* c, int64_t c_stride) {
  constexpr int N = W == 8 ? 2 : 4;
  for (int64_t n = 0; n < columns;) {
    const bool wide = n + N * W <= columns;
    for (int64_t m = 0; m < rows; m += 4) {
      const float* rows_a = a + m * a_stride;
      float* block = c + m * c_stride + n;
      if (wide) product_block<4, N>(rows_a, a_stride, b + n, b_stride, depth, add, block, c_stride);
      else product_block<4, 1>(rows_a, a_stride, b + n, b_stride, depth, add, block, c_stride);
    }
    n += wide ? N * W : W;
  }
}

// Transpose (BLOCK, width) to (width, BLOCK). width is a multiple of LONGEST.
void turn(const float* rows, int64_t width, float* columns) {
  for (int64_t t = 0; t < BLOCK; t += W)
    for (int64_t i = 0; i < width; i += W) {
      VF tile[W];
      for (int j = 0; j < W; ++j) tile[j] = load(rows + (t + j) * width + i);
      transpose(tile);
      for (int j = 0; j < W; ++j) store(columns + (i + j) * BLOCK + t, tile[j]);
    }
}

// Convert one row of scores to weights, with 0 outside begin..end. Returns the factor that rescales
// the earlier sums.
CONIFER_INLINE float weigh(float* scores, int64_t begin, int64_t end, float& top, float& total) {
  for (int64_t t = 0; t < begin; ++t) scores[t] = LOWEST;
  for (int64_t t = end; t < BLOCK; ++t) scores[t] = LOWEST;
  VF most = load(scores);
  for (int64_t t = W; t < BLOCK; t += W) most = larger(most, load(scores + t));
  const float block_top = largest(most), new_top = block_top > top ? block_top : top;
  VF sums = fill(0.0f);
  for (int64_t t = 0; t < BLOCK; t += W) {
    const VF weight = exponential(load(scores + t) - new_top);
    store(scores + t, weight);
    sums = sums + weight;
  }
  for (int64_t t = 0; t < begin; ++t) scores[t] = 0.0f;
  for (int64_t t = end; t < BLOCK; ++t) scores[t] = 0.0f;
  const float factor = top == new_top ? 1.0f : exponential(fill(top - new_top))[0];
  total = total * factor + sum(sums);
  top = new_top;
  return factor;
}

void attend_many_isa(const HeadView& head, const float* queries, int64_t rows, const Sight* sights,
                     float* out, float* scratch) {
  const int64_t key_width = padded(head.key_dim), value_width = padded(head.value_dim);
  const int64_t padded_rows = (rows + 3) / 4 * 4;
  float* keys = scratch;  // later, the same block's values
  float* columns = keys + BLOCK * (key_width > value_width ? key_width : value_width);
  float* scores = columns + BLOCK * key_width;
  float* tops = scores + MAX_ROWS * BLOCK;
  float* totals = tops + MAX_ROWS;
  for (int64_t r = 0; r < padded_rows; ++r) {
    tops[r] = LOWEST;
    totals[r] = 0.0f;
    for (int64_t i = 0; i < value_width; ++i) out[r * value_width + i] = 0.0f;
  }
  // Blocks start at fixed positions, so that a row's sums do not depend on the rows next to it.
  const int64_t end = sights[rows - 1].end;
  const int64_t start = sights[0].begin - (head.base + sights[0].begin) % BLOCK;
  for (int64_t begin = start; begin < end; begin += BLOCK) {
    const int64_t n = end - begin < BLOCK ? end - begin : BLOCK;
    const int64_t lead = begin < 0 ? -begin : 0;  // tokens that are no longer cached
    int64_t first = 0;                            // earlier rows do not attend to this block
    while (sights[first].end <= begin) ++first;
    first = first / 4 * 4;
    for (int64_t i = 0; i < lead * key_width; ++i) keys[i] = 0.0f;
    unpack(head.type, head.keys, head.key_scales, head.key_dim, head.key_dim, begin + lead,
           n - lead, keys + lead * key_width);
    for (int64_t i = n * key_width; i < BLOCK * key_width; ++i) keys[i] = 0.0f;
    turn(keys, key_width, columns);
    multiply(queries + first * key_width, key_width, columns, BLOCK, padded_rows - first, key_width,
             BLOCK, false, scores + first * BLOCK, BLOCK);
    if (head.score_cap != 0.0f)
      soften(scores + first * BLOCK, (padded_rows - first) * BLOCK, head.score_cap);
    for (int64_t r = first; r < padded_rows; ++r) {
      const Sight seen = r < rows ? sights[r] : Sight{0, 0, NO_SINK};
      const int64_t from = seen.begin > begin ? seen.begin - begin : 0;
      const int64_t to = seen.end - begin < n ? seen.end - begin : n;
      if (from >= to) {
        for (int64_t t = 0; t < BLOCK; ++t) scores[r * BLOCK + t] = 0.0f;
        continue;
      }
      const float factor = weigh(scores + r * BLOCK, from, to, tops[r], totals[r]);
      if (factor != 1.0f)
        for (int64_t i = 0; i < value_width; i += W)
          store(out + r * value_width + i, load(out + r * value_width + i) * factor);
    }
    for (int64_t i = 0; i < lead * value_width; ++i) keys[i] = 0.0f;
    unpack(head.type, head.values, head.value_scales, head.value_dim, head.value_stride,
           begin + lead, n - lead, keys + lead * value_width);
    multiply(scores + first * BLOCK, BLOCK, keys, value_width, padded_rows - first, n, value_width,
             true, out + first * value_width, value_width);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float sink = sights[r].sink, top = sink > tops[r] ? sink : tops[r];
    const float factor = top == tops[r] ? 1.0f : exponential(fill(tops[r] - top))[0];
    float total = totals[r] * factor;
    if (sink > NO_SINK) total += exponential(fill(sink - top))[0];
    for (int64_t i = 0; i < value_width; i += W)
      store(out + r * value_width + i, load(out + r * value_width + i) * (factor / total));
  }
}

// --- indexing -------------------------------------------------------------------------------

void score_rows_isa(const HeadView& head, const float* queries, const float* weights, int64_t group,
                    int64_t begin, int64_t end, float* out, float* scratch) {
  const int64_t width = padded(head.key_dim), rows = (group + 3) / 4 * 4;
  float* keys = scratch;
  float* columns = keys + BLOCK * width;
  float* scores = columns + BLOCK * width;
  float* sums = scores + rows * BLOCK;
  for (int64_t t = begin; t < end; t += BLOCK) {
    const int64_t n = end - t < BLOCK ? end - t : BLOCK;
    unpack(head.type, head.keys, head.key_scales, head.key_dim, head.key_dim, t, n, keys);
    for (int64_t i = n * width; i < BLOCK * width; ++i) keys[i] = 0.0f;
    turn(keys, width, columns);
    multiply(queries, width, columns, BLOCK, rows, width, BLOCK, false, scores, BLOCK);
    for (int64_t i = 0; i < BLOCK; i += W) {
      VF total = fill(0.0f);
      for (int64_t g = 0; g < group; ++g)
        total = total + larger(load(scores + g * BLOCK + i), fill(0.0f)) * weights[g];
      store(sums + i, total);
    }
    memcpy(out + (t - begin), sums, size_t(n) * 4);
  }
}

// --- storing ---------------------------------------------------------------------------------

constexpr float SMALLEST_SCALE = 1e-37f;  // the inverse of a smaller one may overflow

void store_q8(const float* x, int64_t dims, int8_t* numbers, uint16_t* scales) {
  const int64_t group = q8_group(dims);
  for (int64_t begin = 0; begin < dims; begin += group, ++scales) {
    float top = 0.0f, all = 0.0f;
    for (int64_t i = begin; i < begin + group; ++i) {
      const float size = __builtin_fabsf(x[i]);
      top = size > top ? size : top;
      all += size;  // NaN if any value is
    }
    const bool finite = top <= __FLT_MAX__ && all == all;
    const float scale = finite ? top / 127.0f : __builtin_nanf("");
    const float inverse = scale > SMALLEST_SCALE ? 1.0f / scale : 0.0f;
    *scales = quant::float_to_f16(scale);
    for (int64_t i = begin; i < begin + group; ++i) {
      constexpr float ROUND = 12582912.0f;  // to nearest, ties to even
      numbers[i] = finite ? int8_t(int(x[i] * inverse + ROUND - ROUND)) : int8_t(0);
    }
  }
}

void store_head_row(CacheType type, const float* x, int64_t dims, void* values, uint16_t* scales) {
  if (type == CacheType::F32) {
    memcpy(values, x, size_t(dims) * 4);
  } else if (type == CacheType::Q8) {
    store_q8(x, dims, static_cast<int8_t*>(values), scales);
  } else {
    uint16_t* halves = static_cast<uint16_t*>(values);
    int64_t i = 0;
    for (; i + W <= dims; i += W) store_half(halves + i, load(x + i));
    for (; i < dims; ++i) halves[i] = quant::float_to_f16(x[i]);
  }
}

}  // namespace
}  // namespace conifer::attention
