// The convolution and the recurrence for one instruction set, on some of their columns: each
// channel, and each column of a state, goes its own way. See recurrence.h.
#pragma once

#include <type_traits>

#include "recurrence.h"
#include "simd.h"

namespace conifer {

namespace {

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
                               : call.x + (t + i - before) * call.channels;
    int64_t c = begin;
    for (; c + W <= end; c += W) convolve_column<VF>(call, rows, c, y);
    for (; c < end; ++c) convolve_column<float>(call, rows, c, y);
  }
}

float squares(const float* x, int64_t n) {
  VF total{};
  int64_t i = 0;
  for (; i + W <= n; i += W) total = total + load(x + i) * load(x + i);
  float rest = sum(total);
  for (; i < n; ++i) rest += x[i] * x[i];
  return rest;
}

// One token, for COUNT vectors of a state's columns: from `in` to `out`, whose rows are N apart.
// q and k are yet to be multiplied by their factors.
template <class V, int COUNT>
CONIFER_INLINE void scan_token(const HeadScan& head, int64_t t, const float* in, int64_t in_stride,
                               float* out, int64_t out_stride, int64_t column) {
  constexpr int L = LANES<V>;
  const float* q = head.q + t * head.key_stride;
  const float* k = head.k + t * head.key_stride;
  const float* v = head.v + t * head.value_stride + column;
  float* y = head.y + t * head.value_stride + column;
  const float decay = __builtin_expf(head.log_decay[t * head.head_stride]);
  float q_factor = 1.0f;
  V u[COUNT], read[COUNT] = {};
  if (head.beta) {
    const float n = float(head.width);
    q_factor = 1.0f / __builtin_sqrtf((squares(q, head.width) + head.eps) * n);
    const float k_factor = 1.0f / __builtin_sqrtf(squares(k, head.width) + head.eps);
    const float beta = head.beta[t * head.head_stride] * k_factor;
    V known[COUNT] = {};
    for (int64_t i = 0; i < head.width; ++i)
      for (int j = 0; j < COUNT; ++j)
        known[j] = known[j] + get<V>(in + i * in_stride + j * L) * k[i];
    for (int j = 0; j < COUNT; ++j)
      u[j] = (get<V>(v + j * L) - known[j] * (decay * k_factor)) * beta;
  } else {
    for (int j = 0; j < COUNT; ++j) u[j] = get<V>(v + j * L);
  }
  for (int64_t i = 0; i < head.width; ++i)
    for (int j = 0; j < COUNT; ++j) {
      const V s = get<V>(in + i * in_stride + j * L) * decay + u[j] * k[i];
      put(out + i * out_stride + j * L, s);
      read[j] = read[j] + s * q[i];
    }
  for (int j = 0; j < COUNT; ++j) put(y + j * L, read[j] * q_factor);
}

// All tokens for some columns, whose state lies in `scratch` (N * COUNT vectors) on the way.
template <class V, int COUNT>
void scan_block(const HeadScan& head, int64_t column, float* scratch) {
  constexpr int64_t SIZE = COUNT * LANES<V>;
  const int64_t last = head.tokens - 1;
  for (int64_t t = 0; t <= last; ++t) {
    const float* in = t == 0 ? head.state + column : scratch;
    float* out = t == last ? head.end + column : scratch;
    scan_token<V, COUNT>(head, t, in, t == 0 ? head.values : SIZE, out,
                         t == last ? head.values : SIZE, column);
  }
}

void scan_columns(const HeadScan& head, int64_t begin, int64_t end, float* scratch) {
  int64_t c = begin;
  for (; c + 4 * W <= end; c += 4 * W) scan_block<VF, 4>(head, c, scratch);
  for (; c + W <= end; c += W) scan_block<VF, 1>(head, c, scratch);
  for (; c < end; ++c) scan_block<float, 1>(head, c, scratch);
}

}  // namespace
}  // namespace conifer
