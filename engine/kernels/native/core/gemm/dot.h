// Two kernels for each instruction set, defined in gemm/dot_<id>.cpp. See isa/kernels.h.
#pragma once

#include <cstdint>

#include "isa/isa.h"
#include "quant/token.h"
#include "quant/types.h"

namespace conifer::gemm {

#define X(Name, id, ...)                                                                    \
  void quantize_##id(const float* x, int64_t n, const quant::TokenSlot& out);               \
  void multiply_##id(const quant::Matrix& w, const quant::TokenView* x, quant::Tokens kind, \
                     int64_t n, float* y, int64_t y_stride, int64_t row0, int64_t row1);
CONIFER_ISAS(X)
#undef X

}  // namespace conifer::gemm
