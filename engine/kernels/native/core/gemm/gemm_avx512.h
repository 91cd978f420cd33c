// Products with many tokens, in a translation unit of its own.
#pragma once

#include "isa/kernels.h"

namespace conifer {

// As Kernels::multiply, for any number of tokens; worth it from about GEMM_TOKENS on.
constexpr int64_t GEMM_TOKENS = 6;
void multiply_many_avx512(const Matrix& w, const TokenView* x, int64_t tokens, float* y,
                          int64_t y_stride, int64_t row0, int64_t row1);

}  // namespace conifer
