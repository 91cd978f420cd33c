// The table of kernels that each instruction set fills in.
//
// One translation unit per instruction set is compiled for it; everything that such a unit defines
// is static or in an unnamed namespace, but for the function that hands out its table.
#pragma once

#include <cstdint>

#include "gemm/matmul.h"
#include "gemm/activations.h"
#include "quant/types.h"

namespace conifer {

struct Kernels {
  // 32 values at a time: x (n) -> q, scale, sum, sum16, isum, isum16 of a token. n % 32 == 0.
  void (*quantize)(const float* x, int64_t n, const TokenView& out);
  // y[t * y_stride + r] for rows [row0, row1) and each of the tokens; any type of weight.
  void (*multiply)(const Matrix& w, const TokenView* x, int64_t tokens, float* y,
                   int64_t y_stride, int64_t row0, int64_t row1);
};

const Kernels& kernels();  // of the instruction set in use

// Null where the build has no such unit.
const Kernels* kernels_portable();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_neon();

}  // namespace conifer
