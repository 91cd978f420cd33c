// Products with many tokens: panels of 32 rows by 256 columns are unpacked to bytes once, in
// multiplication order, and multiplied by a few tokens at a time. gemm/decode.h lists the members
// of `Ops`. A token's result does not depend on the number of tokens.
#pragma once

#include "gemm/decode.h"

namespace conifer::gemm {
namespace {

constexpr int PANEL_ROWS = 32, HALF_ROWS = 16;
constexpr int64_t MOST_TOKENS = 512;

struct alignas(64) Panel {
  uint8_t q[CHUNK / 4][PANEL_ROWS][4];  // 4 consecutive columns of each row
  float scale[16][PANEL_ROWS];          // for each group of columns
  float min[16][PANEL_ROWS];
};

// Eight rows of a panel, from `row` on.
template <class Ops, class T>
void unpack_rows(const uint8_t* const (&data)[8], int row, Panel& panel) {
  Scales scales[8];
  for (int r = 0; r < 8; ++r) T::scales(data[r], CHUNK / 32, scales[r]);
  for (int g = 0; g < CHUNK / T::GROUP; g += 8) {
    const float* rows[8];
    for (int r = 0; r < 8; ++r) rows[r] = scales[r].scale + g;
    Ops::put_columns(rows, panel.scale[g] + row, sizeof panel.scale[0]);
    if constexpr (T::MINS) {
      for (int r = 0; r < 8; ++r) rows[r] = scales[r].min + g;
      Ops::put_columns(rows, panel.min[g] + row, sizeof panel.min[0]);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < CHUNK / 32; ++g) {
    quant::Bytes32 groups[8];
    const quant::Bytes32* rows[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      groups[r] = Ops::template encode<T>(T::group(data[r], g));
      rows[r] = groups + r;
    }
    Ops::put_columns(rows, panel.q[8 * g][row], sizeof panel.q[0]);
  }
}

// Unpack a chunk of columns. If there are fewer rows, the last row is repeated. next: the chunk
// that comes after it, to be prefetched.
template <class Ops, class T>
void unpack_panel(const uint8_t* data, const uint8_t* next, int64_t stride, int rows, int cols,
                  Panel& panel) {
  for (int row = 0; row < PANEL_ROWS; row += 8) {
    const uint8_t* eight[8];
    uint8_t padded[8][CHUNK_BYTES<T>];
    for (int r = 0; r < 8; ++r) {
      const int64_t at = (row + r < rows ? row + r : rows - 1) * stride;
      eight[r] = data + at;
      for (int i = 0; i < CHUNK_BYTES<T>; i += 64) __builtin_prefetch(next + at + i);
      if (cols < CHUNK) {
        std::memset(padded[r], 0, sizeof padded[r]);
        std::memcpy(padded[r], eight[r], static_cast<size_t>(cols * CHUNK_BYTES<T> / CHUNK));
        eight[r] = padded[r];
      }
    }
    unpack_rows<Ops, T>(eight, row, panel);
  }
}

// sums (TOKENS, 32) += panel times the tokens' values from column n.
template <class Ops, class T, int TOKENS>
void multiply_tokens(const Panel& panel, const TokenView* x, int64_t n, float* sums) {
  constexpr int GROUP = T::GROUP, VECTORS = HALF_ROWS / Ops::LANES;
  constexpr int OFFSET = Ops::template OFFSET<T>;
  static_assert(OFFSET == 0 || !T::MINS);
  const int8_t* q[TOKENS];
  for (int t = 0; t < TOKENS; ++t) q[t] = x[t].q + n;
  for (int row = 0; row < PANEL_ROWS; row += HALF_ROWS)
    for (int g = 0; g < CHUNK / GROUP; ++g) {
      int32_t first[TOKENS];  // what the weights' offset has added
      for (int t = 0; t < TOKENS; ++t)
        first[t] = -OFFSET * (GROUP == 16 ? x[t].isum16[n / 16 + g] : x[t].isum[n / 32 + g]);
      typename Ops::Ints dot[TOKENS][VECTORS];
      Ops::template dots<T, TOKENS>(panel.q[g * (GROUP / 4)][row], q, g * GROUP, first, dot);
#pragma GCC unroll 6
      for (int t = 0; t < TOKENS; ++t) {
        const float scale = x[t].scale[(n + g * GROUP) / 32];
        [[maybe_unused]] const float sum =
            GROUP == 16 ? x[t].sum16[n / 16 + g] : x[t].sum[n / 32 + g];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
          const int at = row + v * Ops::LANES;
          float* total = sums + t * PANEL_ROWS + at;
          auto acc = Ops::load(total);
          acc = Ops::add_scaled(acc, dot[t][v], panel.scale[g] + at, scale);
          if constexpr (T::MINS) acc = Ops::add_product(acc, panel.min[g] + at, sum);
          Ops::store(total, acc);
        }
      }
    }
}

// The same for up to MOST tokens.
template <class Ops, class T, int MOST>
void multiply_few(const Panel& panel, const TokenView* x, int64_t tokens, int64_t n, float* sums) {
  if (tokens == MOST) multiply_tokens<Ops, T, MOST>(panel, x, n, sums);
  else if constexpr (MOST > 1) multiply_few<Ops, T, MOST - 1>(panel, x, tokens, n, sums);
}

template <class Ops, class T>
void multiply_panel(const Panel& panel, const TokenView* x, int64_t tokens, int64_t n,
                    float* sums) {
  constexpr int TILE = Ops::TILE;
  for (; tokens >= TILE; tokens -= TILE, x += TILE, sums += TILE * PANEL_ROWS)
    multiply_tokens<Ops, T, TILE>(panel, x, n, sums);
  multiply_few<Ops, T, TILE - 1>(panel, x, tokens, n, sums);
}

template <class Ops, class T>
void multiply_many(const Matrix& w, const TokenView* x, int64_t tokens, float* y, int64_t y_stride,
                   int64_t row0, int64_t row1) {
  for (; tokens > MOST_TOKENS; tokens -= MOST_TOKENS, x += MOST_TOKENS, y += MOST_TOKENS * y_stride)
    multiply_many<Ops, T>(w, x, MOST_TOKENS, y, y_stride, row0, row1);
  Panel panel;
  alignas(64) float sums[MOST_TOKENS * PANEL_ROWS];
  const int64_t stride = w.stride();
  for (int64_t row = row0; row < row1; row += PANEL_ROWS) {
    const int rows = static_cast<int>(row1 - row < PANEL_ROWS ? row1 - row : PANEL_ROWS);
    std::memset(sums, 0, static_cast<size_t>(tokens) * PANEL_ROWS * sizeof(float));
    for (int64_t n = 0; n < w.cols; n += CHUNK) {
      const int cols = static_cast<int>(w.cols - n < CHUNK ? w.cols - n : CHUNK);
      const uint8_t* data = w.data + row * stride + n / CHUNK * CHUNK_BYTES<T>;
      const uint8_t* next =
          n + CHUNK < w.cols ? data + CHUNK_BYTES<T> : w.data + (row + PANEL_ROWS) * stride;
      unpack_panel<Ops, T>(data, next, stride, rows, cols, panel);
      multiply_panel<Ops, T>(panel, x, tokens, n, sums);
    }
    for (int64_t t = 0; t < tokens; ++t)
      std::memcpy(y + t * y_stride + row, sums + t * PANEL_ROWS,
                  static_cast<size_t>(rows) * sizeof(float));
  }
}

// The product for any type of weight and kind of token.
template <class Ops>
void multiply_in_registers(const Matrix& w, const TokenView* x, quant::Tokens kind, int64_t n,
                           float* y, int64_t y_stride, int64_t row0, int64_t row1) {
  if (n <= 0 || row0 >= row1) return;
  quant::with_float(w.type, [&](auto type) {
    multiply_float<Ops, decltype(type)>(w, x, n, y, y_stride, row0, row1);
  });
  quant::with_quantized(w.type, [&](auto type) {
    using T = decltype(type);
    if (kind != quant::Tokens::Single)
      return multiply_many<Ops, T>(w, x, n, y, y_stride, row0, row1);
    for (int64_t t = 0; t < n; ++t) multiply_single<Ops, T>(w, x[t], y + t * y_stride, row0, row1);
  });
}

}  // namespace
}  // namespace conifer::gemm
