// The kernels for AVX-512 (F, BW, DQ, VL, VNNI), with AMX tiles where the processor has them.
#if defined(__x86_64__)
#include "isa/table.h"

namespace conifer::isa {

// Constant-initialised: no code of this file may run before isa.cpp has asked the processor.
constinit const KernelTable KERNELS_avx512 =
    kernel_table(gemm::quantize_avx512, gemm::multiply_avx512, true);

}  // namespace conifer::isa
#endif
