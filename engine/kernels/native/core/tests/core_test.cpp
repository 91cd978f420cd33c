// Tests every block type on every instruction set that this CPU supports, against double precision.
//
// Usage: core_test [cases per type and instruction set] [seed]. Each case has a random shape and is
// multiplied as a whole, for a range of rows and tokens, and for a gathered list. There are two
// references: one from the quantised activations, with a tight tolerance because only the order of
// additions differs, and one from the original floats.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "everywhere.h"
#include "gemm/gemm_amx.h"
#include "gemm/matmul.h"
#include "isa/kernels.h"
#include "reference.h"

using namespace conifer;
using namespace conifer::gemm;
using namespace conifer::quant;
using namespace conifer::tests;

namespace {

Random generator;

int64_t pick(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

float normal() { return tests::normal(generator); }

struct Case {
  const TypeReference* type;
  int64_t rows, cols, tokens;
  std::vector<uint8_t> bytes;
  std::vector<float> weights, x;
  Activations activations;

  Matrix matrix() const { return {bytes.data(), type->block.type, rows, cols}; }
  float weight(int64_t r, int64_t c) const { return weights[static_cast<size_t>(r * cols + c)]; }
};

Case random_case(const TypeReference& type, int64_t most_rows = 70, int64_t most_tokens = 80) {
  Case c;
  c.type = &type;
  c.rows = pick(1, most_rows);
  const int64_t block = type.block.weights;
  c.cols = block == 1 ? pick(1, 600) : block * pick(1, block < 256 ? 40 * 32 / block : 6);
  c.tokens = pick(0, 3) ? pick(1, most_tokens) : pick(1, 4);
  c.bytes = random_weights(type, c.rows * c.cols, generator);
  c.weights.resize(static_cast<size_t>(c.rows * c.cols));
  std::vector<int32_t> ids(static_cast<size_t>(c.rows));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  dequantize_rows(c.matrix(), ids.data(), c.rows, c.weights.data());
  c.x.resize(static_cast<size_t>(c.tokens * c.cols));
  const float shift = pick(0, 3) ? 0.0f : 3.0f;  // a mean far from zero exercises the sums
  for (float& value : c.x) value = normal() + shift;
  if (pick(0, 7) == 0) std::fill(c.x.begin(), c.x.begin() + std::min<int64_t>(c.cols, 64), 0.0f);
  return c;
}

// Compare weights read by the core with the reference, relative to the largest in each block.
bool weights_hold(const Case& c) {
  const BlockType& block = c.type->block;
  std::vector<double> want(static_cast<size_t>(block.weights));
  for (int64_t at = 0; at < c.rows * c.cols; at += block.weights) {
    c.type->decode(c.bytes.data() + at / block.weights * block.bytes, want.data());
    double largest = 0;
    for (double weight : want) largest = std::max(largest, std::fabs(weight));
    for (size_t i = 0; i < want.size(); ++i)
      if (!(std::fabs(c.weights[static_cast<size_t>(at) + i] - want[i]) <= 1e-6 * largest))
        return false;
  }
  return true;
}

struct Worst {
  double tight = 0, loose = 0;
  double tiles = 0;  // for products that round weights and activations to bfloat16
};

bool in_tiles(const Case& c, Tokens kind, int64_t tokens) {
  return fits_tiles(c.type->block.type) && tiles_in_use() &&
         (kind == Tokens::Prompt || (kind == Tokens::Block && tokens >= TILE_TOKENS));
}

// Errors in one output of a product with `tokens`, relative to the norm of its terms.
void compare(const Case& c, Tokens kind, int64_t tokens, int64_t token, int64_t row, float y,
             Worst& worst) {
  const TokenView view = c.activations.token(token);
  double exact = 0, quantized = 0, size = 0;
  for (int64_t i = 0; i < c.cols; ++i) {
    const double w = c.weight(row, i), x = view.x[i];
    const double q = is_float(c.type->block.type) ? x : double(view.scale[i / 32]) * view.q[i];
    exact += w * x;
    quantized += w * q;
    size += w * x * w * x;
  }
  size = std::sqrt(size) + 1e-9;
  const double tight = std::fabs(y - quantized) / size, loose = std::fabs(y - exact) / size;
  if (in_tiles(c, kind, tokens)) {
    worst.tiles = loose > worst.tiles || std::isnan(loose) ? loose : worst.tiles;
    return;
  }
  worst.tight = tight > worst.tight || std::isnan(tight) ? tight : worst.tight;
  worst.loose = loose > worst.loose || std::isnan(loose) ? loose : worst.loose;
}

bool one_size(quant::Type type) {
  using quant::Type;
  return type == Type::TQ1_0 || type == Type::TQ2_0 || type == Type::Q1_0 || type == Type::Q2_0;
}

bool sums_hold(const Case& c) {
  for (int64_t t = 0; t < c.tokens; ++t) {
    const TokenView view = c.activations.token(t);
    for (int64_t b = 0; b < (c.cols + 255) / 256 * 16; ++b) {
      int32_t sum = 0;
      for (int64_t i = 0; i < 16; ++i) sum += view.q[16 * b + i];
      if (view.isum16[b] != sum || view.sum16[b] != view.scale[b / 2] * float(sum)) return false;
      if (b % 2 && view.isum[b / 2] != sum + view.isum16[b - 1]) return false;
      if (b % 2 && view.sum[b / 2] != view.scale[b / 2] * float(view.isum[b / 2])) return false;
    }
  }
  return true;
}

constexpr float UNTOUCHED = 12345.0f;
constexpr Tokens KINDS[] = {Tokens::Single, Tokens::Prompt, Tokens::Routed, Tokens::Block};

// A token has the same result alone and among others, to the last bit.
bool alike(const Case& c) {
  for (const Tokens kind : {Tokens::Single, Tokens::Prompt, Tokens::Routed}) {
    std::vector<float> all(static_cast<size_t>(c.tokens * c.rows)),
        one(static_cast<size_t>(c.rows));
    matmul_rows(c.matrix(), c.activations, kind, int64_t{0}, c.tokens, all.data(), c.rows, 0,
                c.rows);
    for (int64_t t = 0; t < c.tokens; ++t) {
      matmul_rows(c.matrix(), c.activations, kind, t, t + 1, one.data(), c.rows, 0, c.rows);
      if (std::memcmp(one.data(), all.data() + t * c.rows, one.size() * sizeof(float)) != 0)
        return false;
    }
  }
  return true;
}

bool run(Case& c, Worst& worst) {
  if (!weights_hold(c)) return false;
  c.activations.prepare(c.x.data(), c.tokens, c.cols, c.cols);
  const int threads = static_cast<int>(pick(1, 3));
  for (int thread = 0; thread < threads; ++thread) c.activations.quantize(thread, threads);
  if (!sums_hold(c) || !alike(c)) return false;

  const int64_t stride = c.rows + pick(0, 3);
  const int64_t row0 = pick(0, c.rows), row1 = pick(row0, c.rows);
  const int64_t token0 = pick(0, c.tokens), token1 = pick(token0, c.tokens);
  const Tokens kind = KINDS[pick(0, 3)];
  std::vector<float> y(static_cast<size_t>(c.tokens * stride), UNTOUCHED);
  matmul_rows(c.matrix(), c.activations, kind, token0, token1, y.data(), stride, row0, row1);
  for (int64_t t = 0; t < c.tokens; ++t)
    for (int64_t r = 0; r < stride; ++r) {
      const float value = y[static_cast<size_t>(t * stride + r)];
      if (t < token1 - token0 && r >= row0 && r < row1)
        compare(c, kind, token1 - token0, token0 + t, r, value, worst);
      else if (value != UNTOUCHED) return false;
    }

  std::vector<int32_t> ids(static_cast<size_t>(pick(1, 80)));
  for (int32_t& id : ids) id = static_cast<int32_t>(pick(0, c.tokens - 1));
  std::vector<float> gathered(ids.size() * static_cast<size_t>(c.rows));
  matmul_rows(c.matrix(), c.activations, kind, ids.data(), static_cast<int64_t>(ids.size()),
              gathered.data(), c.rows, int64_t{0}, c.rows);
  for (size_t i = 0; i < gathered.size(); ++i)
    compare(c, kind, static_cast<int64_t>(ids.size()), ids[i / static_cast<size_t>(c.rows)],
            static_cast<int64_t>(i) % c.rows, gathered[i], worst);

  Pool pool(2);
  std::vector<float> pooled(static_cast<size_t>(c.tokens * c.rows));
  matmul(c.matrix(), c.x.data(), c.tokens, pooled.data(), pool, c.activations);
  for (size_t i = 0; i < pooled.size(); ++i)
    compare(c, c.activations.kind(), c.tokens, static_cast<int64_t>(i) / c.rows,
            static_cast<int64_t>(i) % c.rows, pooled[i], worst);
  return true;
}

// Extreme activations cause no undefined behaviour, and NaN and infinity reach the result.
bool extremes_hold(const TypeReference& type) {
  constexpr float MOST = std::numeric_limits<float>::max();
  for (const float extreme : {NAN, INFINITY, -INFINITY, MOST, -MOST, 1e-40f, -1e-40f, 1e-36f})
    for (const bool all : {false, true}) {
      Case c = random_case(type);
      for (float& value : c.x) value = all ? extreme : value;
      for (int64_t t = 0; t < c.tokens; ++t)
        c.x[static_cast<size_t>(t * c.cols + pick(0, c.cols - 1))] = extreme;
      std::vector<float> y(static_cast<size_t>(c.tokens * c.rows));
      c.activations.prepare(c.x.data(), c.tokens, c.cols, c.cols);
      c.activations.quantize(0, 1);
      for (const Tokens kind : KINDS) {
        matmul_rows(c.matrix(), c.activations, kind, int64_t{0}, c.tokens, y.data(), c.rows, 0,
                    c.rows);
        for (const float value : y) {
          if (!std::isfinite(extreme) && std::isfinite(value)) return false;
          if (std::fabs(extreme) < 1.0f && !std::isfinite(value)) return false;
        }
      }
    }
  return true;
}

// With extreme scales in one block of a row, or in all, a product is NaN, infinite or finite as its
// terms are in double.
bool scales_hold(const TypeReference& type, int which, bool all) {
  Case c = random_case(type, 9, 33);
  const BlockType& block = type.block;
  const int64_t blocks = c.cols / block.weights;
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t chosen = pick(0, blocks - 1), i = 0; i < blocks; ++i)
      if (all || i == chosen)
        type.exaggerate(c.bytes.data() + (r * blocks + i) * block.bytes, which);
  std::vector<double> weights(static_cast<size_t>(c.rows * c.cols));
  for (int64_t i = 0; i < c.rows * blocks; ++i)
    type.decode(c.bytes.data() + i * block.bytes, weights.data() + i * block.weights);
  c.activations.prepare(c.x.data(), c.tokens, c.cols, c.cols);
  c.activations.quantize(0, 1);
  std::vector<std::vector<float>> y;
  for (const Tokens kind : KINDS) {
    y.emplace_back(static_cast<size_t>(c.tokens * c.rows));
    matmul_rows(c.matrix(), c.activations, kind, int64_t{0}, c.tokens, y.back().data(), c.rows, 0,
                c.rows);
  }
  for (int64_t t = 0; t < c.tokens; ++t)
    for (int64_t r = 0; r < c.rows; ++r) {
      const TokenView view = c.activations.token(t);
      double exact = 0, quantized = 0, size = 0;
      for (int64_t i = 0; i < c.cols; ++i) {
        const double w = weights[static_cast<size_t>(r * c.cols + i)], x = view.x[i];
        exact += w * x;
        quantized += is_float(block.type) ? w * x : w * view.q[i] * view.scale[i / 32];
        size += w * x * w * x;
      }
      for (const Tokens kind : KINDS) {
        const float got = y[static_cast<size_t>(kind)][static_cast<size_t>(t * c.rows + r)];
        // Tiles count subnormal numbers as zero; other kernels lose digits of them.
        const bool tiles = in_tiles(c, kind, c.tokens);
        const double slack =
            (tiles ? 0.06 : 3e-5) * std::sqrt(size) + (tiles ? 1e-38 : 1e-40) * double(c.cols);
        const double error = std::min(std::fabs(got - exact), std::fabs(got - quantized));
        if (std::isnan(exact) ? std::isnan(got)
                              : got == static_cast<float>(exact) || error <= slack)
          continue;
        std::printf("extreme %d, in all blocks %d: %g, not %g\n", which, all, double(got), exact);
        return false;
      }
    }
  return true;
}

// One number that is not finite is found wherever it stands, and the largest are no such number.
bool finite_holds() {
  std::vector<float> x(4 * 16 + 3, FLT_MAX);
  const auto all_finite = [&] {
    return isa::kernels().all_finite(x.data(), static_cast<int64_t>(x.size()));
  };
  for (float& place : x)
    for (const float value : {NAN, INFINITY, -INFINITY}) {
      place = value;
      if (all_finite()) return false;
      place = -FLT_MAX;
    }
  return all_finite() && isa::kernels().all_finite(x.data(), 0);
}

// Convert all 65536 half-precision values to float and back.
bool halves_hold() {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    const float x = f16_to_float(static_cast<uint16_t>(half));
    const double mantissa = half & 0x3ff;
    const int exponent = half >> 10 & 31;
    double expected =
        exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
    if (exponent == 31) expected = mantissa != 0 ? NAN : INFINITY;
    if (half & 0x8000) expected = -expected;
    if (std::isnan(expected) ? !std::isnan(x) : x != expected) return false;
    if (!std::isnan(x) && float_to_f16(x) != half) return false;
  }
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  const int cases = count > 1 ? std::atoi(arguments[1]) : 30;
  const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
  bool failed = !halves_hold();
  if (failed) std::printf("half-precision conversions are wrong\n");
  for_each_isa([&] {
    if (!finite_holds()) {
      std::printf("%s: numbers that are not finite are not found\n", isa::name(isa::current()));
      failed = true;
    }
    for (const TypeReference& type : REFERENCES) {
      generator.seed(seed);
      Worst worst;
      bool good = true;
      for (int i = 0; i < cases && good; ++i) {
        Case c = random_case(type);
        good = run(c, worst);
        if (!good) std::printf("rows %ld cols %ld tokens %ld\n", c.rows, c.cols, c.tokens);
      }
      if (good && !extremes_hold(type)) {
        std::printf("NaN, infinities or extremes do not hold\n");
        good = false;
      }
      for (int i = 0; i < 2 * EXTREMES && good; ++i) good = scales_hold(type, i / 2, i % 2);
      // If x has a non-zero mean, terms may be 40 times their sum, and additions in another order
      // agree to about 1e-5. Rounding to 127 steps has an error of up to 1/254 of a block's largest
      // value, a few times its RMS. The worst of many outputs reach a third of 0.08. Bfloat16
      // rounds weights and activations to within 1/512 of their size. If there are few distinct
      // weights, as in Q2_K, these errors add up when x has a non-zero mean; most of all if the
      // weights of a whole block have one size.
      const double tiles = one_size(type.block.type) ? 0.06 : 0.03;
      const bool bad =
          !good || !(worst.tight < 3e-5) || !(worst.loose < 0.08) || !(worst.tiles < tiles);
      failed |= bad;
      std::printf("%-13s %-7s %.1e %.1e %.1e%s\n", isa::name(isa::current()), type.block.name,
                  worst.tight, worst.loose, worst.tiles, bad ? "  FAILED" : "");
    }
  });
  return failed;
}
