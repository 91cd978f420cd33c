// Row-by-row float32 arithmetic for one instruction set. See isa/kernels.h.
#pragma once

#include "isa/simd.h"

namespace conifer::isa {
namespace {

float squares_row(const float* x, int64_t n) {
  VF squares[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int j = 0; j < 4; ++j) {
      const VF v = load(x + i + j * W);
      squares[j] = squares[j] + v * v;
    }
  float total = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
  for (; i < n; ++i) total += x[i] * x[i];
  return total;
}

void rms_norm_row(const float* x, const float* weight, float eps, int64_t n, float* y) {
  const float factor = 1.0f / __builtin_sqrtf(squares_row(x, n) / float(n) + eps);
  int64_t i = 0;
  for (; i + W <= n; i += W) store(y + i, load(x + i) * factor * load(weight + i));
  for (; i < n; ++i) y[i] = x[i] * factor * weight[i];
}

// bias may be null.
void layer_norm_row(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                    float* y) {
  VF sums = {}, squares = {};
  int64_t i = 0;
  for (; i + W <= n; i += W) sums = sums + load(x + i);
  float total = sum(sums), spread = 0.0f;
  for (; i < n; ++i) total += x[i];
  const float mean = total / float(n);
  for (i = 0; i + W <= n; i += W) {
    const VF v = load(x + i) - mean;
    squares = squares + v * v;
  }
  for (spread = sum(squares); i < n; ++i) spread += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.0f / __builtin_sqrtf(spread / float(n) + eps);
  for (i = 0; i + W <= n; i += W) {
    const VF v = (load(x + i) - mean) * factor * load(weight + i);
    store(y + i, bias ? v + load(bias + i) : v);
  }
  for (; i < n; ++i) y[i] = (x[i] - mean) * factor * weight[i] + (bias ? bias[i] : 0.0f);
}

void rotate_row(float* x, const float* cosines, const float* sines, int64_t dims,
                bool interleaved) {
  const int64_t pairs = dims / 2;
  int64_t i = 0;
  if (interleaved) {
    for (; i < pairs; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cosines[i] - b * sines[i];
      x[2 * i + 1] = a * sines[i] + b * cosines[i];
    }
    return;
  }
  float* high = x + pairs;
  for (; i + W <= pairs; i += W) {
    const VF a = load(x + i), b = load(high + i), c = load(cosines + i), s = load(sines + i);
    store(x + i, a * c - b * s);
    store(high + i, a * s + b * c);
  }
  for (; i < pairs; ++i) {
    const float a = x[i], b = high[i];
    x[i] = a * cosines[i] - b * sines[i];
    high[i] = a * sines[i] + b * cosines[i];
  }
}

// Apply `step` to whole vectors, and to a padded copy of the remainder.
template <class Step>
CONIFER_INLINE void map(const float* a, const float* b, int64_t n, float* y, Step step) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(y + i, step(load(a + i), load(b + i)));
  if (i == n) return;
  float u[W] = {}, v[W] = {};
  memcpy(u, a + i, size_t(n - i) * 4);
  memcpy(v, b + i, size_t(n - i) * 4);
  store(u, step(load(u), load(v)));
  memcpy(y + i, u, size_t(n - i) * 4);
}

void silu_multiply_row(const float* gate, const float* up, int64_t n, float* y) {
  map(gate, up, n, y, [](VF g, VF u) { return g * u / (1.0f + exponential(-g)); });
}

// gate * sigmoid(CLAMP_SLOPE gate) * (up + 1), where gate is at most CLAMP_LIMIT and up is in
// -CLAMP_LIMIT..CLAMP_LIMIT.
constexpr float CLAMP_SLOPE = 1.702f, CLAMP_LIMIT = 7.0f;

void clamped_multiply_row(const float* gate, const float* up, int64_t n, float* y) {
  map(gate, up, n, y, [](VF g, VF u) {
    g = smaller(g, fill(CLAMP_LIMIT));
    u = smaller(larger(u, fill(-CLAMP_LIMIT)), fill(CLAMP_LIMIT));
    return g * (u + 1.0f) / (1.0f + exponential(g * -CLAMP_SLOPE));
  });
}

// min(silu(gate), limit) * up, where up is in -limit..limit.
void capped_multiply_row(const float* gate, const float* up, float limit, int64_t n, float* y) {
  map(gate, up, n, y, [limit](VF g, VF u) {
    const VF capped = smaller(larger(u, fill(-limit)), fill(limit));
    return smaller(g / (1.0f + exponential(-g)), fill(limit)) * capped;
  });
}

// The tanh approximation of GELU, g (1 + tanh(u)) / 2, is g / (1 + e^(-2u)).
void gelu_multiply_row(const float* gate, const float* up, int64_t n, float* y) {
  constexpr float SLOPE = 0.7978845608f, CUBE = 0.044715f;  // sqrt(2 / pi)
  map(gate, up, n, y, [](VF g, VF u) {
    const VF turned = (g + g * g * g * CUBE) * (-2.0f * SLOPE);
    return g * u / (1.0f + exponential(turned));
  });
}

void sigmoid_multiply_row(const float* gate, const float* x, int64_t n, float* y) {
  map(gate, x, n, y, [](VF g, VF u) { return u / (1.0f + exponential(-g)); });
}

void add_row(const float* a, const float* b, int64_t n, float* y) {
  map(a, b, n, y, [](VF u, VF v) { return u + v; });
}

void add_scaled_row(const float* x, float factor, int64_t n, float* y) {
  map(x, y, n, y, [factor](VF u, VF v) { return v + u * factor; });
}

void scale_row(const float* x, float factor, int64_t n, float* y) {
  map(x, x, n, y, [factor](VF u, VF) { return u * factor; });
}

float peak_row(const float* x, int64_t n) {
  VF tops = fill(-__builtin_inff());
  VU bad = {};
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const VF v = load(x + i);
    tops = larger(v, tops);
    bad |= (VU) !(v - v == 0.0f);
  }
  float top = largest(tops);
  uint32_t lanes[W], any = 0;
  memcpy(lanes, &bad, sizeof bad);
  for (uint32_t lane : lanes) any |= lane;
  for (; i < n; ++i) {
    any |= !(x[i] - x[i] == 0.0f);
    top = x[i] > top ? x[i] : top;
  }
  return any ? __builtin_nanf("") : top;
}

// Of finite numbers, the bits without the sign are less than those of infinity.
bool all_finite_row(const float* x, int64_t n) {
  constexpr uint32_t SIGNLESS = 0x7fffffff, INFINITE = 0x7f800000;
  VU tops[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int j = 0; j < 4; ++j) {
      const VU bits = (VU)load(x + i + j * W) & SIGNLESS;
      tops[j] = bits > tops[j] ? bits : tops[j];
    }
  bool finite = true;
  for (const VU& top : tops)
    for (int lane = 0; lane < W; ++lane) finite &= top[lane] < INFINITE;
  for (; i < n; ++i) finite &= (quant::float_bits(x[i]) & SIGNLESS) < INFINITE;
  return finite;
}

float weigh_row(const float* x, float top, float factor, int64_t n, float* y) {
  constexpr float LEAST = -63.0f;  // smaller exponents count as zero
  VF sums = {};
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const VF power = (load(x + i) - top) * factor;
    const VF weight = power > LEAST ? exponential(power) : VF{};
    store(y + i, weight);
    sums = sums + weight;
  }
  float total = sum(sums);
  for (; i < n; ++i) {
    const float power = (x[i] - top) * factor;
    total += y[i] = power > LEAST ? exponential(fill(power))[0] : 0.0f;
  }
  return total;
}

}  // namespace
}  // namespace conifer::isa
