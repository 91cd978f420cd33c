// The pool and the blocks against plain loops in float64. Exits with the number of failures.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "block.h"
#include "latent.h"

using namespace conifer;

namespace {

using Doubles = std::vector<double>;
using Floats32 = std::vector<float>;

std::mt19937_64 generator(7);
int failures = 0;
int checks = 0;

float gaussian(double size = 1.0) {
  return float(std::normal_distribution<double>(0.0, size)(generator));
}

Floats32 gaussians(int64_t n, double size = 1.0, double mean = 0.0) {
  Floats32 x(static_cast<size_t>(n));
  for (float& value : x) value = float(mean) + gaussian(size);
  return x;
}

void expect(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAIL %s\n", what.c_str());
}

// The root mean square difference is at most `tolerance` of the wanted values' own.
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
      : bytes(size_t(stack * rows * row_bytes(type, cols))) {
    if (size == 0.0) size = 1.0 / std::sqrt(double(cols));
    matrix = {bytes.data(), type, rows, cols};
    const Matrix all{bytes.data(), type, stack * rows, cols};
    const int64_t weights = stack * rows * cols;
    for (int64_t i = 0; i < weights; ++i) {
      if (type == Type::F32) reinterpret_cast<float*>(bytes.data())[i] = gaussian(size);
      if (type == Type::F16)
        reinterpret_cast<uint16_t*>(bytes.data())[i] = float_to_f16(gaussian(size));
    }
    if (type == Type::Q8_0)
      for (int64_t i = 0; i < weights / 32; ++i) {
        BlockQ8_0& block = reinterpret_cast<BlockQ8_0*>(bytes.data())[i];
        block.d = float_to_f16(float(size / 50.0));
        for (int8_t& q : block.q) q = int8_t(std::clamp(gaussian(50.0), -127.0f, 127.0f));
      }
    floats.resize(size_t(weights));
    std::vector<int32_t> ids(size_t(all.rows));
    std::iota(ids.begin(), ids.end(), 0);
    dequantize_rows(all, ids.data(), all.rows, floats.data());
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

// Norm every run of n values.
Doubles normed(const Doubles& x, const Norm& norm, int64_t n) {
  Doubles y = x;
  for (size_t begin = 0; begin < x.size(); begin += size_t(n)) {
    double squares = 0.0;
    for (int64_t i = 0; i < n; ++i) squares += x[begin + size_t(i)] * x[begin + size_t(i)];
    const double factor = 1.0 / std::sqrt(squares / double(n) + norm.eps);
    for (int64_t i = 0; i < n; ++i) y[begin + size_t(i)] *= factor * norm.weight[i];
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

// A cache of its own memory, which reads back as doubles.
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
    cache = {type, capacity, 0, {memory[0].data(), scales[0].data()},
             {memory[1].data(), scales[1].data()}};
  }

  double at(int which, int64_t head, int64_t token, int64_t dims, int64_t i) const {
    const size_t n = size_t((head * cache.capacity + token) * dims + i);
    const uint8_t* bytes = memory[which].data();
    if (cache.type == CacheType::F32) return reinterpret_cast<const float*>(bytes)[n];
    if (cache.type == CacheType::F16)
      return f16_to_float(reinterpret_cast<const uint16_t*>(bytes)[n]);
    return reinterpret_cast<const int8_t*>(bytes)[n] *
           double(f16_to_float(scales[which][n / size_t(q8_group(dims))]));
  }
};

struct AttentionCase {
  int64_t heads, kv_heads, key_dim, value_dim, rope_dims;
  bool interleaved, extras;  // extras: biases, q and k norms, a magnitude
  Type type;
  CacheType cache;
  int64_t window = 0;
  bool sinks = false, whole_norms = false, norms_last = false;
  float residual = 1.0f;
  int64_t width = 96;
};

std::string describe(const AttentionCase& c) {
  char text[200];
  std::snprintf(text, sizeof text,
                "attention %d/%d heads of %d,%d rope %d%s type %d cache %d window %d%s%s%s",
                int(c.heads), int(c.kv_heads), int(c.key_dim), int(c.value_dim),
                int(c.rope_dims), c.interleaved ? "i" : "", int(c.type), int(c.cache),
                int(c.window), c.sinks ? " sinks" : "", c.whole_norms ? " whole norms" : "",
                c.norms_last ? " norms last" : "");
  return text;
}

// What one call should give, reading the keys and values that it stored.
Doubles attention_reference(const AttentionLayer& layer, const Doubles& q,
                            const std::function<double(int, int64_t, int64_t, int64_t)>& stored,
                            int64_t past, int64_t tokens) {
  const int64_t group = layer.heads / layer.kv_heads;
  Doubles mixed;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < layer.heads; ++h) {
      Doubles scores;
      const int64_t first = layer.window ? std::max<int64_t>(past + t + 1 - layer.window, 0) : 0;
      for (int64_t s = first; s <= past + t; ++s) {
        double dot = 0.0;
        for (int64_t i = 0; i < layer.key_dim; ++i)
          dot += q[size_t((t * layer.heads + h) * layer.key_dim + i)] *
                 stored(0, h / group, s, i);
        scores.push_back(dot * layer.scale);
      }
      const double top = *std::max_element(scores.begin(), scores.end());
      double total = layer.sinks ? std::exp(layer.sinks[h] - top) : 0.0;
      for (double& score : scores) total += score = std::exp(score - top);
      for (int64_t i = 0; i < layer.value_dim; ++i) {
        double sum = 0.0;
        for (int64_t s = first; s <= past + t; ++s)
          sum += scores[size_t(s - first)] / total * stored(1, h / group, s, i);
        mixed.push_back(sum);
      }
    }
  return mixed;
}

void add_bias(Doubles& x, const float* bias, int64_t n) {
  if (bias)
    for (size_t i = 0; i < x.size(); ++i) x[i] += bias[int64_t(i) % n];
}

void test_attention(const AttentionCase& c, Pool& pool) {
  const int64_t q_rows = c.heads * c.key_dim, k_rows = c.kv_heads * c.key_dim;
  const int64_t v_rows = c.kv_heads * c.value_dim;
  const Weights q(c.type, q_rows, c.width), k(c.type, k_rows, c.width);
  const Weights v(c.type, v_rows, c.width), output(c.type, c.width, c.heads * c.value_dim);
  const Floats32 gain = gaussians(c.width, 0.2, 1.0), head_gain = gaussians(q_rows, 0.2, 1.0);
  const Floats32 sinks = gaussians(c.heads);
  const Floats32 bias = gaussians(std::max(q_rows, c.width));
  Floats32 periods;
  for (int64_t i = 0; i < c.rope_dims; i += 2)
    periods.push_back(float(std::pow(10000.0, double(i) / double(c.rope_dims))));
  AttentionLayer layer{};
  layer.norm = {gain.data(), 1e-5f};
  layer.q = q.matrix, layer.k = k.matrix, layer.v = v.matrix, layer.output = output.matrix;
  if (c.extras) {
    layer.q_bias = layer.k_bias = layer.v_bias = layer.output_bias = bias.data();
    layer.q_norm = layer.k_norm = {head_gain.data(), 1e-6f};
  }
  layer.rope = {periods.data(), c.rope_dims, c.interleaved, c.extras ? 1.25f : 1.0f};
  layer.heads = c.heads, layer.kv_heads = c.kv_heads;
  layer.key_dim = c.key_dim, layer.value_dim = c.value_dim;
  layer.scale = float(1.0 / std::sqrt(double(c.key_dim)));
  layer.window = c.window, layer.residual = c.residual;
  layer.whole_norms = c.whole_norms, layer.norms_last = c.norms_last;
  if (c.sinks) layer.sinks = sinks.data();

  Workspace work;
  TestCache cache(c.cache, c.kv_heads, 300, c.key_dim, c.value_dim);
  const double stored_tolerance =
      (c.cache == CacheType::F32 ? 2e-6 : c.cache == CacheType::F16 ? 4e-4 : 1e-2) +
      (c.type == Type::Q8_0 ? 1e-2 : 0.0);
  const double tolerance = c.type == Type::Q8_0         ? 1.5e-2
                           : c.cache == CacheType::Q8 ? 5e-5  // AMX rounds to 15 bits
                                                      : 5e-6;
  int64_t past = 0;
  for (int64_t tokens : {1, 33, 3, 1, 200, 1, 1}) {
    const std::string what = describe(c) + " T " + std::to_string(tokens) + " after " +
                             std::to_string(past) + " threads " + std::to_string(pool.threads());
    const bool cached = past != 38;  // once, the tokens see only each other
    const int64_t before = cached ? past : 0;
    Floats32 x = gaussians(tokens * c.width), y(x.size());
    attention_block(layer, cached ? &cache.cache : nullptr, past, x.data(), tokens, y.data(),
                    work, pool);
    const Doubles h = normed(Doubles(x.begin(), x.end()), layer.norm, c.width);
    Doubles queries = multiply(q, h), keys = multiply(k, h), values = multiply(v, h);
    add_bias(queries, layer.q_bias, q_rows);
    add_bias(keys, layer.k_bias, k_rows);
    add_bias(values, layer.v_bias, v_rows);
    const auto norm_both = [&] {
      queries = normed(queries, layer.q_norm, c.whole_norms ? q_rows : c.key_dim);
      keys = normed(keys, layer.k_norm, c.whole_norms ? k_rows : c.key_dim);
    };
    if (c.extras && !c.norms_last) norm_both();
    rotate_all(queries, layer.rope, c.heads, c.key_dim, past);
    rotate_all(keys, layer.rope, c.kv_heads, c.key_dim, past);
    if (c.extras && c.norms_last) norm_both();
    const auto made = [&](int which, int64_t head, int64_t token, int64_t i) {
      const int64_t dims = which ? c.value_dim : c.key_dim;
      return (which ? values : keys)[size_t((token * c.kv_heads + head) * dims + i)];
    };
    const auto stored = [&](int which, int64_t head, int64_t token, int64_t i) {
      if (!cached) return made(which, head, token, i);
      return cache.at(which, head, token, which ? c.value_dim : c.key_dim, i);
    };
    if (cached)
      for (int which : {0, 1}) {
        const int64_t dims = which ? c.value_dim : c.key_dim;
        Floats32 got;
        Doubles want;
        for (int64_t head = 0; head < c.kv_heads; ++head)
          for (int64_t t = 0; t < tokens; ++t)
            for (int64_t i = 0; i < dims; ++i) {
              got.push_back(float(stored(which, head, past + t, i)));
              want.push_back(made(which, head, t, i));
            }
        expect_close(got.data(), want, stored_tolerance, what + (which ? " values" : " keys"));
      }
    Doubles want = multiply(output, attention_reference(layer, queries, stored, before, tokens));
    add_bias(want, layer.output_bias, c.width);
    for (size_t i = 0; i < want.size(); ++i) want[i] = x[i] + c.residual * want[i];
    expect_close(y.data(), want, tolerance, what);
    attention_block(layer, cached ? &cache.cache : nullptr, past, x.data(), tokens, x.data(),
                    work, pool);
    expect(x == y, what + " in place");
    if (cached || past == 38) past += cached ? tokens : 0;
    if (!cached) {  // and now with the cache, so that the next calls find no gap
      x = gaussians(tokens * c.width);
      attention_block(layer, &cache.cache, past, x.data(), tokens, y.data(), work, pool);
      past += tokens;
    }
  }
}

double clamped(double gate, double up) {
  gate = std::min(gate, 7.0);
  return gate / (1.0 + std::exp(-1.702 * gate)) * (std::clamp(up, -7.0, 7.0) + 1.0);
}

// bias: of all three, of every expert, the same; may be null.
Doubles gated(const Weights& gate, const Weights& up, const Weights& down, const Doubles& h,
              int64_t expert, Activation activation = Activation::Silu,
              const float* bias = nullptr) {
  Doubles hidden = multiply(gate, h, expert), other = multiply(up, h, expert);
  add_bias(hidden, bias, gate.matrix.rows);
  add_bias(other, bias, up.matrix.rows);
  for (size_t i = 0; i < hidden.size(); ++i)
    hidden[i] = activation == Activation::Clamped ? clamped(hidden[i], other[i])
                                                  : silu(hidden[i]) * other[i];
  Doubles y = multiply(down, hidden, expert);
  add_bias(y, bias, down.matrix.rows);
  return y;
}

struct LatentCase {
  int64_t heads, key_dim, value_dim, length, tokens;
};

// Rows that are keys and begin with their values, as a cache stores them.
void test_latent(const LatentCase& c, CacheType type, Pool& pool) {
  char what[120];
  std::snprintf(what, sizeof what, "latent attention %d heads of %d,%d, %d of %d tokens, cache %d",
                int(c.heads), int(c.key_dim), int(c.value_dim), int(c.tokens), int(c.length),
                int(type));
  TestCache cache(type, 1, c.length, c.key_dim, 1);
  for (int64_t t = 0; t < c.length; ++t)
    append(cache.cache, cache.cache.keys, 0, t, gaussians(c.key_dim).data(), c.key_dim);
  const Floats32 queries = gaussians(c.tokens * c.heads * c.key_dim, 1 / std::sqrt(c.key_dim));
  Doubles want(size_t(c.tokens * c.heads * c.value_dim), 0.0);
  for (int64_t row = 0; row < c.tokens * c.heads; ++row) {
    const int64_t visible = c.length - c.tokens + row / c.heads + 1;
    Doubles weights(size_t(visible), 0.0);
    double total = 0.0;
    for (int64_t t = 0; t < visible; ++t) {
      double score = 0.0;
      for (int64_t i = 0; i < c.key_dim; ++i)
        score += queries[size_t(row * c.key_dim + i)] * cache.at(0, 0, t, c.key_dim, i);
      total += weights[size_t(t)] = std::exp(score);
    }
    for (int64_t t = 0; t < visible; ++t)
      for (int64_t i = 0; i < c.value_dim; ++i)
        want[size_t(row * c.value_dim + i)] +=
            weights[size_t(t)] / total * cache.at(0, 0, t, c.key_dim, i);
  }
  Floats32 out(want.size(), -1.0f);
  Workspace work;
  const CacheBuffer& rows = cache.cache.keys;
  latent_attention({type, rows.values, type == CacheType::Q8 ? rows.scales : nullptr, c.key_dim,
                    c.value_dim, c.length, queries.data(), c.tokens, c.heads, out.data()},
                   work, pool);
  expect_close(out.data(), want, 2e-6, what);
}

struct LatentBlockCase {
  int64_t heads, query_rank, stays, turned, rank, value_dim;
  Type type;
  CacheType cache;
};

void test_latent_block(const LatentBlockCase& c, Pool& pool) {
  const int64_t width = 64, key = c.stays + c.turned, row = c.rank + c.turned;
  const Weights q_a(c.type, std::max<int64_t>(c.query_rank, 1), width);
  const Weights q(c.type, c.heads * key, c.query_rank ? c.query_rank : width);
  const Weights kv_a(c.type, row, width), k_b(c.type, c.rank, c.stays, c.heads);
  const Weights v_b(c.type, c.value_dim, c.rank, c.heads);
  const Weights output(c.type, width, c.heads * c.value_dim);
  const Floats32 gain = gaussians(std::max(c.query_rank, std::max(c.rank, width)), 0.2, 1.0);
  Floats32 periods;
  for (int64_t i = 0; i < c.turned; i += 2) periods.push_back(float(1 + 3 * i));
  LatentLayer layer{};
  layer.norm = layer.q_norm = layer.kv_norm = {gain.data(), 1e-5f};
  if (c.query_rank) layer.q_a = q_a.matrix;
  layer.q = q.matrix, layer.kv_a = kv_a.matrix, layer.k_b = k_b.matrix, layer.v_b = v_b.matrix;
  layer.output = output.matrix;
  layer.rope = {periods.data(), c.turned, true, 1.0f};
  layer.heads = c.heads, layer.scale = 0.2f, layer.residual = 0.7f;
  Workspace work;
  TestCache cache(c.cache, 1, 100, row, 1);
  const double tolerance = c.type == Type::Q8_0 ? 2.5e-2 : c.cache == CacheType::F32 ? 5e-6 : 5e-4;
  int64_t past = 0;
  for (int64_t tokens : {1, 37, 3, 1}) {
    Floats32 x = gaussians(tokens * width), y(x.size());
    latent_block(layer, &cache.cache, past, x.data(), tokens, y.data(), work, pool);
    const Doubles h = normed(Doubles(x.begin(), x.end()), layer.norm, width);
    const Doubles low = c.query_rank ? normed(multiply(q_a, h), layer.q_norm, c.query_rank) : h;
    Doubles queries = multiply(q, low), want(x.begin(), x.end()), mixed;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t head = 0; head < c.heads; ++head) {
        const double* from = queries.data() + (t * c.heads + head) * key;
        Doubles query(size_t(row), 0.0), turned(from + c.stays, from + key), latent(size_t(c.rank));
        rotate_all(turned, layer.rope, 1, c.turned, past + t);
        for (int64_t r = 0; r < c.rank; ++r)
          for (int64_t i = 0; i < c.stays; ++i)
            query[size_t(r)] += from[i] * k_b.floats[size_t((head * c.rank + r) * c.stays + i)];
        std::copy(turned.begin(), turned.end(), query.begin() + c.rank);
        double total = 0.0;
        for (int64_t s = 0; s <= past + t; ++s) {
          double score = 0.0;
          for (int64_t i = 0; i < row; ++i) score += query[size_t(i)] * cache.at(0, 0, s, row, i);
          total += score = std::exp(score * layer.scale);
          for (int64_t i = 0; i < c.rank; ++i)
            latent[size_t(i)] += score * cache.at(0, 0, s, row, i);
        }
        for (double& value : latent) value /= total;
        const Doubles made = multiply(v_b, latent, head);
        mixed.insert(mixed.end(), made.begin(), made.end());
      }
    const Doubles added = multiply(output, mixed);
    for (size_t i = 0; i < want.size(); ++i) want[i] += layer.residual * added[i];
    expect_close(y.data(), want, tolerance,
                 "latent block, type " + std::to_string(int(c.type)) + " cache " +
                     std::to_string(int(c.cache)) + " T " + std::to_string(tokens) +
                     " threads " + std::to_string(pool.threads()));
    latent_block(layer, &cache.cache, past, x.data(), tokens, x.data(), work, pool);
    expect(x == y, "latent block in place");
    past += tokens;
  }
}

void test_dense(Type type, int64_t width, int64_t hidden, Pool& pool) {
  const Weights gate(type, hidden, width), up(type, hidden, width), down(type, width, hidden);
  const Weights output(type, 130, width);
  const Floats32 gain = gaussians(width, 0.2, 1.0);
  const DenseLayer layer{{gain.data(), 1e-5f}, gate.matrix, up.matrix, down.matrix, 1.0f};
  const Head head{layer.norm, output.matrix};
  Workspace work;
  const double tolerance = type == Type::Q8_0 ? 1.5e-2 : 3e-6;
  for (int64_t tokens : {1, 3, 33, 1}) {
    const std::string what = " type " + std::to_string(int(type)) + " width " +
                             std::to_string(width) + " T " + std::to_string(tokens) +
                             " threads " + std::to_string(pool.threads());
    Floats32 x = gaussians(tokens * width), y(x.size()), logits(size_t(tokens * 130));
    dense_block(layer, x.data(), tokens, y.data(), work, pool);
    const Doubles h = normed(Doubles(x.begin(), x.end()), layer.norm, width);
    Doubles want = gated(gate, up, down, h, 0);
    for (size_t i = 0; i < want.size(); ++i) want[i] += x[i];
    expect_close(y.data(), want, tolerance, "dense" + what);
    head_block(head, x.data(), tokens, logits.data(), work, pool);
    expect_close(logits.data(), multiply(output, h), tolerance, "head" + what);
    dense_block(layer, x.data(), tokens, x.data(), work, pool);
    expect(x == y, "dense in place" + what);
  }
}

// extras: biases of the experts, the clamped activation, a shared expert that is weighed.
void test_experts(Type type, const Routing& routing, bool same_for_all, Pool& pool,
                  bool extras = false) {
  const int64_t width = 64, hidden = 96, experts = routing.experts, used = routing.used;
  const Weights gate(type, hidden, width, experts), up(type, hidden, width, experts);
  const Weights down(type, width, hidden, experts);
  Weights router(Type::F32, experts, width);
  if (same_for_all) {  // all scores equal: the first experts get every token, the others none
    std::fill(router.bytes.begin(), router.bytes.end(), uint8_t(0));
    std::fill(router.floats.begin(), router.floats.end(), 0.0f);
  }
  const Floats32 gain = gaussians(width, 0.2, 1.0);
  ExpertLayer layer{{gain.data(), 1e-5f}, router.matrix, gate.matrix, up.matrix, down.matrix,
                    routing};
  const Floats32 one_bias = gaussians(hidden);  // of every projection of every expert
  Floats32 hidden_bias, width_bias;
  for (int64_t e = 0; e < experts; ++e) {
    hidden_bias.insert(hidden_bias.end(), one_bias.begin(), one_bias.end());
    width_bias.insert(width_bias.end(), one_bias.begin(), one_bias.begin() + width);
  }
  const Weights shared_gate(type, 2 * hidden, width), shared_up(type, 2 * hidden, width);
  const Weights shared_down(type, width, 2 * hidden);
  const Floats32 score = gaussians(width, 0.1);
  if (extras) {
    layer.activation = Activation::Clamped;
    layer.gate_bias = layer.up_bias = hidden_bias.data(), layer.down_bias = width_bias.data();
    layer.shared_gate = shared_gate.matrix, layer.shared_up = shared_up.matrix;
    layer.shared_down = shared_down.matrix, layer.shared_score = score.data();
  }
  const float* bias = extras ? one_bias.data() : nullptr;
  Workspace work;
  const double tolerance = type == Type::Q8_0 ? 1.5e-2 : 3e-6;
  for (int64_t tokens : {1, 3, 33, 600, 1}) {
    if (tokens == 600 && !same_for_all) continue;
    const std::string what = " of " + std::to_string(used) + "/" + std::to_string(experts) +
                             " type " + std::to_string(int(type)) + " T " +
                             std::to_string(tokens) + " threads " +
                             std::to_string(pool.threads());
    Floats32 x = gaussians(tokens * width), y(x.size()), z(x.size());
    moe_block(layer, x.data(), tokens, y.data(), work, pool);
    const Doubles h = normed(Doubles(x.begin(), x.end()), layer.norm, width);
    const Doubles logits = multiply(router, h);
    std::vector<int32_t> all_ids;
    Floats32 all_weights;
    Doubles want(x.begin(), x.end()), bare(x.size());
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<int32_t> order(static_cast<size_t>(experts));
      std::iota(order.begin(), order.end(), 0);
      const double* scores = logits.data() + t * experts;
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
      double total = 0.0, chosen = 0.0;
      for (int64_t e = 0; e < experts; ++e) total += std::exp(scores[e]);
      for (int64_t j = 0; j < used; ++j) chosen += std::exp(scores[order[size_t(j)]]) / total;
      const Doubles token(h.begin() + t * width, h.begin() + (t + 1) * width);
      for (int64_t j = 0; j < used; ++j) {
        const int32_t id = order[size_t(j)];
        double weight = std::exp(scores[id]) / total * routing.scale;
        if (routing.renormalize) weight /= std::max(chosen, 6.103515625e-05);
        all_ids.push_back(id);
        all_weights.push_back(float(weight));
        const Doubles part = gated(gate, up, down, token, id, layer.activation, bias);
        for (int64_t i = 0; i < width; ++i) {
          want[size_t(t * width + i)] += weight * part[size_t(i)];
          bare[size_t(t * width + i)] += weight * part[size_t(i)];
        }
      }
      if (!extras) continue;
      double dot = 0.0;
      for (int64_t i = 0; i < width; ++i) dot += score[size_t(i)] * token[size_t(i)];
      const Doubles part = gated(shared_gate, shared_up, shared_down, token, 0, layer.activation);
      for (int64_t i = 0; i < width; ++i) {
        const double weighed = part[size_t(i)] / (1.0 + std::exp(-dot));
        want[size_t(t * width + i)] += weighed;
        bare[size_t(t * width + i)] += weighed;
      }
    }
    expect_close(y.data(), want, tolerance, "experts" + what);
    const Floats32 seen(h.begin(), h.end());
    run_experts(layer, seen.data(), tokens, all_ids.data(), all_weights.data(), z.data(), work,
                pool);
    expect_close(z.data(), bare, 2 * tolerance, "experts alone" + what);
    std::vector<int32_t> chosen(all_ids.size(), -1);
    moe_block(layer, x.data(), tokens, x.data(), work, pool, chosen.data());
    expect(x == y, "experts in place" + what);
    expect(chosen == all_ids, "the experts that were chosen" + what);
  }
}

void test_route() {
  const Floats32 logits = {1.0f, 3.0f, 3.0f, -2.0f, 2.0f};
  int32_t ids[3];
  float weights[3];
  route({5, 3, true, 2.0f}, logits.data(), ids, weights);
  expect(ids[0] == 1 && ids[1] == 2 && ids[2] == 4, "route: order");
  expect(std::abs(weights[0] + weights[1] + weights[2] - 2.0f) < 1e-6f, "route: scale");
  const Floats32 far = {-200.0f, 0.0f, -201.0f};
  route({3, 3, true, 1.0f}, far.data(), ids, weights);
  expect(weights[0] == 1.0f && weights[1] == 0.0f, "route: far apart");
  const auto sigmoid = [](float x) { return 1.0f / (1.0f + std::exp(-x)); };
  Routing routing{5, 2, false, 1.0f};
  routing.gating = Gating::SoftmaxOfChosen;
  route(routing, logits.data(), ids, weights);
  expect(ids[0] == 1 && ids[1] == 2 && weights[0] == 0.5f, "route: softmax of the chosen");
  const Floats32 bias = {0.9f, 0.0f, 0.0f, 0.0f, 0.5f};
  routing.gating = Gating::Sigmoid, routing.bias = bias.data();
  route(routing, logits.data(), ids, weights);
  expect(ids[0] == 0 && ids[1] == 4, "route: the bias chooses");
  expect(std::abs(weights[0] - sigmoid(1.0f)) < 1e-6f, "route: and does not weigh");
  const Floats32 grouped = {4.0f, -9.0f, 2.0f, 1.5f, 3.0f, -5.0f};
  routing = {6, 2, false, 1.0f, Gating::Sigmoid, nullptr, 3, 1};
  route(routing, grouped.data(), ids, weights);
  expect(ids[0] == 2 && ids[1] == 3, "route: the group whose two best are best");
  routing.gating = Gating::Softmax;
  route(routing, grouped.data(), ids, weights);
  expect(ids[0] == 0 && ids[1] == 1, "route: the group of the best");
}
void test_blocks(Pool& pool) {
  for (CacheType cache : {CacheType::F32, CacheType::F16, CacheType::Q8}) {
    test_attention({9, 3, 64, 64, 64, false, false, Type::F32, cache}, pool);
    test_attention({4, 4, 32, 32, 32, true, true, Type::F32, cache}, pool);
    test_attention({8, 1, 128, 128, 64, false, true, Type::F16, cache}, pool);
    test_attention({6, 2, 20, 12, 20, true, false, Type::F32, cache}, pool);
    test_attention({16, 1, 80, 48, 80, false, true, Type::F32, cache}, pool);
    test_attention({5, 5, 8, 8, 4, false, true, Type::F32, cache}, pool);
    test_latent({4, 80, 64, 50, 1}, cache, pool);
    test_latent({16, 96, 64, 150, 7}, cache, pool);
    test_latent({130, 32, 24, 70, 3}, cache, pool);
    test_latent({1, 20, 12, 3, 3}, cache, pool);
    test_latent({9, 64, 48, 2, 1}, cache, pool);
  }
  test_attention({4, 2, 64, 64, 64, true, true, Type::Q8_0, CacheType::F16}, pool);
  for (CacheType cache : {CacheType::F16, CacheType::Q8}) {
    test_attention({8, 2, 32, 32, 32, false, true, Type::F32, cache, 20, true}, pool);
    test_attention({4, 4, 32, 32, 16, false, true, Type::F32, cache, 0, false, true}, pool);
    test_attention({6, 3, 32, 32, 0, false, true, Type::F32, cache, 130, true, false, true, 0.3f},
                   pool);
    test_latent_block({4, 0, 32, 16, 64, 24, Type::F32, cache}, pool);
    test_latent_block({3, 48, 32, 8, 32, 32, Type::F16, cache}, pool);
  }
  test_latent_block({16, 0, 64, 32, 64, 64, Type::Q8_0, CacheType::F32}, pool);
  test_dense(Type::F32, 64, 96, pool);
  test_dense(Type::F32, 40, 50, pool);
  test_dense(Type::Q8_0, 64, 160, pool);
  test_experts(Type::F32, {8, 2, true, 1.0f}, false, pool);
  test_experts(Type::F32, {8, 2, false, 2.5f}, true, pool);
  test_experts(Type::Q8_0, {12, 12, true, 1.0f}, false, pool);
  test_experts(Type::Q8_0, {16, 5, true, 1.0f}, true, pool);
  test_experts(Type::F32, {8, 3, true, 1.0f}, false, pool, true);
  test_experts(Type::Q8_0, {8, 3, false, 1.0f}, true, pool, true);
}

}  // namespace

int main() {
  test_route();
  for (Isa isa : {Isa::Portable, Isa::Avx2, Isa::Neon, Isa::Avx512}) {
    if (!isa_supported(isa)) continue;
    force_isa(isa);
    const int before = failures;
    for (int threads : {1, 2, 3}) {
      Pool pool(threads);
      test_blocks(pool);
    }
    std::printf("%s: %s\n", isa_name(isa), failures == before ? "ok" : "failed");
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures ? 1 : 0;
}
