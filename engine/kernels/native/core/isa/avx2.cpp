// The kernels for AVX2 with FMA and F16C.
#if defined(__x86_64__)
#include "isa/table.h"

namespace conifer::isa {

// Constant-initialised: no code in this file may run before isa.cpp has checked the processor.
constinit const KernelTable KERNELS_avx2 = kernel_table(gemm::quantize_avx2, gemm::multiply_avx2);

}  // namespace conifer::isa
#endif
