// Many tokens: a blocked integer GEMM.
//
// A panel of weights is multiplied by 6 tokens at a time, broadcasting 4 values per token. The
// panel stays in the L1 cache. A buffer of 32 floats per token accumulates the sums over columns;
// the last panel writes them to y.
#if defined(__x86_64__)
#include "isa/avx512.h"

#include "gemm/gemm_avx512.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "gemm/panel_avx512.h"

namespace conifer::gemm {

using quant::Matrix;
using quant::TokenView;

namespace {

constexpr int TILE = 6;  // tokens; 12 integer sums and 12 float sums fill the registers

// Where the sums of a panel's rows go in the end. The masks leave out rows past the last.
struct Output {
  float* y;
  int64_t stride;
  __mmask16 rows0, rows1;

  Output(float* y, int64_t stride, int rows)
      : y(y),
        stride(stride),
        rows0(static_cast<__mmask16>(rows < 16 ? (1u << rows) - 1 : 0xffff)),
        rows1(static_cast<__mmask16>(rows > 16 ? (1u << (rows - 16)) - 1 : 0)) {}
};

// sums (TOKENS, 32) += panel times the tokens' values, starting at column n; at column 0, sums are
// set. out: where they go instead after the last column, from token t0 on; null before.
template <class L, int TOKENS>
void multiply_tokens(const Panel& panel, const TokenView* x, int64_t n, float* sums,
                     const Output* out, int64_t t0) {
  constexpr int GROUP = L::GROUP;
  const int8_t* q[TOKENS];
  __m512 total[TOKENS][2];
#pragma GCC unroll 6
  for (int t = 0; t < TOKENS; ++t) {
    q[t] = x[t].q + n;
    total[t][0] = n ? _mm512_load_ps(sums + t * ROWS) : _mm512_setzero_ps();
    total[t][1] = n ? _mm512_load_ps(sums + t * ROWS + 16) : _mm512_setzero_ps();
  }
  for (int g = 0; g < COLS / GROUP; ++g) {
    __m512i dot[TOKENS][2];
#pragma GCC unroll 6
    for (int t = 0; t < TOKENS; ++t) {
      if constexpr (L::OFFSET == 0) {
        dot[t][0] = dot[t][1] = _mm512_setzero_si512();
      } else {
        const int32_t isum = GROUP == 16 ? x[t].isum16[n / 16 + g] : x[t].isum[n / 32 + g];
        dot[t][0] = dot[t][1] = _mm512_set1_epi32(-L::OFFSET * isum);
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < GROUP / 4; ++k) {
      const __m512i w0 = _mm512_load_si512(panel.q[g * (GROUP / 4) + k][0]);
      const __m512i w1 = _mm512_load_si512(panel.q[g * (GROUP / 4) + k][1]);
#pragma GCC unroll 6
      for (int t = 0; t < TOKENS; ++t) {
        const __m512i values = _mm512_set1_epi32(read_as<int32_t>(q[t] + g * GROUP + 4 * k));
        dot[t][0] = _mm512_dpbusd_epi32(dot[t][0], w0, values);
        dot[t][1] = _mm512_dpbusd_epi32(dot[t][1], w1, values);
      }
    }
    const __m512 scale0 = _mm512_load_ps(panel.scale[g]);
    const __m512 scale1 = _mm512_load_ps(panel.scale[g] + 16);
#pragma GCC unroll 6
    for (int t = 0; t < TOKENS; ++t) {
      const __m512 scale = _mm512_set1_ps(x[t].scale[(n + g * GROUP) / 32]);
      const __m512 dot0 = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[t][0]), scale0);
      const __m512 dot1 = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[t][1]), scale1);
      total[t][0] = _mm512_fmadd_ps(dot0, scale, total[t][0]);
      total[t][1] = _mm512_fmadd_ps(dot1, scale, total[t][1]);
    }
    if constexpr (L::MINS) {
      const __m512 min0 = _mm512_load_ps(panel.min[g]), min1 = _mm512_load_ps(panel.min[g] + 16);
#pragma GCC unroll 6
      for (int t = 0; t < TOKENS; ++t) {
        const __m512 sum =
            _mm512_set1_ps(GROUP == 16 ? x[t].sum16[n / 16 + g] : x[t].sum[n / 32 + g]);
        total[t][0] = _mm512_fmadd_ps(min0, sum, total[t][0]);
        total[t][1] = _mm512_fmadd_ps(min1, sum, total[t][1]);
      }
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < TOKENS; ++t) {
    float* to = out ? out->y + (t0 + t) * out->stride : sums + t * ROWS;
    const __mmask16 rows0 = out ? out->rows0 : 0xffff, rows1 = out ? out->rows1 : 0xffff;
    _mm512_mask_storeu_ps(to, rows0, total[t][0]);
    _mm512_mask_storeu_ps(to + 16, rows1, total[t][1]);
  }
}

template <class L>
void multiply_panel(const Panel& panel, const TokenView* x, int64_t tokens, int64_t n, float* sums,
                    const Output* out) {
  for (int64_t t = 0; t < tokens; t += TILE, x += TILE, sums += TILE * ROWS) {
    switch (std::min<int64_t>(TILE, tokens - t)) {
      case 1: multiply_tokens<L, 1>(panel, x, n, sums, out, t); break;
      case 2: multiply_tokens<L, 2>(panel, x, n, sums, out, t); break;
      case 3: multiply_tokens<L, 3>(panel, x, n, sums, out, t); break;
      case 4: multiply_tokens<L, 4>(panel, x, n, sums, out, t); break;
      case 5: multiply_tokens<L, 5>(panel, x, n, sums, out, t); break;
      default: multiply_tokens<L, TILE>(panel, x, n, sums, out, t);
    }
  }
}

struct Free {
  void operator()(float* p) const { std::free(p); }
};

// This thread's memory for the sums of `tokens` tokens.
float* sums_of(int64_t tokens) {
  static thread_local std::unique_ptr<float[], Free> buffer;
  static thread_local int64_t capacity = 0;
  if (tokens > capacity) {
    const size_t size = static_cast<size_t>(tokens) * ROWS * sizeof(float);
    buffer.reset(static_cast<float*>(std::aligned_alloc(64, size)));
    if (!buffer) std::abort();
    capacity = tokens;
  }
  return buffer.get();
}

template <class L>
void multiply_panels(const Matrix& w, const TokenView* x, int64_t tokens, float* y,
                     int64_t y_stride, int64_t row0, int64_t row1) {
  Panel panel;
  float* sums = sums_of(tokens);
  const int64_t stride = w.stride();
  for (int64_t row = row0; row < row1; row += ROWS) {
    const int rows = static_cast<int>(std::min<int64_t>(ROWS, row1 - row));
    const Output out(y + row, y_stride, rows);
    for (int64_t n = 0; n < w.cols; n += COLS) {
      const int cols = static_cast<int>(std::min<int64_t>(COLS, w.cols - n));
      const uint8_t* data = w.data + row * stride + n / COLS * L::CHUNK_BYTES;
      const uint8_t* next =
          n + COLS < w.cols ? data + L::CHUNK_BYTES : w.data + (row + ROWS) * stride;
      unpack_half<L>(data, next, stride, std::min(rows, 16), cols, 0, panel);
      const int second =
          std::min(16, rows - 1);  // with 16 rows or fewer, any row, which is not stored
      unpack_half<L>(data + second * stride, next + second * stride, stride, std::max(rows - 16, 1),
                     cols, 1, panel);
      multiply_panel<L>(panel, x, tokens, n, sums, n + COLS < w.cols ? nullptr : &out);
    }
  }
}

}  // namespace

void multiply_many_avx512(const Matrix& w, const TokenView* x, int64_t tokens, float* y,
                          int64_t y_stride, int64_t row0, int64_t row1) {
  quant::with_quantized(w.type, [&](auto type) {
    multiply_panels<quant::Avx512Of<decltype(type)>>(w, x, tokens, y, y_stride, row0, row1);
  });
}

}  // namespace conifer::gemm
#endif
