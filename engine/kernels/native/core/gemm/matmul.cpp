// The public product functions, which call the kernels for the current instruction set.
#include "gemm/matmul.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "gemm/gemm_amx.h"
#include "isa/kernels.h"

namespace conifer::gemm {

using quant::is_float;
using quant::with_float;
using quant::with_quantized;

namespace {

constexpr int64_t TOKENS_AT_ONCE = 512;  // their views and partial sums fit the L2 cache

// `token(i)` is the index of the i-th token.
template <class Token>
void multiply(const Matrix& w, const Activations& x, Tokens kind, int64_t n, Token token, float* y,
              int64_t y_stride, int64_t row0, int64_t row1) {
  quant::TokenView few[4];
  static thread_local std::vector<quant::TokenView> many;
  for (int64_t i0 = 0; i0 < n; i0 += TOKENS_AT_ONCE) {
    const int64_t count = std::min(TOKENS_AT_ONCE, n - i0);
    quant::TokenView* views = few;
    if (count > 4) {
      many.resize(static_cast<size_t>(count));
      views = many.data();
    }
    for (int64_t i = 0; i < count; ++i) views[i] = x.token(token(i0 + i));
    isa::kernels().multiply(w, views, kind, count, y + i0 * y_stride, y_stride, row0, row1);
  }
}

void rescale(const Matrix& w, int64_t n, float* y, int64_t y_stride, int64_t row0, int64_t row1) {
  if (!w.scale) return;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t r = row0; r < row1; ++r) y[i * y_stride + r] *= *w.scale;
}

template <class T>
double exact_product(const uint8_t* data, const float* x, int64_t cols) {
  double total = 0;
  quant::Unpacked chunk;
  for (int64_t n = 0; n < cols && !std::isnan(total); n += 256) {
    const int weights = static_cast<int>(std::min<int64_t>(256, cols - n));
    const uint8_t* blocks = data + n / T::WEIGHTS * T::BYTES;
    if constexpr (T::QUANTIZED) quant::unpack_chunk<T>(blocks, weights, chunk);
    for (int i = 0; i < weights; ++i) {
      double weight;
      if constexpr (T::QUANTIZED)
        weight = double(chunk.scale[i / 16]) * chunk.q[i] + chunk.min[i / 16];
      else weight = T::read(blocks + i * T::BYTES);
      total += weight * x[n + i];
    }
  }
  return total;
}

// Kernels multiply sums by scales and add them in any order, so scales that are infinite and sums
// that overflow give NaN or infinity by chance. Compute such results weight by weight, in double.
// Where a token's own values are not finite, they stay as they are.
template <class Token>
void finish(const Matrix& w, const Activations& x, int64_t n, Token token, float* y,
            int64_t y_stride, int64_t row0, int64_t row1) {
  rescale(w, n, y, y_stride, row0, row1);
  std::vector<float> values;
  const auto all_finite = isa::kernels().all_finite;
  for (int64_t i = 0; i < n; ++i, y += y_stride) {
    if (all_finite(y + row0, row1 - row0)) continue;
    values.resize(static_cast<size_t>(w.cols));
    x.read(token(i), values.data());
    if (!all_finite(values.data(), w.cols)) continue;
    for (int64_t r = row0; r < row1; ++r) {
      if (std::isfinite(y[r])) continue;
      const auto compute = [&](auto type) {
        const double sum =
            exact_product<decltype(type)>(w.data + r * w.stride(), values.data(), w.cols);
        y[r] = static_cast<float>(w.scale ? sum * *w.scale : sum);
      };
      with_float(w.type, compute);
      with_quantized(w.type, compute);
    }
  }
}

}  // namespace

bool tiles_in_use() { return isa::kernels().tiles; }

bool tiles_serve(std::initializer_list<const Matrix*> matrices) {
  const auto fits = [](const Matrix* w) { return quant::fits_tiles(w->type); };
  return tiles_in_use() && std::all_of(matrices.begin(), matrices.end(), fits);
}

void matmul_rows(const Matrix& w, const Activations& x, Tokens kind, int64_t token0, int64_t token1,
                 float* y, int64_t y_stride, int64_t row0, int64_t row1) {
  const auto token = [token0](int64_t i) { return token0 + i; };
  const int64_t n = token1 - token0;
  if (x.tile(0)) multiply_tiles(w, x, y, y_stride, row0, row1);
  else multiply(w, x, kind, n, token, y, y_stride, row0, row1);
  finish(w, x, n, token, y, y_stride, row0, row1);
}

void matmul_rows(const Matrix& w, const Activations& x, Tokens kind, const int32_t* token_ids,
                 int64_t n, float* y, int64_t y_stride, int64_t row0, int64_t row1) {
  const auto token = [token_ids](int64_t i) { return token_ids[i]; };
  multiply(w, x, kind, n, token, y, y_stride, row0, row1);
  finish(w, x, n, token, y, y_stride, row0, row1);
}

namespace {

template <class T>
void dequantize_row(const uint8_t* data, int64_t cols, float* out) {
  quant::Unpacked chunk;
  for (int64_t n = 0; n < cols; n += 256) {
    const int weights = static_cast<int>(std::min<int64_t>(256, cols - n));
    quant::unpack_chunk<T>(data + n / T::WEIGHTS * T::BYTES, weights, chunk);
    for (int i = 0; i < weights; ++i)
      out[n + i] = chunk.scale[i / 16] * static_cast<float>(chunk.q[i]) + chunk.min[i / 16];
  }
}

template <class T>
void read_floats(const uint8_t* data, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; ++i) out[i] = T::read(data + i * T::BYTES);
}

}  // namespace

void dequantize_rows(const Matrix& w, const int32_t* ids, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint8_t* data = w.data + ids[i] * w.stride();
    float* row = out + i * w.cols;
    with_float(w.type, [&](auto type) { read_floats<decltype(type)>(data, w.cols, row); });
    with_quantized(w.type, [&](auto type) { dequantize_row<decltype(type)>(data, w.cols, row); });
    rescale(w, 1, row, w.cols, 0, w.cols);
  }
}

void matmul(const Matrix& w, const float* x, int64_t tokens, float* y, Pool& pool) {
  static thread_local Activations scratch;
  matmul(w, x, tokens, y, pool, scratch);
}

void matmul(const Matrix& w, const float* x, int64_t tokens, float* y, Pool& pool,
            Activations& scratch, Tokens kind) {
  const bool tiled = kind == Tokens::Prompt && tiles_serve({&w});
  scratch.prepare(x, tokens, w.cols, w.cols, tiled, kind);
  pool.run([&](int thread, int count) {
    if (!is_float(w.type)) {
      scratch.quantize(thread, count);
      pool.barrier();
    }
    const threads::Range rows = threads::share(w.rows, thread, count);
    matmul_rows(w, scratch, scratch.kind(), int64_t{0}, tokens, y, w.rows, rows.begin, rows.end);
  });
}

}  // namespace conifer::gemm
