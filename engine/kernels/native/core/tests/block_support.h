// Helpers for block tests: random weights, a readable cache, plain loops in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "blocks/block.h"
#include "everywhere.h"

using namespace conifer;
using namespace conifer::attention;
using namespace conifer::blocks;
using namespace conifer::tests;
using quant::Type;

namespace {

using Doubles = std::vector<double>;
using Floats32 = std::vector<float>;

std::mt19937_64 generator(7);

float gaussian(double size = 1.0) {
  return float(std::normal_distribution<double>(0.0, size)(generator));
}

Floats32 gaussians(int64_t n, double size = 1.0, double mean = 0.0) {
  Floats32 x(static_cast<size_t>(n));
  for (float& value : x) value = float(mean) + gaussian(size);
  return x;
}

// True if the RMS difference is at most `tolerance` times the RMS of the expected values.
void expect_close(const float* got, const Doubles& want, double tolerance,
                  const std::string& what) {
  double difference = 0.0, size = 1e-30;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  const double error = std::sqrt(difference / size);
  expect(error <= tolerance, what + ": error " + std::to_string(error));
}

// A matrix, its bytes, and its weights as floats. Types: F32, F16 and Q8_0.
struct Weights {
  std::vector<uint8_t> bytes;
  Floats32 floats;
  Matrix matrix;

  Weights(Type type, int64_t rows, int64_t cols, int64_t stack = 1, double size = 0.0)
      : bytes(size_t(stack * rows * quant::row_bytes(type, cols))) {
    if (size == 0.0) size = 1.0 / std::sqrt(double(cols));
    matrix = {bytes.data(), type, rows, cols};
    const Matrix all{bytes.data(), type, stack * rows, cols};
    const int64_t weights = stack * rows * cols;
    for (int64_t i = 0; i < weights; ++i) {
      if (type == Type::F32) reinterpret_cast<float*>(bytes.data())[i] = gaussian(size);
      if (type == Type::F16)
        reinterpret_cast<uint16_t*>(bytes.data())[i] = quant::float_to_f16(gaussian(size));
    }
    if (type == Type::Q8_0)
      for (int64_t i = 0; i < weights / 32; ++i) {
        quant::BlockQ8_0& block = reinterpret_cast<quant::BlockQ8_0*>(bytes.data())[i];
        block.d = quant::float_to_f16(float(size / 50.0));
        for (int8_t& q : block.q) q = int8_t(std::clamp(gaussian(50.0), -127.0f, 127.0f));
      }
    floats.resize(size_t(weights));
    std::vector<int32_t> ids(size_t(all.rows));
    std::iota(ids.begin(), ids.end(), 0);
    gemm::dequantize_rows(all, ids.data(), all.rows, floats.data());
  }
};

Doubles multiply(const Weights& w, const Doubles& x, int64_t expert = 0) {
  const int64_t rows = w.matrix.rows, cols = w.matrix.cols, tokens = int64_t(x.size()) / cols;
  Doubles y(size_t(tokens * rows));
  const float* weights = w.floats.data() + expert * rows * cols;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c)
        y[size_t(t * rows + r)] += double(weights[r * cols + c]) * x[size_t(t * cols + c)];
  return y;
}

// Normalise each run of n values.
Doubles normed(const Doubles& x, const Norm& norm, int64_t n) {
  Doubles y = x;
  for (size_t begin = 0; begin < x.size(); begin += size_t(n)) {
    double mean = 0.0, squares = 0.0;
    for (int64_t i = 0; i < n && norm.centred; ++i) mean += x[begin + size_t(i)] / double(n);
    for (int64_t i = 0; i < n; ++i) y[begin + size_t(i)] -= mean;
    for (int64_t i = 0; i < n; ++i) squares += y[begin + size_t(i)] * y[begin + size_t(i)];
    const double factor = 1.0 / std::sqrt(squares / double(n) + norm.eps);
    for (int64_t i = 0; i < n; ++i) {
      double& value = y[begin + size_t(i)];
      value = value * factor * norm.weight[i] + (norm.bias ? norm.bias[i] : 0.0f);
    }
  }
  return y;
}

void rotate_all(Doubles& x, const Rope& rope, int64_t heads, int64_t dims, int64_t offset) {
  const int64_t pairs = rope.dims / 2;
  for (int64_t row = 0; row < int64_t(x.size()) / dims; ++row)
    for (int64_t i = 0; i < pairs; ++i) {
      const double angle = double(offset + row / heads) / double(rope.periods[i]);
      double& a = x[size_t(row * dims + (rope.interleaved ? 2 * i : i))];
      double& b = x[size_t(row * dims + (rope.interleaved ? 2 * i + 1 : i + pairs))];
      const double c = std::cos(angle) * rope.magnitude, s = std::sin(angle) * rope.magnitude;
      const double turned = a * c - b * s;
      b = a * s + b * c;
      a = turned;
    }
}

double silu(double x) { return x / (1.0 + std::exp(-x)); }

double softplus(double x) { return std::log1p(std::exp(x)); }

double gelu(double x) {
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

// What a feed-forward layer computes of one gate and one up value. gated: it has a gate.
double activated(Activation activation, double limit, bool gated, double gate, double up) {
  if (!gated) return up > 0.0 ? up * up : 0.0;
  switch (activation) {
    case Activation::Silu: return silu(gate) * up;
    case Activation::Gelu: return gelu(gate) * up;
    case Activation::Capped: return std::min(silu(gate), limit) * std::clamp(up, -limit, limit);
    case Activation::Clamped: break;
  }
  gate = std::min(gate, 7.0);
  return gate / (1.0 + std::exp(-1.702 * gate)) * (std::clamp(up, -7.0, 7.0) + 1.0);
}

// A cache that owns its memory and can be read as doubles.
struct TestCache {
  KVCache cache;
  int64_t heads;
  std::vector<uint8_t> memory[2];
  std::vector<uint16_t> scales[2];

  TestCache(CacheType type, int64_t heads, int64_t capacity, int64_t key_dim, int64_t value_dim)
      : heads(heads) {
    const int64_t dims[2] = {key_dim, value_dim};
    for (int i = 0; i < 2; ++i) {
      memory[i].resize(size_t(heads * capacity * dims[i] * 4));
      scales[i].resize(size_t(heads * capacity * dims[i]));
    }
    cache = {type,
             capacity,
             0,
             {memory[0].data(), scales[0].data()},
             {memory[1].data(), scales[1].data()}};
  }

  double at(int which, int64_t head, int64_t token, int64_t dims, int64_t i) const {
    const size_t n = size_t((head * cache.capacity + token) * dims + i);
    const uint8_t* bytes = memory[which].data();
    if (cache.type == CacheType::F32) return reinterpret_cast<const float*>(bytes)[n];
    if (cache.type == CacheType::F16)
      return quant::f16_to_float(reinterpret_cast<const uint16_t*>(bytes)[n]);
    return reinterpret_cast<const int8_t*>(bytes)[n] *
           double(quant::f16_to_float(scales[which][n / size_t(q8_group(dims))]));
  }
};

void add_bias(Doubles& x, const float* bias, int64_t n) {
  if (bias)
    for (size_t i = 0; i < x.size(); ++i) x[i] += bias[int64_t(i) % n];
}

}  // namespace
