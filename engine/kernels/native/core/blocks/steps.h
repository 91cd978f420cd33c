// Steps shared by the blocks. Serial, for use inside a parallel region.
#pragma once

#include <algorithm>

#include "blocks/workspace.h"
#include "gemm/gemm_amx.h"
#include "isa/kernels.h"

namespace conifer::blocks {

// Rows of several matrices, side by side in y, so that threads divide them all at once.
struct Projection {
  const Matrix* matrix;
  const float* bias;  // may be null
};

inline void multiply_range(const Projection* projections, int64_t count, const Activations& x,
                           int64_t tokens, float* y, int64_t stride, Range range) {
  int64_t column = 0;
  for (int64_t i = 0; i < count; column += projections[i++].matrix->rows) {
    const Matrix& matrix = *projections[i].matrix;
    const int64_t begin = std::max<int64_t>(range.begin - column, 0);
    const int64_t end = std::min(range.end - column, matrix.rows);
    if (begin >= end) continue;
    matmul_rows(matrix, x, x.kind(), int64_t{0}, tokens, y + column, stride, begin, end);
    if (const float* bias = projections[i].bias)
      for (int64_t t = 0; t < tokens; ++t) {
        float* row = y + t * stride + column;
        for (int64_t r = begin; r < end; ++r) row[r] += bias[r];
      }
  }
}

// One of several matrices whose rows are numbered one after the other. y (T, rows).
struct Product {
  const Matrix& matrix;  // without rows: none
  float* y;
};

template <size_t N>
int64_t total_rows(const Product (&products)[N]) {
  int64_t rows = 0;
  for (const Product& product : products) rows += product.matrix.rows;
  return rows;
}

template <size_t N>
void multiply_products(const Product (&products)[N], const Activations& x, Range rows) {
  int64_t first = 0;
  for (const Product& product : products) {
    const int64_t begin = std::max<int64_t>(rows.begin - first, 0);
    const int64_t end = std::min(rows.end - first, product.matrix.rows);
    if (begin < end) multiply_rows(product.matrix, x, product.y, {begin, end});
    first += product.matrix.rows;
  }
}

// y = x + factor * sums. Overwrites sums.
inline void add_residual(const float* x, float factor, float* sums, int64_t n, float* y) {
  const isa::KernelTable& kernels = isa::kernels();
  if (factor != 1.0f) kernels.scale(sums, factor, n, sums);
  kernels.add(x, sums, n, y);
}

// y = base + factor * norm(sums) for this thread's part of n tokens. `sums` is complete.
// scratch: (width).
inline void add_normed(const Norm& norm, float factor, const float* sums, const float* base,
                       int64_t tokens, int64_t width, int thread, int threads, float* scratch,
                       float* y) {
  const Range rows = tokens == 1 ? Range{0, 1} : share(tokens, thread, threads, 1);
  const Range columns = tokens == 1 ? share(width, thread, threads, 16) : Range{0, width};
  for (int64_t t = rows.begin; t < rows.end && columns.begin < columns.end; ++t) {
    const int64_t at = t * width + columns.begin;
    normalize(sums + t * width, norm, width, scratch);
    add_residual(base + at, factor, scratch + columns.begin, columns.end - columns.begin, y + at);
  }
}

// y = max(up, 0)^2, for n values.
inline void squared_relu(const float* up, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = up[i] > 0.0f ? up[i] : 0.0f;
    y[i] = x * x;
  }
}

// y = activation(gate, up), for n values. y may be gate.
inline void activate(Activation activation, float limit, const float* gate, const float* up,
                     int64_t n, float* y) {
  const isa::KernelTable& kernels = isa::kernels();
  switch (activation) {
    case Activation::Silu: return kernels.silu_multiply(gate, up, n, y);
    case Activation::Clamped: return kernels.clamped_multiply(gate, up, n, y);
    case Activation::Gelu: return kernels.gelu_multiply(gate, up, n, y);
    case Activation::Capped: return kernels.capped_multiply(gate, up, limit, n, y);
  }
}

}  // namespace conifer::blocks
