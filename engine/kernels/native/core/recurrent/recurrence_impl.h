// The convolution and the recurrence for one instruction set, on a range of columns. Channels are
// independent, and so are state columns. See recurrence.h.
#pragma once

#include <type_traits>

#include "isa/simd.h"
#include "recurrent/recurrence.h"

namespace conifer::recurrent {

namespace {

using namespace isa;  // vectors

template <class V>
constexpr int LANES = std::is_same_v<V, float> ? 1 : W;

template <class V>
CONIFER_INLINE V get(const float* p) {
  if constexpr (std::is_same_v<V, float>) return *p;
  else return load(p);
}

CONIFER_INLINE void put(float* p, VF v) { store(p, v); }
CONIFER_INLINE void put(float* p, float v) { *p = v; }
CONIFER_INLINE VF silu(VF x) { return x / (1.0f + exponential(-x)); }
CONIFER_INLINE float silu(float x) { return x / (1.0f + __builtin_expf(-x)); }

template <class V>
CONIFER_INLINE void convolve_column(const Convolution& call, const float* const* rows, int64_t c,
                                    float* y) {
  V total = call.bias ? get<V>(call.bias + c) : V{};
  for (int64_t i = 0; i < call.kernel; ++i)
    total = total + get<V>(rows[i] + c) * get<V>(call.taps + i * call.channels + c);
  put(y + c, call.activate ? silu(total) : total);
}

void convolve_columns(const Convolution& call, int64_t begin, int64_t end, float* y) {
  const int64_t before = call.kernel - 1;
  const float* rows[MAX_TAPS];
  for (int64_t t = 0; t < call.tokens; ++t, y += call.channels) {
    for (int64_t i = 0; i < call.kernel; ++i)
      rows[i] = t + i < before ? call.tail + (t + i) * call.channels
                               : call.x + (t + i - before) * call.stride;
    int64_t c = begin;
    for (; c + W <= end; c += W) convolve_column<VF>(call, rows, c, y);
    for (; c < end; ++c) convolve_column<float>(call, rows, c, y);
  }
}

enum class Rule { Plain, Delta, DeltaOfChannels };

// One token, for COUNT vectors of state columns: from `in` to `out`, whose rows are N apart.
template <class V, int COUNT, Rule RULE>
CONIFER_INLINE void scan_token(const HeadScan& head, int64_t t, const float* in, int64_t in_stride,
                               float* out, int64_t out_stride, int64_t column) {
  constexpr int L = LANES<V>;
  const float* q = head.q + t * head.key_stride;
  const float* k = head.k + t * head.key_stride;
  const float* v = head.v + t * head.value_stride + column;
  float* y = head.y + t * head.y_stride + column;
  constexpr bool CHANNELS = RULE == Rule::DeltaOfChannels;
  const float* decays = head.decay + t * head.decay_stride;
  const float decay = *decays;
  const float factor = head.factor ? head.factor[t * head.scalar_stride] : 1.0f;
  V u[COUNT], read[COUNT] = {};
  for (int j = 0; j < COUNT; ++j) u[j] = get<V>(v + j * L);
  for (int j = 0; j < COUNT; ++j) read[j] = u[j] * head.skip;
  if constexpr (RULE != Rule::Plain) {
    V known[2][COUNT] = {};  // two sums each, so that additions overlap
    int64_t i = 0;
    for (; i + 2 <= head.width; i += 2)
      for (int half = 0; half < 2; ++half) {
        const float* row = in + (i + half) * in_stride;
        const float key = CHANNELS ? k[i + half] * decays[i + half] : k[i + half];
        for (int j = 0; j < COUNT; ++j) known[half][j] = known[half][j] + get<V>(row + j * L) * key;
      }
    if (i < head.width) {
      const float key = CHANNELS ? k[i] * decays[i] : k[i];
      for (int j = 0; j < COUNT; ++j)
        known[0][j] = known[0][j] + get<V>(in + i * in_stride + j * L) * key;
    }
    const float later = CHANNELS ? 1.0f : decay;
    for (int j = 0; j < COUNT; ++j) u[j] = u[j] - (known[0][j] + known[1][j]) * later;
  }
  for (int j = 0; j < COUNT; ++j) u[j] = u[j] * factor;
  for (int64_t i = 0; i < head.width; ++i) {
    const float kept = CHANNELS ? decays[i] : decay;
    for (int j = 0; j < COUNT; ++j) {
      const V s = get<V>(in + i * in_stride + j * L) * kept + u[j] * k[i];
      put(out + i * out_stride + j * L, s);
      read[j] = read[j] + s * q[i];
    }
  }
  for (int j = 0; j < COUNT; ++j) put(y + j * L, read[j]);
}

// All tokens, for some columns. `scratch` (N * COUNT vectors) holds their state.
template <class V, int COUNT, Rule RULE>
void scan_block(const HeadScan& head, int64_t column, float* scratch) {
  constexpr int64_t SIZE = COUNT * LANES<V>;
  const int64_t last = head.tokens - 1;
  for (int64_t t = 0; t <= last; ++t) {
    const float* in = t == 0 ? head.state + column : scratch;
    float* out = t == last ? head.end + column : scratch;
    scan_token<V, COUNT, RULE>(head, t, in, t == 0 ? head.values : SIZE, out,
                               t == last ? head.values : SIZE, column);
  }
}

template <Rule RULE>
void scan_some(const HeadScan& head, int64_t begin, int64_t end, float* scratch) {
  int64_t c = begin;
  for (; c + 4 * W <= end; c += 4 * W) scan_block<VF, 4, RULE>(head, c, scratch);
  for (; c + W <= end; c += W) scan_block<VF, 1, RULE>(head, c, scratch);
  for (; c < end; ++c) scan_block<float, 1, RULE>(head, c, scratch);
}

void scan_columns(const HeadScan& head, int64_t begin, int64_t end, float* scratch) {
  if (head.channels) scan_some<Rule::DeltaOfChannels>(head, begin, end, scratch);
  else if (head.delta) scan_some<Rule::Delta>(head, begin, end, scratch);
  else scan_some<Rule::Plain>(head, begin, end, scratch);
}

}  // namespace
}  // namespace conifer::recurrent
