// AVX2 with AVX-VNNI, as on desktop processors without AVX-512.
#if defined(__x86_64__)
#include "gemm/ops_avx2.h"

namespace conifer::gemm {

void quantize_avxvnni(const float* x, int64_t n, const quant::TokenSlot& out) {
  quantize<Avx2>(x, n, out);
}

void multiply_avxvnni(const Matrix& w, const TokenView* x, quant::Tokens kind, int64_t n, float* y,
                      int64_t y_stride, int64_t row0, int64_t row1) {
  multiply_in_registers<Avx2>(w, x, kind, n, y, y_stride, row0, row1);
}

}  // namespace conifer::gemm
#endif
