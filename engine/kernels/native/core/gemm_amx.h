// Products with many tokens in AMX tiles, where the processor has them.
#pragma once

#include "dot.h"

namespace conifer {

// Whether multiply_many_amx can be called here.
bool amx_multiplies();

// As Kernels::multiply, for weights in blocks; worth it from about AMX_TOKENS on.
constexpr int64_t AMX_TOKENS = 12;
void multiply_many_amx(const Matrix& w, const TokenView* x, int64_t tokens, float* y,
                       int64_t y_stride, int64_t row0, int64_t row1);

}  // namespace conifer
