// Products with many tokens, in a separate translation unit.
#pragma once

#include "gemm/dot.h"

namespace conifer::gemm {

// Same as KernelTable::multiply, for quantised weights. A token's result does not depend on the
// others.
void multiply_many_avx512(const quant::Matrix& w, const quant::TokenView* x, int64_t tokens,
                          float* y, int64_t y_stride, int64_t row0, int64_t row1);

}  // namespace conifer::gemm
