// Products with one token: weights go from their blocks to registers, a few rows at a time.
//
// Vector arithmetic comes from `Ops`, a struct in the including translation unit. Besides the
// members for gemm/rowwise.h it has
//   ROWS                       how many rows are multiplied at once by one token
//   Ints                       a vector of integer sums, as wide as Acc
//   OFFSET<T>, encode<T>       what is added to the weights, and the bytes of T::group as `dot`
//                              takes them
//   weigh<T>(Scales, x, n, acc)  multiplies scales by the token's scales, adds minima times sums
//   load_values(q)             32 values of a token
//   dot<T>(acc, w, x, scales)  + 32 products times a scale, or two scales of 16
// and for gemm/panels.h
//   TILE                       how many tokens are multiplied at once by a panel
//   put_columns(rows, out, stride)   transposes eight vectors of eight 4-byte numbers
//   dots<T, TOKENS>(...)       the sums of a group of columns for 16 rows and TOKENS tokens, each
//                              from an integer on
#pragma once

#include "gemm/rowwise.h"

namespace conifer::gemm {
namespace {

using quant::Scales;

constexpr int CHUNK = 256;

template <class T>
constexpr int64_t CHUNK_BYTES = CHUNK / T::WEIGHTS * T::BYTES;

// How far ahead weights are prefetched. Rows are read as one stream, so this reaches into the next
// ones. Past the last row, prefetching is harmless.
constexpr int64_t AHEAD_BYTES = 4096;

// Zeros. GCC would call for a string instruction, which takes longer than a chunk's products.
template <class Ops>
CONIFER_INLINE void clear(Scales& s) {
  for (int i = 0; i < 16; i += Ops::LANES) {
    Ops::store(s.scale + i, Ops::zero());
    Ops::store(s.min + i, Ops::zero());
  }
}

// Groups of 32 weights of ROWS rows, times a token's values from column n.
template <class Ops, class T, int ROWS, int GROUPS>
CONIFER_INLINE void add_chunk(const uint8_t* data, int64_t stride, int groups, const TokenView& x,
                              int64_t n, typename Ops::Acc (&acc)[ROWS]) {
  Scales scales[ROWS];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r) {
    if constexpr (GROUPS == 0) clear<Ops>(scales[r]);
    T::scales(data + r * stride, GROUPS ? GROUPS : groups, scales[r]);
    acc[r] = Ops::template weigh<T>(scales[r], x, n, acc[r]);
  }
  const auto add = [&](int g) __attribute__((always_inline)) {
    const auto values = Ops::load_values(x.q + n + 32 * g);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
      acc[r] = Ops::template dot<T>(acc[r], Ops::template encode<T>(T::group(data + r * stride, g)),
                                    values, scales[r].scale + g * (32 / T::GROUP));
  };
  if constexpr (GROUPS == 0) {
    for (int g = 0; g < groups; ++g) add(g);
  } else {
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; ++g) add(g);
  }
}

template <class Ops, class T, int ROWS>
void multiply_rows(const uint8_t* data, int64_t stride, int64_t cols, const TokenView& x,
                   float* y) {
  typename Ops::Acc acc[ROWS];
  for (int r = 0; r < ROWS; ++r) acc[r] = Ops::zero();
  const uint8_t* next = data + (stride * ROWS > AHEAD_BYTES ? stride * ROWS : AHEAD_BYTES);
  int64_t n = 0;
  for (; n + CHUNK <= cols; n += CHUNK) {
    for (int i = 0; i < ROWS * CHUNK_BYTES<T>; i += 64) __builtin_prefetch(next + i);
    next += ROWS * CHUNK_BYTES<T>;
    add_chunk<Ops, T, ROWS, CHUNK / 32>(data, stride, 0, x, n, acc);
    data += CHUNK_BYTES<T>;
  }
  if constexpr (T::WEIGHTS < CHUNK)
    if (n < cols)
      add_chunk<Ops, T, ROWS, 0>(data, stride, static_cast<int>((cols - n) / 32), x, n, acc);
  for (int r = 0; r < ROWS; ++r) y[r] = Ops::total(acc[r]);
}

template <class Ops, class T>
void multiply_single(const Matrix& w, const TokenView& x, float* y, int64_t row0, int64_t row1) {
  const int64_t stride = w.stride();
  constexpr int ROWS = Ops::ROWS;
  int64_t row = row0;
  for (; row + ROWS <= row1; row += ROWS)
    multiply_rows<Ops, T, ROWS>(w.data + row * stride, stride, w.cols, x, y + row);
  for (; row < row1; ++row)
    multiply_rows<Ops, T, 1>(w.data + row * stride, stride, w.cols, x, y + row);
}

}  // namespace
}  // namespace conifer::gemm
