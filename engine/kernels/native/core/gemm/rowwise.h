// Row-by-row matrix products, for instruction sets without a kernel for each type. 256 weights from
// each of four rows are unpacked into the L1 cache, then multiplied by every token.
//
// Vector arithmetic comes from `Ops`, a struct in the including translation unit:
//   Acc, zero(), total(Acc)             a vector of partial sums
//   dot<F>(Acc, Unpacked, x, n)         + 256 weights times a token's values, starting at n
//   fma(Acc, w, x)                      + LANES floats times floats
//   load_f32 / load_f16 / load_bf16     LANES weights as floats
//   quantize(x, q), returns the scale   32 floats to int8
//   sum16(q)                            the sum of 16 of these
#pragma once

#include <cmath>
#include <limits>

#include "gemm/dot.h"
#include "isa/inline.h"

namespace conifer::gemm {
namespace {

using quant::Matrix;
using quant::TokenView;
using quant::Unpacked;

template <class Ops>
void quantize(const float* x, int64_t n, const quant::TokenSlot& out) {
  for (int64_t i = 0; i < n / 32; ++i) {
    int8_t* q = out.q + 32 * i;
    const float scale = Ops::quantize(x + 32 * i, q);
    const int32_t halves[2] = {Ops::sum16(q), Ops::sum16(q + 16)};
    out.scale[i] = scale;
    out.sum[i] = scale * static_cast<float>(halves[0] + halves[1]);
    out.isum[i] = halves[0] + halves[1];
    for (int h = 0; h < 2; ++h) {
      out.sum16[2 * i + h] = scale * static_cast<float>(halves[h]);
      out.isum16[2 * i + h] = halves[h];
    }
  }
}

// A block whose largest activation is below this counts as zero, because the inverse overflows.
constexpr float SMALLEST = 1e-35f;

// False if the block's integers are all zero: its values are negligible, or one is not finite. In
// the latter case, the scale is NaN or infinite, and so is every product.
CONIFER_INLINE bool counts(float largest) {
  return largest > SMALLEST && largest <= std::numeric_limits<float>::max();
}
constexpr int ROWS_AT_ONCE = 4;
constexpr int TOKENS_AT_ONCE = 64;

template <class Ops, class T>
void multiply_quantized(const Matrix& w, const TokenView* x, int64_t tokens, float* y,
                        int64_t y_stride, int64_t row0, int64_t row1) {
  typename Ops::Acc acc[TOKENS_AT_ONCE][ROWS_AT_ONCE];
  Unpacked chunk[ROWS_AT_ONCE];
  const int64_t stride = w.stride();
  for (int64_t t0 = 0; t0 < tokens; t0 += TOKENS_AT_ONCE) {
    const int64_t t1 = t0 + TOKENS_AT_ONCE < tokens ? t0 + TOKENS_AT_ONCE : tokens;
    for (int64_t row = row0; row < row1; row += ROWS_AT_ONCE) {
      const int rows = static_cast<int>(row + ROWS_AT_ONCE < row1 ? ROWS_AT_ONCE : row1 - row);
      for (int64_t t = t0; t < t1; ++t)
        for (int r = 0; r < rows; ++r) acc[t - t0][r] = Ops::zero();
      for (int64_t n = 0; n < w.cols; n += 256) {
        const int weights = static_cast<int>(n + 256 < w.cols ? 256 : w.cols - n);
        for (int r = 0; r < rows; ++r)
          quant::unpack_chunk<T>(w.data + (row + r) * stride + n / T::WEIGHTS * T::BYTES, weights,
                                 chunk[r]);
        for (int64_t t = t0; t < t1; ++t)
          for (int r = 0; r < rows; ++r)
            acc[t - t0][r] = Ops::template dot<T>(acc[t - t0][r], chunk[r], x[t], n);
      }
      for (int64_t t = t0; t < t1; ++t)
        for (int r = 0; r < rows; ++r) y[t * y_stride + row + r] = Ops::total(acc[t - t0][r]);
    }
  }
}

// Multiply TOKENS tokens by one row, with two accumulators each so that additions overlap.
template <class Ops, class T, int TOKENS>
void multiply_row(const uint8_t* w, int64_t cols, const TokenView* x, float* y, int64_t y_stride) {
  constexpr int LANES = Ops::LANES;
  constexpr int64_t SIZE = T::BYTES;
  typename Ops::Acc acc[TOKENS][2];
  for (int t = 0; t < TOKENS; ++t) acc[t][0] = acc[t][1] = Ops::zero();
  int64_t n = 0;
  for (; n + 2 * LANES <= cols; n += 2 * LANES) {
    const auto first = T::template load<Ops>(w + n * SIZE);
    const auto second = T::template load<Ops>(w + (n + LANES) * SIZE);
    for (int t = 0; t < TOKENS; ++t) {
      acc[t][0] = Ops::fma(acc[t][0], first, x[t].x + n);
      acc[t][1] = Ops::fma(acc[t][1], second, x[t].x + n + LANES);
    }
  }
  for (int t = 0; t < TOKENS; ++t) {
    float total = Ops::total(acc[t][0]) + Ops::total(acc[t][1]);
    for (int64_t i = n; i < cols; ++i) total += T::read(w + i * SIZE) * x[t].x[i];
    y[t * y_stride] = total;
  }
}

template <class Ops, class T>
void multiply_float(const Matrix& w, const TokenView* x, int64_t tokens, float* y, int64_t y_stride,
                    int64_t row0, int64_t row1) {
  const int64_t stride = w.stride();
  for (int64_t t0 = 0; t0 < tokens; t0 += TOKENS_AT_ONCE) {
    const int64_t t1 = t0 + TOKENS_AT_ONCE < tokens ? t0 + TOKENS_AT_ONCE : tokens;
    for (int64_t row = row0; row < row1; ++row) {
      const uint8_t* data = w.data + row * stride;
      int64_t t = t0;
      for (; t + 4 <= t1; t += 4)
        multiply_row<Ops, T, 4>(data, w.cols, x + t, y + t * y_stride + row, y_stride);
      for (; t < t1; ++t)
        multiply_row<Ops, T, 1>(data, w.cols, x + t, y + t * y_stride + row, y_stride);
    }
  }
}

template <class Ops>
void multiply(const Matrix& w, const TokenView* x, int64_t tokens, float* y, int64_t y_stride,
              int64_t row0, int64_t row1) {
  quant::with_float(w.type, [&](auto type) {
    multiply_float<Ops, decltype(type)>(w, x, tokens, y, y_stride, row0, row1);
  });
  quant::with_quantized(w.type, [&](auto type) {
    multiply_quantized<Ops, decltype(type)>(w, x, tokens, y, y_stride, row0, row1);
  });
}

}  // namespace
}  // namespace conifer::gemm
